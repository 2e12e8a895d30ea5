//! The host's side of functions that are passed through: made as the VM needs them, for as long as it
//! is here.
//!
//! | module | what |
//! |---|---|
//! | `keeper` | `vferry run` makes the host so, watched by a process that outlives it |
//! | [`back`] | gives it back: after a run, after its sudden end, by hand |
//! | `port` | MAC address, VLAN, trust and spoof check, as the other host is told |

pub mod back;
mod keeper;
mod port;

pub(crate) use keeper::Keeper;

/// The driver that gives functions to processes.
const DRIVER: &str = "vfio-pci";

/// This host.
pub(crate) fn host() -> sriov::Host {
    sriov::Host::new(DRIVER)
}
