//! A worker on a disk that does as it is told, and on disks that do not.

use std::sync::{Mutex, PoisonError};

use load_format::{DiskReport, ExpectedBlock, FoundBlock};

use super::*;
use crate::direct::Direct;

/// Memory that makes one mistake.
#[derive(Debug)]
struct Memory(Mutex<(Vec<u8>, Fault)>);

#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// The next write or zeroing is said to be done and is not.
    Lost,
    /// The next write goes this many bytes further on.
    Shifted(usize),
    /// Of the next write only so many bytes arrive.
    Torn(usize),
    /// The next read comes from this many bytes further on.
    ReadShifted(usize),
    /// The next operation fails, after it was done.
    Failed(Errno),
}

const BLOCKS: usize = 512;

impl Memory {
    fn new() -> Arc<Self> {
        // Left by somebody else: what was not written is not to be judged.
        Arc::new(Self(Mutex::new((vec![0xa5; BLOCKS * BLOCK], Fault::None))))
    }

    fn fault(&self, fault: Fault) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1 = fault;
    }

    /// Changes the bytes of a range as `change` does; gives it the fault, which is over then.
    fn change(
        &self,
        offset: u64,
        len: u64,
        change: impl Fn(&mut [u8], usize, usize, Fault),
    ) -> Result<(), Errno> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fault = std::mem::replace(&mut state.1, Fault::None);
        let offset = usize::try_from(offset).expect("small");
        let len = usize::try_from(len).expect("small");
        if fault != Fault::Lost {
            change(&mut state.0, offset, len, fault);
        }
        match fault {
            Fault::Failed(errno) => Err(errno),
            _ => Ok(()),
        }
    }
}

impl Disk for Memory {
    fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), Errno> {
        let out = Mutex::new(bytes);
        let len = out.lock().expect("ours").len() as u64;
        self.change(offset, len, |memory, offset, len, fault| {
            let from = match fault {
                Fault::ReadShifted(by) => offset + by,
                _ => offset,
            };
            let mut out = out.lock().expect("ours");
            out.copy_from_slice(&memory[from..from + len]);
        })
    }

    fn write(&self, offset: u64, bytes: &[u8], _durable: bool) -> Result<(), Errno> {
        self.change(offset, bytes.len() as u64, |memory, offset, len, fault| {
            let (to, len) = match fault {
                Fault::Shifted(by) => (offset + by, len),
                Fault::Torn(len) => (offset, len),
                _ => (offset, len),
            };
            memory[to..to + len].copy_from_slice(&bytes[..len]);
        })
    }

    fn flush(&self) -> Result<(), Errno> {
        self.change(0, 0, |_, _, _, _| {})
    }

    fn zero(&self, offset: u64, len: u64, _unmap: bool) -> Result<(), Errno> {
        self.change(offset, len, |memory, offset, len, _| {
            memory[offset..offset + len].fill(0);
        })
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), Errno> {
        self.change(offset, len, |memory, offset, len, _| {
            // Half of its blocks are forgotten.
            memory[offset..offset + len / 2 / BLOCK * BLOCK].fill(0);
        })
    }
}

/// A worker on the second half of the disk.
fn worker(disk: Arc<dyn Disk>) -> Worker {
    let region = Region {
        disk,
        name: "disk".into(),
        pattern: Pattern { run: 7, device: 0 },
        first: BLOCKS as u64 / 2,
        blocks: BLOCKS / 2,
        unit: 1,
        longest: 64,
        discards_are_zeroes: false,
    };
    Worker::new(region, 0, Arc::new(Account::new(1, 0)))
}

fn report(worker: &Worker) -> DiskReport {
    worker.account.report(now_nanos())
}

/// Writes blocks 0 to 20 of the region twice, and has the second write of 8 to 12 go wrong.
fn after(fault: Fault) -> DiskReport {
    let memory = Memory::new();
    let mut worker = worker(memory.clone());
    worker.perform(DiskOperation::Write, 0..20);
    memory.fault(fault);
    worker.perform(DiskOperation::Write, 8..12);
    memory.fault(Fault::None);
    worker.read_all();
    report(&worker)
}

#[test]
fn a_disk_that_does_as_it_is_told_is_never_wrong() {
    let memory = Memory::new();
    let mut worker = worker(memory.clone());
    for _ in 0..5000 {
        worker.step();
    }
    worker.read_all();
    let report = report(&worker);
    assert_eq!((report.wrong_blocks, report.io_errors), (0, 0));
    assert!(report.checked_blocks > 10_000, "{report:?}");
    for count in [
        report.reads,
        report.writes,
        report.durable_writes,
        report.flushes,
        report.zeroes,
        report.discards,
    ] {
        assert!(count > 0, "{report:?}");
    }
    let memory = memory.0.lock().expect("whole");
    let (others, ours) = memory.0.split_at(BLOCKS / 2 * BLOCK);
    assert!(others.iter().all(|byte| *byte == 0xa5), "not its region");
    assert!(ours[ours.len() - BLOCK..].iter().any(|byte| *byte != 0xa5));
}

#[test]
fn every_length_up_to_the_longest_is_within_the_region() {
    let mut worker = worker(Memory::new());
    worker.region.unit = 8;
    let mut longest = 0;
    for _ in 0..5000 {
        let range = worker.choose_range();
        assert!(
            range.start.is_multiple_of(8) && range.len().is_multiple_of(8) && !range.is_empty()
        );
        assert!(range.end <= worker.region.blocks);
        longest = longest.max(range.len());
    }
    assert_eq!(longest, 64);
}

#[test]
fn a_lost_write_leaves_stale_blocks() {
    let report = after(Fault::Lost);
    assert_eq!((report.wrong_blocks, report.checked_blocks), (4, 20));
    let wrong = report.first_wrong.expect("four are wrong");
    assert_eq!(wrong.block, BLOCKS as u64 / 2 + 8);
    assert_eq!(wrong.expected, ExpectedBlock::Written { generation: 2 });
    assert_eq!(wrong.found, FoundBlock::Stale { generation: 1 });
}

#[test]
fn a_shifted_write_leaves_stale_blocks_and_misplaced_ones() {
    let report = after(Fault::Shifted(2 * BLOCK));
    // 8 and 9 are old; 10 to 13 hold what belongs to 8 to 11.
    assert_eq!(report.wrong_blocks, 6);
    let wrong = report.first_wrong.expect("six are wrong");
    assert_eq!(wrong.found, FoundBlock::Stale { generation: 1 });
}

#[test]
fn a_misdirected_read_says_where_it_came_from() {
    let memory = Memory::new();
    let mut worker = worker(memory.clone());
    worker.perform(DiskOperation::Write, 0..20);
    memory.fault(Fault::ReadShifted(5 * BLOCK));
    worker.perform(DiskOperation::Read, 4..5);
    let wrong = report(&worker).first_wrong.expect("wrong");
    let misplaced = FoundBlock::Misplaced {
        block: BLOCKS as u64 / 2 + 9,
        generation: 1,
    };
    assert_eq!(wrong.found, misplaced);
}

#[test]
fn a_write_torn_within_a_block_is_noticed() {
    let report = after(Fault::Torn(3 * BLOCK + 256));
    assert_eq!(report.wrong_blocks, 1);
    let wrong = report.first_wrong.expect("one");
    let mixed = FoundBlock::Mixed {
        block: BLOCKS as u64 / 2 + 11,
        generation: 2,
    };
    assert_eq!(wrong.found, mixed);
}

#[test]
fn zeroes_that_were_not_made_are_noticed() {
    for operation in [DiskOperation::Zero, DiskOperation::ZeroUnmap] {
        let memory = Memory::new();
        let mut worker = worker(memory.clone());
        worker.perform(DiskOperation::Write, 0..4);
        memory.fault(Fault::Lost);
        worker.perform(operation, 1..3);
        worker.read_all();
        let report = report(&worker);
        assert_eq!(report.wrong_blocks, 2);
        let wrong = report.first_wrong.expect("two");
        assert_eq!(wrong.expected, ExpectedBlock::Zeroes);
        assert_eq!(wrong.found, FoundBlock::Stale { generation: 1 });
    }
}

#[test]
fn what_was_discarded_may_be_gone_unless_zeroes_are_promised() {
    let memory = Memory::new();
    let mut worker = worker(memory);
    worker.perform(DiskOperation::Write, 0..8);
    worker.perform(DiskOperation::Discard, 0..8);
    worker.read_all();
    assert_eq!(report(&worker).wrong_blocks, 0);
    worker.region.discards_are_zeroes = true;
    worker.perform(DiskOperation::Discard, 0..8);
    worker.read_all();
    // Half of it was not forgotten.
    assert_eq!(report(&worker).wrong_blocks, 4);
}

#[test]
fn of_a_failed_write_nothing_is_expected_and_a_wrong_block_is_counted_once() {
    let report = after(Fault::Failed(Errno::IO));
    assert_eq!((report.wrong_blocks, report.checked_blocks), (0, 16));
    assert_eq!((report.io_errors, report.writes), (1, 1));
    assert_eq!(report.first_io_errors[0].block, BLOCKS as u64 / 2 + 8);

    let memory = Memory::new();
    let mut worker = worker(memory.clone());
    memory.fault(Fault::Lost);
    worker.perform(DiskOperation::Write, 0..1);
    worker.read_all();
    worker.read_all();
    assert_eq!(self::report(&worker).wrong_blocks, 1);
}

#[test]
fn what_a_device_does_not_know_is_not_asked_again_and_is_no_error() {
    let memory = Memory::new();
    let mut worker = worker(memory.clone());
    memory.fault(Fault::Failed(Errno::OPNOTSUPP));
    worker.perform(DiskOperation::Zero, 0..1);
    assert!((0..2000).all(|_| worker.choose() != DiskOperation::Zero));
    let report = report(&worker);
    assert_eq!((report.io_errors, report.operations), (0, 0));
    assert_eq!(report.oldest_pending_nanos, 0);
}

#[test]
fn a_plain_file_is_a_disk_that_does_as_it_is_told() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file()
        .set_len((BLOCKS * BLOCK) as u64)
        .expect("room");
    let mut worker = worker(Arc::new(Direct::open(file.path()).expect("our own")));
    worker.region.unit = 8;
    for _ in 0..300 {
        worker.step();
    }
    worker.read_all();
    let report = report(&worker);
    assert_eq!((report.wrong_blocks, report.io_errors), (0, 0));
    assert!(report.checked_blocks > 100, "{report:?}");
}
