//! Devices that a guest which has come here by `recovery` has yet to reset.

use std::time::Duration;

use endpoint::Endpoint;
use qemu::Qmp;

use super::Vm;
use crate::recovery::{self, Late, Recovered};
use crate::restore::{RestoreError, Slot};

impl Vm {
    pub(crate) fn set_recovered(&self, recovered: Vec<Recovered>, late: Vec<Late>) {
        let mut state = self.lock();
        if let Some(session) = &mut state.session {
            session.recovered = recovered;
        }
        state.late = late;
        drop(state);
        self.0.changed.notify_all();
    }

    /// Goes on with those that another process has left, which served this VM before.
    ///
    /// # Errors
    /// When what it has left of one is in an unknown form.
    pub fn take_over_late(&self) -> Result<(), RestoreError> {
        self.set_recovered(Vec::new(), recovery::left(&self.0.endpoints)?);
        Ok(())
    }

    /// Waits for such a device, however long it takes.
    pub fn wait_late(&self) {
        self.wait(Duration::from_secs(u64::from(u32::MAX)), |state| {
            !state.late.is_empty()
        });
    }

    /// Whether the guest has yet to reset a device with which it came here by `recovery`.
    pub(crate) fn has_late(&self) -> bool {
        !self.lock().late.is_empty()
    }

    /// Whether it has reset one, so that [`Vm::see_to_late`] has to be called.
    pub fn is_late_due(&self) -> bool {
        let late = !self.lock().late.is_empty();
        late && self.0.endpoints.0.iter().any(Endpoint::has_left)
    }

    /// Programs what the guest has reset at last, as it was.
    ///
    /// # Errors
    /// When QEMU does not do it.
    pub fn see_to_late(&self, qmp: &Qmp, slots: &[Slot]) -> Result<(), RestoreError> {
        let mut late = std::mem::take(&mut self.lock().late);
        let result = recovery::see_to(&mut late, slots, qmp);
        self.lock().late = late;
        result
    }
}
