//! `cargo xtask fmt`

use anyhow::{Context, Result};

use crate::workspace::{cargo, run as run_command};

pub(crate) fn run(check: bool) -> Result<()> {
    let args: &[&str] = if check {
        &["fmt", "--all", "--check"]
    } else {
        &["fmt", "--all"]
    };
    run_command(cargo(args)).context("run `cargo xtask fmt` to format the source")
}
