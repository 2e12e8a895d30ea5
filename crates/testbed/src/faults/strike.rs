//! The faults, made to happen.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Resource as Limit, Rlimit, Signal, getrlimit, kill_process, prlimit};

use super::cases::{Case, Fault, Party, Refusal, Resource, With};
use super::scene::Scene;
use crate::kills::kill;
use crate::{Host, hang_worker, kill_worker};

/// How long a process may take to end, or to stand still.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is to be taken back when a case is over.
#[derive(Debug, Default)]
pub(super) struct Undo {
    stopped: Vec<Pid>,
    limited: Vec<(Pid, Limit, Rlimit)>,
    paused: bool,
}

impl Undo {
    /// What hung goes on, what was scarce is there again, at source and destination.
    pub(super) fn now(&mut self, hosts: [&Host; 2]) {
        for pid in self.stopped.drain(..) {
            let _ = kill_process(pid, Signal::CONT);
        }
        for (pid, limit, was) in self.limited.drain(..) {
            let _ = prlimit(Some(pid), limit, was);
        }
        for host in hosts {
            if let Ok(disk) = host.small_disk() {
                let _ = disk.clear();
            }
        }
        if std::mem::take(&mut self.paused) {
            let [source, _] = hosts;
            let _ = source.vm.qmp().cont();
        }
    }
}

/// Has it happen. What the case was stopped for is still on its way.
pub(super) fn strike(case: &Case, scene: &mut Scene<'_>) -> Result<()> {
    match (case.party, case.fault) {
        (Party::SourceUplink, _) => scene.source_uplink.context("it has one")?.gate.cut(),
        (Party::DestinationUplink, _) => scene.destination_uplink.gate.cut(),
        (Party::ControlLink, Fault::Cut) => scene.between()?.link.cut(),
        (Party::ControlLink, Fault::Hung) => scene.between()?.link.hold(),
        (Party::Stream, Fault::Cut) => scene.between()?.stream.cut(),
        (Party::Stream, Fault::Hung) => scene.between()?.stream.hold(),
        // Made when the way was laid.
        (Party::ControlLink | Party::Stream, _)
        | (
            _,
            Fault::Refuses(
                Refusal::OtherMemory
                | Refusal::OtherDevices
                | Refusal::AnotherName
                | Refusal::Expired
                | Refusal::NotAPeer,
            ),
        ) => {}
        (Party::SourceHost, Fault::Without(Resource::Disk)) => scene.source.small_disk()?.fill()?,
        (Party::DestinationHost, Fault::Without(Resource::Disk)) => {
            scene.destination.small_disk()?.fill()?;
        }
        (Party::SourceHost | Party::DestinationHost, _) => {
            let source = case.party == Party::SourceHost;
            let host = if source {
                scene.source
            } else {
                scene.destination
            };
            // Before the links: it would tell of those. What they hold stays held until they are cut.
            host.kill();
            scene.between()?.link.cut();
            scene.between()?.stream.cut();
        }
        (Party::Cli, fault) => command(fault, scene)?,
        (_, Fault::Refuses(refusal)) => refuse(refusal, scene)?,
        (Party::SourceVferry, Fault::Killed) if case.with == With::Keeper => {
            kill_worker(scene.source)?;
        }
        (Party::SourceVferry, Fault::Hung) if case.with == With::Keeper => {
            hang_worker(scene.source)?;
        }
        (Party::DestinationVferry, Fault::Killed) if case.with == With::Keeper => {
            // Nobody serves what waits for a VM in its place.
            kill(scene.destination.status()?.pid)?;
            let deadline = Instant::now() + PATIENCE;
            let ended = scene.destination.process().wait(deadline);
            ensure!(
                ended.is_some(),
                "the keeper of what waited for a VM goes on"
            );
            source_is_told(scene)?;
        }
        (party, Fault::Killed) => {
            match party {
                Party::SourceVferry => scene.source.process().kill(),
                Party::DestinationVferry => scene.destination.process().kill(),
                Party::SourceQemu => scene.source.vm.kill(),
                _ => scene.destination.vm.kill(),
            }
            if party == Party::DestinationQemu {
                // Its vferry ends with it, and may say so before.
                scene.destination.process().wait(Instant::now() + PATIENCE);
            }
            if matches!(party, Party::DestinationVferry | Party::DestinationQemu) {
                source_is_told(scene)?;
            }
        }
        (party, Fault::Hung) => {
            let pid = process(scene, party)?;
            stop(pid)?;
            scene.undo.stopped.push(pid);
        }
        (party, Fault::Without(resource)) => starve(process(scene, party)?, resource, scene)?,
        (party, fault) => anyhow::bail!("{party:?} cannot be {fault:?}"),
    }
    Ok(())
}

/// Of a destination that has ended, before anything goes on: else the source may send it what nobody takes.
fn source_is_told(scene: &Scene<'_>) -> Result<()> {
    let Some(between) = &scene.between else {
        return Ok(());
    };
    ensure!(
        between.link.wait_told(PATIENCE),
        "the link to a destination that has ended has not"
    );
    Ok(())
}

fn command(fault: Fault, scene: &mut Scene<'_>) -> Result<()> {
    let command = scene.command()?;
    match fault {
        Fault::Hung => {
            let pid = pid(command.id())?;
            stop(pid)?;
            scene.undo.stopped.push(pid);
        }
        Fault::Interrupted => command.signal(Signal::INT)?,
        Fault::InterruptedTwice => {
            // The second one is only sent to a command that has not gone by the first.
            while !command.has_ended() {
                command.signal(Signal::INT)?;
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        _ => command.signal(Signal::KILL)?,
    }
    Ok(())
}

fn refuse(refusal: Refusal, scene: &mut Scene<'_>) -> Result<()> {
    match refusal {
        Refusal::Paused => {
            scene.source.vm.qmp().stop()?;
            scene.undo.paused = true;
        }
        Refusal::ReceivesAlready => {
            let uri = scene.destination.link.replace("link.sock", "other.sock");
            scene.destination.vm.qmp().migrate_incoming(&uri)?;
        }
        Refusal::AnotherMigration => {
            let mut another = scene.source.command("migrate");
            let another = another.args(["--to", &scene.destination.link]).output()?;
            let said = String::from_utf8_lossy(&another.stderr);
            ensure!(said.contains("under way already"), "{said}");
        }
        other => anyhow::bail!("{other:?} is not done by anybody"),
    }
    Ok(())
}

/// It keeps what it has, and gets no more.
fn starve(pid: Pid, resource: Resource, scene: &mut Scene<'_>) -> Result<()> {
    let (limit, most) = match resource {
        Resource::Descriptors => (Limit::Nofile, lowest_free(pid)?),
        Resource::Memory => (Limit::As, 0),
        Resource::FileSize => (Limit::Fsize, 0),
        Resource::Disk => anyhow::bail!("a process has none"),
    };
    let none = Rlimit {
        current: Some(most),
        // Inherited from here.
        maximum: getrlimit(limit).maximum,
    };
    let was = prlimit(Some(pid), limit, none)?;
    scene.undo.limited.push((pid, limit, was));
    Ok(())
}

fn process(scene: &Scene<'_>, party: Party) -> Result<Pid> {
    pid(match party {
        Party::SourceVferry => scene.source.vferry_pid(),
        Party::DestinationVferry => scene.destination.vferry_pid(),
        Party::SourceQemu => scene.source.vm.pid(),
        Party::DestinationQemu => scene.destination.vm.pid(),
        other => anyhow::bail!("{other:?} is no process"),
    })
}

fn pid(id: u32) -> Result<Pid> {
    let pid = i32::try_from(id).ok().and_then(Pid::from_raw);
    pid.context("a process has an id")
}

/// The descriptor that it would get next. (None at all would be another fault: `poll` takes no more
/// descriptors than a process may have.)
fn lowest_free(pid: Pid) -> Result<u64> {
    let open = fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero()))?;
    let open: Vec<u64> = open
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    let most = u64::try_from(open.len())?;
    Ok((0..most)
        .find(|number| !open.contains(number))
        .unwrap_or(most))
}

/// Stops a process, and returns when all of its threads stand still.
fn stop(pid: Pid) -> Result<()> {
    kill_process(pid, Signal::STOP)?;
    let deadline = Instant::now() + PATIENCE;
    let status = format!("/proc/{}/status", pid.as_raw_nonzero());
    while !fs::read_to_string(&status)?.contains("State:\tT") {
        ensure!(Instant::now() < deadline, "it does not stop");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
