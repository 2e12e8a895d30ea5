//! A set of a file's pages.

/// Bit `n` of word `i` is page `64 * i + n`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PageSet(Vec<u64>);

const BITS: u64 = 64;

impl PageSet {
    /// Adds `count` pages from `first` on. As many bits are kept as the last page needs.
    pub(crate) fn add(&mut self, first: u64, count: u64) {
        let end = first.saturating_add(count);
        let Some(words) = usize::try_from(end.div_ceil(BITS)).ok() else {
            return;
        };
        if self.0.len() < words {
            self.0.resize(words, 0);
        }
        let mut page = first;
        while page < end {
            let bit = page % BITS;
            let take = (BITS - bit).min(end - page);
            let word = usize::try_from(page / BITS).ok();
            if let Some(word) = word.and_then(|word| self.0.get_mut(word)) {
                *word |= (u64::MAX >> (BITS - take)) << bit;
            }
            page += take;
        }
    }

    /// Adds the pages of `words`, from page 0 on.
    pub(crate) fn add_words(&mut self, words: &[u64]) {
        if self.0.len() < words.len() {
            self.0.resize(words.len(), 0);
        }
        for (word, more) in self.0.iter_mut().zip(words) {
            *word |= more;
        }
    }

    pub(crate) fn words(&self) -> &[u64] {
        &self.0
    }

    /// How many pages are in it.
    pub(crate) fn len(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_holds_what_was_added(ranges in proptest::collection::vec((0u64..300, 0u64..200), 0..6)) {
            let mut set = PageSet::default();
            let mut expected = std::collections::BTreeSet::new();
            for (first, count) in ranges {
                set.add(first, count);
                expected.extend(first..first + count);
            }
            let mut again = PageSet::default();
            again.add_words(set.words());
            let is_in = |page: u64| set.0.get(usize::try_from(page / 64).unwrap())
                .is_some_and(|word| word >> (page % 64) & 1 == 1);
            prop_assert!((0..600).all(|page| is_in(page) == expected.contains(&page)));
            prop_assert_eq!(set.len(), expected.len() as u64);
            prop_assert_eq!(again, set);
        }
    }
}
