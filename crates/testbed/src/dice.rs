//! Chance that can be had again.

use std::time::Duration;

/// Numbers that follow from the first (Marsaglia's xorshift64).
#[derive(Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        let mut x = self.0.max(1);
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.0 = x;
        x
    }

    /// One of `sides`, from 0.
    pub(crate) fn throw(&mut self, sides: u64) -> u64 {
        (self.next() >> 11) % sides
    }

    /// A moment up to `limit` from now.
    pub(crate) fn moment(&mut self, limit: Duration) -> Duration {
        Duration::from_micros(self.throw(u64::try_from(limit.as_micros()).unwrap_or(u64::MAX)))
    }

    /// One of some.
    pub(crate) fn one_of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        let index = self.throw(all.len() as u64);
        &all[usize::try_from(index).unwrap_or_default()]
    }
}
