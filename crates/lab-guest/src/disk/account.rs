//! What was counted of the disk load; shared with those who ask.

use std::sync::{Mutex, MutexGuard, PoisonError};

use load_format::{DiskIoError, DiskOperation, DiskReport, DiskSilence, WrongBlock};
use rustix::io::Errno;

/// How long ago a silence may end for somebody to ask for it still: as long as a migration takes.
const RECENT_NANOS: u64 = 120_000_000_000;

/// The counts of all workers.
#[derive(Debug)]
pub(crate) struct Account(Mutex<Counts>);

#[derive(Debug)]
struct Counts {
    /// What is added up; the times that depend on the question's are not in it.
    report: DiskReport,
    /// When any worker completed an operation last.
    last_nanos: u64,
    /// Since when each worker's operation is on its way.
    pending: Vec<Option<u64>>,
    /// How many passes were asked for, and how many of them each worker has made.
    asked_passes: u64,
    passes: Vec<u64>,
    /// Lines that may still be printed: the console is slow.
    complaints: u64,
}

/// A completed operation.
#[derive(Debug)]
pub(crate) struct Done<'a> {
    /// The device's name.
    pub(crate) device: &'a str,
    pub(crate) operation: DiskOperation,
    /// First block of it.
    pub(crate) block: u64,
    /// Bytes it was for.
    pub(crate) bytes: u64,
    pub(crate) result: Result<(), Errno>,
}

/// What a read found.
#[derive(Debug, Default)]
pub(crate) struct Checked {
    /// Blocks that were compared.
    pub(crate) blocks: u64,
    /// Blocks that were wrong.
    pub(crate) wrong: u64,
    /// The first of those.
    pub(crate) first_wrong: Option<WrongBlock>,
}

impl Account {
    /// For so many workers, which begin at `now_nanos`.
    pub(crate) fn new(workers: usize, now_nanos: u64) -> Self {
        Self(Mutex::new(Counts {
            report: DiskReport {
                workers: workers as u64,
                ..DiskReport::default()
            },
            last_nanos: now_nanos,
            pending: vec![None; workers],
            asked_passes: 0,
            passes: vec![0; workers],
            complaints: 10,
        }))
    }

    /// Worker number `worker` begins an operation.
    pub(crate) fn begin(&self, worker: usize, now_nanos: u64) {
        self.counts().pending[worker] = Some(now_nanos);
    }

    /// The operation that worker number `worker` had begun is completed.
    pub(crate) fn done(&self, worker: usize, done: &Done<'_>, now_nanos: u64) {
        let mut counts = self.counts();
        let began = counts.pending[worker].take().unwrap_or(now_nanos);
        // Several workers: the one that looked at the clock first may come last.
        let silence = DiskSilence {
            from_nanos: counts.last_nanos,
            until_nanos: now_nanos,
        };
        counts.last_nanos = counts.last_nanos.max(now_nanos);
        let report = &mut counts.report;
        report.longest_silence_nanos = report.longest_silence_nanos.max(silence.nanos());
        if silence.nanos() >= DiskReport::MIN_SILENCE_NANOS {
            if report.silences.len() == DiskReport::MAX_SILENCES {
                report
                    .silences
                    .remove(to_forget(&report.silences, now_nanos));
            }
            report.silences.push(silence);
        }
        let took = now_nanos.saturating_sub(began);
        // How long a program takes to start says nothing of the device.
        let by_us = done.operation != DiskOperation::Discard;
        if by_us && took >= report.longest_operation_nanos {
            report.longest_operation_nanos = took;
            report.longest_operation = Some(done.operation);
        }
        report.operations += 1;
        match done.result {
            Ok(()) => count(report, done),
            Err(errno) => counts.failed(done, errno),
        }
    }

    /// The operation that worker number `worker` had begun is none that the device knows.
    pub(crate) fn unsupported(&self, worker: usize) {
        self.counts().pending[worker] = None;
    }

    /// A read's blocks were compared.
    pub(crate) fn checked(&self, checked: Checked) {
        let mut counts = self.counts();
        counts.report.checked_blocks += checked.blocks;
        counts.report.wrong_blocks += checked.wrong;
        if let Some(wrong) = checked.first_wrong {
            counts.complain(&format!("{} wrong blocks, first {wrong:?}", checked.wrong));
            counts.report.first_wrong.get_or_insert(wrong);
        }
    }

    /// Has every worker read all of its region; gives back which pass that will be.
    pub(crate) fn ask_pass(&self) -> u64 {
        let mut counts = self.counts();
        counts.asked_passes += 1;
        counts.asked_passes
    }

    /// The pass that worker number `worker` still has to make.
    pub(crate) fn owed_pass(&self, worker: usize) -> Option<u64> {
        let counts = self.counts();
        (counts.passes[worker] < counts.asked_passes).then_some(counts.asked_passes)
    }

    /// Worker number `worker` has read all of its region for pass number `pass`.
    pub(crate) fn passed(&self, worker: usize, pass: u64) {
        self.counts().passes[worker] = pass;
    }

    pub(crate) fn report(&self, now_nanos: u64) -> DiskReport {
        let counts = self.counts();
        let open = now_nanos.saturating_sub(counts.last_nanos);
        let oldest = counts.pending.iter().flatten().min();
        DiskReport {
            longest_silence_nanos: counts.report.longest_silence_nanos.max(open),
            oldest_pending_nanos: oldest.map_or(0, |began| now_nanos.saturating_sub(*began)),
            now_nanos,
            verified_passes: counts.passes.iter().min().copied().unwrap_or(0),
            ..counts.report.clone()
        }
    }

    pub(crate) fn reset(&self) {
        let mut counts = self.counts();
        counts.report = DiskReport {
            workers: counts.report.workers,
            ..DiskReport::default()
        };
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which of the silences is of the least interest: one of long ago, else the shortest. A busy machine
/// has many short ones after the one that is looked for.
fn to_forget(silences: &[DiskSilence], now_nanos: u64) -> usize {
    let oldest = silences.first();
    if oldest.is_none_or(|oldest| now_nanos.saturating_sub(oldest.until_nanos) > RECENT_NANOS) {
        return 0;
    }
    let shortest = silences
        .iter()
        .enumerate()
        .min_by_key(|(_, one)| one.nanos());
    shortest.map_or(0, |(index, _)| index)
}

fn count(report: &mut DiskReport, done: &Done<'_>) {
    match done.operation {
        DiskOperation::Read => {
            report.reads += 1;
            report.read_bytes += done.bytes;
        }
        DiskOperation::Write => {
            report.writes += 1;
            report.written_bytes += done.bytes;
        }
        DiskOperation::DurableWrite => {
            report.durable_writes += 1;
            report.written_bytes += done.bytes;
        }
        DiskOperation::Flush => report.flushes += 1,
        DiskOperation::Zero | DiskOperation::ZeroUnmap => report.zeroes += 1,
        DiskOperation::Discard => report.discards += 1,
    }
}

impl Counts {
    fn failed(&mut self, done: &Done<'_>, errno: Errno) {
        let error = DiskIoError {
            device: done.device.to_owned(),
            operation: done.operation,
            block: done.block,
            errno: errno.raw_os_error(),
        };
        self.complain(&format!("{error:?}"));
        self.report.io_errors += 1;
        if self.report.first_io_errors.len() < DiskReport::MAX_ERRORS {
            self.report.first_io_errors.push(error);
        }
    }

    fn complain(&mut self, what: &str) {
        if self.complaints > 0 {
            self.complaints -= 1;
            eprintln!("lab-guest: disk: {what}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(result: Result<(), Errno>) -> Done<'static> {
        Done {
            device: "disk",
            operation: DiskOperation::Read,
            block: 3,
            bytes: 512,
            result,
        }
    }

    #[test]
    fn times_are_of_operations_and_of_what_lies_between_them() {
        let account = Account::new(2, 100);
        account.begin(0, 110);
        account.begin(1, 120);
        account.done(1, &read(Ok(())), 130);
        let report = account.report(150);
        assert_eq!((report.oldest_pending_nanos, report.operations), (40, 1));
        assert_eq!(report.longest_silence_nanos, 30);
        account.done(0, &read(Ok(())), 200);
        let report = account.report(210);
        assert_eq!((report.oldest_pending_nanos, report.reads), (0, 2));
        assert_eq!(report.longest_operation_nanos, 90);
        assert_eq!(report.longest_silence_nanos, 70);
        assert_eq!(account.report(1000).longest_silence_nanos, 800);
        account.begin(0, 1000);
        let discard = Done {
            operation: DiskOperation::Discard,
            ..read(Ok(()))
        };
        account.done(0, &discard, 2000);
        let report = account.report(2000);
        assert_eq!(report.longest_operation, Some(DiskOperation::Read));
    }

    #[test]
    fn errors_are_bounded_and_a_reset_forgets_them_but_not_what_is_on_its_way() {
        let account = Account::new(1, 0);
        for _ in 0..DiskReport::MAX_ERRORS + 4 {
            account.done(0, &read(Err(Errno::IO)), 1);
        }
        let report = account.report(1);
        assert_eq!(report.first_io_errors.len(), DiskReport::MAX_ERRORS);
        assert_eq!(
            (report.io_errors, report.reads, report.operations),
            (20, 0, 20)
        );
        assert_eq!(report.first_io_errors[0].errno, 5);
        account.begin(0, 2);
        account.reset();
        let report = account.report(7);
        assert_eq!((report.io_errors, report.operations), (0, 0));
        assert_eq!((report.oldest_pending_nanos, report.workers), (5, 1));
        assert_eq!(report.longest_silence_nanos, 6);
    }

    #[test]
    fn a_long_silence_is_told_after_many_short_ones_and_forgotten_in_time() {
        const MS: u64 = 1_000_000;
        let account = Account::new(1, 0);
        let mut now = 500 * MS;
        account.done(0, &read(Ok(())), now);
        for _ in 0..100 {
            now += 20 * MS;
            account.done(0, &read(Ok(())), now);
        }
        let silences = account.report(now).silences;
        assert_eq!(silences.len(), DiskReport::MAX_SILENCES);
        let longest = silences.iter().map(DiskSilence::nanos).max();
        assert_eq!(longest, Some(500 * MS));
        account.done(0, &read(Ok(())), now + 2 * RECENT_NANOS);
        let silences = account.report(now).silences;
        let first = silences.first().map(DiskSilence::nanos);
        assert_eq!(first, Some(20 * MS));
    }

    #[test]
    fn a_pass_is_made_when_every_worker_has_made_it() {
        let account = Account::new(2, 0);
        assert_eq!(account.owed_pass(0), None);
        assert_eq!(account.ask_pass(), 1);
        assert_eq!(
            (account.owed_pass(0), account.owed_pass(1)),
            (Some(1), Some(1))
        );
        account.passed(0, 1);
        account.reset();
        assert_eq!(account.owed_pass(0), None);
        assert_eq!(account.report(0).verified_passes, 0);
        account.passed(1, 1);
        assert_eq!(account.report(0).verified_passes, 1);
    }
}
