//! Which pages of a file were written.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};

use super::PAGE_SIZE;

const PAGE_SHIFT: u32 = PAGE_SIZE.trailing_zeros();

/// A bit for each page.
///
/// To mark a page takes an atomic OR, which on x86 waits until the data before it is visible to all. A write to
/// pages that are [marked](Written::are_marked) already needs none, which is sound only because of how bits are
/// taken: by [`Written::take`], while no burst of DMA is under way. A bit that was set during a burst stays set until the
/// burst has ended, and its data is visible to whoever takes the bit afterwards. Were bits taken during a burst, a page might
/// be read without what was written to it.
///
/// The look comes before the data, not after it: a processor takes a load from an address whose last 12 bits are
/// those of a store that is under way for a load of that store's data, and waits. After a page of stores, all are.
#[derive(Debug)]
pub(crate) struct Written {
    words: Vec<AtomicU64>,
    pages: usize,
}

impl Written {
    /// Of a file of so many bytes.
    pub(super) fn new(bytes: usize) -> Self {
        let pages = bytes.div_ceil(1 << PAGE_SHIFT);
        let words = (0..pages.div_ceil(64)).map(|_| AtomicU64::new(0));
        Self {
            words: words.collect(),
            pages,
        }
    }

    /// Takes all that was written: bit `n` of word `i` is page `64 * i + n`. Nobody may write meanwhile.
    pub(super) fn take(&self) -> Vec<u64> {
        let take = |word: &AtomicU64| {
            let taken = word.load(Ordering::Relaxed);
            word.store(0, Ordering::Relaxed);
            taken
        };
        self.words.iter().map(take).collect()
    }

    /// Whether all pages of these bytes are marked.
    #[inline]
    pub(super) fn are_marked(&self, at: usize, len: usize) -> bool {
        let is_marked = |page| {
            let found = self.word(page);
            found.is_none_or(|(word, bit)| word.load(Ordering::Relaxed) & bit != 0)
        };
        let (first, last) = pages(at, len).into_inner();
        // Most writes are within a page.
        is_marked(first) && (first == last || (first + 1..=last).all(is_marked))
    }

    /// Marks all pages of these bytes. What orders data and bit is the lock that keeps [`Self::take`] out until
    /// the burst has ended.
    #[cold]
    pub(super) fn mark(&self, at: usize, len: usize) {
        for (word, bit) in pages(at, len).map_while(|page| self.word(page)) {
            word.fetch_or(bit, Ordering::Relaxed);
        }
    }

    #[inline]
    fn word(&self, page: usize) -> Option<(&AtomicU64, u64)> {
        let word = self.words.get(page / 64).filter(|_| page < self.pages)?;
        Some((word, 1 << (page % 64)))
    }
}

/// Those of `len` bytes, which are at least one.
#[inline]
fn pages(at: usize, len: usize) -> RangeInclusive<usize> {
    let last = at.saturating_add(len.saturating_sub(1));
    at >> PAGE_SHIFT..=last >> PAGE_SHIFT
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = 1 << PAGE_SHIFT;

    #[test]
    fn every_page_that_is_touched_is_marked_and_taken_once() {
        let written = Written::new(130 * PAGE);
        written.mark(2 * PAGE - 1, 2);
        written.mark(63 * PAGE, PAGE);
        written.mark(129 * PAGE, 1);
        assert!(written.are_marked(PAGE, 2 * PAGE));
        assert!(!written.are_marked(PAGE, 2 * PAGE + 1), "page 3 is not");
        assert!(!written.are_marked(PAGE - 1, 2), "page 0 is not");
        assert_eq!(written.take(), [1 << 63 | 0b110, 0, 0b10]);
        assert_eq!(written.take(), [0; 3]);
        assert!(!written.are_marked(PAGE, 1));
        written.mark(PAGE, 1);
        assert_eq!(written.take(), [0b10, 0, 0], "marked anew");
    }

    #[test]
    fn nothing_is_marked_beyond_the_end() {
        let written = Written::new(PAGE);
        written.mark(0, usize::MAX);
        written.mark(usize::MAX, usize::MAX);
        assert_eq!(written.take(), [1]);
    }
}
