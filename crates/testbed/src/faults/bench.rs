//! One case after the other, with one guest as long as it is well.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use authority::Validity;
use ferry::Strategy;
use lab::{Kernel, Lab, progress_on_stderr};

use super::aftermath::{is_let_go, judge, logs, resolve, settle};
use super::cases::{Case, Expect, Fault, Party, Refusal, With};
use super::evidence;
use super::load::Load;
use super::scene::{Scene, migrate};
use super::strike::Undo;
use super::wire::Uplink;
use super::{Runs, Verdict};
use crate::{Devices, Help, Host, HostFiles, Options, Plug, Programs, Testbed};

const END: Duration = Duration::from_secs(20);
/// More than the cases of one guest take.
const DEATHS_PER_MINUTE: u32 = 100;
/// A host that is none of these.
const ANOTHER: &str = "another.example";

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
        if case.with != self.load.with {
            let with = case.with;
            self.begin_anew(Load { with, ..self.load });
        }
        self.judged(case.name(), |bench, guest, verdict| {
            before(&guest.testbed)?;
            if case.by == Strategy::Sleep {
                guest.testbed.listen_to_sleep_key()?;
            }
            if case.with == With::Asleep {
                guest.testbed.fall_asleep()?;
            }
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
        scene.undo.now([scene.source, scene.destination]);
        let expect = migrated.with_context(|| logs(&testbed.host, next))?;
        let case = &Case { expect, ..*case };
        resolve(case, &testbed.host, next)?;
        verdict.runs = settle(case, &testbed.host, next);
        match (case.expect, verdict.runs) {
            (Expect::WithItsQemu | Expect::WithItsVferry, Runs::Nowhere) => {
                verdict.ended_with_its_process = true;
                return Ok(());
            }
            (Expect::Here | Expect::ResolvedHere, Runs::Here) => is_let_go(&testbed.host)?,
            (Expect::There | Expect::ResolvedThere, Runs::There) => {
                guest.arrive()?;
                self.uplink = Some(uplink);
            }
            (expect, runs) => {
                let logs = logs(&testbed.host, next);
                anyhow::bail!("the VM has to be {expect:?} and runs {runs:?}\n{logs}")
            }
        }
        let testbed = &guest.testbed;
        testbed.wait_for_late_traffic()?;
        judge(testbed, verdict)?;
        // What is left of the other host ends.
        guest.other = None;
        // By recovery, which does not work in a guest that was woken without its chipset.
        let by = if case.by == Strategy::Sleep || case.with == With::Asleep {
            Strategy::Recovery
        } else {
            Strategy::Transparent
        };
        self.move_on(guest, by, &mut verdict.stale_pages)
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
            devices: match self.load.with {
                With::Disk => Devices::NicAndDisk,
                With::Nothing | With::Asleep | With::SmallDisks | With::Tls | With::Keeper => {
                    Devices::Nic
                }
            },
            deaths_per_minute: (self.load.with == With::Keeper).then_some(DEATHS_PER_MINUTE),
            between: match self.load.with {
                With::Tls => crate::Between::Tls,
                _ => crate::Between::Sockets,
            },
            host_files: match self.load.with {
                With::SmallDisks => HostFiles::Apart,
                _ => HostFiles::Together,
            },
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
            Some(Fault::Refuses(Refusal::AnotherName)) => options.identity.name = ANOTHER,
            Some(Fault::Refuses(Refusal::Expired)) => options.identity.validity = Validity::Past,
            Some(Fault::Refuses(Refusal::NotAPeer)) => options.identity.peer = ANOTHER,
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
        // What hung was before this.
        guest.testbed.wait_for_late_traffic()
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
