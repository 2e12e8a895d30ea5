//! What anybody outside can cause is not told more often than somebody can read it.

use std::fmt::Display;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Complaints of one kind.
pub(super) struct Complaints {
    that: &'static str,
    every: Duration,
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    last: Option<Instant>,
    untold: u64,
}

impl Complaints {
    /// Of which one `every` so often is told.
    pub(super) fn that(that: &'static str, every: Duration) -> Self {
        let told = Mutex::default();
        Self { that, every, told }
    }

    pub(super) fn of(&self, why: &dyn Display) {
        if let Some(untold) = self.due() {
            tracing::warn!(untold, "{}: {why}", self.that);
        }
    }

    /// How many have not been told since the last one that was, if one is due.
    fn due(&self) -> Option<u64> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.last.is_some_and(|last| last.elapsed() < self.every) {
            told.untold += 1;
            return None;
        }
        told.last = Some(Instant::now());
        Some(std::mem::take(&mut told.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_secs(10);

    #[test]
    fn the_first_is_told_and_others_are_counted() {
        let complaints = Complaints::that("it failed", EVERY);
        assert_eq!(complaints.due(), Some(0));
        assert_eq!(complaints.due(), None);
        assert_eq!(complaints.due(), None);
        let mut told = complaints.told.lock().expect("nobody panics");
        told.last = Instant::now().checked_sub(EVERY);
        drop(told);
        assert_eq!(complaints.due(), Some(2));
    }
}
