//! The workspace, and the programs that are run in it.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};

/// A named part of a command.
pub(crate) type Step = (&'static str, fn() -> Result<()>);

/// The workspace's root.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask is a folder of the workspace")
}

/// The cargo that runs this, so that a chosen toolchain stays chosen.
pub(crate) fn cargo(args: &[&str]) -> Command {
    command(
        std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()),
        args,
    )
}

pub(crate) fn git(args: &[&str]) -> Command {
    command("git".into(), args)
}

fn command(program: OsString, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(args).current_dir(root());
    command
}

/// Runs it with its output on the terminal.
pub(crate) fn run(mut command: Command) -> Result<()> {
    let shown = shown(&command);
    eprintln!("xtask: {shown}");
    let status = command
        .status()
        .with_context(|| format!("cannot run `{shown}`"))?;
    ensure!(status.success(), "`{shown}` failed ({status})");
    Ok(())
}

/// Runs it and returns what it prints on standard output.
pub(crate) fn output_of(mut command: Command) -> Result<String> {
    let shown = shown(&command);
    let output = command
        .output()
        .with_context(|| format!("cannot run `{shown}`"))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "`{shown}` failed ({}): {}",
        output.status,
        stderr.trim()
    );
    String::from_utf8(output.stdout).with_context(|| format!("`{shown}` printed no text"))
}

fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program())
        .file_name()
        .unwrap_or_default();
    let words = std::iter::once(program).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// The seed that was given, or another each time.
pub(crate) fn seed(given: Option<u64>) -> Result<u64> {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH);
    Ok(match given {
        Some(seed) => seed,
        None => now()?.as_secs(),
    })
}
