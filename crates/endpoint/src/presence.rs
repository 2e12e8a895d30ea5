//! Whether the function answers, around a reset of its bus.
//!
//! A reset takes from QEMU's side of a function what the guest had programmed. A function that has
//! to be programmed anew from outside first does not answer until then, as hardware that is not yet
//! ready (PCI Express Base 5.0, section 2.3.1: a root complex makes all ones of it): operating
//! systems wait for it.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

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

/// Whether a function answers, and what it waits for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum State {
    /// It answers.
    #[default]
    Present,
    /// It is absent from the next reset on, until this has been programmed.
    LeavesAtReset(Programme),
    /// It is absent until this has been programmed.
    Absent(Programme),
    /// It answers, so that this can be programmed.
    BeingProgrammed(Programme),
}

/// What a function has to be programmed with from outside, in a form that its owner knows.
type Programme = serde_json::Value;

impl Presence {
    pub(crate) fn leave_at_reset(&self, programme: Programme) {
        *self.lock() = State::LeavesAtReset(programme);
    }

    /// It answers, to be programmed.
    pub(crate) fn answer(&self) {
        let mut state = self.lock();
        if let State::Absent(programme) = &mut *state {
            *state = State::BeingProgrammed(programme.take());
        }
    }

    pub(crate) fn appear(&self) {
        *self.lock() = State::Present;
    }

    pub(crate) fn is_absent(&self) -> bool {
        matches!(*self.lock(), State::Absent(_))
    }

    /// The bus was reset.
    pub(crate) fn reset(&self) {
        let mut state = self.lock();
        if let State::LeavesAtReset(programme) = &mut *state {
            *state = State::Absent(programme.take());
        }
    }

    /// What is still to be programmed.
    pub(crate) fn programme(&self) -> Option<Programme> {
        match &*self.lock() {
            State::Present => None,
            State::LeavesAtReset(programme)
            | State::Absent(programme)
            | State::BeingProgrammed(programme) => Some(programme.clone()),
        }
    }

    pub(crate) fn state(&self) -> State {
        self.lock().clone()
    }

    /// Goes on from the state that another process has left. What it was programming when it died is
    /// programmed from its beginning.
    pub(crate) fn take_over(&self, left: State) {
        *self.lock() = match left {
            State::BeingProgrammed(programme) => State::Absent(programme),
            left => left,
        };
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_is_absent_from_the_reset_that_it_leaves_at_until_it_answers() {
        let presence = Presence::default();
        presence.reset();
        assert!(!presence.is_absent());
        presence.leave_at_reset("this".into());
        assert!(!presence.is_absent());
        presence.reset();
        assert!(presence.is_absent());
        presence.answer();
        presence.reset();
        assert!(!presence.is_absent());
        assert_eq!(presence.programme(), Some("this".into()));
        presence.appear();
        presence.reset();
        assert!(!presence.is_absent());
        assert_eq!(presence.programme(), None);
    }

    #[test]
    fn what_another_process_was_programming_is_programmed_from_its_beginning() {
        let presence = Presence::default();
        presence.leave_at_reset("this".into());
        let next = Presence::default();
        next.take_over(presence.state());
        assert_eq!(next.state(), presence.state());
        presence.reset();
        presence.answer();
        next.take_over(presence.state());
        assert!(next.is_absent());
        assert_eq!(next.programme(), Some("this".into()));
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
