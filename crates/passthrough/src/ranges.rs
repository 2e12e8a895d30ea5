//! Addresses, as few ranges as they make up.

use std::collections::BTreeMap;
use std::ops::Range;

/// None of them touches another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    pub(crate) fn insert(&mut self, Range { mut start, mut end }: Range<u64>) {
        if start >= end {
            return;
        }
        // From the highest down: all that touch it become a part of it.
        while let Some((&first, &last)) = self.0.range(..=end).next_back() {
            if last < start {
                break;
            }
            self.0.remove(&first);
            start = start.min(first);
            end = end.max(last);
        }
        self.0.insert(start, end);
    }

    /// Whether all of `range` is in it.
    pub(crate) fn contains(&self, range: &Range<u64>) -> bool {
        let before = self.0.range(..=range.start).next_back();
        before.is_some_and(|(_, &end)| range.end <= end)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.0.iter().map(|(&start, &end)| start..end)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The one range that holds all of those which start in `within`; none if there are none.
    pub(crate) fn hull(&self, within: impl std::ops::RangeBounds<u64>) -> Option<Range<u64>> {
        let mut within = self.0.range(within);
        let (&start, &end) = within.next()?;
        Some(start..within.next_back().map_or(end, |(_, &end)| end))
    }
}

impl FromIterator<Range<u64>> for Ranges {
    fn from_iter<I: IntoIterator<Item = Range<u64>>>(ranges: I) -> Self {
        let mut all = Self::default();
        ranges.into_iter().for_each(|range| all.insert(range));
        all
    }
}

#[cfg(test)]
mod tests {
    #![expect(
        clippy::single_range_in_vec_init,
        reason = "ranges are what is compared"
    )]

    use super::*;

    fn of(ranges: &[Range<u64>]) -> Vec<Range<u64>> {
        let ranges: Ranges = ranges.iter().cloned().collect();
        ranges.iter().collect()
    }

    #[test]
    fn what_touches_is_one() {
        assert_eq!(of(&[0..2, 4..6]), [0..2, 4..6]);
        assert_eq!(of(&[0..2, 4..6, 2..4]), [0..6]);
        assert_eq!(of(&[4..6, 0..2, 1..9]), [0..9]);
        assert_eq!(of(&[0..9, 4..6]), [0..9]);
        assert_eq!(of(&[0..2, 8..9, 6..7, 1..6]), [0..7, 8..9]);
        assert_eq!(of(&[3..3]), []);
    }

    #[test]
    fn what_is_in_it_is_so_as_a_whole() {
        let ranges: Ranges = [0..4, 8..12].into_iter().collect();
        assert!(ranges.contains(&(8..12)) && ranges.contains(&(1..2)));
        assert!(!ranges.contains(&(3..5)) && !ranges.contains(&(4..8)));
        assert!(!ranges.contains(&(7..9)));
    }

    #[test]
    fn a_hull_holds_all_that_start_in_it() {
        let ranges: Ranges = [0..4, 8..12, 20..30].into_iter().collect();
        assert_eq!(ranges.hull(..20), Some(0..12));
        assert_eq!(ranges.hull(20..), Some(20..30));
        assert_eq!(ranges.hull(..), Some(0..30));
        assert_eq!(ranges.hull(31..), None);
    }
}
