//! Chance that can be had again.

use std::time::Duration;

/// Numbers that follow from the first (Marsaglia's xorshift64).
#[derive(Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The numbers of the `number`th part of something, which can be had without those before.
    pub(crate) fn of_part(seed: u64, number: u64) -> Self {
        // Neighbours are spread far apart (Steele's SplitMix64).
        let mut x = seed.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self(x ^ (x >> 31))
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
