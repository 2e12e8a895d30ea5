//! `cargo xtask lint`

use anyhow::{Result, ensure};

use crate::workspace::{Step, cargo, output_of, run as run_command};
use crate::{fmt, house, licences};

const CLIPPY: [&str; 7] = [
    "clippy",
    "--workspace",
    "--keep-going",
    "--all-targets",
    "--",
    "-D",
    "warnings",
];

/// Runs every lint, so that one round shows everything, then fails if one of them did.
pub(crate) fn run() -> Result<()> {
    let lints: [Step; 4] = [
        ("house", house::run),
        ("fmt", || fmt::run(true)),
        ("clippy", || run_command(cargo(&CLIPPY))),
        ("dependencies", dependencies),
    ];
    let mut failed = Vec::new();
    for (name, lint) in lints {
        eprintln!("xtask: lint {name}");
        if let Err(error) = lint() {
            eprintln!("xtask: lint {name} failed: {error:#}");
            failed.push(name);
        }
    }
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    eprintln!("xtask: all lints pass");
    Ok(())
}

fn dependencies() -> Result<()> {
    if output_of(cargo(&["deny", "--version"])).is_ok() {
        run_command(cargo(&["deny", "check", "licenses", "bans", "sources"]))?;
        return advisories();
    }
    eprintln!(
        "xtask: cargo-deny is not installed (`cargo install cargo-deny`): bans and security \
         advisories are NOT checked; licences and sources are, and newer versions are shown, for a \
         fix of an advisory comes as one"
    );
    licences::run()?;
    newer_versions();
    Ok(())
}

/// The advisory database is a git repository, which not every machine that has crates can reach.
fn advisories() -> Result<()> {
    match output_of(cargo(&["deny", "fetch", "db"])) {
        Ok(_) => run_command(cargo(&["deny", "check", "--disable-fetch", "advisories"])),
        Err(error) => {
            eprintln!(
                "xtask: security advisories are NOT checked, their database is out of reach: {error:#}"
            );
            Ok(())
        }
    }
}

/// Tells, and does not fail: a new version of a dependency is no fault of a change.
fn newer_versions() {
    if let Err(error) = run_command(cargo(&["update", "--dry-run"])) {
        eprintln!("xtask: newer versions are not known: {error:#}");
    }
}
