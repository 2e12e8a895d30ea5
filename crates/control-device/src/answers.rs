//! What became of a request, for one device.

use std::time::Duration;

use crate::spec::Promise;

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome<T> {
    /// The guest did it.
    Done {
        /// What it says.
        value: T,
        /// How long it took, by the guest's clock; for reports only.
        took: Duration,
    },
    /// The guest tried; the device works as before.
    Failed {
        /// A number of the guest's choice; for reports only.
        detail: u32,
    },
    /// The guest has no driver that can.
    Declined,
    /// No answer that counts came in time.
    Silent,
}

impl<T> Outcome<T> {
    /// What the guest says, if it did it.
    pub fn done(self) -> Option<T> {
        match self {
            Self::Done { value, .. } => Some(value),
            Self::Failed { .. } | Self::Declined | Self::Silent => None,
        }
    }
}

/// What a device looks like whose guest says that it has stopped it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// Bus mastering is off.
    Verified,
    /// Bus mastering is on: the guest's word is worth nothing.
    StillBusMaster,
}

/// How the host comes to know which pages a device wrote, as far as the guest helps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coverage {
    /// The DMA table has them all.
    Table,
    /// The guest touched them all, so the hypervisor's own log has them.
    Touched,
    /// Not by the guest: other means are needed, or the migration is unsound.
    None,
}

impl Coverage {
    pub(crate) fn of(promise: Outcome<Promise>, stopped: bool) -> Self {
        match promise.done() {
            Some(Promise::Table) => Self::Table,
            Some(Promise::TableAfterQuiesce) if stopped => Self::Table,
            Some(Promise::TouchAfterQuiesce) if stopped => Self::Touched,
            _ => Self::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promise_for_a_stopped_device_is_none_for_one_that_runs() {
        let promised = |value| Outcome::Done {
            value,
            took: Duration::ZERO,
        };
        let of = |promise, stopped| Coverage::of(promised(promise), stopped);
        assert_eq!(of(Promise::Table, false), Coverage::Table);
        assert_eq!(of(Promise::TableAfterQuiesce, false), Coverage::None);
        assert_eq!(of(Promise::TableAfterQuiesce, true), Coverage::Table);
        assert_eq!(of(Promise::TouchAfterQuiesce, false), Coverage::None);
        assert_eq!(of(Promise::TouchAfterQuiesce, true), Coverage::Touched);
        for outcome in [
            Outcome::Failed { detail: 1 },
            Outcome::Declined,
            Outcome::Silent,
        ] {
            assert_eq!(Coverage::of(outcome, true), Coverage::None);
        }
    }
}
