//! What each block of a region should hold, as far as its only writer knows.

use std::ops::Range;

use load_format::ExpectedBlock;

/// What a block should hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    /// Nobody knows: not written yet, or a write of it failed.
    Unknown,
    /// Zeroes.
    Zeroes,
    /// What this write put there.
    Written(u32),
    /// Discarded after this write (0: it was zeroes).
    Discarded(u32),
}

/// One word per block.
#[derive(Debug)]
pub(crate) struct Table(Vec<u32>);

const DISCARDED: u32 = 1 << 31;
const UNKNOWN: u32 = u32::MAX;

/// The highest number that a write can have; the next one is 1 again.
pub(crate) const MAX_GENERATION: u32 = DISCARDED - 2;

impl Table {
    /// Nothing is known of any of `blocks` blocks.
    pub(crate) fn new(blocks: usize) -> Self {
        Self(vec![UNKNOWN; blocks])
    }

    /// What block number `block` of the region should hold.
    pub(crate) fn expected(&self, block: usize) -> Expected {
        match self.0[block] {
            0 => Expected::Zeroes,
            UNKNOWN => Expected::Unknown,
            word if word & DISCARDED != 0 => Expected::Discarded(word & !DISCARDED),
            generation => Expected::Written(generation),
        }
    }

    pub(crate) fn set(&mut self, blocks: Range<usize>, expected: Expected) {
        self.0[blocks].fill(match expected {
            Expected::Unknown => UNKNOWN,
            Expected::Zeroes => 0,
            Expected::Written(generation) => generation,
            Expected::Discarded(generation) => generation | DISCARDED,
        });
    }

    /// The blocks may still hold what they did.
    pub(crate) fn discard(&mut self, blocks: Range<usize>) {
        for word in &mut self.0[blocks] {
            *word |= DISCARDED;
        }
    }
}

impl Expected {
    /// The write that counts; 0 if there is none.
    pub(crate) fn generation(self) -> u32 {
        match self {
            Self::Unknown | Self::Zeroes => 0,
            Self::Written(generation) | Self::Discarded(generation) => generation,
        }
    }

    /// As a report says it; none if there is nothing to expect.
    pub(crate) fn tell(self) -> Option<ExpectedBlock> {
        match self {
            Self::Unknown => None,
            Self::Zeroes => Some(ExpectedBlock::Zeroes),
            Self::Written(generation) => Some(ExpectedBlock::Written { generation }),
            Self::Discarded(generation) => Some(ExpectedBlock::Discarded { generation }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_what_was_done_to_it_last() {
        let mut table = Table::new(8);
        assert_eq!(table.expected(0), Expected::Unknown);
        table.set(0..6, Expected::Written(3));
        table.set(1..3, Expected::Zeroes);
        table.discard(2..4);
        table.discard(3..4);
        table.set(5..6, Expected::Written(MAX_GENERATION));
        table.discard(5..8);
        let all: Vec<_> = (0..8).map(|block| table.expected(block)).collect();
        assert_eq!(
            all,
            [
                Expected::Written(3),
                Expected::Zeroes,
                Expected::Discarded(0),
                Expected::Discarded(3),
                Expected::Written(3),
                Expected::Discarded(MAX_GENERATION),
                Expected::Unknown,
                Expected::Unknown,
            ]
        );
        table.set(2..6, Expected::Unknown);
        assert_eq!(table.expected(3), Expected::Unknown);
    }
}
