//! Every failure has one outcome: parties of a migration are killed, hung, cut off, starved or made to
//! refuse, at each of its phases, and the VM has to run on exactly one host afterwards.
//!
//! [`CASES`] is the matrix. A case begins with a guest under load on one host, and another that waits
//! for it. Link and stream between them are led through gates (`wire`): what a phase begins with is
//! held there, so that a fault strikes in that phase and not about then. Afterwards is looked who runs
//! the VM, whether its device carries traffic there, whether all content was right, what the command
//! said, and whether the VM migrates then, with all of its memory compared.
//!
//! # What it does not do
//!
//! Faults come one at a time. A VM whose own QEMU or vferry process is killed before it has left ends
//! with that, as it would without a migration: such cases are counted apart, and only that no other
//! host runs it then is asked.

mod aftermath;
mod bench;
mod cases;
mod command;
mod evidence;
mod load;
mod privileges;
mod scene;
mod settings;
mod soak;
mod strike;
mod wire;

use lab::Lab;
use serde::Serialize;

use crate::Programs;

pub use soak::{SoakOptions, SoakStep, Soaked, soak};

pub use cases::{At, CASES, Case, Expect, Fault, Party, Refusal, Resource, Says, With};

/// Who runs the VM after a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Runs {
    /// The source.
    Here,
    /// The destination.
    There,
    /// Two hosts.
    Twice,
    /// Nobody.
    Nowhere,
}

/// What came of a case.
#[derive(Debug, Clone, Serialize)]
pub struct Verdict {
    /// Its name.
    pub case: String,
    /// Who runs the VM.
    pub runs: Runs,
    /// The VM has ended with the process that was killed, as it has to.
    pub ended_with_its_process: bool,
    /// Pages that arrived stale, where the VM moved and memory was compared.
    pub stale_pages: usize,
    /// Something that a guest or its peer checks was not as it was sent.
    pub content_wrong: bool,
    /// All that was not as it has to be; nothing if the case went as the matrix says.
    pub wrong: Vec<String>,
    /// How long it took.
    pub seconds: f64,
}

/// What came of all.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Tally {
    /// How many there were.
    pub cases: usize,
    /// Of these, went as the matrix says, and the VM ran on exactly one host, well.
    pub survived: usize,
    /// The VM ended with its own QEMU or vferry process, and nobody else ran it.
    pub ended_with_its_process: usize,
    /// The VM ran nowhere.
    pub vm_lost: usize,
    /// The VM ran on two hosts.
    pub vm_twice: usize,
    /// Pages that arrived stale.
    pub stale_pages: usize,
    /// Cases after which content was wrong.
    pub content_wrong: usize,
    /// Each.
    pub verdicts: Vec<Verdict>,
}

impl Tally {
    fn add(&mut self, verdict: Verdict) {
        let right = verdict.wrong.is_empty();
        self.cases += 1;
        self.survived += usize::from(right && !verdict.ended_with_its_process);
        self.ended_with_its_process += usize::from(right && verdict.ended_with_its_process);
        self.vm_twice += usize::from(verdict.runs == Runs::Twice);
        let lost = verdict.runs == Runs::Nowhere && !verdict.ended_with_its_process;
        self.vm_lost += usize::from(lost);
        self.stale_pages += verdict.stale_pages;
        self.content_wrong += usize::from(verdict.content_wrong);
        self.verdicts.push(verdict);
    }

    /// Every case went as the matrix says.
    pub fn is_right(&self) -> bool {
        self.survived + self.ended_with_its_process == self.cases
    }
}

/// Runs `cases` one after the other, with one guest as long as it is well, and tells `progress` of
/// each.
pub fn faults(
    lab: Lab,
    programs: Programs,
    cases: &[Case],
    progress: &mut dyn FnMut(&Verdict),
) -> Tally {
    let mut bench = bench::Bench::new(lab, programs);
    let mut tally = Tally::default();
    for case in cases {
        let verdict = bench.run(case);
        progress(&verdict);
        tally.add(verdict);
    }
    tally
}
