//! The destination's part of a migration.

pub(crate) mod memory;

use std::fmt;
use std::time::{Duration, Instant};

use qemu::migration::{MigrationSettings, MigrationStatus};
use qemu::system::RunState;
use qemu::{Qmp, QmpError};

use crate::check::{self, Facts, Refused};
use crate::commit::{self, DestinationThen, FailedAt};
use crate::cooperative::end::Ending;
use crate::digest::Secret;
use crate::link::{self, Afterwards, Arrival, Function, Link, LinkError, Message};
use crate::recovery::Recovery;
use crate::report::millis;
use crate::restore::{self, RestoreError, Slot};
use crate::root_port::{self, RootPort};
use crate::sleep;
use crate::vm::StageName;
use crate::{Phase, Protection, Vm};

/// How long an answer may take to send, and the source to ask its next question while it works.
const ANSWER: Duration = Duration::from_secs(10);
/// How often the VM's QEMU is looked at while the source copies.
const LOOK: Duration = Duration::from_secs(1);
/// How long QEMU may take from the source's completion to its own, and to let the VM run.
const REACT: Duration = Duration::from_secs(10);
/// How long the source may think about digests.
const DIGESTS: Duration = Duration::from_mins(10);

/// What the destination's host does for the VM's devices before they are used.
pub trait Host: fmt::Debug {
    /// What stands against taking a VM in, with what to do.
    fn obstacles(&self) -> Vec<String>;

    /// Treats each device as the source's host does, where the facts said that this side follows.
    ///
    /// # Errors
    /// Why not, and nothing has arrived then.
    fn follow(&self, source: &Facts) -> Result<(), String>;

    /// The VM runs here from now on, whatever becomes of the link.
    fn has_vm(&self) {}
}

/// The destination's side.
#[derive(Debug)]
pub struct Destination<'a> {
    /// The VM that is to be.
    pub vm: &'a Vm,
    /// Its QEMU, which waits.
    pub qmp: &'a Qmp,
    /// Its functions and where they sit.
    pub slots: &'a [Slot],
    /// What its host does for them.
    pub host: &'a dyn Host,
    /// What it is.
    pub facts: Facts,
    /// Where QEMU shall listen, as the source's QEMU reaches it.
    pub uri: String,
    /// How QEMU's stream goes.
    pub protection: Protection,
    /// Limits for QEMU.
    pub settings: MigrationSettings,
}

/// Why nothing arrived.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// Nothing was touched.
    #[error("refused, nothing was touched: {0}")]
    Refused(#[from] Refused),
    /// The link failed or the source gave up.
    #[error("nothing arrived: {0}")]
    Link(#[from] LinkError),
    /// QEMU refused or failed.
    #[error("nothing arrived: {0}")]
    Qmp(#[from] QmpError),
    /// PCI configuration was not taken.
    #[error("nothing arrived: {0}")]
    Restore(#[from] RestoreError),
    /// The VM may run here, or may not.
    #[error(
        "the VM is complete here, but QEMU did not say whether it runs ({0}): ask it by QMP `query-status`, and end it if the source shall run the VM"
    )]
    Uncertain(String),
    /// The source has only looked.
    #[error("the source has asked whether this VM could come here, and no more")]
    OnlyLooked,
    /// The devices or QEMU are not where they should be.
    #[error("nothing arrived: {0}")]
    Other(String),
}

impl ReceiveError {
    fn at(&self) -> FailedAt {
        match self {
            Self::Uncertain(_) => FailedAt::RunUnanswered,
            _ => FailedAt::BeforeRun,
        }
    }
}

impl Destination<'_> {
    /// Takes a VM in from the side at the other end of `link`, whose first message is `first`.
    ///
    /// # Errors
    /// See [`ReceiveError`]. A QEMU that had begun to receive is ended then: what is in it is no
    /// VM, and the source runs on.
    pub fn receive(self, first: Message, link: &mut Link) -> Result<Arrival, ReceiveError> {
        let asked = self.check(first, link).and_then(|theirs| {
            let asked = asked(link)?;
            let followed = self.host.follow(&theirs);
            followed.map_err(ReceiveError::Other)?;
            Ok(asked)
        });
        let asked = match asked {
            Ok(asked) => asked,
            // It does not wait for an answer.
            Err(error @ ReceiveError::OnlyLooked) => return Err(error),
            Err(error) => return Err(tell(link, error)),
        };
        let arrived = self
            .prepare(link, &asked)
            .and_then(|()| self.arrive(link, &asked));
        match arrived {
            Ok(arrival) => {
                self.answer(link, asked.verify);
                Ok(arrival)
            }
            Err(error) => match commit::destination(error.at()) {
                DestinationThen::KeepSilent => Err(error),
                DestinationThen::GiveUp => {
                    // It was held all the time; nothing of it has run. Ended first, so that the
                    // source finds shared disks free when it hears of it.
                    let _ = self.qmp.quit();
                    self.vm.forget_arrival();
                    Err(tell(link, error))
                }
            },
        }
    }

    /// What the source is, which says so in its `first` message.
    fn check(&self, first: Message, link: &mut Link) -> Result<Facts, ReceiveError> {
        tracing::info!(phase = %Phase::Check, "phase");
        let theirs = match first {
            Message::Check { facts } => facts,
            other => return Err(link::unexpected(&other).into()),
        };
        let state = self.qmp.run_status()?.status;
        let iommu = self.qmp.virtual_iommu()?;
        let mut reasons = check::destination(&self.facts, &state, &iommu);
        reasons.extend(check::compare(&theirs, &self.facts));
        let obstacles = self.host.obstacles().into_iter();
        reasons.extend(obstacles.map(|obstacle| format!("at the destination, {obstacle}")));
        if !self.vm.is_sidecar_connected() {
            reasons.push("the destination's QEMU has no sidecar connected to vferry".into());
        }
        for slot in self
            .slots
            .iter()
            .filter(|slot| !slot.endpoint.is_connected())
        {
            let name = slot.endpoint.name();
            reasons.push(format!(
                "the destination's device `{name}` is not connected to QEMU"
            ));
        }
        reasons.extend(self.without_link().chain(self.lacking()));
        if !reasons.is_empty() {
            return Err(Refused(reasons).into());
        }
        let answer = Message::Check {
            facts: Box::new(self.facts.clone()),
        };
        link.send(&answer, ANSWER)?;
        Ok(*theirs)
    }

    /// Devices that would be cut off here. What runs at the source is better off there.
    fn without_link(&self) -> impl Iterator<Item = String> {
        let cut_off = |slot: &&Slot| !slot.endpoint.has_link();
        self.slots.iter().filter(cut_off).map(|slot| {
            format!(
                "the destination's device `{}` has no link: see to its `uplink` there, and start \
                 vferry and QEMU there anew",
                slot.endpoint.name()
            )
        })
    }

    /// A device of which QEMU has asked more than it got, and runs it all the same.
    fn lacking(&self) -> Option<String> {
        self.slots.iter().find_map(|slot| {
            let name = slot.endpoint.name();
            let lack = slot.endpoint.lack()?;
            Some(format!(
                "the destination's device `{name}` would not work: {lack}; vferry's log there says \
                 what. Raise its limits (`ulimit -n`, LimitNOFILE in a unit), and start vferry and QEMU there anew"
            ))
        })
    }

    fn prepare(&self, link: &mut Link, asked: &Asked) -> Result<(), ReceiveError> {
        tracing::info!(phase = %Phase::Prepare, "phase");
        // QEMU shall not start the VM by itself when it has it: the source says when.
        self.qmp.stop()?;
        self.vm
            .expect_arrival(
                &asked.migration,
                asked.secret.clone(),
                asked.verify,
                asked.compare,
            )
            .map_err(ReceiveError::Other)?;
        root_port::program(self.qmp, self.slots, &asked.root_ports)?;
        restore::program(self.qmp, self.slots, &asked.functions, &[])?;
        self.qmp.prepare_migration(&self.settings)?;
        self.qmp.protect_stream(self.protection.tls())?;
        if let Some(lack) = self.lacking() {
            return Err(ReceiveError::Other(lack));
        }
        self.qmp.migrate_incoming(&self.uri)?;
        let uri = self.uri.clone();
        Ok(link.send(&Message::Prepared { uri }, ANSWER)?)
    }

    fn arrive(&self, link: &mut Link, asked: &Asked) -> Result<Arrival, ReceiveError> {
        let prepared = &asked.functions[..];
        let mut events = self.qmp.events();
        let (functions, then) = self.wait_for_word(link, asked)?;
        let told = Instant::now();
        // Somebody's `cont` may have come before the word.
        self.wait_arrived(&[StageName::Arrived, StageName::Ready, StageName::Running])?;
        let changed = functions != prepared;
        if changed || matches!(then, Afterwards::Recover(_)) {
            self.wait_loaded(&mut events)?;
        }
        let corrected = restore::program(self.qmp, self.slots, &functions, prepared)?;
        let recovery = match &then {
            Afterwards::Recover(devices) => {
                let recovery = Recovery::begin(self.qmp, self.slots, &functions, devices);
                Some(recovery.map_err(|error| ReceiveError::Other(error.to_string()))?)
            }
            Afterwards::Nothing | Afterwards::Wake => None,
        };
        let mut unfit = self.without_link().chain(self.lacking());
        if let Some(lost) = unfit.next() {
            return Err(ReceiveError::Other(lost));
        }
        let claimed = self.vm.claim();
        claimed.map_err(|error| ReceiveError::Other(error.to_string()))?;
        // QEMU takes `cont` also in the last moments of loading, and starts the VM when it is done.
        self.qmp.cont().map_err(|error| match error {
            QmpError::Refused { .. } => ReceiveError::Qmp(error),
            // It may be carried out late.
            error => ReceiveError::Uncertain(error.to_string()),
        })?;
        let running = Instant::now();
        self.vm.run_again();
        self.host.has_vm();
        tracing::info!(phase = %Phase::Resume, "phase");
        let mut arrival = self.arrival(told, corrected);
        if then == Afterwards::Wake {
            arrival.wake_ms = self.wake();
        }
        // The VM runs here, whether the source hears of it or not, and does not wait for that.
        let tell = |link: &mut Link| {
            if let Err(error) = link.send(&Message::Running(arrival), ANSWER) {
                tracing::error!(%error, "the VM runs here, but the source could not be told");
            }
        };
        let Some(recovery) = recovery else {
            tell(link);
            return Ok(arrival);
        };
        tracing::info!(phase = %Phase::Recover, "phase");
        std::thread::scope(|scope| {
            let told = std::thread::Builder::new().spawn_scoped(scope, || tell(link));
            if let Err(error) = told {
                tracing::error!(%error, "the VM runs here, but the source could not be told");
            }
            let (recovered, late) = recovery.complete(running);
            self.vm.set_recovered(recovered, late);
        });
        Ok(arrival)
    }

    /// The source's word to run and what is to be done then, looking after QEMU meanwhile.
    fn wait_for_word(
        &self,
        link: &mut Link,
        asked: &Asked,
    ) -> Result<(Vec<Function>, Afterwards), ReceiveError> {
        loop {
            match link.receive(LOOK) {
                Ok(Message::Run { functions, then }) if self.vm.take_word() => {
                    return Ok((functions, then));
                }
                Ok(Message::Run { .. }) => return Err(withdrawn()),
                Ok(question) if asked.compare => {
                    // All of memory has come before the devices' state.
                    self.wait_arrived(&[StageName::Arrived])?;
                    let answer = |session: &mut _| memory::compare(session, link, &question);
                    self.vm.with_session(answer)?;
                }
                Ok(other) => return Err(link::unexpected(&other).into()),
                Err(LinkError::Timeout(_)) if self.vm.is_word_withdrawn() => {
                    return Err(withdrawn());
                }
                // A QEMU that is slow to answer loads a large state, or is looked at.
                Err(LinkError::Timeout(_)) => match self.qmp.run_status() {
                    Ok(_) | Err(QmpError::Timeout { .. }) => {}
                    Err(error) => return Err(error.into()),
                },
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn wait_arrived(&self, stages: &[StageName]) -> Result<(), ReceiveError> {
        let arrived = self.vm.wait_stage(REACT, |stage| stages.contains(&stage));
        let why = "the devices' state did not arrive";
        arrived
            .then_some(())
            .ok_or_else(|| ReceiveError::Other(why.into()))
    }

    /// QEMU's own completion follows the source's at once, but not before.
    fn wait_loaded(&self, events: &mut qemu::Events) -> Result<(), ReceiveError> {
        let deadline = Instant::now() + REACT;
        loop {
            let state = self.qmp.run_status()?.status;
            let info = self.qmp.migration()?;
            if state != RunState::InMigrate {
                return Ok(());
            }
            if info.status == MigrationStatus::Failed || Instant::now() > deadline {
                let why = info
                    .error_desc
                    .unwrap_or_else(|| format!("{:?}", info.status));
                return Err(ReceiveError::Other(format!(
                    "QEMU did not take the VM: {why}"
                )));
            }
            // Any event is a reason to look again.
            let _ = events.next(Instant::now() + Duration::from_millis(5));
        }
    }

    /// Milliseconds until the guest was awake. One that sleeps on is all here, and can be woken by
    /// hand.
    fn wake(&self) -> Option<f64> {
        tracing::info!(phase = %Phase::Recover, "phase");
        let began = Instant::now();
        match sleep::wake(self.qmp) {
            Ok(()) => Some(millis(began.elapsed())),
            Err(error) => {
                tracing::error!(%error, "the guest is here, and was not seen to wake");
                None
            }
        }
    }

    fn arrival(&self, told: Instant, corrected: usize) -> Arrival {
        let timeline = self.vm.timeline();
        let since = |from: Option<Instant>, to: Option<Instant>| {
            from.zip(to)
                .map_or(0.0, |(from, to)| millis(to.saturating_duration_since(from)))
        };
        Arrival {
            restore_ms: since(timeline.load_began, timeline.loaded),
            digest_ms: since(timeline.load_began, timeline.digested),
            resume_ms: millis(told.elapsed()),
            corrected,
            wake_ms: None,
        }
    }

    /// The VM runs; what happens to the link no longer matters to it.
    fn answer(&self, link: &mut Link, verify: bool) {
        // Its mapping of all guest memory is kept as long: to take it down now would cost the VM
        // that has just begun to run a processor.
        let mut session = self.vm.take_session();
        let patience = if verify { DIGESTS } else { ANSWER };
        while let Ok(message) = link.receive(patience) {
            let answer = match message {
                Message::GuestEnd => {
                    tracing::info!(phase = %Phase::Recover, "phase");
                    let restarts = self.vm.take_ending().map(Ending::wait);
                    let restarts = restarts.unwrap_or_default();
                    Message::GuestEnded(restarts)
                }
                Message::Recover => Message::Recovered {
                    devices: std::mem::take(&mut session.recovered),
                },
                Message::Goodbye => return,
                question => match memory::tell(&session, link, &question) {
                    Ok(()) => continue,
                    Err(error) => return not_known(&error),
                },
            };
            if let Err(error) = link.send(&answer, ANSWER) {
                return not_known(&error);
            }
        }
    }
}

/// What the source wants.
struct Asked {
    /// The migration's name.
    migration: String,
    secret: Secret,
    /// The functions to prepare for.
    functions: Vec<Function>,
    /// The root ports.
    root_ports: Vec<RootPort>,
    /// Whether to compare memory.
    verify: bool,
    /// Whether it may be compared before the word.
    compare: bool,
}

fn asked(link: &mut Link) -> Result<Asked, ReceiveError> {
    match link.receive(ANSWER)? {
        Message::Prepare {
            migration,
            digest_key,
            functions,
            root_ports,
            verify,
            compare,
        } if link::is_name(&migration) => Ok(Asked {
            migration,
            secret: Secret::of(&digest_key),
            functions,
            root_ports,
            verify,
            compare,
        }),
        Message::Goodbye => Err(ReceiveError::OnlyLooked),
        other => Err(link::unexpected(&other).into()),
    }
}

/// See [`crate::resolve`].
fn withdrawn() -> ReceiveError {
    let why = "the source has asked whether the VM runs here, and was told that it will not";
    ReceiveError::Other(why.into())
}

fn not_known(error: &LinkError) {
    tracing::warn!(%error, "the source will not know how the VM has arrived");
}

fn tell(link: &mut Link, error: ReceiveError) -> ReceiveError {
    let reason = match &error {
        ReceiveError::Refused(refused) => refused.to_string(),
        other => other.to_string(),
    };
    // The source finds out by the closed link if this does not get through.
    let _ = link.send(&Message::Abort { reason }, ANSWER);
    error
}
