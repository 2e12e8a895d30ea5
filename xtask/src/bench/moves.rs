//! Guests that move, for the benchmarks that compare how: vferry's, and those that have QEMU's devices
//! only.
//!
//! Each guest is booted anew for its turn and ended after it, so that nobody else has the processors
//! while it moves; it moves there and back, under the same load. Memory is not compared. Each host's threads have
//! a processor, and each vCPU has one ([`pinned`]).

use anyhow::{Context, Result};
use ferry::{Phase, Strategy};
use lab::{Accelerator, Lab};
use testbed::{
    Devices, Migration, Options, Processors, Programs, Still, Stock, StockMigration, StockTestbed,
    Testbed,
};

use super::{Table, Variant, pinned, variants_of};

/// How often.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    /// Turns of each guest.
    pub(super) rounds: usize,
    /// Migrations of a guest in its turn: there, or there and back.
    pub(super) legs: usize,
    /// Before each it is seen what the guest is silent for where it is.
    pub(super) still: bool,
}

impl Times {
    pub(super) const QUICK: Self = Self {
        rounds: 1,
        legs: 1,
        still: false,
    };
}

/// A guest that takes turns with others.
#[derive(Debug, Clone)]
pub(super) struct Mover {
    pub(super) name: &'static str,
    pub(super) by: By,
    pub(super) options: Options,
}

/// By whom a guest has its device, and moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    Vferry(Devices),
    Qemu(Stock),
}

/// What was seen of one migration; times in milliseconds.
#[derive(Debug, Clone)]
pub(super) struct Move {
    /// The VM's pause.
    pub(super) pause: f64,
    /// Of that, what came after the source's QEMU had completed; below zero if the VM ran before.
    pub(super) word: f64,
    /// The longest time in which its device did nothing for it.
    pub(super) outage: f64,
    /// The pause as the source's QEMU has it (`downtime`).
    pub(super) downtime: f64,
    /// How long the guest had no function at all, if it was taken from it.
    pub(super) without_function: Option<f64>,
    /// vferry's phases that are within the outage.
    pub(super) phases: Option<[f64; PHASES.len()]>,
    /// Pages that vferry's devices wrote and marked: while the VM ran, and after their halt.
    pub(super) marked: Option<[f64; 2]>,
    /// What the guest was silent for before, where it was.
    pub(super) still: Option<Still>,
}

/// Those phases.
pub(super) const PHASES: [Phase; 5] = [
    Phase::Halt,
    Phase::Mark,
    Phase::Copy,
    Phase::Restore,
    Phase::Resume,
];

/// What was seen of each, in order of its moves.
pub(super) fn compare(
    benchmark: &str,
    lab: &Lab,
    guests: &[Mover],
    times: Times,
) -> Result<Vec<Vec<Move>>> {
    let programs = Programs::build()?;
    let processors = pinned::moving()?;
    let mut all = vec![Vec::new(); guests.len()];
    let rounds = times.rounds;
    for round in 1..=rounds {
        for turn in 0..guests.len() {
            // None is always the one that follows the same other.
            let which = (round + turn) % guests.len();
            let mover = &guests[which];
            for seen in mover.turn(lab, &programs, &processors, times)? {
                let name = mover.name;
                eprintln!("bench {benchmark}: round {round} of {rounds}, {name}: {seen:.1?}");
                all[which].push(seen);
            }
        }
    }
    Ok(all)
}

/// One value of each move of each of the `names`.
pub(super) fn each(
    names: &[&'static str],
    moves: &[Vec<Move>],
    of: impl Fn(&Move) -> f64,
) -> Vec<Variant> {
    let runs = moves.iter().map(|moves| moves.iter().map(&of).collect());
    variants_of(names.iter().copied().zip(runs).collect())
}

/// Where vferry's outages went.
pub(super) fn phases(moves: &[Move]) -> Table {
    let phases = PHASES.iter().enumerate().map(|(at, phase)| {
        let of = |seen: &Move| seen.phases.map(|phases| phases[at]);
        (phase.name(), moves.iter().filter_map(of).collect())
    });
    Table {
        what: "where vferry's pause goes, milliseconds",
        variants: variants_of(phases.collect()),
    }
}

/// What decides how far the values reach.
pub(super) fn machine(lab: &Lab) -> Result<String> {
    Ok(format!(
        "{}; guests by {:?}, {}",
        super::machine()?,
        Accelerator::detect(),
        lab.kernel_version()
    ))
}

impl Mover {
    /// Boots it, has it move, and ends it.
    fn turn(
        &self,
        lab: &Lab,
        programs: &Programs,
        processors: &Processors,
        Times { legs, still, .. }: Times,
    ) -> Result<Vec<Move>> {
        let (lab, programs) = (lab.clone(), programs.clone());
        let options = Options {
            processors: Some(processors.clone()),
            ..self.options.clone()
        };
        match self.by {
            By::Vferry(devices) => {
                let options = Options {
                    devices,
                    strategy: Some(Strategy::Transparent),
                    verify: false,
                    ..options
                };
                let mut testbed = Testbed::start(lab, programs, options)?;
                let leg = |_| {
                    let still = still.then(|| testbed.still()).transpose()?;
                    Move::by_vferry(&testbed.migrate()?, still)
                };
                (0..legs).map(leg).collect()
            }
            By::Qemu(stock) => {
                let mut testbed = StockTestbed::start(lab, programs, stock, options)?;
                let leg = |_| {
                    let still = still.then(|| testbed.still()).transpose()?;
                    Move::by_qemu(&testbed.migrate()?, still)
                };
                (0..legs).map(leg).collect()
            }
        }
    }
}

impl Move {
    fn by_vferry(migration: &Migration, still: Option<Still>) -> Result<Self> {
        let Migration { report, .. } = migration;
        let phase = |phase| report.phases_ms.get(&phase).copied().unwrap_or(0.0);
        let outage = migration.disk_outage_ms.or_else(|| migration.outage_ms());
        let sum = |of: fn(&ferry::report::Marks) -> u64| {
            let pages: u64 = report.pages_marked.values().map(of).sum();
            Ok::<_, anyhow::Error>(f64::from(u32::try_from(pages)?))
        };
        Ok(Self {
            pause: migration.pause_ms.context("no pause was seen")?,
            word: migration.word_ms.context("no pause was seen")?,
            outage: outage.context("no outage was seen")?,
            downtime: report.vm_pause_ms,
            without_function: None,
            phases: Some(PHASES.map(phase)),
            marked: Some([sum(|marks| marks.precopy)?, sum(|marks| marks.at_halt)?]),
            still,
        })
    }

    fn by_qemu(migration: &StockMigration, still: Option<Still>) -> Result<Self> {
        let StockMigration {
            pause_ms,
            word_ms,
            info,
            silence_ms,
            disk_outage_ms,
            without_function_ms,
        } = migration;
        let downtime = info.downtime.context("QEMU tells no downtime")?;
        let outage = silence_ms.or(*disk_outage_ms);
        Ok(Self {
            pause: *pause_ms,
            word: *word_ms,
            outage: outage.context("no outage was seen")?,
            downtime: downtime.as_secs_f64() * 1e3,
            without_function: *without_function_ms,
            phases: None,
            marked: None,
            still,
        })
    }

    /// What vferry took to mark what devices had written.
    pub(super) fn mark(&self) -> f64 {
        self.phases.map_or(0.0, |[_, mark, ..]| mark)
    }
}
