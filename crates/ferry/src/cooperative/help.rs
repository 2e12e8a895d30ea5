//! What the guest has said, as the stop hook finds it.

use control_device::{Coverage, Quiesced, TableError, Tracked};
use device::GuestPageSink;
use device::lifecycle::Halted;
use endpoint::{Carry, Endpoint, Endpoints};

use super::Guest;
use crate::Strategy;

/// How far the guest has got.
#[derive(Debug)]
pub(crate) enum Step {
    /// It tells what devices write.
    Tracked(Tracked),
    /// It was asked to stop its devices.
    Quiesced(Quiesced),
}

/// The guest's help in a migration under way. Dropping it tells the guest that it is over.
///
/// What it says of a device holds for the device that it spoke of: one that was switched on again
/// since, by whomever (another driver, a kernel that was started by a crash), is not known.
#[derive(Debug)]
pub(crate) struct Help {
    pub(crate) guest: Guest,
    pub(crate) strategy: Strategy,
    pub(crate) step: Step,
    /// How often each device had been switched on when the guest was first asked.
    pub(crate) starts: Vec<u64>,
}

/// How often each device has been switched on.
pub(crate) fn starts(devices: &Endpoints) -> Vec<u64> {
    let all = devices.0.iter();
    all.map(|device| device.bus().enabled().1).collect()
}

impl Help {
    /// Whether the guest lets the host know what device `index` writes.
    pub(crate) fn knows(&self, index: usize, device: &Endpoint) -> bool {
        let coverage = match &self.step {
            Step::Tracked(tracked) => tracked.coverage(index),
            // A promise for a stopped device is none for one that runs.
            Step::Quiesced(quiesced) if quiesced.is_stopped(index) && is_off(device) => {
                quiesced.coverage(index)
            }
            Step::Quiesced(quiesced) => quiesced.coverage_if_running(index),
        };
        coverage != Coverage::None && self.is_as_it_was(index, device)
    }

    /// Marks what the guest says was written, and returns the number of pages.
    pub(crate) fn mark(
        &self,
        halted: &Halted<Endpoints>,
        sink: &mut dyn GuestPageSink,
    ) -> Result<u64, TableError> {
        let memory = self.guest.memory().ok_or(TableError::OutOfReach)?;
        match &self.step {
            Step::Tracked(tracked) => tracked.mark(halted, &memory, sink),
            Step::Quiesced(quiesced) => quiesced.mark(halted, &memory, sink),
        }
    }

    /// What goes to the other side of device `index`. A driver that has started it since it was
    /// stopped needs its state.
    pub(crate) fn carry(&self, index: usize, device: &Endpoint) -> Carry {
        match &self.step {
            Step::Quiesced(quiesced)
                if self.strategy == Strategy::Cooperative
                    && quiesced.is_stopped(index)
                    && is_off(device)
                    && self.is_as_it_was(index, device) =>
            {
                Carry::Configuration
            }
            _ => Carry::State,
        }
    }

    /// The VM has left: the guest is told on the other side.
    pub(crate) fn leave(self) {
        match self.step {
            Step::Tracked(tracked) => tracked.leave(),
            Step::Quiesced(quiesced) => quiesced.leave(),
        }
    }

    fn is_as_it_was(&self, index: usize, device: &Endpoint) -> bool {
        self.starts.get(index) == Some(&device.bus().enabled().1)
    }
}

fn is_off(device: &Endpoint) -> bool {
    !device.bus().enabled().0
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use control_device::spec::registers::{ACK, DEVICE_BASE, DRIVER, REQUEST};
    use control_device::spec::{READY, features};
    use pci::ConfigSpace;
    use vfio_user::Backend;

    use super::*;
    use crate::cooperative::Deadlines;

    /// A VM whose guest has just said that it has stopped its one device.
    struct Rig {
        help: Help,
        device: Endpoint,
        registers: endpoint::Frontend,
    }

    const SOON: Duration = Duration::from_secs(5);
    const DONE: u32 = 1;

    fn endpoint(name: &str, model: control_device::ControlDevice) -> Endpoint {
        let space = ConfigSpace::of(&control_device::spec::pci::LAYOUT);
        Endpoint::new(name, space, Box::new(model)).unwrap()
    }

    impl Rig {
        fn new() -> Self {
            let (model, control) = control_device::new(&[(0x8086, 0x10ed)]).unwrap();
            let speaker = endpoint("guest-control", model);
            // Any function does.
            let device = endpoint("net0", control_device::new(&[]).unwrap().0);
            let mut registers = speaker.frontend();
            let mut put = |at: u64, value: u32| {
                registers.region_write(0, at, &value.to_le_bytes()).unwrap();
            };
            put(DRIVER, READY | features::ALL);
            device.bus().set_enabled(true);
            let starts = starts(&Endpoints(vec![device.clone()]));
            let asked = control.quiesce(SOON).unwrap();
            device.bus().set_enabled(false);
            let mut request = [0; 4];
            registers.region_read(0, REQUEST, &mut request).unwrap();
            let answer = u32::from_le_bytes(request) | DONE;
            let at = DEVICE_BASE + ACK;
            registers
                .region_write(0, at, &answer.to_le_bytes())
                .unwrap();
            let quiesced = asked.wait(|_| control_device::Stopped::Verified);
            let guest = Guest {
                control,
                endpoint: speaker,
                deadlines: Deadlines::default(),
            };
            let help = Help {
                guest,
                strategy: Strategy::Cooperative,
                step: Step::Quiesced(quiesced),
                starts,
            };
            Self {
                help,
                device,
                registers,
            }
        }

        fn carry(&self) -> Carry {
            self.help.carry(0, &self.device)
        }
    }

    #[test]
    fn a_device_that_the_guest_has_stopped_goes_without_its_state() {
        assert_eq!(Rig::new().carry(), Carry::Configuration);
        let mut rig = Rig::new();
        rig.help.strategy = Strategy::Transparent;
        assert_eq!(rig.carry(), Carry::State);
    }

    #[test]
    fn a_device_that_was_started_since_needs_its_state() {
        let rig = Rig::new();
        rig.device.bus().set_enabled(true);
        assert_eq!(rig.carry(), Carry::State);
        // It has run meanwhile, and what it wrote is not known.
        rig.device.bus().set_enabled(false);
        assert_eq!(rig.carry(), Carry::State);
        assert!(!rig.help.knows(0, &rig.device));
    }

    #[test]
    fn a_driver_that_leaves_takes_its_word_with_it() {
        let mut rig = Rig::new();
        rig.registers.region_write(0, DRIVER, &[0; 4]).unwrap();
        assert_eq!(rig.carry(), Carry::State);
    }
}
