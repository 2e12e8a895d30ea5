//! What the guest tells of its disk load.

use serde::{Deserialize, Serialize};

/// The disk load: every block read was compared with what had been written there.
///
/// All times are of the guest's `CLOCK_MONOTONIC`, which **stands still while the VM is paused**: an
/// operation that was on its way during a migration looks shorter by the outage than it was, and so
/// does a silence. Blocks are of 512 bytes, whatever the device's own are.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskReport {
    /// Workers over all devices, each with one operation on its way at most.
    pub workers: u64,
    /// Operations that were completed in this window, with or without success.
    pub operations: u64,
    /// Reads of any size that succeeded.
    pub reads: u64,
    /// Writes that succeeded, the durable ones not included.
    pub writes: u64,
    /// Writes with `RWF_DSYNC` that succeeded: the driver's FUA, or a flush behind the write.
    pub durable_writes: u64,
    /// Flushes (`fdatasync`) that succeeded.
    pub flushes: u64,
    /// Discards that succeeded.
    pub discards: u64,
    /// Ranges made zeroes by the device without data from us (Write Zeroes).
    pub zeroes: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Blocks read whose content was known beforehand and was compared with it.
    pub checked_blocks: u64,
    /// Of those, the ones that held something else. Each is counted once, until it is written again.
    pub wrong_blocks: u64,
    /// The first of those.
    pub first_wrong: Option<WrongBlock>,
    /// Operations that failed.
    pub io_errors: u64,
    /// The first of those (at most [`MAX_ERRORS`](Self::MAX_ERRORS)).
    pub first_io_errors: Vec<DiskIoError>,
    /// Longest time that one operation took, in ns; of discards it is not known, since the load has
    /// another program ask for them.
    pub longest_operation_nanos: u64,
    /// Which operation that was.
    pub longest_operation: Option<DiskOperation>,
    /// How long the oldest operation has been on its way that is not completed yet, in ns (0: none).
    pub oldest_pending_nanos: u64,
    /// Longest time in which no worker completed an operation, in ns: the one that lasts when the
    /// question is asked included, and the pauses of the load's own pace as well.
    pub longest_silence_nanos: u64,
    /// Times of at least [`MIN_SILENCE_NANOS`](Self::MIN_SILENCE_NANOS) in which no worker completed
    /// an operation, oldest first (at most [`MAX_SILENCES`](Self::MAX_SILENCES): those of the last two
    /// minutes, the longest if there are more); the one that lasts is not among them.
    pub silences: Vec<DiskSilence>,
    /// When the question was asked, in ns of the same clock as the silences.
    pub now_nanos: u64,
    /// How often every worker has read all that it knows, as `lab-guest verify` asks for; since the
    /// load began, not in this window alone.
    pub verified_passes: u64,
}

impl DiskReport {
    /// How many silences are kept one by one.
    pub const MAX_SILENCES: usize = 32;
    /// The shortest that are, in ns.
    pub const MIN_SILENCE_NANOS: u64 = 10_000_000;
    /// How many errors are kept one by one.
    pub const MAX_ERRORS: usize = 16;
}

/// A time in which no worker completed an operation, in ns of the guest's `CLOCK_MONOTONIC`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSilence {
    /// When the last operation before it was completed.
    pub from_nanos: u64,
    /// When the first one after it was.
    pub until_nanos: u64,
}

impl DiskSilence {
    /// How long it was, in ns.
    pub fn nanos(&self) -> u64 {
        self.until_nanos.saturating_sub(self.from_nanos)
    }
}

/// One kind of thing that the load asks of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskOperation {
    /// A read.
    Read,
    /// A write.
    Write,
    /// A write that is durable when it is completed.
    DurableWrite,
    /// A flush.
    Flush,
    /// Zeroes that take up room like written ones.
    Zero,
    /// Zeroes that the device may keep by forgetting what was there.
    ZeroUnmap,
    /// A discard, which promises nothing about the content.
    Discard,
}

/// An operation that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskIoError {
    /// The device, as it was named to the load.
    pub device: String,
    /// What was asked of it.
    pub operation: DiskOperation,
    /// First block of the operation (0 for a flush).
    pub block: u64,
    /// The kernel's error number; `EIO` also for a transfer that ended short.
    pub errno: i32,
}

/// A block that held something else than it should.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrongBlock {
    /// The device, as it was named to the load.
    pub device: String,
    /// Number of the block on the device, in 512 bytes.
    pub block: u64,
    /// What should have been there.
    pub expected: ExpectedBlock,
    /// What was there.
    pub found: FoundBlock,
}

/// What a block should hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "content", rename_all = "snake_case")]
pub enum ExpectedBlock {
    /// Zeroes, as asked for.
    Zeroes,
    /// What was written last.
    Written {
        /// Which write that was: each worker numbers its own, from 1.
        generation: u32,
    },
    /// It was discarded: zeroes, ones, or what had been there before.
    Discarded {
        /// The write before the discard; 0 if it was zeroes.
        generation: u32,
    },
}

/// What a wrong block held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "content", rename_all = "snake_case")]
pub enum FoundBlock {
    /// Nothing but zeroes.
    Zeroes,
    /// Nothing but ones.
    Ones,
    /// What an earlier write had left there: the last one was lost.
    Stale {
        /// Which write that was.
        generation: u32,
    },
    /// A write of this block that came after the one expected, or that failed.
    Newer {
        /// Which write that was.
        generation: u32,
    },
    /// A whole block of this load that belongs elsewhere on this device.
    Misplaced {
        /// Where it belongs.
        block: u64,
        /// Which write of the worker there it was.
        generation: u32,
    },
    /// A whole block of another device of this load (`run` is the same), or of an earlier load.
    Foreign {
        /// Number of the load's run.
        run: u64,
        /// Which of that load's devices it was for, from 0.
        device: u32,
        /// Where it belongs.
        block: u64,
        /// Which write of the worker there it was.
        generation: u32,
    },
    /// Headed like a block of ours, and then something else: parts of two writes, or damage.
    Mixed {
        /// Where it says it belongs.
        block: u64,
        /// Which write it says it was.
        generation: u32,
    },
    /// Nothing of ours.
    Garbage {
        /// Its first 8 bytes, as a little endian number.
        start: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_json_and_one_without_all_its_fields_is_read() {
        let report = DiskReport {
            wrong_blocks: 1,
            first_wrong: Some(WrongBlock {
                device: "/dev/nvme0n1".into(),
                block: 7,
                expected: ExpectedBlock::Written { generation: 3 },
                found: FoundBlock::Stale { generation: 2 },
            }),
            first_io_errors: vec![DiskIoError {
                device: "/dev/nvme0n1".into(),
                operation: DiskOperation::DurableWrite,
                block: 9,
                errno: 5,
            }],
            longest_operation: Some(DiskOperation::ZeroUnmap),
            ..DiskReport::default()
        };
        let json = serde_json::to_string(&report).expect("plain data");
        assert!(
            json.contains(r#""found":{"content":"stale","generation":2}"#),
            "{json}"
        );
        assert!(json.contains(r#""operation":"durable_write""#), "{json}");
        let back: DiskReport = serde_json::from_str(&json).expect("our own");
        assert_eq!(back, report);
        let sparse: DiskReport = serde_json::from_str(r#"{"reads":4}"#).expect("a report");
        assert_eq!((sparse.reads, sparse.workers), (4, 0));
    }
}
