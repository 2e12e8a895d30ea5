//! What the guest has said, as the stop hook finds it.

use control_device::{Coverage, Quiesced, TableError, Tracked};
use device::DirtySink;
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
#[derive(Debug)]
pub(crate) struct Help {
    pub(crate) guest: Guest,
    pub(crate) strategy: Strategy,
    pub(crate) step: Step,
}

impl Help {
    /// Whether the guest lets the host know what device `index` writes.
    pub(crate) fn knows(&self, index: usize) -> bool {
        self.coverage(index) != Coverage::None
    }

    /// Marks what the guest says was written, and returns the number of pages.
    pub(crate) fn mark(
        &self,
        halted: &Halted<Endpoints>,
        sink: &mut dyn DirtySink,
    ) -> Result<u64, TableError> {
        let memory = self.guest.memory().ok_or(TableError::OutOfReach)?;
        match &self.step {
            Step::Tracked(tracked) => tracked.mark(halted, &memory, sink),
            Step::Quiesced(quiesced) => quiesced.mark(halted, &memory, sink),
        }
    }

    /// What goes to the other side of device `index`. The halted device is looked at once more: a
    /// driver that has started it since needs its state.
    pub(crate) fn carry(&self, index: usize, device: &Endpoint) -> Carry {
        match &self.step {
            Step::Quiesced(quiesced)
                if self.strategy == Strategy::Cooperative
                    && quiesced.is_stopped(index)
                    && !device.is_bus_master() =>
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

    fn coverage(&self, index: usize) -> Coverage {
        match &self.step {
            Step::Tracked(tracked) => tracked.coverage(index),
            Step::Quiesced(quiesced) => quiesced.coverage(index),
        }
    }
}
