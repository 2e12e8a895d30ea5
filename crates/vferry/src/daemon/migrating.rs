//! One migration at a time, out or in.

use std::sync::atomic::{AtomicBool, Ordering};

/// Whether one is under way.
#[derive(Debug, Default)]
pub(super) struct Migrating(AtomicBool);

/// One is, as long as this lives.
#[derive(Debug)]
pub(super) struct UnderWay<'a>(&'a AtomicBool);

impl Migrating {
    /// Begins one; `None` while another is under way.
    pub(super) fn begin(&self) -> Option<UnderWay<'_>> {
        let begun = self
            .0
            .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed);
        begun.ok().map(|_| UnderWay(&self.0))
    }

    /// Looks, and keeps nobody from beginning one meanwhile.
    pub(super) fn is_under_way(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_at_a_time() {
        let migrating = Migrating::default();
        let one = migrating.begin();
        assert!(one.is_some() && migrating.is_under_way());
        assert!(migrating.begin().is_none());
        drop(one);
        assert!(!migrating.is_under_way() && migrating.begin().is_some());
    }

    #[test]
    fn whoever_looks_keeps_nobody_from_it() {
        let migrating = Migrating::default();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    let _ = migrating.is_under_way();
                }
            });
            let begun = (0..100_000).filter(|_| migrating.begin().is_some()).count();
            done.store(true, Ordering::Release);
            assert_eq!(begun, 100_000);
        });
    }
}
