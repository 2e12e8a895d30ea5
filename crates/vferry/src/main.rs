//! The `vferry` command.
//!
//! # What it does not do
//!
//! Anything itself: all of it is in the library of the same name.

use std::process::ExitCode;

use clap::Parser;
use vferry::commands::{Cli, run};

fn main() -> ExitCode {
    run(Cli::parse())
}
