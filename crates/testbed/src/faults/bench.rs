//! One case after the other, with one guest as long as it is well.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ferry::Strategy;
use lab::{Kernel, Lab, progress_on_stderr};

use super::aftermath::{SETTLE, control, folder, judge, logs, resolve, runs, settle};
use super::cases::{At, Case, Expect, Fault, Party, Refusal};
use super::command::Migrate;
use super::evidence;
use super::load::Load;
use super::strike::{Undo, strike};
use super::wire::{self, Between, HoldStream, Stop, StreamIs, Uplink};
use super::{Runs, Verdict};
use crate::{Help, Host, Options, Plug, Programs, Testbed};

/// How long a migration may take to come to where a fault strikes.
const REACH: Duration = Duration::from_mins(2);
/// How long the command may take to say what became of it: longer than any deadline of vferry's.
const SAY: Duration = Duration::from_mins(2);
/// How long an operator looks at a stream on which nothing comes before giving up.
const LOOK_ON: Duration = Duration::from_secs(3);
const END: Duration = Duration::from_secs(20);

/// What is struck.
pub(super) struct Scene<'a> {
    pub(super) source: &'a Host,
    pub(super) destination: &'a Host,
    pub(super) source_uplink: Option<&'a Uplink>,
    pub(super) destination_uplink: &'a Uplink,
    pub(super) undo: Undo,
    between: Option<Between>,
    command: Option<Migrate>,
}

impl Scene<'_> {
    pub(super) fn between(&self) -> Result<&Between> {
        self.between.as_ref().context("nothing is between them yet")
    }

    pub(super) fn command(&mut self) -> Result<&mut Migrate> {
        self.command.as_mut().context("there is no command yet")
    }
}

/// A guest, and the host beside its own.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) testbed: Testbed,
    /// Where it goes, or from where it has come.
    pub(super) other: Option<Host>,
}

#[derive(Debug)]
pub(super) struct Bench {
    load: Load,
    lab: Lab,
    programs: Programs,
    /// A law to switch off: see [`Options::unsound_control`].
    unsound_control: Option<String>,
    /// Where goes what is left of a guest that is not well.
    evidence: Option<PathBuf>,
    /// `None` if the guest has ended, or is not well.
    guest: Option<Guest>,
    /// That of the guest's host, if it goes by a gate.
    uplink: Option<Uplink>,
    uplinks: u32,
}

impl Bench {
    pub(super) fn new(lab: Lab, programs: Programs) -> Self {
        Self {
            load: Load::default(),
            lab,
            programs,
            unsound_control: None,
            evidence: None,
            guest: None,
            uplink: None,
            uplinks: 0,
        }
    }

    /// With one law switched off at every source.
    pub(super) fn without_law(mut self, law: Option<String>) -> Self {
        self.unsound_control = law;
        self
    }

    /// All that is known of a guest that is not well goes into this folder.
    pub(super) fn keep_evidence(mut self, folder: PathBuf) -> Self {
        self.evidence = Some(folder);
        self
    }

    /// The next guest is another, with this load.
    pub(super) fn begin_anew(&mut self, load: Load) {
        self.load = load;
        self.guest = None;
        self.uplink = None;
    }

    pub(super) fn run(&mut self, case: &Case) -> Verdict {
        self.run_after(case, |_| Ok(()))
    }

    /// Does `before` with the guest first.
    pub(super) fn run_after(
        &mut self,
        case: &Case,
        before: impl FnOnce(&Testbed) -> Result<()>,
    ) -> Verdict {
        self.judged(case.name(), |bench, guest, verdict| {
            before(&guest.testbed)?;
            bench.attempt(case, guest, verdict)
        })
    }

    /// Does `before` with the guest, and migrates it without a fault.
    pub(super) fn migrate(
        &mut self,
        by: Strategy,
        before: impl FnOnce(&Testbed) -> Result<()>,
    ) -> Verdict {
        self.judged(format!("none - - {by}"), |bench, guest, verdict| {
            before(&guest.testbed)?;
            bench.move_on(guest, by, &mut verdict.stale_pages)?;
            verdict.runs = Runs::There;
            judge(&guest.testbed, verdict)
        })
    }

    fn judged(
        &mut self,
        case: String,
        what: impl FnOnce(&mut Self, &mut Guest, &mut Verdict) -> Result<()>,
    ) -> Verdict {
        let began = Instant::now();
        let mut verdict = Verdict {
            case,
            runs: Runs::Nowhere,
            ended_with_its_process: false,
            stale_pages: 0,
            content_wrong: false,
            wrong: Vec::new(),
            seconds: 0.0,
        };
        match self.guest() {
            Ok(mut guest) => {
                if let Err(error) = what(self, &mut guest, &mut verdict) {
                    verdict.wrong.push(format!("{error:#}"));
                }
                if !verdict.wrong.is_empty() {
                    self.keep(&guest, &mut verdict);
                }
                self.guest = Some(guest);
            }
            Err(error) => verdict.wrong.push(format!("{error:#}")),
        }
        if verdict.ended_with_its_process || !verdict.wrong.is_empty() {
            self.guest = None;
            self.uplink = None;
        }
        verdict.seconds = began.elapsed().as_secs_f64();
        verdict
    }

    fn keep(&self, guest: &Guest, verdict: &mut Verdict) {
        let Some(folder) = &self.evidence else { return };
        if let Err(error) = evidence::keep(folder, guest) {
            verdict
                .wrong
                .push(format!("not all of it could be kept: {error:#}"));
        }
    }

    fn attempt(&mut self, case: &Case, guest: &mut Guest, verdict: &mut Verdict) -> Result<()> {
        if case.party == Party::SourceUplink && self.uplink.is_none() {
            self.move_on(guest, Strategy::Transparent, &mut 0)?;
        }
        let uplink = self.next(guest, Some(case))?;
        let Guest { testbed, other } = guest;
        let next = other.as_ref().context("it waits")?;
        let mut scene = Scene {
            source: &testbed.host,
            destination: next,
            source_uplink: self.uplink.as_ref(),
            destination_uplink: &uplink,
            undo: Undo::default(),
            between: None,
            command: None,
        };
        let migrated = migrate(case, &mut scene, verdict);
        scene.undo.now(scene.source);
        migrated.with_context(|| logs(&testbed.host, next))?;
        resolve(case, &testbed.host, next)?;
        verdict.runs = settle(case, &testbed.host, next);
        match (case.expect, verdict.runs) {
            (Expect::WithItsQemu | Expect::WithItsVferry, Runs::Nowhere) => {
                verdict.ended_with_its_process = true;
                return Ok(());
            }
            (Expect::Here | Expect::ResolvedHere, Runs::Here) => {}
            (Expect::There | Expect::ResolvedThere, Runs::There) => {
                guest.arrive()?;
                self.uplink = Some(uplink);
            }
            (expect, runs) => {
                let logs = logs(&testbed.host, next);
                anyhow::bail!("the VM has to be {expect:?} and runs {runs:?}\n{logs}")
            }
        }
        // TCP tries again after twice the time each time, so it may be silent for as long again as the VM
        // stood still: some 30 s where somebody hung.
        let testbed = &guest.testbed;
        testbed
            .wait_for_traffic()
            .or_else(|_| testbed.wait_for_traffic())?;
        judge(testbed, verdict)?;
        // What is left of the other host ends.
        guest.other = None;
        self.move_on(guest, Strategy::Transparent, &mut verdict.stale_pages)
            .context("a later migration fails")?;
        judge(&guest.testbed, verdict)?;
        guest.testbed.reset_counts()
    }

    /// A guest that is well.
    fn guest(&mut self) -> Result<Guest> {
        if let Some(guest) = self.guest.take() {
            return Ok(guest);
        }
        self.uplink = None;
        let lab = self.lab.clone();
        let lab = lab.with_kernel(Kernel::default(), &progress_on_stderr)?;
        let options = Options {
            memory: self.load.memory,
            packets_per_second: self.load.packets_per_second,
            dirty: self.load.dirty,
            plug: Plug::RootPort,
            guest: Help::Module(String::new()),
            strategy: Some(Strategy::Transparent),
            quiesce_deadline: Duration::from_secs(3),
            unsound_control: self.unsound_control.clone(),
            ..Options::default()
        };
        let testbed = Testbed::start(lab, self.programs.clone(), options)?;
        let other = None;
        Ok(Guest { testbed, other })
    }

    /// A host that waits for the guest beside its own. Returns its network.
    fn next(&mut self, guest: &mut Guest, case: Option<&Case>) -> Result<Uplink> {
        guest.leave()?;
        let testbed = &mut guest.testbed;
        self.uplinks += 1;
        let wire = testbed.wire().to_owned();
        let socket = wire.with_file_name(format!("uplink-{}.sock", self.uplinks));
        let uplink = Uplink::start(socket, &wire)?;
        let mut options = testbed.next_host_options();
        options.wire.clone_from(&uplink.socket);
        match case.map(|case| case.fault) {
            Some(Fault::Refuses(Refusal::OtherMemory)) => options.memory *= 2,
            Some(Fault::Refuses(Refusal::OtherDevices)) => options.nic_address = "00:0b.0".into(),
            _ => {}
        }
        guest.other = Some(testbed.another_host(&options, true)?);
        Ok(uplink)
    }

    /// Without a fault.
    fn move_on(&mut self, guest: &mut Guest, by: Strategy, stale: &mut usize) -> Result<()> {
        let uplink = self.next(guest, None)?;
        let Guest { testbed, other } = guest;
        let next = other.as_ref().context("it waits")?;
        let report = testbed.run_migrate_by(next, Some(by))?;
        *stale += report.stale_pages.context("memory was compared")?;
        if *stale > 0 {
            let logs = logs(&testbed.host, next);
            anyhow::bail!("pages are stale: {:?}\n{logs}", report.stale_ranges);
        }
        guest.arrive()?;
        self.uplink = Some(uplink);
        guest.testbed.wait_for_traffic()
    }
}

impl Guest {
    /// It runs on the other host now, which was beside its own.
    fn arrive(&mut self) -> Result<()> {
        let next = self.other.take().context("it waited")?;
        self.other = Some(std::mem::replace(&mut self.testbed.host, next));
        Ok(())
    }

    /// The host that it has left is not needed any more: it is seen to end.
    fn leave(&mut self) -> Result<()> {
        self.other.take().map_or(Ok(()), |old| old.end(END))
    }
}

/// Migrates, and has the fault strike.
fn migrate(case: &Case, scene: &mut Scene<'_>, verdict: &mut Verdict) -> Result<()> {
    let quiesce = Arc::new(AtomicBool::new(false));
    let folder = folder(scene.destination)?;
    let (stop, stream_is) = way(case, scene, &quiesce)?;
    let between = Between::start(&folder, &scene.destination.link, stop, stream_is)?;
    let to = match case.fault {
        Fault::Refuses(refusal) if case.party == Party::ControlLink => match refusal {
            Refusal::Garbage => {
                wire::impostor(&folder, b"HTTP/1.1 400 Bad Request\r\n\r\n".into())?
            }
            Refusal::OtherVersion => wire::impostor(&folder, of_another_time())?,
            _ => format!("{}.absent", scene.destination.link),
        },
        // Whose end is seen by whoever goes there.
        Fault::Killed if case.at == At::Before => scene.destination.link.clone(),
        _ => between.to.clone(),
    };
    scene.between = Some(between);
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
    scene.command = Some(Migrate::spawn(command, quiesce)?);
    if case.at != At::Before {
        reach(case, scene)?;
        strike(case, scene)?;
    }
    go_on(case, scene)?;
    let deadline = Instant::now() + SAY;
    let outcome = scene.command()?.wait(deadline);
    verdict.wrong.extend(outcome.differs_from(case.says));
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
    Ok(())
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
        At::After => stopped(Stop::Question("digests")),
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
    let between = scene.between()?;
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
        (Party::Cli, _) if cancelled && case.at != At::Check => {}
        (Party::Cli, Fault::Interrupted) if cancelled => {
            std::thread::sleep(Duration::from_millis(500));
            link.open();
        }
        (Party::ControlLink, Fault::Hung) => stream.open(),
        (Party::Cli, Fault::Hung) => {
            link.open();
            stream.open();
            let deadline = Instant::now() + SETTLE;
            while !runs(scene.destination) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(50));
            }
            let source = scene.source;
            scene.undo.now(source);
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
