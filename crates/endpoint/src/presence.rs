//! Whether the function answers, around a reset of its bus.
//!
//! A reset takes from QEMU's side of a function what the guest had programmed. A function that has
//! to be programmed anew from outside first does not answer until then, as hardware that is not yet
//! ready (PCI Express Base 5.0, section 2.3.1: a root complex makes all ones of it): operating
//! systems wait for it.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What operating systems read to see whether a function is there: Vendor ID, Device ID, Command and
/// Status (`pci_dev_wait` in Linux). The rest is for a VMM that looks at its device meanwhile.
const LOOKED_AT: Range<u64> = 0..8;

/// Makes what was read of configuration space at `offset` look as of a function that is absent.
pub(crate) fn hide(offset: u64, data: &mut [u8]) {
    for (after, byte) in (0..).zip(data) {
        if LOOKED_AT.contains(&offset.saturating_add(after)) {
            *byte = 0xff;
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Presence(Mutex<State>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    Present,
    /// Absent from the next reset on.
    LeavesAtReset,
    Absent,
}

impl Presence {
    pub(crate) fn leave_at_reset(&self) {
        *self.lock() = State::LeavesAtReset;
    }

    pub(crate) fn appear(&self) {
        *self.lock() = State::Present;
    }

    pub(crate) fn is_absent(&self) -> bool {
        *self.lock() == State::Absent
    }

    /// The bus was reset.
    pub(crate) fn reset(&self) {
        let mut state = self.lock();
        if *state == State::LeavesAtReset {
            *state = State::Absent;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_is_absent_from_the_reset_that_it_leaves_at_until_it_appears() {
        let presence = Presence::default();
        presence.reset();
        assert!(!presence.is_absent());
        presence.leave_at_reset();
        assert!(!presence.is_absent());
        presence.reset();
        assert!(presence.is_absent());
        presence.appear();
        presence.reset();
        assert!(!presence.is_absent());
    }

    #[test]
    fn only_what_is_looked_at_is_hidden() {
        let mut data = [0; 6];
        hide(4, &mut data);
        assert_eq!(data, [0xff, 0xff, 0xff, 0xff, 0, 0]);
        hide(u64::MAX, &mut data);
        assert_eq!(data[4..], [0, 0]);
    }
}
