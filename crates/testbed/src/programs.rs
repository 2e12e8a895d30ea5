//! The programs under test.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The target of the guest's program. Named, so that flags for it do not touch build scripts.
const GUEST_TARGET: &str = "x86_64-unknown-linux-gnu";

/// Where the programs are.
#[derive(Debug, Clone)]
pub struct Programs {
    /// `vferry`.
    pub vferry: PathBuf,
    /// `lab-guest`, static.
    pub guest: PathBuf,
}

impl Programs {
    /// Builds them, optimised. Cheap when nothing has changed.
    ///
    /// # Errors
    /// When one does not build.
    pub fn build() -> Result<Self> {
        let target = lab::target_dir()?;
        let cargo = |package: &str| {
            let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
            cargo.args(["build", "--release", "--quiet", "--package", package]);
            cargo.arg("--target-dir").arg(&target);
            cargo
        };
        run(cargo("vferry"))?;
        let mut guest = cargo("lab-guest");
        // The guest has no libraries.
        guest
            .args(["--target", GUEST_TARGET])
            .env("RUSTFLAGS", "-Ctarget-feature=+crt-static");
        run(guest)?;
        Ok(Self {
            vferry: target.join("release/vferry"),
            guest: target.join(GUEST_TARGET).join("release/lab-guest"),
        })
    }
}

fn run(mut command: Command) -> Result<()> {
    let status = command.status().context("cannot run cargo")?;
    ensure!(status.success(), "{command:?} failed");
    Ok(())
}
