//! What happened in a migration.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::comparison::Compared;
use crate::link::Arrival;
use crate::recovery::Times;
use crate::vm::Timeline;
use crate::{Phase, Strategy};

/// A migration that succeeded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The strategy that was asked for or chosen.
    pub strategy: Strategy,
    /// How each device went over.
    pub devices: Vec<DeviceReport>,
    /// Milliseconds in each phase, as far as it was entered.
    pub phases_ms: BTreeMap<Phase, f64>,
    /// The VM's pause as the source's QEMU reports it, in milliseconds.
    pub vm_pause_ms: f64,
    /// From the halt of the devices until the destination said that they run, in milliseconds, on
    /// the source's clock.
    pub devices_paused_ms: f64,
    /// Pages that devices had written, by who found them.
    pub pages_marked: BTreeMap<String, Marks>,
    /// What was compared and sent at the end, if that was needed.
    pub compared: Option<Compared>,
    /// Bytes of memory that QEMU sent.
    pub transferred: u64,
    /// Passes over memory.
    pub passes: u64,
    /// Functions whose PCI configuration changed while memory was copied.
    pub functions_corrected: usize,
    /// Pages of guest memory that differed when the VM was about to run; `None` when not verified.
    pub stale_pages: Option<usize>,
    /// Where they are: guest-physical address and bytes of each run of them.
    pub stale_ranges: Vec<[u64; 2]>,
}

/// How one device went over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceReport {
    /// Its name.
    pub name: String,
    /// Who knew what it wrote: `device` (its model), `dma-logging`, `iommu-dirty-bits`, `iommu` (a virtual
    /// one, by what it lets it reach), `guest`, or `comparison` where nobody did.
    pub dirty_log: String,
    /// How it went over.
    pub strategy: Strategy,
    /// Why not as was asked for.
    pub why: Option<String>,
    /// What the guest took to stop it, in milliseconds by the guest's clock.
    pub quiesce_ms: Option<f64>,
    /// What the guest took to start it at the destination, in milliseconds by the guest's clock.
    pub restart_ms: Option<f64>,
    /// How the guest's error recovery started it at the destination.
    pub recovered: Option<Times>,
    /// Why it does not work at the destination; `None` if it does.
    pub fault: Option<String>,
}

impl DeviceReport {
    /// Whether it works at the destination only if the guest has started it.
    pub fn is_left_to_driver(&self) -> bool {
        matches!(self.strategy, Strategy::Cooperative | Strategy::Recovery)
    }
}

/// Pages newly marked in QEMU's log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marks {
    /// While the VM ran.
    pub precopy: u64,
    /// After the halt, by the devices' own logs.
    pub at_halt: u64,
}

impl Marks {
    /// All.
    pub fn total(&self) -> u64 {
        self.precopy + self.at_halt
    }
}

/// Progress, for a display.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Progress {
    /// A phase begins.
    Phase {
        /// Which.
        phase: Phase,
    },
    /// Memory is on its way.
    Memory {
        /// Bytes sent.
        transferred: u64,
        /// Bytes of guest memory.
        total: u64,
        /// Bytes left in this pass.
        remaining: u64,
        /// Mbit/s.
        mbps: f64,
        /// Pages that devices wrote, marked so far.
        marked: u64,
    },
}

/// The clock of one migration, at the source.
#[derive(Debug)]
pub(crate) struct Stopwatch {
    phases: BTreeMap<Phase, f64>,
    current: Option<(Phase, Instant)>,
}

impl Stopwatch {
    pub(crate) fn new() -> Self {
        Self {
            phases: BTreeMap::new(),
            current: None,
        }
    }

    pub(crate) fn enter(&mut self, phase: Phase) {
        let now = Instant::now();
        self.leave(now);
        self.current = Some((phase, now));
    }

    /// What is known only afterwards: the times that the hooks noted, and the destination's.
    pub(crate) fn finish(
        mut self,
        source: &Timeline,
        completed: Instant,
        arrival: &Arrival,
        compared: Option<Compared>,
        running: Instant,
    ) -> (BTreeMap<Phase, f64>, f64) {
        self.leave(Instant::now());
        let stopping = source.stopping.unwrap_or(completed);
        let halted = source.halted.unwrap_or(stopping);
        let marked = source.marked.unwrap_or(halted);
        let (_, precopy_began) = self.current.take().unwrap_or((Phase::Precopy, stopping));
        let mut put = |phase, from: Instant, to: Instant| {
            self.phases
                .insert(phase, millis(to.saturating_duration_since(from)));
        };
        put(Phase::Precopy, precopy_began, stopping);
        put(Phase::Halt, stopping, halted);
        put(Phase::Mark, halted, marked);
        // The destination's part of the copy is its own phase.
        let restore = Duration::from_secs_f64((arrival.restore_ms / 1000.0).clamp(0.0, 3600.0));
        put(
            Phase::Copy,
            marked,
            completed.checked_sub(restore).unwrap_or(marked).max(marked),
        );
        self.phases.insert(Phase::Restore, arrival.restore_ms);
        let mut resumed = millis(running.saturating_duration_since(completed));
        if let Some(Compared { took_ms, .. }) = compared {
            self.phases.insert(Phase::Compare, took_ms);
            resumed -= took_ms;
        }
        self.phases.insert(Phase::Resume, resumed);
        (
            self.phases,
            millis(running.saturating_duration_since(stopping)),
        )
    }

    fn leave(&mut self, now: Instant) {
        if let Some((phase, since)) = self.current {
            self.phases.insert(phase, millis(now - since));
        }
    }
}

pub(crate) fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
