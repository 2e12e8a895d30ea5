//! When things happened, for questions asked afterwards.

use std::collections::VecDeque;

use load_format::Silence;

/// Times kept: half an hour at 2 000 per second, 32 MiB. A packet whose time is forgotten counts as
/// lost outside of every outage.
const KEPT: usize = 1 << 22;

/// The newest times at which something of one kind came.
#[derive(Debug, Default)]
pub(super) struct Times {
    newest: VecDeque<u64>,
    longest: Option<Silence>,
}

impl Times {
    /// Notes that something came; a time before the last one counts as that.
    pub(super) fn note(&mut self, nanos: u64) {
        let mut nanos = nanos;
        if let Some(last) = self.last() {
            nanos = nanos.max(last);
            let silence = Silence {
                from_nanos: last,
                to_nanos: nanos,
            };
            self.longest = self
                .longest
                .into_iter()
                .chain([silence])
                .max_by_key(Silence::nanos);
        }
        if self.newest.len() == KEPT {
            self.newest.pop_front();
        }
        self.newest.push_back(nanos);
    }

    pub(super) fn last(&self) -> Option<u64> {
        self.newest.back().copied()
    }

    /// The longest silence since the last [`start_window`](Self::start_window), the one that lasts
    /// included.
    pub(super) fn longest(&self, now_nanos: u64) -> Option<Silence> {
        let open = Silence {
            from_nanos: self.last()?,
            to_nanos: now_nanos,
        };
        self.longest
            .into_iter()
            .chain([open])
            .max_by_key(Silence::nanos)
    }

    /// The longest silence of which some part lies between `since` and `until`.
    pub(super) fn longest_within(&self, since: u64, until: u64, now: u64) -> Option<Silence> {
        self.silences_within(since, until, now)
            .max_by_key(Silence::nanos)
    }

    /// All silences, however short, of which some part lies between `since` and `until`.
    pub(super) fn silences_within(
        &self,
        since: u64,
        until: u64,
        now: u64,
    ) -> impl Iterator<Item = Silence> {
        let last = self.last().map(|last| now.max(last));
        let ends = self.newest.iter().skip(1).copied().chain(last);
        let first = self
            .newest
            .partition_point(|time| *time <= since)
            .saturating_sub(1);
        std::iter::zip(self.newest.iter().copied(), ends)
            .skip(first)
            .take_while(move |(from, _)| *from < until)
            .filter(move |(_, to)| *to > since)
            .map(|(from_nanos, to_nanos)| Silence {
                from_nanos,
                to_nanos,
            })
    }

    /// Forgets the longest silence so far.
    pub(super) fn start_window(&mut self) {
        self.longest = None;
    }
}

/// When each of the newest consecutive numbers was sent.
#[derive(Debug, Default)]
pub(super) struct SendLog {
    times: VecDeque<u64>,
    /// The number whose time is the oldest in `times`.
    first: u64,
}

impl SendLog {
    /// Notes that the next number was sent.
    pub(super) fn note(&mut self, nanos: u64) {
        if self.times.len() == KEPT {
            self.times.pop_front();
            self.first += 1;
        }
        self.times.push_back(nanos);
    }

    pub(super) fn sent_at(&self, number: u64) -> Option<u64> {
        let index = usize::try_from(number.checked_sub(self.first)?).ok()?;
        self.times.get(index).copied()
    }

    /// The times of those of the numbers `first..=last` that are still known.
    pub(super) fn known(&self, first: u64, last: u64) -> impl Iterator<Item = u64> {
        let index = |number: u64| usize::try_from(number.saturating_sub(self.first)).ok();
        let past = last
            .checked_add(1)
            .and_then(index)
            .map_or(self.times.len(), |past| past);
        let past = past.min(self.times.len());
        let begin = index(first).map_or(past, |begin| begin.min(past));
        self.times.range(begin..past).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(all: &[u64]) -> Times {
        let mut times = Times::default();
        for nanos in all {
            times.note(*nanos);
        }
        times
    }

    fn within(all: &[u64], since: u64, until: u64) -> Option<(u64, u64)> {
        let silence = times(all).longest_within(since, until, 1000)?;
        Some((silence.from_nanos, silence.to_nanos))
    }

    #[test]
    fn a_window_sees_the_silences_that_reach_into_it_and_no_others() {
        let all = [100, 110, 150, 160, 200, 300, 310];
        assert_eq!(within(&all, 0, 170), Some((160, 200)));
        assert_eq!(within(&all, 120, 155), Some((110, 150)));
        assert_eq!(within(&all, 0, 100), None);
        assert_eq!(within(&all, 305, 310), Some((300, 310)));
        assert_eq!(within(&all, 305, 311), Some((310, 1000)));
        assert_eq!(within(&all, 400, 500), Some((310, 1000)));
        assert_eq!(within(&[], 0, 500), None);
    }

    #[test]
    fn the_longest_silence_starts_anew_with_the_window() {
        let mut times = times(&[100, 200, 210]);
        assert_eq!(
            times.longest(215).map(|silence| silence.from_nanos),
            Some(100)
        );
        times.start_window();
        times.note(250);
        assert_eq!(
            times.longest(251).map(|silence| silence.from_nanos),
            Some(210)
        );
        assert_eq!(
            times.longest(300).map(|silence| silence.from_nanos),
            Some(250)
        );
    }

    #[test]
    fn old_times_give_way_and_the_rest_keep_their_numbers() {
        let mut log = SendLog::default();
        let kept = KEPT as u64;
        for number in 0..kept + 5 {
            log.note(number * 10);
        }
        assert_eq!(log.sent_at(4), None);
        assert_eq!(log.sent_at(5), Some(50));
        assert_eq!(log.sent_at(kept + 4), Some((kept + 4) * 10));
        assert_eq!(log.sent_at(kept + 5), None);
        assert_eq!(log.known(0, 6).collect::<Vec<_>>(), [50, 60]);
        assert_eq!(log.known(kept + 4, u64::MAX).count(), 1);
        assert_eq!(log.known(u64::MAX, u64::MAX).count(), 0);
        assert_eq!(log.known(9, 3).count(), 0);
    }
}
