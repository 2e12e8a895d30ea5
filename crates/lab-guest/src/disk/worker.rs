//! One worker: one operation at a time on a region that nobody else touches.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use load_format::{DiskOperation, WrongBlock};
use rustix::io::Errno;

use super::account::{Account, Checked, Done};
use super::pattern::{BLOCK, Pattern};
use super::random::Random;
use super::table::{Expected, MAX_GENERATION, Table};
use super::target::Disk;
use crate::direct::Buffer;
use crate::now_nanos;

/// Where a worker works and what it may do there. Lengths are in blocks of 512 bytes.
#[derive(Debug)]
pub(crate) struct Region {
    /// The device.
    pub(crate) disk: Arc<dyn Disk>,
    /// Its name in reports.
    pub(crate) name: String,
    pub(crate) pattern: Pattern,
    /// Where the region begins on the device.
    pub(crate) first: u64,
    pub(crate) blocks: usize,
    /// What every offset and length is a multiple of.
    pub(crate) unit: usize,
    /// Length of an operation at most.
    pub(crate) longest: usize,
    /// A discarded block reads as zeroes.
    pub(crate) discards_are_zeroes: bool,
}

/// Does what chance says.
#[derive(Debug)]
pub(crate) struct Worker {
    region: Region,
    number: usize,
    account: Arc<Account>,
    table: Table,
    /// Number of the last write.
    generation: u32,
    random: Random,
    buffer: Buffer,
    /// What was changed last: read again more often than the rest.
    recent: VecDeque<Range<usize>>,
    /// What the device does not know.
    unsupported: Vec<DiskOperation>,
}

/// How often each operation is chosen, out of 1000. A discard starts a program: there are few.
const MIX: [(DiskOperation, u64); 7] = [
    (DiskOperation::Read, 450),
    (DiskOperation::Write, 390),
    (DiskOperation::DurableWrite, 50),
    (DiskOperation::Flush, 70),
    (DiskOperation::Zero, 20),
    (DiskOperation::ZeroUnmap, 15),
    (DiskOperation::Discard, 5),
];

/// How many changes are remembered to be read again.
const RECENT: usize = 8;

/// What an operation costs of the pace at least, in bytes: they shall not be too many either.
const LEAST_COST: u64 = 8192;

/// How far a worker may be behind its pace and catch up.
const CATCH_UP_NANOS: u64 = 100_000_000;

impl Worker {
    /// Worker number `number` of those whose account that is.
    pub(crate) fn new(region: Region, number: usize, account: Arc<Account>) -> Self {
        Self {
            number,
            account,
            table: Table::new(region.blocks),
            generation: 0,
            random: Random::seeded(region.pattern.run.wrapping_add(number as u64)),
            buffer: Buffer::new(region.longest * BLOCK),
            recent: VecDeque::with_capacity(RECENT),
            unsupported: Vec::new(),
            region,
        }
    }

    /// Works at `bytes_per_second` (0: as fast as the device). Never returns.
    pub(crate) fn run(&mut self, bytes_per_second: u64) {
        let mut due = now_nanos();
        loop {
            if let Some(pass) = self.account.owed_pass(self.number) {
                self.read_all();
                self.account.passed(self.number, pass);
            }
            let cost = self.step().max(LEAST_COST);
            let nanos = cost
                .saturating_mul(1_000_000_000)
                .checked_div(bytes_per_second);
            let now = now_nanos();
            // After a stall the rate is kept, not the sum.
            due = (due + nanos.unwrap_or(0)).max(now.saturating_sub(CATCH_UP_NANOS));
            std::thread::sleep(Duration::from_nanos(due.saturating_sub(now)));
        }
    }

    /// One operation of any kind; gives back how many bytes it moved.
    pub(crate) fn step(&mut self) -> u64 {
        let operation = self.choose();
        let again = operation == DiskOperation::Read && self.random.below(2) == 0;
        let blocks = match self.recent.len() as u64 {
            0 => self.choose_range(),
            known if again => {
                let index = usize::try_from(self.random.below(known)).unwrap_or(0);
                self.recent[index].clone()
            }
            _ => self.choose_range(),
        };
        let bytes = (blocks.len() * BLOCK) as u64;
        self.perform(operation, blocks);
        match operation {
            DiskOperation::Read | DiskOperation::Write | DiskOperation::DurableWrite => bytes,
            _ => 0,
        }
    }

    /// Reads the whole region, block by block.
    pub(crate) fn read_all(&mut self) {
        let Region {
            blocks, longest, ..
        } = self.region;
        for start in (0..blocks).step_by(longest) {
            self.perform(DiskOperation::Read, start..(start + longest).min(blocks));
        }
    }

    /// Does `operation` on these blocks of the region and notes what came of it.
    pub(crate) fn perform(&mut self, operation: DiskOperation, blocks: Range<usize>) {
        let writes = matches!(
            operation,
            DiskOperation::Write | DiskOperation::DurableWrite
        );
        if writes {
            self.fill(blocks.clone());
        }
        self.account.begin(self.number, now_nanos());
        let result = self.ask_device(operation, &blocks);
        let now = now_nanos();
        let optional = !matches!(operation, DiskOperation::Read | DiskOperation::Write);
        if optional && result == Err(Errno::OPNOTSUPP) {
            self.unsupported.push(operation);
            self.account.unsupported(self.number);
        } else {
            let done = Done {
                device: &self.region.name,
                operation,
                block: match operation {
                    DiskOperation::Flush => 0,
                    _ => self.region.first + blocks.start as u64,
                },
                bytes: (blocks.len() * BLOCK) as u64,
                result,
            };
            self.account.done(self.number, &done, now);
        }
        match (operation, result) {
            (DiskOperation::Flush, _) | (DiskOperation::Read, Err(_)) => {}
            (DiskOperation::Read, Ok(())) => self.check(blocks),
            (DiskOperation::Discard, Ok(())) if !self.region.discards_are_zeroes => {
                self.table.discard(blocks);
            }
            (_, Ok(())) => {
                let now = if writes {
                    Expected::Written(self.generation)
                } else {
                    Expected::Zeroes
                };
                self.table.set(blocks.clone(), now);
                self.remember(blocks);
            }
            // Any part of it may have been done.
            (_, Err(_)) => self.table.set(blocks, Expected::Unknown),
        }
    }

    fn ask_device(&mut self, operation: DiskOperation, blocks: &Range<usize>) -> Result<(), Errno> {
        let disk = &self.region.disk;
        let offset = (self.region.first + blocks.start as u64) * BLOCK as u64;
        let bytes = &mut self.buffer.bytes()[..blocks.len() * BLOCK];
        let len = bytes.len() as u64;
        match operation {
            DiskOperation::Read => disk.read(offset, bytes),
            DiskOperation::Write => disk.write(offset, bytes, false),
            DiskOperation::DurableWrite => disk.write(offset, bytes, true),
            DiskOperation::Flush => disk.flush(),
            DiskOperation::Zero => disk.zero(offset, len, false),
            DiskOperation::ZeroUnmap => disk.zero(offset, len, true),
            DiskOperation::Discard => disk.discard(offset, len),
        }
    }

    /// Puts the next write of these blocks into the buffer.
    fn fill(&mut self, blocks: Range<usize>) {
        self.generation = self.generation % MAX_GENERATION + 1;
        let bytes = self.buffer.bytes().as_chunks_mut().0;
        for (block, bytes) in blocks.zip(bytes) {
            let block = self.region.first + block as u64;
            self.region.pattern.fill(block, self.generation, bytes);
        }
    }

    /// Compares the buffer with what these blocks should hold.
    fn check(&mut self, blocks: Range<usize>) {
        let mut checked = Checked::default();
        for (block, bytes) in blocks.zip(self.buffer.bytes().as_chunks().0) {
            let expected = self.table.expected(block);
            let Some(tell) = expected.tell() else {
                continue;
            };
            checked.blocks += 1;
            let number = self.region.first + block as u64;
            if let Some(found) = self.region.pattern.wrong(number, expected, bytes) {
                checked.wrong += 1;
                checked.first_wrong.get_or_insert_with(|| WrongBlock {
                    device: self.region.name.clone(),
                    block: number,
                    expected: tell,
                    found,
                });
                // Counted once, until it is written again.
                self.table.set(block..block + 1, Expected::Unknown);
            }
        }
        self.account.checked(checked);
    }

    fn choose(&mut self) -> DiskOperation {
        let mut point = self.random.below(MIX.iter().map(|(_, share)| share).sum());
        for (operation, share) in MIX {
            if point < share {
                let known = !self.unsupported.contains(&operation);
                return if known {
                    operation
                } else {
                    DiskOperation::Read
                };
            }
            point -= share;
        }
        DiskOperation::Read
    }

    /// Every order of magnitude is as likely as the next smaller one or less, so that most operations
    /// are small and some as long as can be.
    fn choose_range(&mut self) -> Range<usize> {
        let Region {
            blocks,
            unit,
            longest,
            ..
        } = self.region;
        let units = (blocks / unit) as u64;
        let most = (longest / unit) as u64;
        let orders = u64::from(most.checked_ilog2().unwrap_or(0)) + 1;
        let order = self.random.below(orders).min(self.random.below(orders));
        let len = (1 << order) - self.random.below((1_u64 << order).div_ceil(2));
        let start = self.random.below(units - len + 1);
        let at = |units: u64| usize::try_from(units).unwrap_or(0) * unit;
        at(start)..at(start + len)
    }

    fn remember(&mut self, blocks: Range<usize>) {
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(blocks);
    }
}

#[cfg(test)]
#[path = "worker_tests.rs"]
mod tests;
