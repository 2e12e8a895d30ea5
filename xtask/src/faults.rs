//! `cargo xtask test faults`

use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use lab::{Lab, progress_on_stderr};
use testbed::Programs;
use testbed::faults::{CASES, Case, Tally, Verdict, faults};

/// Has every party of a migration fail in every phase.
#[derive(Debug, Args)]
pub(crate) struct Faults {
    /// How to print what came of it.
    #[arg(long, value_enum, default_value_t = Form::Table)]
    report: Form,
    /// Only cases whose name has all of these words: `precopy`, `stream`, `killed`.
    #[arg(long, value_name = "WORD", num_args = 1..)]
    only: Vec<String>,
    /// Only the cases of the ordinary test run.
    #[arg(long)]
    bounded: bool,
    /// Print the names of the cases, and run none.
    #[arg(long)]
    list: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    /// A table.
    Table,
    /// One object.
    Json,
}

pub(crate) fn run(options: &Faults) -> Result<ExitCode> {
    let chosen = |case: &&Case| {
        let name = case.name();
        let mut words = options.only.iter();
        let has_all = words.all(|word| name.split(' ').any(|part| part.contains(word)));
        has_all && (case.always || !options.bounded)
    };
    let cases: Vec<_> = CASES.iter().filter(chosen).copied().collect();
    ensure!(
        !cases.is_empty(),
        "no case has all of these words: `--list` shows all"
    );
    if options.list {
        for case in &cases {
            println!("{}", case.name());
        }
        return Ok(ExitCode::SUCCESS);
    }
    let lab = Lab::ensure(&progress_on_stderr)?;
    let programs = Programs::build()?;
    let mut number = 0;
    let tally = faults(lab, programs, &cases, &mut |verdict| {
        number += 1;
        eprintln!("faults: {number} of {}: {}", cases.len(), line(verdict));
    });
    match options.report {
        Form::Json => println!("{}", serde_json::to_string(&tally)?),
        Form::Table => print(&tally),
    }
    Ok(exit(tally.is_right()))
}

pub(crate) fn exit(right: bool) -> ExitCode {
    if right {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn line(verdict: &Verdict) -> String {
    let Verdict {
        case,
        runs,
        wrong,
        seconds,
        ..
    } = verdict;
    let came = if !wrong.is_empty() {
        format!("WRONG: {}", wrong.join("; "))
    } else if verdict.ended_with_its_process {
        "ended with its own process".into()
    } else {
        format!("{runs:?}").to_lowercase()
    };
    format!("{case}: {came} ({seconds:.1} s)")
}

/// Each case in one line, then the sums.
fn print(tally: &Tally) {
    let head = ["phase", "party", "fault", "strategy", "with"];
    let [phase, party, fault, by, with] = head;
    println!("{phase:9} {party:19} {fault:26} {by:12} {with:5} the VM runs");
    for verdict in &tally.verdicts {
        let mut words = verdict.case.split(' ');
        let mut word = || words.next().unwrap_or_default();
        let (phase, party, fault, by, with) = (word(), word(), word(), word(), word());
        let runs = if verdict.wrong.is_empty() {
            if verdict.ended_with_its_process {
                "not: its own process was killed".into()
            } else {
                format!("{:?}", verdict.runs).to_lowercase()
            }
        } else {
            format!("{:?}, and it is WRONG", verdict.runs).to_lowercase()
        };
        println!("{phase:9} {party:19} {fault:26} {by:12} {with:5} {runs}");
    }
    println!();
    print_sums(tally);
}

pub(crate) fn print_sums(tally: &Tally) {
    for (what, count) in [
        ("cases", tally.cases),
        ("survived", tally.survived),
        ("ended with its own process", tally.ended_with_its_process),
        ("VM lost", tally.vm_lost),
        ("VM run twice", tally.vm_twice),
        ("stale pages", tally.stale_pages),
        ("content wrong", tally.content_wrong),
    ] {
        println!("{what:27} {count:6}");
    }
}
