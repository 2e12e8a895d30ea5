//! The `vferry` command.

use std::process::ExitCode;

use clap::Parser;
use vferry::commands::{Cli, run};

fn main() -> ExitCode {
    run(Cli::parse())
}
