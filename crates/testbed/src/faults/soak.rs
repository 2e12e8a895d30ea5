//! Round trips for a long time, with faults now and then, and with settings that change.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use ferry::Strategy;
use lab::Lab;
use serde::Serialize;

use super::bench::Bench;
use super::cases::{CASES, Case, Expect};
use super::load::Load;
use super::settings::{Change, Restless, Settings};
use super::{Tally, Verdict};
use crate::dice::Dice;
use crate::{Programs, Testbed};

/// Steps with one guest before another is booted, with another load.
const WITH_ONE: u64 = 16;
/// Settings that change before a step, at most.
const CHANGES: u64 = 2;

/// What is asked for.
#[derive(Debug, Clone)]
pub struct SoakOptions {
    /// All that is random follows from it.
    pub seed: u64,
    /// The guest to begin with, from 0: what is random of each follows from the seed and its number.
    pub first_guest: u64,
    /// No step is begun after that.
    pub until: Instant,
    /// Where what is left of a guest that is not well is put, in a folder of its own.
    pub folder: PathBuf,
    /// A law to switch off, to see that it is noticed: the argument of `--unsound-control`.
    pub unsound_control: Option<String>,
}

/// Which step it was.
#[derive(Debug, Clone, Serialize)]
pub struct SoakStep {
    /// The guest's number.
    pub guest: u64,
    /// The step's, with this guest.
    pub step: u64,
    /// What was set otherwise in the guest before or meanwhile.
    pub settings: Vec<String>,
}

/// How it went.
#[derive(Debug, Clone, Serialize)]
pub struct Soaked {
    /// See [`SoakOptions::seed`].
    pub seed: u64,
    /// Guests that were booted, each with a load of its own.
    pub guests: u64,
    /// Migrations without a fault, each with all of memory compared.
    pub migrations: usize,
    /// Steps with a fault, each with a migration after it.
    pub faults: usize,
    /// Settings that changed.
    pub settings: usize,
    /// Of all steps, what became.
    #[serde(flatten)]
    pub tally: Tally,
    /// Seconds.
    pub seconds: f64,
    /// The last step, if it was wrong, and where all that is known of it is.
    pub wrong: Option<(SoakStep, PathBuf)>,
}

/// Migrates guests until it is time, and stops at the first thing that is wrong.
///
/// What has to be known to do the same again is then in a folder: `soak.json` is what this returns, and
/// beside it is what is left of guest and hosts (`evidence`).
///
/// # Errors
/// When the folder cannot be written.
pub fn soak(
    lab: Lab,
    programs: Programs,
    options: &SoakOptions,
    progress: &mut dyn FnMut(&SoakStep, &Verdict),
) -> anyhow::Result<Soaked> {
    let began = Instant::now();
    let evidence = options.folder.join(options.seed.to_string());
    if evidence.exists() {
        fs::remove_dir_all(&evidence)?;
    }
    let mut bench = Bench::new(lab, programs)
        .without_law(options.unsound_control.clone())
        .keep_evidence(evidence.clone());
    let mut soaked = Soaked {
        seed: options.seed,
        guests: 0,
        migrations: 0,
        faults: 0,
        settings: 0,
        tally: Tally::default(),
        seconds: 0.0,
        wrong: None,
    };
    for guest in options.first_guest.. {
        let mut life = Life::new(options.seed, guest);
        bench.begin_anew(life.load);
        soaked.guests += u64::from(Instant::now() < options.until);
        for step in 0..WITH_ONE {
            if Instant::now() >= options.until {
                soaked.seconds = began.elapsed().as_secs_f64();
                return Ok(soaked);
            }
            let plan = life.next();
            let step = SoakStep {
                guest,
                step,
                settings: plan.settings(),
            };
            let verdict = match &plan.what {
                What::Fault(case) => bench.run_after(case, |testbed| plan.prepare(testbed)),
                What::Migrate(by) => bench.migrate(*by, |testbed| plan.prepare(testbed)),
            };
            let fault = matches!(plan.what, What::Fault(_));
            soaked.faults += usize::from(fault);
            soaked.migrations += usize::from(!fault);
            soaked.settings += plan.changes.len();
            progress(&step, &verdict);
            soaked.tally.add(verdict);
            if !soaked.tally.is_right() {
                soaked.seconds = began.elapsed().as_secs_f64();
                soaked.wrong = Some((step, evidence.clone()));
                fs::create_dir_all(&evidence)?;
                let all = serde_json::to_vec_pretty(&soaked)?;
                fs::write(evidence.join("soak.json"), all)?;
                return Ok(soaked);
            }
        }
    }
    unreachable!("there are more guests than anybody waits for")
}

/// What happens to one guest, all of it random.
struct Life {
    dice: Dice,
    load: Load,
    settings: Settings,
    cases: Vec<Case>,
}

/// What happens in one step.
struct Plan {
    changes: Vec<Change>,
    restless: Option<Restless>,
    what: What,
}

enum What {
    Fault(Case),
    Migrate(Strategy),
}

impl Life {
    fn new(seed: u64, guest: u64) -> Self {
        let mut dice = Dice::of_part(seed, guest);
        let load = Load::random(&mut dice);
        // A guest's end is its load's end: those faults are the matrix's own.
        let fits = |case: &&Case| {
            let ends = matches!(case.expect, Expect::WithItsQemu | Expect::WithItsVferry);
            case.with == load.with && !ends
        };
        Self {
            load,
            dice,
            settings: Settings::default(),
            cases: CASES.iter().filter(fits).copied().collect(),
        }
    }

    fn next(&mut self) -> Plan {
        let dice = &mut self.dice;
        let changes = 0..dice.throw(CHANGES + 1);
        let changes = changes.map(|_| self.settings.random(dice)).collect();
        let restless = (dice.throw(3) == 0).then(|| Restless::random(dice));
        let what = if dice.throw(3) == 0 {
            What::Fault(*dice.one_of(&self.cases))
        } else {
            What::Migrate(*dice.one_of(&[
                Strategy::Transparent,
                Strategy::Recovery,
                Strategy::Cooperative,
            ]))
        };
        Plan {
            changes,
            restless,
            what,
        }
    }
}

impl Plan {
    fn settings(&self) -> Vec<String> {
        let restless = self.restless.iter().map(ToString::to_string);
        let changes = self.changes.iter().map(ToString::to_string);
        changes.chain(restless).collect()
    }

    fn prepare(&self, testbed: &Testbed) -> anyhow::Result<()> {
        for change in &self.changes {
            change.make(testbed)?;
        }
        self.restless.map_or(Ok(()), |it| it.begin(testbed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(seed: u64, guest: u64) -> Vec<String> {
        let mut life = Life::new(seed, guest);
        let mut all = vec![format!("{:?}", life.load)];
        for _ in 0..WITH_ONE {
            let plan = life.next();
            all.extend(plan.settings());
            all.push(match plan.what {
                What::Fault(case) => case.name(),
                What::Migrate(by) => by.name().into(),
            });
        }
        all
    }

    #[test]
    fn a_guests_life_follows_from_the_seed_and_its_number() {
        assert_eq!(told(7, 3), told(7, 3));
        assert_ne!(told(7, 3), told(7, 4));
        assert_ne!(told(7, 3), told(8, 3));
    }
}
