//! The `cooperative` strategy: the guest stops its devices by their drivers' own means before the
//! vCPUs stop, and starts them anew on the other side; and the guest's word on which pages devices
//! wrote, for devices that keep no log, whatever the strategy.
//!
//! | module | what |
//! |---|---|
//! | [`ask`] | the source's side: `TRACK` before memory is copied, `QUIESCE` when little is left |
//! | [`convergence`] | when little is left |
//! | [`hold`] | keeping QEMU from stopping the VM before the guest has answered |
//! | [`help`] | what the guest has said, as the stop hook finds it |
//! | [`end`] | the destination's side: `END`, and what became of it |
//!
//! `docs/guest-protocol.md` has the protocol, `control-device` the host's half of it. The guest is
//! never needed: a device that it does not stop in time goes over by its state, or, where that or
//! the pages it wrote cannot be known without the guest, the migration is given up.

pub(crate) mod ask;
pub(crate) mod convergence;
pub mod end;
pub(crate) mod help;
pub(crate) mod hold;

pub use hold::let_go;

use std::time::Duration;

use control_device::Control;
use control_device::spec::features;
use endpoint::Endpoint;

/// The way to a VM's guest.
#[derive(Debug, Clone)]
pub struct Guest {
    /// The host's half of the control device.
    pub control: Control,
    /// The control device's function, behind those that it speaks for.
    pub endpoint: Endpoint,
    /// How long the guest may take.
    pub deadlines: Deadlines,
}

/// How long the guest may take. The defaults are those of `docs/guest-protocol.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// To begin to track what devices write; the VM runs meanwhile, so that it costs nothing.
    pub track: Duration,
    /// To stop its devices. Those that have been stopped wait for the others.
    pub quiesce: Duration,
    /// To start them again, after which it is only reported: the VM runs in any case.
    pub end: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            track: Duration::from_secs(5),
            quiesce: Duration::from_millis(200),
            end: Duration::from_secs(5),
        }
    }
}

impl Guest {
    /// Whether there is somebody in the guest who stops devices when asked.
    pub(crate) fn stops_devices(&self) -> bool {
        let offered = self.control.driver();
        offered.is_some_and(|offered| offered & features::QUIESCE != 0)
    }

    /// Guest memory as the control device sees it; `None` while it is no bus master.
    fn memory(&self) -> Option<device::Look<'_>> {
        let reaches = self.endpoint.is_bus_master();
        reaches.then(|| self.endpoint.bus().look())
    }
}
