//! `cargo xtask test`

use std::time::Instant;

use anyhow::{Context, Result};
use lab::{Lab, progress_on_stderr};

use crate::workspace::{Step, cargo, run as run_command};

/// What a full test run is, in order: quick answers first. A new kind of test is one more line.
const STEPS: &[Step] = &[
    ("unit and property tests", without_vm),
    ("the lab", the_lab),
    ("tests with a VM", with_vm),
];

pub(crate) fn run() -> Result<()> {
    let started = Instant::now();
    for (number, (name, step)) in (1..).zip(STEPS) {
        eprintln!("xtask: [{number}/{}] {name}", STEPS.len());
        let begun = Instant::now();
        step().with_context(|| format!("test step `{name}`"))?;
        eprintln!(
            "xtask: [{number}/{}] {name}: passed in {:.0?}",
            STEPS.len(),
            begun.elapsed()
        );
    }
    eprintln!("xtask: all tests passed in {:.0?}", started.elapsed());
    Ok(())
}

fn without_vm() -> Result<()> {
    run_command(cargo(&["test", "--workspace", "--exclude", "lab"]))?;
    run_command(cargo(&["test", "--package", "lab", "--lib"]))
}

fn the_lab() -> Result<()> {
    Lab::ensure(&progress_on_stderr).map(drop)
}

/// One VM at a time: under TCG two of them share the processors that each one needs.
fn with_vm() -> Result<()> {
    run_command(cargo(&[
        "test",
        "--package",
        "lab",
        "--test",
        "*",
        "--",
        "--test-threads=1",
    ]))
}
