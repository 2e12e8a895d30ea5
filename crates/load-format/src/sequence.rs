//! What the receiver of numbered packets keeps.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Keeps account of which numbers came, when, and which are missing.
///
/// Bounded: the newest [`MAX_GAPS`](Self::MAX_GAPS) runs of missing numbers are known one by one;
/// older ones only by their number of packets, and a packet of theirs that comes after all counts
/// as a duplicate.
#[derive(Debug, Clone, Default)]
pub struct Sequence {
    stream: Option<u32>,
    /// Numbers below were not asked for: they belong to the time before the window.
    base: u64,
    /// One above the highest number that came.
    next: u64,
    last_nanos: Option<u64>,
    longest: Option<Silence>,
    received: u64,
    duplicates: u64,
    reordered: u64,
    restarts: u64,
    gaps: VecDeque<Gap>,
    lost_in_forgotten_gaps: u64,
}

/// What the arrival of a number meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// The highest number so far, whether or not it leaves a gap.
    New,
    /// It had been missing.
    Late,
    /// It had come before (or its gap is forgotten).
    Duplicate,
    /// It belongs to the time before the window and is not counted.
    Before,
}

/// A run of numbers that did not come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// First missing number.
    pub first: u64,
    /// Last missing number.
    pub last: u64,
    /// When the packet before the gap came, in nanoseconds of the receiver's clock.
    pub before_nanos: u64,
    /// When the packet that showed the gap came.
    pub after_nanos: u64,
}

/// A time without a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Silence {
    /// When the last packet before it came, in nanoseconds of the receiver's clock.
    pub from_nanos: u64,
    /// When the next packet came, or when the question was asked.
    pub to_nanos: u64,
}

impl Sequence {
    /// How many runs of missing numbers are kept one by one.
    pub const MAX_GAPS: usize = 256;

    /// Notes that `number` of `stream` came at `now_nanos`.
    pub fn arrive(&mut self, stream: u32, number: u64, now_nanos: u64) -> Arrival {
        let Some(after) = number.checked_add(1) else {
            return Arrival::Before;
        };
        let before_nanos = self.last_nanos.unwrap_or(now_nanos);
        if self.stream != Some(stream) {
            self.begin(stream, number);
        }
        if number < self.base {
            return Arrival::Before;
        }
        self.note_time(now_nanos);
        if number >= self.next {
            if number > self.next {
                self.remember(Gap {
                    first: self.next,
                    last: number - 1,
                    before_nanos,
                    after_nanos: now_nanos,
                });
            }
            self.next = after;
            self.received += 1;
            return Arrival::New;
        }
        if self.fill(number) {
            self.received += 1;
            self.reordered += 1;
            Arrival::Late
        } else {
            self.duplicates += 1;
            Arrival::Duplicate
        }
    }

    /// Starts a new window: all counts are 0 again, the next number is still the one expected.
    pub fn start_window(&mut self) {
        *self = Self {
            stream: self.stream,
            base: self.next,
            next: self.next,
            last_nanos: self.last_nanos,
            ..Self::default()
        };
    }

    /// Different numbers that came.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Numbers below the highest that did not come.
    pub fn lost(&self) -> u64 {
        let known = self.gaps.iter().map(Gap::len).fold(0, u64::saturating_add);
        self.lost_in_forgotten_gaps.saturating_add(known)
    }

    /// Numbers that came again.
    pub fn duplicates(&self) -> u64 {
        self.duplicates
    }

    /// Numbers that came after a higher one.
    pub fn reordered(&self) -> u64 {
        self.reordered
    }

    /// How often the sender began again with another stream.
    pub fn restarts(&self) -> u64 {
        self.restarts
    }

    /// The newest runs of missing numbers, oldest first.
    pub fn gaps(&self) -> impl Iterator<Item = &Gap> {
        self.gaps.iter()
    }

    /// Missing numbers of gaps that are no longer kept one by one.
    pub fn lost_in_forgotten_gaps(&self) -> u64 {
        self.lost_in_forgotten_gaps
    }

    /// The highest number that came, and when anything came last.
    pub fn newest(&self) -> Option<(u64, u64)> {
        Some((self.next.checked_sub(1)?, self.last_nanos?))
    }

    /// The longest time without a packet, the one that lasts at `now_nanos` included.
    pub fn longest_silence(&self, now_nanos: u64) -> Option<Silence> {
        let open = Silence {
            from_nanos: self.last_nanos?,
            to_nanos: now_nanos,
        };
        Some(
            self.longest
                .filter(|longest| longest.nanos() >= open.nanos())
                .unwrap_or(open),
        )
    }

    fn begin(&mut self, stream: u32, number: u64) {
        if self.stream.is_some() {
            self.restarts += 1;
            self.lost_in_forgotten_gaps = self.lost();
            self.gaps.clear();
        }
        self.stream = Some(stream);
        self.base = number;
        self.next = number;
    }

    fn note_time(&mut self, now_nanos: u64) {
        if let Some(from_nanos) = self.last_nanos {
            let silence = Silence {
                from_nanos,
                to_nanos: now_nanos,
            };
            if self
                .longest
                .is_none_or(|longest| silence.nanos() > longest.nanos())
            {
                self.longest = Some(silence);
            }
        }
        self.last_nanos = Some(now_nanos);
    }

    fn remember(&mut self, gap: Gap) {
        self.make_room();
        self.gaps.push_back(gap);
    }

    fn make_room(&mut self) {
        if self.gaps.len() >= Self::MAX_GAPS
            && let Some(oldest) = self.gaps.pop_front()
        {
            self.lost_in_forgotten_gaps = self.lost_in_forgotten_gaps.saturating_add(oldest.len());
        }
    }

    /// Takes `number` out of the gap that holds it.
    fn fill(&mut self, number: u64) -> bool {
        let index = self.gaps.partition_point(|gap| gap.last < number);
        let Some(gap) = self.gaps.get_mut(index).filter(|gap| gap.first <= number) else {
            return false;
        };
        let whole = *gap;
        if whole.first == whole.last {
            self.gaps.remove(index);
        } else if number == whole.first {
            gap.first += 1;
        } else if number == whole.last {
            gap.last -= 1;
        } else {
            gap.last = number - 1;
            self.gaps.insert(
                index + 1,
                Gap {
                    first: number + 1,
                    ..whole
                },
            );
            if self.gaps.len() > Self::MAX_GAPS {
                self.make_room();
            }
        }
        true
    }
}

impl Gap {
    /// How many numbers are missing (at least 1).
    #[expect(clippy::len_without_is_empty, reason = "a gap is never empty")]
    pub fn len(&self) -> u64 {
        self.last.saturating_sub(self.first).saturating_add(1)
    }

    /// The time in which the missing packets should have come.
    pub fn silence(&self) -> Silence {
        Silence {
            from_nanos: self.before_nanos,
            to_nanos: self.after_nanos,
        }
    }
}

impl Silence {
    /// How long it lasted, in nanoseconds.
    pub fn nanos(&self) -> u64 {
        self.to_nanos.saturating_sub(self.from_nanos)
    }

    /// How long it lasted, in milliseconds.
    #[expect(
        clippy::cast_precision_loss,
        reason = "exact to the nanosecond for 104 days"
    )]
    pub fn millis(&self) -> f64 {
        self.nanos() as f64 / 1e6
    }

    /// Whether `other` lies within this silence stretched by `slack_nanos` at both ends.
    pub fn covers(&self, other: &Silence, slack_nanos: u64) -> bool {
        other.from_nanos >= self.from_nanos.saturating_sub(slack_nanos)
            && other.to_nanos <= self.to_nanos.saturating_add(slack_nanos)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn arrive_all(numbers: &[u64]) -> Sequence {
        let mut sequence = Sequence::default();
        for (at, number) in numbers.iter().enumerate() {
            sequence.arrive(7, *number, at as u64 * 10);
        }
        sequence
    }

    #[test]
    fn a_gap_knows_its_numbers_and_its_time() {
        let sequence = arrive_all(&[5, 6, 10, 11]);
        let gaps: Vec<_> = sequence.gaps().copied().collect();
        assert_eq!(
            gaps,
            [Gap {
                first: 7,
                last: 9,
                before_nanos: 10,
                after_nanos: 20
            }]
        );
        assert_eq!((sequence.received(), sequence.lost()), (4, 3));
    }

    #[test]
    fn a_late_packet_splits_the_gap_and_a_second_one_is_a_duplicate() {
        let mut sequence = arrive_all(&[0, 10]);
        assert_eq!(sequence.arrive(7, 5, 30), Arrival::Late);
        assert_eq!(sequence.arrive(7, 5, 31), Arrival::Duplicate);
        let runs: Vec<_> = sequence.gaps().map(|gap| (gap.first, gap.last)).collect();
        assert_eq!(runs, [(1, 4), (6, 9)]);
        assert_eq!(
            (sequence.lost(), sequence.reordered(), sequence.duplicates()),
            (8, 1, 1)
        );
    }

    #[test]
    fn a_new_window_still_misses_the_next_number() {
        let mut sequence = arrive_all(&[0, 1, 5]);
        sequence.start_window();
        assert_eq!(sequence.lost(), 0);
        assert_eq!(sequence.arrive(7, 3, 40), Arrival::Before);
        assert_eq!(sequence.arrive(7, 7, 50), Arrival::New);
        assert_eq!((sequence.received(), sequence.lost()), (1, 1));
    }

    #[test]
    fn the_longest_silence_includes_the_one_that_lasts() {
        let mut sequence = Sequence::default();
        assert_eq!(sequence.longest_silence(5), None);
        for now in [100, 110, 150, 160] {
            sequence.arrive(7, now, now);
        }
        let silence = sequence.longest_silence(170).expect("packets came");
        assert_eq!((silence.from_nanos, silence.to_nanos), (110, 150));
        let open = sequence.longest_silence(1000).expect("packets came");
        assert_eq!((open.from_nanos, open.to_nanos), (160, 1000));
    }

    #[test]
    fn a_new_stream_starts_again_and_keeps_what_was_lost() {
        let mut sequence = arrive_all(&[0, 3]);
        assert_eq!(sequence.arrive(8, 0, 50), Arrival::New);
        assert_eq!(
            (sequence.restarts(), sequence.lost(), sequence.received()),
            (1, 2, 3)
        );
        assert_eq!(sequence.gaps().count(), 0);
    }

    proptest! {
        #[test]
        fn counts_agree_with_a_set(numbers in prop::collection::vec(0_u64..200, 1..400)) {
            let sequence = arrive_all(&numbers);
            let base = numbers[0];
            let counted: Vec<u64> = numbers.iter().copied().filter(|n| *n >= base).collect();
            let set: BTreeSet<u64> = counted.iter().copied().collect();
            let highest = *set.last().expect("not empty");
            prop_assert_eq!(sequence.received(), set.len() as u64);
            prop_assert_eq!(sequence.duplicates(), (counted.len() - set.len()) as u64);
            prop_assert_eq!(sequence.lost(), highest - base + 1 - set.len() as u64);
            let missing: u64 = sequence.gaps().map(Gap::len).sum();
            prop_assert_eq!(missing, sequence.lost());
            for gap in sequence.gaps() {
                prop_assert!((gap.first..=gap.last).all(|n| !set.contains(&n)));
            }
        }

        #[test]
        fn garbage_numbers_stay_bounded(
            arrivals in prop::collection::vec((0_u32..3, any::<u64>(), any::<u64>()), 0..2000)
        ) {
            let mut sequence = Sequence::default();
            for (stream, number, now) in arrivals {
                sequence.arrive(stream, number, now);
                prop_assert!(sequence.gaps().count() <= Sequence::MAX_GAPS);
            }
            let _ = (sequence.lost(), sequence.longest_silence(u64::MAX));
        }
    }
}
