//! Conversations that are not over.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Counts them.
#[derive(Debug, Default)]
pub(super) struct AtWork {
    count: Mutex<usize>,
    changed: Condvar,
}

/// One of them, as long as it lives.
#[derive(Debug)]
pub(super) struct Working<'a>(&'a AtWork);

impl AtWork {
    pub(super) fn begin(&self) -> Working<'_> {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Working(self)
    }

    /// Waits until all are over, or for `limit`. Says whether all are.
    pub(super) fn wait(&self, limit: Duration) -> bool {
        let count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(count, limit, |n| *n > 0);
        let (count, _) = waited.unwrap_or_else(PoisonError::into_inner);
        *count == 0
    }
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        *self.0.count.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_waits_for_the_last_word_and_not_for_ever() {
        let at_work = AtWork::default();
        assert!(at_work.wait(Duration::ZERO), "nobody is at work");
        let working = at_work.begin();
        assert!(!at_work.wait(Duration::from_millis(5)));
        std::thread::scope(|scope| {
            let end = scope.spawn(|| at_work.wait(Duration::from_mins(1)));
            drop(working);
            assert!(end.join().unwrap());
        });
    }
}
