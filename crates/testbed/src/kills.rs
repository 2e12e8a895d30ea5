//! The process that serves a guest's devices is killed, or makes room for one of another program, over and over,
//! and the guest notices no more than that frames are lost.

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lab::Guarded;
use load_format::{DiskReport, GuestReport};
use rustix::process::{Pid, Signal, kill_process};
use uplink::peer::now_nanos;
use vferry::control::Status;

use crate::dice::Dice;
use crate::load::disk_silence_ms;
use crate::rival::{Rival, Tries};
use crate::summary::disk_faults;
use crate::{Host, Manager, Testbed};

/// How long another process may take to serve the devices: QEMU waits for 5 s.
const AGAIN: Duration = Duration::from_secs(5);
/// How long the guest's traffic may take to flow then: TCP may have backed off.
const FLOW: Duration = Duration::from_secs(30);
/// The longest life of a process, under load.
const LIFE: Duration = Duration::from_millis(400);
/// The kernel's words for a device that was found to hang, or that its driver has started anew.
const COMPLAINTS: [&str; 9] = [
    "WARNING:",
    "BUG:",
    "Call Trace",
    "NETDEV WATCHDOG",
    "Unit Hang",
    "PF still in reset",
    "I/O error",
    // It names the queue of a command that takes too long.
    "QID",
    "controller is down",
];

/// What came of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Kills {
    /// How often a process was killed, or was to make room.
    pub killed: u64,
    /// After how many of these all traffic flowed again.
    pub survived: u64,
    /// For how long no numbered UDP reached the one side or the other, after each, in milliseconds, in
    /// ascending order.
    pub outages_ms: Vec<f64>,
    /// Bytes of the one TCP connection, to the guest and from it, all of which were checked.
    pub tcp_bytes: [u64; 2],
    /// The same as `outages_ms` of the guest's disk, if it has one: in which it completed nothing.
    pub disk_outages_ms: Vec<f64>,
    /// What the load on it saw.
    pub disk: Option<DiskReport>,
    /// What is wrong.
    pub faults: Vec<String>,
}

impl Kills {
    /// The longest of all outages, and the middle one.
    pub fn outage_ms(&self) -> Option<(f64, f64)> {
        longest_and_middle(&self.outages_ms)
    }

    /// The same of the disk.
    pub fn disk_outage_ms(&self) -> Option<(f64, f64)> {
        longest_and_middle(&self.disk_outages_ms)
    }
}

fn longest_and_middle(sorted: &[f64]) -> Option<(f64, f64)> {
    let longest = *sorted.last()?;
    Some((longest, sorted[sorted.len() / 2]))
}

/// Kills the process that serves `testbed`'s devices `times` times, at moments that come of `seed`, as SIGKILL
/// does, and calls `survived` with how many of them the guest has.
///
/// # Errors
/// When the guest is not well after one of them, with all that is known.
pub fn kill_workers(
    testbed: &Testbed,
    times: u64,
    seed: u64,
    survived: &dyn Fn(u64),
) -> Result<Kills> {
    replace(testbed, times, seed, survived, &mut |host, round| {
        kill(host.status()?.pid)?;
        wait_served(host, round)
    })
}

/// Has the process that serves `testbed`'s devices make room for another `times` times, at such moments, by the
/// `vferry` at that path; `install` puts the next program where it is to lie.
///
/// # Errors
/// As [`kill_workers`]; also when another does not serve.
pub fn upgrade_workers(
    testbed: &Testbed,
    times: u64,
    seed: u64,
    vferry: &Path,
    install: &dyn Fn() -> Result<()>,
) -> Result<Kills> {
    replace(testbed, times, seed, &|_| (), &mut |host, _| {
        install()?;
        upgrade(host, vferry)
    })
}

/// `vferry upgrade`, of that `vferry`.
///
/// # Errors
/// What it says.
pub fn upgrade(host: &Host, vferry: &Path) -> Result<()> {
    let mut command = Command::new(vferry);
    let output = command.arg("upgrade").arg(&host.config).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{said}");
    Ok(())
}

fn replace(
    testbed: &Testbed,
    times: u64,
    seed: u64,
    survived: &dyn Fn(u64),
    act: &mut dyn FnMut(&Host, u64) -> Result<()>,
) -> Result<Kills> {
    let mut dice = Dice::new(seed);
    testbed.reset_counts()?;
    let image = testbed.next_host_options().disk;
    let rival = image.as_deref().map(Rival::begin);
    let (mut outages_ms, mut disk_outages_ms) = (Vec::new(), Vec::new());
    for round in 1..=times {
        let disk_before = testbed.load().disk_report()?;
        thread::sleep(dice.moment(LIFE));
        let since = now_nanos();
        let context = || {
            format!(
                "after time {round} of {times}, seed {seed}; vferry said:\n{}\nthe VM: {}",
                testbed.host.log(),
                testbed.host.vm.evidence()
            )
        };
        act(&testbed.host, round).with_context(context)?;
        let flows = testbed.peer.wait_for_traffic(since, FLOW);
        flows.with_context(context)?;
        if let Some(before) = disk_before {
            testbed.load().wait_for_disk().with_context(context)?;
            let after = testbed.load().disk_report()?.context("it has a disk")?;
            disk_outages_ms.push(disk_silence_ms(&before, &after));
        }
        let window = testbed.peer.window(since, now_nanos());
        let silences = [window.udp_from_guest, window.udp_to_guest];
        let longest = silences.iter().flatten().map(silence_ms);
        let longest = longest.max_by(f64::total_cmp);
        outages_ms.push(longest.context("the peer has measured nothing")?);
        survived(round);
    }
    outages_ms.sort_by(f64::total_cmp);
    disk_outages_ms.sort_by(f64::total_cmp);
    let guest = testbed.final_report()?;
    let (tcp_bytes, mut faults) = judge(testbed, &guest)?;
    if let Some(rival) = rival {
        let Tries { tries, had } = rival.end()?;
        ensure!(tries > times, "somebody else wants the image all the time");
        if had > 0 {
            faults.push(format!("{had} times somebody else had the disk's image"));
        }
    }
    faults.extend(guest.disk.iter().flat_map(disk_faults));
    Ok(Kills {
        killed: times,
        survived: times,
        outages_ms,
        tcp_bytes,
        disk_outages_ms,
        disk: guest.disk,
        faults,
    })
}

#[expect(
    clippy::cast_precision_loss,
    reason = "an outage of 100 days loses a microsecond"
)]
fn silence_ms(silence: &load_format::Silence) -> f64 {
    silence.nanos() as f64 / 1e6
}

/// Kills the process that serves the devices of a host with a keeper, and waits until another does.
///
/// # Errors
/// When none does, in the time that QEMU has.
pub fn kill_worker(host: &Host) -> Result<()> {
    replace_worker(host, Signal::KILL)
}

/// Has the process hang that serves the devices of `host`, whose keeper sees that, and sees another serve.
///
/// # Errors
/// When none does, or `host` has no keeper.
pub fn hang_worker(host: &Host) -> Result<()> {
    replace_worker(host, Signal::STOP)
}

fn replace_worker(host: &Host, signal: Signal) -> Result<()> {
    let before = host.status()?;
    send(before.pid, signal)?;
    wait_served(host, before.deaths.context("it has a keeper")? + 1)
}

/// Has the keeper of `testbed`'s devices, `process` or the first one, end by `signal` `times` times, as `manager` does
/// it, and sees the one serve that goes on with what `manager` holds. Returns the last one, too.
///
/// # Errors
/// As [`kill_workers`].
pub fn restart_unit(
    testbed: &Testbed,
    manager: &Manager,
    mut process: Option<Guarded>,
    signal: Signal,
    times: u64,
    seed: u64,
) -> Result<(Kills, Guarded)> {
    let kills = replace(testbed, times, seed, &|_| (), &mut |host, _| {
        let before = process.as_ref().unwrap_or_else(|| host.process());
        let (ended, again) = manager.restart(host, before, signal)?;
        ensure!(
            ended.success() || signal == Signal::KILL,
            "it ended with {ended}"
        );
        process = Some(again);
        wait_served(host, 1)
    })?;
    Ok((kills, process.context("there was at least one")?))
}

pub(crate) fn kill(pid: u32) -> Result<()> {
    send(pid, Signal::KILL)
}

fn send(pid: u32, signal: Signal) -> Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    Ok(kill_process(pid.context("it has a process")?, signal)?)
}

fn wait_served(host: &Host, deaths: u64) -> Result<()> {
    let deadline = Instant::now() + AGAIN;
    let is_there = |status: &Status| {
        let connected = status.devices.iter().all(|device| device.connected);
        status.deaths >= Some(deaths) && connected && status.sidecar_connected
    };
    while !host.status().is_ok_and(|status| is_there(&status)) {
        if let Some(status) = host.process().exit_status() {
            bail!("vferry has ended ({status})");
        }
        ensure!(
            Instant::now() < deadline,
            "no other process serves the devices"
        );
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Bytes that went over TCP, and what is wrong with the guest.
fn judge(testbed: &Testbed, guest: &GuestReport) -> Result<([u64; 2], Vec<String>)> {
    let peer = testbed.peer.report();
    let tcp = guest.tcp.as_ref().context("it has TCP")?;
    let udp = guest.udp.as_ref().context("it has UDP")?;
    let dirty = guest.dirty.as_ref().context("it writes memory")?;
    let mut faults = Vec::new();
    for (what, count) in [
        (
            "TCP connections more than one",
            tcp.connections.saturating_sub(1),
        ),
        ("TCP connections broken, says the guest", tcp.broken),
        ("TCP connections ended, says the peer", peer.tcp.closed),
        ("wrong bytes of TCP to the guest", tcp.wrong_bytes),
        ("wrong bytes of TCP from the guest", peer.tcp.wrong_bytes),
        ("damaged packets to the guest", udp.corrupt),
        (
            "damaged packets from the guest",
            peer.udp_from_guest.corrupt,
        ),
        ("damaged echoes", peer.icmp.corrupt),
        ("words of guest memory that are wrong", dirty.wrong_words),
    ] {
        if count > 0 {
            faults.push(format!("{count} {what}"));
        }
    }
    let log = testbed.shell("dmesg")?;
    let complaints = log
        .lines()
        .filter(|line| COMPLAINTS.iter().any(|complaint| line.contains(complaint)));
    faults.extend(complaints.map(|line| format!("the guest's kernel said: {line}")));
    Ok(([tcp.received_bytes, tcp.sent_bytes], faults))
}
