//! What a block holds: its own place and the write that put it there, in every byte.

use load_format::{Content, FoundBlock};

use super::table::Expected;

/// Length of a block, in bytes: the smallest that a disk has. A larger one of a device is several.
pub(crate) const BLOCK: usize = 512;

/// The blocks of one device in one run of the load.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pattern {
    /// Number of the run: tells its blocks from those that an earlier one left.
    pub(crate) run: u64,
    /// Which of the run's devices, from 0.
    pub(crate) device: u32,
}

/// What stands before a block's filling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    run: u64,
    device: u32,
    generation: u32,
    block: u64,
}

const MAGIC: [u8; 8] = *b"vferryBl";
const HEADER: usize = 32;

impl Pattern {
    /// Writes block number `block` of the device, as write number `generation` leaves it.
    pub(crate) fn fill(self, block: u64, generation: u32, out: &mut [u8; BLOCK]) {
        let header = self.header(block, generation).bytes();
        let (head, filling) = out.split_at_mut(HEADER);
        head.copy_from_slice(&header);
        Content::of_header(&header).fill(0, filling);
    }

    /// What block number `block` holds instead of what it should; none if that is right, or if
    /// nobody knows.
    pub(crate) fn wrong(
        self,
        block: u64,
        expected: Expected,
        bytes: &[u8; BLOCK],
    ) -> Option<FoundBlock> {
        let right = match expected {
            Expected::Unknown => true,
            Expected::Zeroes => is_all(bytes, 0),
            Expected::Written(generation) => self.is(block, generation, bytes),
            // NVM Command Set specification, "Dataset Management command", Deallocate: zeroes, ones
            // or what was written before, and nothing of anybody else.
            Expected::Discarded(before) => {
                is_all(bytes, 0)
                    || is_all(bytes, 0xff)
                    || before > 0 && self.is(block, before, bytes)
            }
        };
        (!right).then(|| self.identify(block, expected.generation(), bytes))
    }

    fn is(self, block: u64, generation: u32, bytes: &[u8; BLOCK]) -> bool {
        let header = self.header(block, generation).bytes();
        bytes.starts_with(&header) && filling_is_right(bytes)
    }

    fn header(self, block: u64, generation: u32) -> Header {
        Header {
            run: self.run,
            device: self.device,
            generation,
            block,
        }
    }

    /// What a block is that should be `expected`'s.
    fn identify(self, block: u64, expected: u32, bytes: &[u8; BLOCK]) -> FoundBlock {
        if is_all(bytes, 0) {
            return FoundBlock::Zeroes;
        }
        if is_all(bytes, 0xff) {
            return FoundBlock::Ones;
        }
        let Some(found) = Header::read(bytes) else {
            return FoundBlock::Garbage {
                start: word(bytes, 0),
            };
        };
        let generation = found.generation;
        if !filling_is_right(bytes) {
            return FoundBlock::Mixed {
                block: found.block,
                generation,
            };
        }
        if found.run != self.run || found.device != self.device {
            return FoundBlock::Foreign {
                run: found.run,
                device: found.device,
                block: found.block,
                generation,
            };
        }
        if found.block != block {
            return FoundBlock::Misplaced {
                block: found.block,
                generation,
            };
        }
        // Where zeroes should be, whatever is found is older: who writes knows of it.
        if expected == 0 || generation < expected {
            FoundBlock::Stale { generation }
        } else {
            FoundBlock::Newer { generation }
        }
    }
}

impl Header {
    fn bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..16].copy_from_slice(&self.run.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.device.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.generation.to_le_bytes());
        bytes[24..].copy_from_slice(&self.block.to_le_bytes());
        bytes
    }

    fn read(bytes: &[u8; BLOCK]) -> Option<Self> {
        let both = word(bytes, 2).to_le_bytes();
        let [d0, d1, d2, d3, g0, g1, g2, g3] = both;
        bytes.starts_with(&MAGIC).then(|| Self {
            run: word(bytes, 1),
            device: u32::from_le_bytes([d0, d1, d2, d3]),
            generation: u32::from_le_bytes([g0, g1, g2, g3]),
            block: word(bytes, 3),
        })
    }
}

fn filling_is_right(bytes: &[u8; BLOCK]) -> bool {
    let (header, filling) = bytes.split_at(HEADER);
    Content::of_header(header).check(0, filling).wrong == 0
}

fn word(bytes: &[u8; BLOCK], index: usize) -> u64 {
    u64::from_le_bytes(bytes.as_chunks().0[index])
}

fn is_all(bytes: &[u8; BLOCK], byte: u8) -> bool {
    bytes.iter().all(|found| *found == byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATTERN: Pattern = Pattern {
        run: 0x1234_5678_9abc_def0,
        device: 1,
    };

    fn block(pattern: Pattern, block: u64, generation: u32) -> [u8; BLOCK] {
        let mut bytes = [0; BLOCK];
        pattern.fill(block, generation, &mut bytes);
        bytes
    }

    /// What is said of `bytes` at block 5, where write 8 should be.
    fn at_five(bytes: &[u8; BLOCK]) -> Option<FoundBlock> {
        PATTERN.wrong(5, Expected::Written(8), bytes)
    }

    #[test]
    fn the_right_block_is_right_and_every_wrong_one_says_what_it_is() {
        assert_eq!(at_five(&block(PATTERN, 5, 8)), None);
        let found = |bytes| at_five(&bytes).expect("wrong");
        assert_eq!(
            found(block(PATTERN, 5, 7)),
            FoundBlock::Stale { generation: 7 }
        );
        assert_eq!(
            found(block(PATTERN, 5, 9)),
            FoundBlock::Newer { generation: 9 }
        );
        let misplaced = FoundBlock::Misplaced {
            block: 6,
            generation: 8,
        };
        assert_eq!(found(block(PATTERN, 6, 8)), misplaced);
        assert_eq!(found([0; BLOCK]), FoundBlock::Zeroes);
        assert_eq!(found([0xff; BLOCK]), FoundBlock::Ones);
        let start = 0x0707_0707_0707_0707;
        assert_eq!(found([7; BLOCK]), FoundBlock::Garbage { start });
    }

    #[test]
    fn a_block_of_another_device_or_an_earlier_run_is_foreign() {
        for (run, device) in [(PATTERN.run, 0), (PATTERN.run - 1, 1)] {
            let other = Pattern { run, device };
            let foreign = FoundBlock::Foreign {
                run,
                device,
                block: 5,
                generation: 8,
            };
            assert_eq!(at_five(&block(other, 5, 8)), Some(foreign));
        }
    }

    #[test]
    fn every_byte_is_checked_and_two_halves_do_not_make_a_whole() {
        for at in 0..BLOCK {
            let mut bytes = block(PATTERN, 5, 8);
            bytes[at] ^= 0x20;
            assert!(at_five(&bytes).is_some(), "byte {at}");
        }
        let mut torn = block(PATTERN, 5, 8);
        torn[256..].copy_from_slice(&block(PATTERN, 5, 7)[256..]);
        let mixed = FoundBlock::Mixed {
            block: 5,
            generation: 8,
        };
        assert_eq!(at_five(&torn), Some(mixed));
    }

    #[test]
    fn zeroes_and_discarded_blocks_hold_nothing_of_anybody_else() {
        let (ours, older) = (block(PATTERN, 5, 8), block(PATTERN, 5, 7));
        let of = |expected, bytes: &[u8; BLOCK]| PATTERN.wrong(5, expected, bytes);
        assert_eq!(of(Expected::Zeroes, &[0; BLOCK]), None);
        let stale = Some(FoundBlock::Stale { generation: 8 });
        assert_eq!(of(Expected::Zeroes, &ours), stale);
        for fine in [[0; BLOCK], [0xff; BLOCK], ours] {
            assert_eq!(of(Expected::Discarded(8), &fine), None);
        }
        let stale = Some(FoundBlock::Stale { generation: 7 });
        assert_eq!(of(Expected::Discarded(8), &older), stale);
        assert!(of(Expected::Discarded(0), &ours).is_some());
        assert_eq!(of(Expected::Unknown, &[7; BLOCK]), None);
    }
}
