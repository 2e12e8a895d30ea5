//! `cargo xtask soak`

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use lab::{Lab, progress_on_stderr};
use testbed::Programs;
use testbed::faults::{SoakOptions, SoakStep, Soaked, Verdict, soak};

use crate::faults::{Form, exit, print_sums};
use crate::workspace::seed;

/// Round trips under load, with a fault of the matrix now and then, and with settings that change.
#[derive(Debug, Args)]
pub(crate) struct Soak {
    /// How long.
    #[arg(long, value_name = "N", default_value_t = 60)]
    minutes: u64,
    /// All that is random follows from it; another each time if left out.
    #[arg(long)]
    seed: Option<u64>,
    /// Begin with this guest of the seed's.
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    guest: u64,
    /// How to print what came of it.
    #[arg(long, value_enum, default_value_t = Form::Table)]
    report: Form,
    /// Switch off a law of vferry's, to see that it is noticed: `no-log` or `naive-order`.
    #[arg(long, value_name = "LAW")]
    unsound_control: Option<String>,
}

pub(crate) fn run(soak_for: &Soak) -> Result<ExitCode> {
    let lab = Lab::ensure(&progress_on_stderr)?;
    let programs = Programs::build()?;
    let seed = seed(soak_for.seed)?;
    eprintln!("soak: --seed {seed}");
    let began = Instant::now();
    let options = SoakOptions {
        seed,
        first_guest: soak_for.guest,
        until: began + Duration::from_secs(soak_for.minutes * 60),
        folder: lab::target_dir()?.join("soak"),
        unsound_control: soak_for.unsound_control.clone(),
    };
    let soaked = soak(lab, programs, &options, &mut |step, verdict| {
        eprintln!("soak: {:.0?}: {}", began.elapsed(), line(step, verdict));
    })?;
    match soak_for.report {
        Form::Json => println!("{}", serde_json::to_string(&soaked)?),
        Form::Table => print(&soaked),
    }
    if let Some((step, folder)) = &soaked.wrong {
        let law = soak_for.unsound_control.as_ref();
        let law = law.map_or(String::new(), |law| format!(" --unsound-control {law}"));
        eprintln!(
            "soak: step {} of guest {} is wrong\n  what is known:  {}\n  \
             once more:      cargo xtask soak --seed {seed} --guest {}{law}",
            step.step,
            step.guest,
            folder.display(),
            step.guest
        );
    }
    Ok(exit(soaked.tally.is_right()))
}

fn line(step: &SoakStep, verdict: &Verdict) -> String {
    let SoakStep {
        guest,
        step,
        settings,
    } = step;
    let first = |wrong: &String| wrong.lines().next().unwrap_or_default().to_owned();
    let came = if verdict.wrong.is_empty() {
        format!("{:?}", verdict.runs).to_lowercase()
    } else {
        let wrong: Vec<_> = verdict.wrong.iter().map(first).collect();
        format!("WRONG: {}", wrong.join("; "))
    };
    format!(
        "guest {guest}, step {step}: [{}] {}: {came} ({:.1} s)",
        settings.join(", "),
        verdict.case,
        verdict.seconds
    )
}

fn print(soaked: &Soaked) {
    println!("{:27} {:6}", "seed", soaked.seed);
    println!("{:27} {:6.0}", "seconds", soaked.seconds);
    println!("{:27} {:6}", "guests", soaked.guests);
    println!(
        "{:27} {:6}",
        "migrations without a fault", soaked.migrations
    );
    println!("{:27} {:6}", "faults", soaked.faults);
    println!("{:27} {:6}", "settings that changed", soaked.settings);
    print_sums(&soaked.tally);
}
