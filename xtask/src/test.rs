//! `cargo xtask test`

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use lab::{Lab, progress_on_stderr};

use crate::bench;
use crate::faults::{self, Faults};
use crate::workspace::{Step, cargo, run as run_command};

/// What a full test run is, in order: quick answers first. A new kind of test is one more line.
const STEPS: &[Step] = &[
    ("unit and property tests", without_vm),
    ("the lab", the_lab),
    ("tests with a VM", with_vm),
    ("all benchmarks, each once and shortly", bench::quickly),
];

/// The packages whose `tests/` boot guests.
const NEED_VM: &[&str] = &["lab", "testbed"];

/// Runs all tests, or one kind.
#[derive(Debug, Args)]
pub(crate) struct Test {
    #[command(subcommand)]
    kind: Option<Kind>,
}

#[derive(Debug, Subcommand)]
enum Kind {
    /// Have every party of a migration fail in every phase, and print what came of it.
    Faults(Faults),
}

pub(crate) fn run(options: &Test) -> Result<ExitCode> {
    match &options.kind {
        Some(Kind::Faults(options)) => faults::run(options),
        None => all().map(|()| ExitCode::SUCCESS),
    }
}

fn all() -> Result<()> {
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
    let mut all = vec!["test", "--workspace"];
    all.extend(NEED_VM.iter().flat_map(|package| ["--exclude", package]));
    run_command(cargo(&all))?;
    let mut libraries = vec!["test", "--lib"];
    libraries.extend(NEED_VM.iter().flat_map(|package| ["--package", package]));
    run_command(cargo(&libraries))
}

fn the_lab() -> Result<()> {
    Lab::ensure(&progress_on_stderr).map(drop)
}

/// One test at a time: under emulation, two VMs share the processors that each one needs. Built
/// optimised, as what is tested is.
fn with_vm() -> Result<()> {
    let mut tests = vec!["test", "--release", "--test", "*"];
    tests.extend(NEED_VM.iter().flat_map(|package| ["--package", package]));
    tests.extend(["--", "--test-threads=1"]);
    run_command(cargo(&tests))
}
