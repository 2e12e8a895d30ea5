//! The word that says whether the VM's devices run here, for the process after this one.

use std::sync::Arc;
use std::time::Duration;

use keeper::{Journal, Worker};

/// By which name the word is held.
pub(super) const WORD: &str = "vm";
pub(super) const RUN: u64 = 0;
pub(super) const GONE: u64 = 1;
/// They do, but the vCPUs are stopped for a moment, and nobody else lets them run again. With the time at which that
/// began, in seconds since the host was started, in the bits above.
const REST: u64 = 2;
/// The devices were halted for a migration away from here; and in the bits above, whether the guest sleeps.
pub(super) const HALTED: u64 = 3;
const TIME: u32 = 2;
/// A rest that began longer ago than QEMU waits for a successor is none: nobody has heard QEMU say that it was over.
pub(super) const LONGEST_REST: u64 = 30;

/// Whether the devices run here.
#[derive(Debug)]
pub(super) struct Word {
    pub(super) journal: Journal,
    runs: bool,
    pub(super) place: Place,
    /// Another process died while they were halted: QEMU may not run the VM.
    pub(super) brings_back: bool,
    /// The guest that was to be migrated slept when they were halted.
    pub(super) asleep: bool,
    /// The vCPUs are stopped for a moment, since then.
    pub(super) rests: Option<u64>,
    watch: Option<Watch>,
}

/// Who is to notice that this process hangs.
#[derive(Debug)]
struct Watch {
    worker: Arc<Worker>,
    limit: Duration,
    is_on: bool,
}

impl Watch {
    fn set(&mut self, on: bool) {
        // A keeper that is gone has taken this process along; one that could not be told is told the next time.
        if on != self.is_on && self.worker.watch(on.then_some(self.limit)).is_ok() {
            self.is_on = on;
        }
    }
}

/// Whose the VM is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// This host's.
    Here,
    /// It is on its way here: its devices do not run, whatever their stage.
    Arrives,
    /// Something of it may be let go of.
    Leaves,
}

impl Word {
    /// As another process has left it in the `journal`, `now`, or new.
    pub(super) fn open(journal: Journal, now: u64) -> Result<Self, Halted> {
        let mark = journal.mark();
        let (rests, halted) = match (mark & ((1 << TIME) - 1), mark >> TIME) {
            (RUN, 0) => (None, None),
            (REST, since) => {
                let is_recent = now.saturating_sub(since) < LONGEST_REST;
                (is_recent.then_some(since), None)
            }
            (HALTED, asleep @ 0..=1) => (None, Some(asleep == 1)),
            _ => return Err(Halted),
        };
        Ok(Self {
            journal,
            runs: true,
            place: Place::Here,
            brings_back: halted.is_some(),
            asleep: halted == Some(true),
            rests,
            watch: None,
        })
    }

    pub(super) fn write(&mut self, runs: bool) {
        self.runs = runs;
        if runs && self.place == Place::Leaves {
            // It has come back, or nothing came of it.
            self.place = Place::Here;
        }
        self.put();
    }

    pub(super) fn put(&mut self) {
        let is_on = self.is_running() && !self.brings_back;
        // Nobody is to end this process while the word says that no other goes on.
        let watch = |word: &mut Self, when| {
            if is_on == when
                && let Some(watch) = &mut word.watch
            {
                watch.set(is_on);
            }
        };
        watch(self, false);
        self.journal.set_mark(match self.rests {
            _ if self.place != Place::Here => GONE,
            _ if !self.runs || self.brings_back => HALTED | u64::from(self.asleep) << TIME,
            None => RUN,
            Some(since) => REST | since << TIME,
        });
        watch(self, true);
    }

    /// The keeper is to notice from here on if this process hangs for `limit` while the devices run.
    pub(super) fn be_watched(&mut self, worker: Arc<Worker>, limit: Duration) {
        self.watch = Some(Watch {
            worker,
            limit,
            is_on: false,
        });
        self.put();
    }

    /// Whether somebody would notice it now.
    #[cfg(test)]
    pub(super) fn is_watched(&self) -> bool {
        self.watch.as_ref().is_some_and(|watch| watch.is_on)
    }

    pub(super) fn is_running(&self) -> bool {
        self.runs && self.place == Place::Here
    }
}

/// Seconds since the host was started.
pub(super) fn now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    u64::try_from(now.tv_sec).unwrap_or_default()
}

/// Why no process goes on.
#[derive(Debug, thiserror::Error)]
#[error(
    "the process that served this VM died in the last step of a migration, so no other goes on: \
     see on both hosts where the VM runs (docs/commit-protocol.md), then end its QEMU here"
)]
pub(crate) struct Halted;
