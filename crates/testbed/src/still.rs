//! What the devices of a guest are silent for that stays where it is: what of an outage is not the migration's.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use qemu::Event;
use uplink::peer::now_nanos;

use crate::load::Load;
use crate::migration::ms;

/// How long a load is listened to.
const LISTEN: Duration = Duration::from_secs(1);
/// For how long the VM is stopped: as long as in a migration, about.
const STOP: Duration = Duration::from_millis(6);
/// Between two commands meanwhile.
const REST: Duration = Duration::from_millis(1);
/// How long QEMU may take to tell of it.
const TELL: Duration = Duration::from_secs(5);

/// Of a guest that stays where it is, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Still {
    /// The longest silence of its load within a second.
    pub usual_ms: f64,
    /// The longest silence around a stop of its vCPUs, less the stop. The guest goes on where all of it is
    /// translated already.
    pub after_stop_ms: f64,
    /// What a command takes QEMU's monitor while the vCPUs stand still, the median of several.
    pub monitor_ms: f64,
}

impl Still {
    pub(crate) fn of(load: &Load<'_>) -> Result<Self> {
        load.wait()?;
        let (usual_ms, ()) = silence(load, || {
            std::thread::sleep(LISTEN);
            Ok(())
        })?;
        let (around, (stopped, monitor_ms)) = silence(load, || stop(load))?;
        // A guest's own clock stands still meanwhile.
        let stopped = if load.work.nic { stopped } else { 0.0 };
        Ok(Self {
            usual_ms,
            after_stop_ms: around - stopped,
            monitor_ms,
        })
    }
}

/// The longest silence while something is done, and what came of that.
fn silence<T>(load: &Load<'_>, what: impl FnOnce() -> Result<T>) -> Result<(f64, T)> {
    load.reset_counts()?;
    let since = now_nanos();
    let done = what()?;
    // Until it is heard again.
    load.wait()?;
    if load.work.nic {
        let longest = load.peer.window(since, now_nanos()).outage();
        return Ok((ms(&longest.context("no UDP flows")?), done));
    }
    let report = load.disk_report()?.context("neither NIC nor disk")?;
    #[expect(clippy::cast_precision_loss, reason = "some milliseconds")]
    let longest = report.longest_silence_nanos as f64 / 1e6;
    ensure!(report.operations > 0, "the guest's disk does nothing");
    Ok((longest, done))
}

/// Stops the VM for a while, and returns for how long it was, as QEMU tells, and what a command took meanwhile.
fn stop(load: &Load<'_>) -> Result<(f64, f64)> {
    let qmp = load.vm.qmp();
    let mut events = qmp.events();
    qmp.stop()?;
    let began = Instant::now();
    let mut took = Vec::new();
    while began.elapsed() < STOP {
        let asked = Instant::now();
        qmp.run_status()?;
        took.push(asked.elapsed());
        // As a command that comes by itself.
        std::thread::sleep(REST);
    }
    qmp.cont()?;
    took.sort();
    let monitor = took.get(took.len() / 2).context("QEMU was not asked")?;
    let deadline = Instant::now() + TELL;
    let mut at = |name: &str| -> Result<Duration> {
        let told: Event = events.wait_for(name, |_| true, deadline)?;
        told.timestamp.context("an event without a time")
    };
    let (stopped, runs) = (at("STOP")?, at("RESUME")?);
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    Ok((ms(runs.saturating_sub(stopped)), ms(*monitor)))
}
