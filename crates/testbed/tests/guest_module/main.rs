//! vferry's module for Linux guests, on each of Debian's kernels.

mod help;
mod load;

use std::time::Duration;

use anyhow::{Result, ensure};
use lab::{Kernel, Lab, progress_on_stderr};
use testbed::{Help, Options, Programs, Testbed};
use vferry::rehearsal::{Answer, Rehearsal};

/// How long anything may take that takes seconds on an idle machine.
const PATIENCE: Duration = Duration::from_mins(2);

/// A kernel that ends at its first warning.
const END_AT_WARNING: &str = "panic_on_warn=1";

/// The same, and it looks at its memory as closely as Debian's kernels can: poison and red zones
/// around each object, and guard pages around some.
const STRICT: &str = "panic_on_warn=1 slub_debug=FZPU kfence.sample_interval=20";

/// Boots a guest under load, of so few packets that a busy machine drops none by itself.
fn start(kernel: Kernel, checks: &str, options: Options) -> Result<Testbed> {
    let lab = Lab::ensure(&progress_on_stderr)?.with_kernel(kernel, &progress_on_stderr)?;
    let options = Options {
        append: checks.into(),
        packets_per_second: 200,
        ..options
    };
    Testbed::start(lab, Programs::build()?, options)
}

fn with_module(parameters: &str) -> Options {
    Options {
        guest: Help::Module(parameters.into()),
        ..Options::default()
    }
}

/// `vferry rehearse` on the guest's host.
fn rehearse(testbed: &Testbed) -> Result<Rehearsal> {
    let output = testbed.host.command("rehearse").arg("--json").output()?;
    ensure!(
        !output.stdout.is_empty(),
        "{}\nvferry said:\n{}",
        String::from_utf8_lossy(&output.stderr),
        testbed.host.log()
    );
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Whether the guest did all, for its one device.
fn did_all(rehearsal: &Rehearsal) -> bool {
    rehearsal.devices.len() == 1
        && rehearsal.devices.iter().all(|device| {
            let answers = [&device.track, &device.stop, &device.start];
            answers.iter().all(|a| matches!(a, Answer::Done(_)))
        })
}

/// Fails if the guest's kernel has complained of anything.
fn kernel_is_content(testbed: &Testbed) -> Result<()> {
    let log = testbed.shell("dmesg")?;
    let complaints = [
        "WARNING",
        "BUG",
        "Oops",
        "Call Trace",
        "Call trace",
        "possible ",
        "INFO:",
        "UBSAN",
        "vferry: the driver could not",
    ];
    let found: Vec<_> = log
        .lines()
        .filter(|line| complaints.iter().any(|complaint| line.contains(complaint)))
        .collect();
    ensure!(
        found.is_empty(),
        "the guest's kernel says {found:#?} in\n{log}"
    );
    Ok(())
}
