//! Keeping QEMU from stopping the VM before the guest has answered.
//!
//! QEMU stops the vCPUs as soon as what is left to send fits the downtime limit, and a guest whose
//! vCPUs are stopped answers nothing. There is no command that holds it (`pause-before-switchover`
//! pauses after the stop; a downtime limit of zero does not hold an idle guest). So some pages are
//! marked as written over and over, and QEMU is told meanwhile that the link takes less than one page within
//! the shortest pause: it goes on while a single one of them, or of those that the guest writes, is left.
//!
//! It would get through if it sent all of them before one is marked again: some milliseconds, or one if they are
//! all zero, for which a thread of ordinary priority may well wait where every processor has work. So it has
//! real-time priority where the system lets it: it sleeps but for some microseconds in each half of a
//! millisecond.
//!
//! Tried instead: `max-bandwidth` lowered. It holds, but QEMU sleeps out its window of 100 ms when
//! it is lifted, while the guest's devices stand still.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use thread_priority::{
    RealtimeThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy,
    set_thread_priority_and_policy, thread_native_id,
};

use qemu::migration::{MigrationSettings, RamProgress};
use qemu::{Qmp, QmpError};
use sidecar::LogHandle;

use super::convergence::sendable;

/// How often: well below what QEMU takes for the pages of a [`Hold`].
const INTERVAL: Duration = Duration::from_micros(500);
/// While it holds. With zero QEMU does not look for what has been written since (`migration_iteration_run`).
const DOWNTIME_LIMIT: Duration = Duration::from_millis(1);
/// While it holds, bytes per second: less than a page in [`DOWNTIME_LIMIT`], and more than nothing.
const SWITCHOVER_BANDWIDTH: u64 = 1_000_000;
/// What QEMU measures.
const MEASURED: u64 = 0;
/// The downtime limit that QEMU has when none is set.
const QEMU_DOWNTIME_LIMIT: Duration = Duration::from_millis(300);
/// Bytes that are marked, in a VM that has eight times as much.
const BYTES: u64 = 16 << 20;
/// Bytes for which one chunk of 64 bits stands.
const CHUNK: u64 = 64 * 4096;

/// Holds as long as it lives.
#[derive(Debug)]
pub(crate) struct Hold {
    released: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// What is marked in a VM with `memory` bytes, first page and words: some way from the start,
/// where a PC's memory has no holes.
fn region(memory: u64) -> (u64, Vec<u64>) {
    let bytes = bytes(memory);
    let words = usize::try_from(bytes / CHUNK).unwrap_or(0);
    (bytes / 4096, vec![u64::MAX; words])
}

/// Bytes that a hold keeps QEMU sending in a VM with `memory` bytes.
pub(crate) fn bytes(memory: u64) -> u64 {
    BYTES.min(memory / 8) / CHUNK * CHUNK
}

/// Bytes left to send at which the guest's turn has come, in a VM with `memory` bytes that is held
/// and whose pause is to be `limit`: what fits that, and what the hold keeps QEMU sending.
pub(crate) fn near(ram: &RamProgress, limit: Option<Duration>, memory: u64) -> u64 {
    let limit = limit.unwrap_or(QEMU_DOWNTIME_LIMIT).as_millis();
    let held = bytes(memory);
    sendable(ram, u64::try_from(limit).unwrap_or(u64::MAX))
        .saturating_add(held)
        .saturating_add(held / 2)
}

/// By what QEMU plans the last pass: tight as long as anybody holds it, and afterwards as it was before.
#[derive(Debug)]
pub(crate) struct Limits<'a> {
    qmp: &'a Qmp,
    holders: Cell<u32>,
    /// What QEMU had, while it has something else.
    before: Cell<Option<Plan>>,
}

/// `downtime-limit` and `avail-switchover-bandwidth`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Plan {
    limit: Duration,
    bandwidth: u64,
}

impl Plan {
    /// What QEMU has without anybody's wish.
    const DEFAULT: Self = Self {
        limit: QEMU_DOWNTIME_LIMIT,
        bandwidth: MEASURED,
    };
    const TIGHT: Self = Self {
        limit: DOWNTIME_LIMIT,
        bandwidth: SWITCHOVER_BANDWIDTH,
    };

    /// What QEMU has, but for what a process has left that died while it held QEMU.
    fn read(qmp: &Qmp) -> Result<Self, QmpError> {
        let plan = Self::read_as_is(qmp)?;
        Ok(if plan == Self::TIGHT {
            Self::DEFAULT
        } else {
            plan
        })
    }

    /// Whether it is what [`Limits::tighten`] or [`Limits::expect`] sets. The latter may be somebody's wish as well.
    fn is_held(self) -> bool {
        self.limit == DOWNTIME_LIMIT && [SWITCHOVER_BANDWIDTH, MEASURED].contains(&self.bandwidth)
    }

    fn read_as_is(qmp: &Qmp) -> Result<Self, QmpError> {
        let limit = qmp.migration_parameter("downtime-limit")?.as_u64();
        let bandwidth = qmp.migration_parameter("avail-switchover-bandwidth")?;
        Ok(Self {
            limit: limit.map_or(Self::DEFAULT.limit, Duration::from_millis),
            bandwidth: bandwidth.as_u64().unwrap_or(Self::DEFAULT.bandwidth),
        })
    }

    fn set(self, qmp: &Qmp) -> Result<(), QmpError> {
        qmp.set_migration_parameters(&MigrationSettings {
            downtime_limit: Some(self.limit),
            switchover_bandwidth: Some(self.bandwidth),
            ..MigrationSettings::default()
        })
    }
}

/// Has QEMU plan the end of migrations as by default, where a process has died that had kept it from one. What
/// its owner had set before is not known any more.
///
/// # Errors
/// When QEMU does not do it.
pub fn let_go(qmp: &Qmp) -> Result<(), QmpError> {
    if Plan::read_as_is(qmp)?.is_held() {
        Plan::DEFAULT.set(qmp)?;
    }
    Ok(())
}

impl<'a> Limits<'a> {
    /// As they are.
    pub(crate) fn new(qmp: &'a Qmp) -> Self {
        Self {
            qmp,
            holders: Cell::new(0),
            before: Cell::new(None),
        }
    }

    /// Has QEMU stop the VM only when nothing is left to send, of which a [`Hold`] keeps it.
    pub(crate) fn tighten(&self) -> Result<(), QmpError> {
        if self.before.get().is_none() {
            self.before.set(Some(Plan::read(self.qmp)?));
        }
        self.holders.set(self.holders.get() + 1);
        Plan::TIGHT.set(self.qmp)
    }

    /// To be called before the guest is asked, of whom it takes some time to answer: has QEMU stop the VM when
    /// what is left would fit a millisecond, as [`Hold`] keeps it from. QEMU heeds a change within 100 ms
    /// (`BUFFER_DELAY`), and after a [`Limits::tighten`] it would go on that long while the guest's devices
    /// stand still.
    pub(crate) fn expect(&self) -> Result<(), QmpError> {
        let plan = Plan {
            bandwidth: MEASURED,
            ..Plan::TIGHT
        };
        plan.set(self.qmp)
    }

    /// One of those who hold it does so no more. When nobody does, QEMU stops the VM as soon as what is
    /// left fits the limit that it had.
    pub(crate) fn loosen(&self) -> Result<(), QmpError> {
        self.holders.set(self.holders.get().saturating_sub(1));
        if self.holders.get() > 0 {
            return Plan::TIGHT.set(self.qmp);
        }
        self.put_back()
    }

    fn put_back(&self) -> Result<(), QmpError> {
        let Some(before) = self.before.get() else {
            return Ok(());
        };
        before.set(self.qmp)?;
        self.before.set(None);
        Ok(())
    }
}

impl Drop for Limits<'_> {
    /// A migration that fails leaves QEMU as it was: another one may be begun by somebody else.
    fn drop(&mut self) {
        match self.put_back() {
            // It has ended.
            Ok(()) | Err(QmpError::Disconnected { .. }) => {}
            Err(error) => tracing::warn!(
                %error,
                "QEMU's `downtime-limit` and `avail-switchover-bandwidth` stay as they are while it \
                 waits for its guest: set them, should you migrate the VM without vferry"
            ),
        }
    }
}

impl Hold {
    /// Begins, in a VM with `memory` bytes from address 0 on.
    pub(crate) fn start(log: LogHandle, memory: u64) -> std::io::Result<Self> {
        let released = Arc::new(AtomicBool::new(false));
        let (first_page, words) = region(memory);
        let thread = std::thread::Builder::new().name("hold".into()).spawn({
            let released = Arc::clone(&released);
            move || {
                come_first();
                while !released.load(Ordering::Acquire) {
                    log.with(|marker| marker.mark_words(first_page, &words));
                    std::thread::park_timeout(INTERVAL);
                }
            }
        })?;
        Ok(Self {
            released,
            thread: Some(thread),
        })
    }
}

/// Lets this thread run as soon as it wakes, before all that is of ordinary priority.
fn come_first() {
    let policy = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::RoundRobin);
    let least = ThreadPriority::Min;
    if let Err(why) = set_thread_priority_and_policy(thread_native_id(), least, policy) {
        tracing::debug!(%why, "a hold without real-time priority");
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.released.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use serde_json::json;

    use super::*;
    use crate::scripted;

    /// Where the system lets it, as it does root.
    #[test]
    fn who_marks_comes_before_threads_of_ordinary_priority() {
        let may = rustix::process::getuid().is_root();
        let thread = std::thread::spawn(|| {
            come_first();
            thread_priority::thread_schedule_policy()
        });
        let policy = thread.join().unwrap().unwrap();
        let real_time = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::RoundRobin);
        assert!(!may || policy == real_time, "{policy:?}");
    }

    /// A QEMU that has this limit in milliseconds and this bandwidth, and tells what it was set to.
    fn qemu(limit: u64, bandwidth: u64) -> (Qmp, Arc<Mutex<(u64, u64)>>) {
        let has = Arc::new(Mutex::new((limit, bandwidth)));
        let told = Arc::clone(&has);
        let (qmp, _) = scripted::qemu(move |command, arguments| {
            let mut has = told.lock().unwrap();
            if command == "migrate-set-parameters" {
                let set = |name: &str| arguments[name].as_u64().unwrap();
                *has = (set("downtime-limit"), set("avail-switchover-bandwidth"));
            }
            json!({ "downtime-limit": has.0, "avail-switchover-bandwidth": has.1 })
        });
        (qmp, has)
    }

    const TIGHT: (u64, u64) = (1, SWITCHOVER_BANDWIDTH);

    #[test]
    fn who_holds_it_last_puts_back_what_qemu_had() {
        let (qmp, has) = qemu(250, 7_000_000);
        let has = || *has.lock().unwrap();
        let limits = Limits::new(&qmp);
        limits.tighten().unwrap();
        assert_eq!(has(), TIGHT);
        limits.tighten().unwrap();
        limits.expect().unwrap();
        assert_eq!(has(), (1, MEASURED));
        limits.loosen().unwrap();
        assert_eq!(has(), TIGHT, "one holds it still");
        limits.loosen().unwrap();
        assert_eq!(has(), (250, 7_000_000));
    }

    #[test]
    fn a_migration_that_fails_while_it_is_held_leaves_qemu_as_it_was() {
        let (qmp, has) = qemu(250, 0);
        let limits = Limits::new(&qmp);
        limits.tighten().unwrap();
        drop(limits);
        assert_eq!(*has.lock().unwrap(), (250, 0));
        let (qmp, has) = qemu(TIGHT.0, TIGHT.1);
        let limits = Limits::new(&qmp);
        limits.tighten().unwrap();
        limits.loosen().unwrap();
        assert_eq!(*has.lock().unwrap(), (300, 0), "of a process that died");
    }

    #[test]
    fn what_a_process_has_left_that_died_is_put_back_and_nothing_else() {
        for (left, becomes) in [
            (TIGHT, (300, 0)),
            ((1, MEASURED), (300, 0)),
            ((1, 7_000_000), (1, 7_000_000)),
            ((250, SWITCHOVER_BANDWIDTH), (250, SWITCHOVER_BANDWIDTH)),
        ] {
            let (qmp, has) = qemu(left.0, left.1);
            let_go(&qmp).unwrap();
            assert_eq!(*has.lock().unwrap(), becomes, "{left:?}");
        }
    }

    #[test]
    fn what_is_marked_lies_in_memory_and_is_whole_words() {
        for memory in [2 << 20, 64 << 20, 512 << 20, 1 << 40] {
            let (first_page, words) = region(memory);
            let end = (first_page + words.len() as u64 * 64) * 4096;
            assert!(end <= memory / 4, "{memory:#x}");
            assert_eq!(words.len() as u64 * CHUNK, bytes(memory));
            assert_eq!(first_page % 64, 0);
        }
        assert_eq!(bytes(512 << 20), 16 << 20);
    }
}
