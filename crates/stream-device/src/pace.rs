//! How much the device may write now.

use std::time::Duration;

/// What is due is looked at this often.
pub(crate) const STEP: Duration = Duration::from_millis(2);

/// Most pages in one call: 1 MiB.
pub(crate) const BURST: u32 = 256;

/// One page, in the unit in which allowances are counted: pages per second times nanoseconds.
const PAGE: u64 = 1_000_000_000;

/// The allowance. It is not saved: a device that has moved starts with none.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    looked: Option<Duration>,
    /// Never above `BURST` pages, and never more in debt than one descriptor.
    allowance: i64,
}

impl Pace {
    /// The time is now `now`: adds what `rate` allows for the time since the last look.
    pub(crate) fn look(&mut self, now: Duration, rate: u32) {
        let since = self
            .looked
            .map_or(Duration::ZERO, |looked| now.saturating_sub(looked));
        self.looked = Some(now);
        let nanos = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        let earned = i64::try_from(nanos.saturating_mul(rate.into())).unwrap_or(i64::MAX);
        let most = i64::try_from(PAGE * u64::from(BURST)).expect("it is far below 2^63");
        self.allowance = self.allowance.saturating_add(earned).min(most);
    }

    /// Nothing is to be done: time that passes until the next look earns nothing.
    pub(crate) fn rest(&mut self) {
        self.looked = None;
    }

    /// Whether a page may be written.
    pub(crate) fn may(&self) -> bool {
        self.allowance > 0
    }

    /// Takes `pages` from the allowance, at most those of one descriptor.
    pub(crate) fn spend(&mut self, pages: u32) {
        let cost = i64::try_from(PAGE * u64::from(pages)).unwrap_or(i64::MAX);
        self.allowance = self.allowance.saturating_sub(cost);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pages that are written until `end`, looked at every `step`.
    fn written(rate: u32, step: Duration, end: Duration) -> u32 {
        let mut pace = Pace::default();
        let mut pages = 0;
        let mut now = Duration::ZERO;
        while now <= end {
            pace.look(now, rate);
            while pace.may() {
                pace.spend(1);
                pages += 1;
            }
            now += step;
        }
        pages
    }

    #[test]
    fn as_many_pages_as_the_rate_says_are_written_however_often_it_is_looked() {
        let second = Duration::from_secs(1);
        for rate in [1, 7, 1_000, 10_000] {
            for step in [Duration::from_micros(10), STEP, 5 * STEP] {
                let pages = written(rate, step, second);
                assert!((rate..=rate + 1).contains(&pages), "{pages} at {rate}");
            }
        }
        assert_eq!(written(0, STEP, second), 0);
    }

    #[test]
    fn a_long_absence_earns_one_burst() {
        let day = Duration::from_hours(24);
        assert_eq!(written(1_000_000, day, day), BURST);
        assert_eq!(
            written(u32::MAX, Duration::MAX / 2, Duration::MAX / 2),
            BURST
        );
    }

    #[test]
    fn rest_earns_nothing() {
        let mut pace = Pace::default();
        pace.look(Duration::ZERO, 1_000);
        pace.rest();
        pace.look(Duration::from_secs(1), 1_000);
        assert!(!pace.may());
    }
}
