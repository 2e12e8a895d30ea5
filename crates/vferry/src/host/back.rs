//! Gives the host back as it was.
//!
//! A function that is open cannot be given back: the kernel waits for whoever has it, and a QEMU that has
//! mapped its registers has it for as long as it lives. So it is waited for first, outside of the
//! kernel, where one can be told why.

use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::bail;
use sriov::Ledger;

use super::host;
use crate::config::Config;

/// How long a QEMU that is told to end may have a function after its vferry's end.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked whether one is free.
const LOOK: Duration = Duration::from_millis(50);

/// By hand: gives back what a run of `config` has left.
///
/// # Errors
/// When the VM is served, or something could not be given back.
pub fn by_hand(config: &Config) -> anyhow::Result<()> {
    if std::os::unix::net::UnixStream::connect(&config.control).is_ok() {
        bail!(
            "this VM is served ({} answers), and its vferry gives the host back when it ends: end its QEMU",
            config.control.display()
        );
    }
    let left = after_another(&config.host_record())?;
    if !left.is_empty() {
        bail!("{}", left.join("; "));
    }
    Ok(())
}

/// What could not be given back of what another process has left.
pub(super) fn after_another(record: &Path) -> anyhow::Result<Vec<String>> {
    give_back(record, None, Some(PATIENCE))
}

/// At the end of a run: the same process, but with nothing open and mapped any more. `status` is the
/// run's.
///
/// # Errors
/// When something could not be given back.
pub fn after_run(record: &Path, owner: Option<&str>, status: u8) -> anyhow::Result<ExitCode> {
    let left = give_back(record, owner, Some(PATIENCE))?;
    if left.is_empty() {
        return Ok(ExitCode::from(status));
    }
    bail!("the host is not yet as it was: {}", left.join("; "))
}

/// Waits for the end of the process at the other end of standard input, in whatever way it ends, then
/// gives back. Nothing but that ends this process: signals that are for the other one, and come to
/// both, do not.
///
/// # Errors
/// When something could not be given back.
pub fn watch(record: &Path, owner: Option<&str>) -> anyhow::Result<ExitCode> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)))?;
    }
    // Not the terminal's either, and in nobody's way.
    let _ = rustix::process::setsid();
    std::env::set_current_dir("/")?;
    let mut ready = io::stdout();
    ready.write_all(b".")?;
    ready.flush()?;
    let mut nothing = Vec::new();
    io::stdin().read_to_end(&mut nothing)?;
    let left = give_back(record, owner, None)?;
    if left.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    bail!("{}", left.join("; "))
}

/// Returns what could not be given back, and stays written down.
fn give_back(
    record: &Path,
    owner: Option<&str>,
    patience: Option<Duration>,
) -> anyhow::Result<Vec<String>> {
    if !record.exists() {
        return Ok(Vec::new());
    }
    let deadline = patience.map(|patience| Instant::now() + patience);
    let mut told = false;
    loop {
        let ledger = Ledger::open(record)?;
        if owner.is_some_and(|owner| owner != ledger.owner()) {
            return Ok(Vec::new());
        }
        let mut functions = ledger.functions();
        let Some(held) = functions.find(|function| passthrough::is_held(function.as_str())) else {
            break;
        };
        if deadline.is_some_and(|deadline| Instant::now() > deadline) {
            return Ok(vec![format!(
                "a process still has PCI function {held}, its VM's QEMU most likely: end it"
            )]);
        }
        if !told {
            tracing::info!(function = %held, "the host is given back when nobody has it open any more");
            told = true;
        }
        thread::sleep(LOOK);
    }
    let given = host().give_back(record, owner)?;
    for what in &given.theirs {
        tracing::warn!("{what}");
    }
    if given.failed.is_empty() && given.changes > 0 {
        tracing::info!("the host is as it was");
    }
    Ok(given.failed)
}
