//! Round trips for a long time, with faults now and then.

use std::time::Instant;

use ferry::Strategy;
use lab::Lab;
use serde::Serialize;

use super::bench::{Bench, Load};
use super::cases::{CASES, Case, Expect};
use super::{Tally, Verdict};
use crate::Programs;
use crate::dice::Dice;

/// Migrations with one guest before another is booted, with another load.
const WITH_ONE: u64 = 40;

/// How it went.
#[derive(Debug, Clone, Serialize)]
pub struct Soaked {
    /// All that was random follows from it.
    pub seed: u64,
    /// Migrations without a fault, each with all of memory compared.
    pub migrations: usize,
    /// Of these and of the faults, what became.
    #[serde(flatten)]
    pub tally: Tally,
    /// Seconds.
    pub seconds: f64,
}

/// Migrates a guest until `until`, and stops at the first thing that is wrong. What has to be known to
/// do the same again is in the last verdict: `seed`, what both sides have logged, and where memory
/// differed.
pub fn soak(
    lab: Lab,
    programs: Programs,
    seed: u64,
    until: Instant,
    progress: &mut dyn FnMut(&Verdict),
) -> Soaked {
    let began = Instant::now();
    let mut dice = Dice::new(seed);
    let mut bench = Bench::new(lab, programs);
    let mut tally = Tally::default();
    let mut migrations = 0;
    let mut since_boot = 0;
    // A guest's end is its load's end: those faults are the matrix's own.
    let leave = |case: &&Case| !matches!(case.expect, Expect::WithItsQemu | Expect::WithItsVferry);
    let cases: Vec<_> = CASES.iter().filter(leave).copied().collect();
    while Instant::now() < until && tally.is_right() {
        if since_boot % WITH_ONE == 0 {
            bench.begin_anew(random_load(&mut dice));
        }
        since_boot += 1;
        let verdict = if dice.throw(3) == 0 {
            bench.run(dice.one_of(&cases))
        } else {
            migrations += 1;
            let by = dice.one_of(&[
                Strategy::Transparent,
                Strategy::Recovery,
                Strategy::Cooperative,
            ]);
            bench.migrate(*by)
        };
        progress(&verdict);
        tally.add(verdict);
    }
    Soaked {
        seed,
        migrations,
        tally,
        seconds: began.elapsed().as_secs_f64(),
    }
}

/// As much as an emulated guest has time for.
fn random_load(dice: &mut Dice) -> Load {
    let mib = [1, 8, 16, 32];
    let rate = [0, 2, 8, 16];
    Load {
        dirty: (*dice.one_of(&mib), *dice.one_of(&rate)),
        packets_per_second: *dice.one_of(&[50, 200, 500]),
        memory: *dice.one_of(&[192 << 20, 256 << 20, 384 << 20]),
    }
}
