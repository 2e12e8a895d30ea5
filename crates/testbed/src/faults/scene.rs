//! One migration, and what strikes it on its way.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::aftermath::{SETTLE, control, folder, runs};
use super::cases::{At, Case, Expect, Fault, Party, Refusal, With};
use super::command::Migrate;
use super::strike::{Undo, strike};
use super::wire::{self, Between, HoldStream, Stop, StreamIs, Uplink};
use super::{Verdict, privileges};
use crate::Host;

/// How long a migration may take to come to where a fault strikes.
const REACH: Duration = Duration::from_mins(2);
/// How long the command may take to say what became of it: longer than any deadline of vferry's.
const SAY: Duration = Duration::from_mins(2);
/// How long an operator looks at a stream on which nothing comes before giving up.
const LOOK_ON: Duration = Duration::from_secs(3);
/// So long hangs a source that goes on before the migration has ended: longer than anybody waits for it.
const HANGS: Duration = Duration::from_secs(35);

/// What is struck.
pub(super) struct Scene<'a> {
    pub(super) source: &'a Host,
    pub(super) destination: &'a Host,
    pub(super) source_uplink: Option<&'a Uplink>,
    pub(super) destination_uplink: &'a Uplink,
    pub(super) undo: Undo,
    pub(super) between: Option<Between>,
    pub(super) command: Option<Migrate>,
}

impl Scene<'_> {
    pub(super) fn between(&self) -> Result<&Between> {
        self.between.as_ref().context("nothing is between them yet")
    }

    pub(super) fn command(&mut self) -> Result<&mut Migrate> {
        self.command.as_mut().context("there is no command yet")
    }
}

/// Migrates, and has the fault strike. Returns where the VM has to run then.
pub(super) fn migrate(case: &Case, scene: &mut Scene<'_>, verdict: &mut Verdict) -> Result<Expect> {
    let quiesce = Arc::new(AtomicBool::new(false));
    let folder = folder(scene.destination)?;
    let (stop, stream_is) = way(case, scene, &quiesce)?;
    let link = &scene.destination.link;
    let between = match case.with {
        // Nobody can be between hosts that know each other.
        With::Tls => None,
        _ => Some(Between::start(&folder, link, stop, stream_is)?),
    };
    let to = match case.fault {
        Fault::Refuses(refusal) if case.party == Party::ControlLink => match refusal {
            Refusal::Garbage => {
                wire::impostor(&folder, b"HTTP/1.1 400 Bad Request\r\n\r\n".into())?
            }
            Refusal::OtherVersion => wire::impostor(&folder, of_another_time())?,
            _ => format!("{}.absent", scene.destination.link),
        },
        // Whose end is seen by whoever goes there.
        Fault::Killed if case.at == At::Before => link.clone(),
        _ => between.as_ref().map_or(link, |between| &between.to).clone(),
    };
    scene.between = between;
    if case.at == At::Before {
        strike(case, scene)?;
    }
    let mut command = scene.source.command("migrate");
    command.args([
        "--json",
        "--verify",
        "--to",
        &to,
        "--strategy",
        case.by.name(),
    ]);
    if case.at == At::Compare {
        command.args(["--compare", "always"]);
    }
    scene.command = Some(Migrate::spawn(command, quiesce)?);
    if case.at != At::Before {
        reach(case, scene)?;
        for host in [scene.source, scene.destination] {
            let serves = match case.with {
                With::Keeper => host.status()?.pid,
                _ => host.vferry_pid(),
            };
            privileges::are_given_up(serves)?;
        }
        strike(case, scene)?;
    }
    go_on(case, scene)?;
    let deadline = Instant::now() + SAY;
    let outcome = scene.command()?.wait(deadline);
    verdict.wrong.extend(outcome.differs_from(case.says));
    let expect = match case.expect {
        Expect::AsSaid if outcome.is_done() => Expect::There,
        Expect::AsSaid => Expect::Here,
        expect => expect,
    };
    if let Some(report) = outcome.report {
        verdict.stale_pages += report.stale_pages.unwrap_or_default();
        ensure!(
            verdict.stale_pages == 0,
            "pages are stale: {:?}",
            report.stale_ranges
        );
        let faults = report
            .devices
            .iter()
            .filter_map(|device| device.fault.clone());
        verdict.wrong.extend(faults);
    }
    // What was silent so far is cut in the end.
    if case.fault == Fault::Hung {
        match case.party {
            Party::ControlLink => scene.between()?.link.cut(),
            Party::Stream => scene.between()?.stream.cut(),
            _ => {}
        }
    }
    Ok(expect)
}

/// Where link and stream are stopped.
fn way(case: &Case, scene: &Scene<'_>, quiesce: &Arc<AtomicBool>) -> Result<(Stop, StreamIs)> {
    let held = |hold| (Stop::Nowhere, StreamIs::Led(hold));
    let stopped = |stop| (stop, StreamIs::Led(HoldStream::Never));
    let (stop, stream) = match case.at {
        At::Before => held(HoldStream::Never),
        At::Check => stopped(Stop::Question("check")),
        At::Prepare => stopped(Stop::Question("prepare")),
        At::Prepared => stopped(Stop::Answer("prepared")),
        At::Precopy => held(HoldStream::UnderWay),
        At::Quiesce => held(HoldStream::Flag(Arc::clone(quiesce))),
        At::Stopped => held(HoldStream::Stopped(control(scene.source)?)),
        At::Arrived => held(HoldStream::Arrived(control(scene.destination)?)),
        At::Word => stopped(Stop::Question("run")),
        At::Running => stopped(Stop::Answer("running")),
        At::Recover => stopped(Stop::Question("recover")),
        At::Compare | At::After => stopped(Stop::Question("digests")),
    };
    let stream = match (case.party, case.fault) {
        (Party::Stream, Fault::Refuses(Refusal::Garbage)) => StreamIs::Garbage,
        (Party::Stream, Fault::Refuses(_)) => StreamIs::Refused,
        _ => stream,
    };
    Ok((stop, stream))
}

/// Waits until the fault shall strike.
fn reach(case: &Case, scene: &mut Scene<'_>) -> Result<()> {
    let between = scene.between()?;
    let gate = match case.at {
        At::Precopy | At::Quiesce | At::Stopped | At::Arrived => between.stream.clone(),
        _ => between.link.clone(),
    };
    let deadline = Instant::now() + REACH;
    while !gate.wait_tripped(Duration::from_millis(50)) {
        let command = scene.command()?;
        if command.has_ended() || Instant::now() > deadline {
            let said = command.wait(Instant::now()).stderr;
            anyhow::bail!("the migration did not come to {:?}: {said}", case.at);
        }
    }
    Ok(())
}

/// All goes on that was not struck itself.
fn go_on(case: &Case, scene: &mut Scene<'_>) -> Result<()> {
    let Some(between) = &scene.between else {
        return Ok(());
    };
    let (link, stream) = (between.link.clone(), between.stream.clone());
    let cancelled = matches!(case.fault, Fault::Interrupted | Fault::InterruptedTwice)
        && case.expect == Expect::Here;
    match (case.party, case.fault) {
        (Party::Stream, Fault::Hung) => {
            link.open();
            std::thread::sleep(LOOK_ON);
            scene.command()?.signal(rustix::process::Signal::INT)?;
        }
        // The source has to have heard of it.
        (Party::Cli, _) if cancelled && !matches!(case.at, At::Check | At::Prepare) => {}
        (Party::Cli, Fault::Interrupted) if cancelled => {
            std::thread::sleep(Duration::from_millis(500));
            link.open();
        }
        (Party::ControlLink, Fault::Hung) => stream.open(),
        // Whoever waits for it waits as long as it hangs, where it is not replaced.
        (Party::SourceVferry, Fault::Hung) if case.with != With::Keeper => {
            link.open();
            stream.open();
            std::thread::sleep(HANGS);
            let hosts = [scene.source, scene.destination];
            scene.undo.now(hosts);
        }
        (Party::Cli, Fault::Hung) => {
            link.open();
            stream.open();
            let deadline = Instant::now() + SETTLE;
            while !runs(scene.destination) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(50));
            }
            let hosts = [scene.source, scene.destination];
            scene.undo.now(hosts);
        }
        _ => {
            link.open();
            stream.open();
        }
    }
    Ok(())
}

/// What a vferry says first that this one does not understand.
fn of_another_time() -> Vec<u8> {
    let hello = br#"{"message":"hello","oldest":99,"newest":99}"#;
    let len = u32::try_from(hello.len()).unwrap_or_default();
    [&len.to_be_bytes()[..], hello].concat()
}
