//! `cargo xtask power-cut`

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use lab::{Lab, progress_on_stderr};
use testbed::{Programs, power_cuts};

use crate::workspace::seed;

/// Kills the source of a guest that writes to its disk, at random moments, and looks for what was told
/// to be durable.
#[derive(Debug, Args)]
pub(crate) struct PowerCut {
    /// How often.
    #[arg(long, value_name = "N", default_value_t = 100)]
    count: usize,
    /// The moments follow from it; another each time if left out.
    #[arg(long)]
    seed: Option<u64>,
}

pub(crate) fn run(options: &PowerCut) -> Result<ExitCode> {
    let lab = Lab::ensure(&progress_on_stderr)?;
    let programs = Programs::build()?;
    let seed = seed(options.seed)?;
    eprintln!("power-cut: --seed {seed}");
    let cuts = power_cuts(lab, programs, options.count, seed, &mut |cuts| {
        eprintln!("power-cut: {} of {}: {cuts:?}", cuts.cuts, options.count);
    })?;
    println!("{}", serde_json::to_string(&cuts)?);
    Ok(if cuts.lost == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
