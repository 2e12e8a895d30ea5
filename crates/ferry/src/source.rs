//! The source's part of a migration.

mod choice;
mod flow;
mod looks;
mod outcome;
pub(crate) mod precopy;
mod prospect;
mod verify;
mod word;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use qemu::migration::{MigrationInfo, MigrationSettings};
use qemu::system::RunState;
use qemu::{Qmp, QmpError};

use crate::check::{Facts, Refused};
use crate::commit::Other;
use crate::comparison::{self, Compared, Comparison, NotCompared, Whole};
use crate::cooperative::ask::{Cooperation, NoHelp};
use crate::cooperative::hold::Limits;
use crate::digest::Secret;
use crate::driverless::{self, StartError};
use crate::link::{self, Afterwards, DigestKey, Link, LinkError, Message};
use crate::recovery::{self, NotPossible};
use crate::report::{self, Marks, Progress, Stopwatch};
use crate::restore::{self, RestoreError, Slot};
use crate::sleep::{Awake, Bedtime, Sleep};
use crate::{Phase, Protection, Report, Strategy, Vm, root_port};
pub(crate) use flow::patience;
use precopy::NotSeen;
pub use prospect::{DeviceProspect, Prospect};
use word::NotRun;

/// How long the other side may take for an answer that needs no work.
const ANSWER: Duration = Duration::from_secs(10);
/// How long the destination may take to let the VM run, once told to.
const RUN: Duration = Duration::from_secs(30);

/// What to do.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Compare all guest memory at the destination with the source's.
    pub verify: bool,
    /// Compare it before it runs there, and send what differs.
    pub comparison: Comparison,
    /// Use this strategy and no other.
    pub strategy: Option<Strategy>,
    /// Limits for QEMU.
    pub settings: MigrationSettings,
    /// How a guest is put to sleep.
    pub bedtime: Bedtime,
}

/// The source's side.
#[derive(Debug)]
pub struct Source<'a> {
    /// The VM.
    pub vm: &'a Vm,
    /// Its QEMU.
    pub qmp: &'a Qmp,
    /// Its functions and where they sit.
    pub slots: &'a [Slot],
    /// What it is.
    pub facts: Facts,
    /// How QEMU's stream goes.
    pub protection: Protection,
    /// Set to give up.
    pub cancel: Arc<AtomicBool>,
    /// Who has to know when the VM may be the other host's.
    pub letting_go: &'a dyn LettingGo,
}

/// Who has to know how far a VM has gone.
pub trait LettingGo: std::fmt::Debug + Sync {
    /// Something of the VM is about to be let go of. Until now it was this host's, whatever becomes of this
    /// process; from here on it may be the other's.
    fn begins(&self);
}

/// Nobody.
impl LettingGo for () {
    fn begins(&self) {}
}

/// Why a migration did not happen, and where the VM is.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// Nothing was touched.
    #[error("refused, nothing was touched: {0}")]
    Refused(#[from] Refused),
    /// The operator cancelled.
    #[error("cancelled; the VM runs on here")]
    Cancelled,
    /// It failed, and the VM runs on here.
    #[error("the migration failed in phase {phase}, and the VM runs on here: {why}")]
    Failed {
        /// Where.
        phase: Phase,
        /// Why.
        why: String,
    },
    /// It failed and the VM's state is not known for sure.
    #[error("the migration failed in phase {phase}: {why}. {whereabouts}")]
    Uncertain {
        /// Where.
        phase: Phase,
        /// Why.
        why: String,
        /// What is known of the VM, and what to do.
        whereabouts: String,
    },
}

/// A step that failed; the phase is added by who took it.
#[derive(Debug, thiserror::Error)]
enum StepError {
    #[error("{0}")]
    Refused(#[from] Refused),
    #[error("cancelled")]
    Cancelled,
    #[error("{0}")]
    Qmp(#[from] QmpError),
    #[error("{0}")]
    Link(#[from] LinkError),
    #[error("{0}")]
    Restore(#[from] RestoreError),
    #[error("{0}")]
    Start(#[from] StartError),
    #[error("{0}")]
    NoHelp(#[from] NoHelp),
    #[error("{0}")]
    NotPossible(#[from] NotPossible),
    #[error("{0}")]
    Awake(Awake),
    #[error("{0}")]
    Other(String),
}

impl From<NotCompared> for StepError {
    fn from(error: NotCompared) -> Self {
        match error {
            NotCompared::Cancelled => Self::Cancelled,
            NotCompared::Link(error) => Self::Link(error),
        }
    }
}

impl From<Awake> for StepError {
    fn from(awake: Awake) -> Self {
        match awake {
            Awake::Cancelled => Self::Cancelled,
            awake => Self::Awake(awake),
        }
    }
}

impl Source<'_> {
    /// Migrates the VM to the side at the other end of `link`.
    ///
    /// # Errors
    /// See [`MigrateError`], which says where the VM is.
    pub fn migrate(
        self,
        link: &mut Link,
        options: &Options,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Report, MigrateError> {
        self.vm.refuse_unsettled()?;
        let no_random = |error| MigrateError::Failed {
            phase: Phase::Check,
            why: format!("the system gave no random number: {error}"),
        };
        let name = link::name().map_err(no_random)?;
        let digest_key = DigestKey::new().map_err(no_random)?;
        self.vm.begin_migration(&name, Secret::of(&digest_key));
        let result = self.run(link, (name, digest_key), options, progress);
        self.vm.end_migration();
        result
    }

    fn run(
        &self,
        link: &mut Link,
        identity: (String, DigestKey),
        options: &Options,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Report, MigrateError> {
        let mut watch = Stopwatch::new();
        let mut phase = Phase::Check;
        let mut enter = |new: Phase, watch: &mut Stopwatch| {
            tracing::info!(phase = %new, "phase");
            watch.enter(new);
            progress(Progress::Phase { phase: new });
            phase = new;
        };
        enter(Phase::Check, &mut watch);
        let limits = Limits::new(self.qmp);
        let result = self.check(link, options).and_then(|strategy| {
            enter(Phase::Prepare, &mut watch);
            let uri = self.prepare(link, identity, strategy, options)?;
            let cooperation = Cooperation::begin(
                self.vm,
                &limits,
                strategy,
                options.settings,
                self.facts.machine.base_memory,
            )?;
            let sleep = self.prepare_sleep(&limits, strategy, options)?;
            enter(Phase::Precopy, &mut watch);
            Ok((strategy, uri, cooperation, sleep))
        });
        let (strategy, uri, mut cooperation, mut sleep) = match result {
            Ok(prepared) => prepared,
            Err(error) => return Err(self.give_up(link, phase, error, None)),
        };
        let (with, asleep) = (cooperation.as_mut(), sleep.as_mut());
        let sent = match precopy::run(self, link, &uri, with, asleep, progress) {
            Ok(sent) => sent,
            Err((phase, error)) => return Err(self.give_up(link, phase, error, sleep.as_ref())),
        };
        let sleep = sleep.as_ref();
        // QEMU has completed: from here on the VM must not run on this host.
        let (whole, compared) = match self.make_whole(link, progress) {
            Ok(made) => made,
            Err(error) => return Err(self.give_up(link, Phase::Compare, error.into(), sleep)),
        };
        if let Err(why) = self.hand_over(whole) {
            return Err(self.give_up(link, Phase::Copy, StepError::Other(why), sleep));
        }
        let then = self.afterwards(strategy, sleep);
        let recovers = matches!(then, Afterwards::Recover(_));
        let said = || {
            let phase = Phase::Resume;
            progress(Progress::Phase { phase });
        };
        let arrival = match word::tell_to_run(link, &sent.functions, then, said) {
            Ok(arrival) => arrival,
            Err(NotRun::Certain(error)) => {
                return Err(self.give_up(link, Phase::Resume, error.into(), sleep));
            }
            Err(NotRun::Unknown(error)) => return Err(word::keep_paused(self.vm, &error)),
        };
        let running = Instant::now();
        self.vm.has_left();
        // Only now: QEMU has to clean up first, and the VM would stand still meanwhile. Should it not
        // say any more how it went, the VM has left all the same.
        let info = self.qmp.migration().unwrap_or_else(|error| {
            tracing::warn!(%error, "the source's QEMU told neither pause nor bytes: reported as 0");
            MigrationInfo::default()
        });
        let ram = info.ram.unwrap_or_default();
        let timeline = self.vm.timeline();
        let (mut phases_ms, devices_paused_ms) =
            watch.finish(&timeline, sent.completed, &arrival, compared, running);
        let mut devices = self.device_reports(strategy, cooperation.as_ref(), compared.as_ref());
        if recovers {
            progress(Progress::Phase {
                phase: Phase::Recover,
            });
            phases_ms.extend(outcome::recovered(link, &mut devices).map(|ms| (Phase::Recover, ms)));
        }
        if let Some(cooperation) = &cooperation {
            progress(Progress::Phase {
                phase: Phase::Recover,
            });
            phases_ms.extend(cooperation.quiesce_ms().map(|ms| (Phase::Quiesce, ms)));
            phases_ms.extend(outcome::restarted(link, &mut devices).map(|ms| (Phase::Recover, ms)));
        }
        if let Some(sleep) = sleep {
            sleep.complete(arrival.wake_ms, &mut phases_ms, &mut devices);
        }
        let stale = options
            .verify
            .then(|| self.compare_memory(link))
            .transpose()?;
        // Only a courtesy: the other side ends with the connection as well.
        let _ = link.send(&Message::Goodbye, ANSWER);
        Ok(Report {
            strategy,
            devices,
            phases_ms,
            vm_pause_ms: info.downtime.map_or(0.0, report::millis),
            devices_paused_ms,
            pages_marked: self.pages_marked(),
            compared,
            transferred: ram.transferred,
            passes: ram.dirty_sync_count,
            functions_corrected: arrival.corrected,
            stale_pages: stale.as_ref().map(|stale| stale.pages),
            stale_ranges: stale.map(|stale| stale.ranges).unwrap_or_default(),
        })
    }

    fn hand_over(&self, whole: Whole) -> Result<(), String> {
        self.letting_go.begins();
        self.vm.hand_over(whole)
    }

    /// What the VM needs at the destination.
    fn afterwards(&self, strategy: Strategy, sleep: Option<&Sleep<'_>>) -> Afterwards {
        let to_recover = match strategy {
            Strategy::Recovery => self.vm.to_recover(),
            _ => self.vm.left_to_recovery(),
        };
        if !to_recover.is_empty() {
            Afterwards::Recover(to_recover)
        } else if sleep.is_some() {
            Afterwards::Wake
        } else {
            Afterwards::Nothing
        }
    }

    /// Memory of which something is not known to have arrived is compared.
    fn make_whole(
        &self,
        link: &mut Link,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(Whole, Option<Compared>), NotCompared> {
        let memory = match Whole::marked(self.vm) {
            Ok(whole) => return Ok((whole, None)),
            Err(memory) => memory,
        };
        progress(Progress::Phase {
            phase: Phase::Compare,
        });
        let (whole, compared) = comparison::run(&memory, link, &self.cancel)?;
        Ok((whole, Some(compared)))
    }

    fn pages_marked(&self) -> BTreeMap<String, Marks> {
        let mut by = BTreeMap::from([("device-log".to_owned(), self.vm.marks())]);
        if let at_halt @ 1.. = self.vm.marks_by_guest() {
            let precopy = 0;
            by.insert("guest-table".into(), Marks { precopy, at_halt });
        }
        let iommu = self.vm.marks_by_iommu();
        if iommu.total() > 0 {
            by.insert("iommu".into(), iommu);
        }
        by
    }

    /// `None` if the guest shall not sleep, or does so already.
    fn prepare_sleep<'o>(
        &'o self,
        limits: &'o Limits<'o>,
        strategy: Strategy,
        options: &'o Options,
    ) -> Result<Option<Sleep<'o>>, StepError> {
        if strategy != Strategy::Sleep {
            return Ok(None);
        }
        let memory = self.facts.machine.base_memory;
        let sleep = Sleep::begin(
            self.vm,
            self.qmp,
            limits,
            &options.bedtime,
            options.settings,
            memory,
        );
        Ok(sleep?)
    }

    fn prepare(
        &self,
        link: &mut Link,
        (migration, digest_key): (String, DigestKey),
        strategy: Strategy,
        options: &Options,
    ) -> Result<String, StepError> {
        self.stop_if_cancelled()?;
        driverless::ensure_started(self.qmp, self.facts.sidecar, &self.vm.log())?;
        self.qmp.prepare_migration(&options.settings)?;
        self.qmp.protect_stream(self.protection.tls())?;
        let root_ports = root_port::find(self.vm, self.qmp, self.slots)?;
        root_port::keep_errors(self.qmp, self.slots, &root_ports)?;
        self.prepare_recovery(strategy)?;
        self.vm.open_logs();
        let functions = restore::read(self.qmp, self.slots, &[])?;
        let compare = match options.comparison {
            Comparison::Never => false,
            Comparison::IfNeeded => !self.vm.without_log().is_empty(),
            Comparison::Always => true,
        };
        if compare {
            let always = options.comparison == Comparison::Always;
            let allowed = self.vm.allow_comparison(always);
            allowed.map_err(|error| StepError::Other(format!("mapping guest memory: {error}")))?;
        }
        let question = Message::Prepare {
            migration,
            digest_key,
            functions,
            root_ports,
            verify: options.verify,
            compare,
        };
        match link.ask(&question, RUN)? {
            Message::Prepared { uri } if self.protection.allows(&uri) => Ok(uri),
            Message::Prepared { uri } => Err(StepError::Other(format!(
                "the destination wants the VM's memory at {}, where it would go over a network in \
                 the open: set `tls` and `peers` in [migration] of both hosts' configurations",
                link::printable(&uri)
            ))),
            other => Err(link::unexpected(&other).into()),
        }
    }

    /// By `recovery`, all devices are left to the guest's own; else those whose state nobody can read,
    /// should the guest not stop them.
    fn prepare_recovery(&self, strategy: Strategy) -> Result<(), StepError> {
        if self.qmp.run_status()?.status == RunState::Suspended {
            self.vm.set_asleep();
        }
        let without_state = self.vm.without_state();
        let all = strategy == Strategy::Recovery;
        let wanted = |index| self.is_device(index) && (all || without_state.contains(&index));
        match recovery::prepare(self.qmp, self.slots, wanted) {
            Ok(devices) => self.vm.set_to_recover(devices),
            Err(why) if all => return Err(why.into()),
            Err(why) => {
                tracing::info!(%why, "a device that the guest does not stop keeps the VM here");
            }
        }
        Ok(())
    }

    /// Before QEMU has completed: the VM stays, and is seen to run.
    fn give_up(
        &self,
        link: &mut Link,
        phase: Phase,
        error: StepError,
        sleep: Option<&Sleep<'_>>,
    ) -> MigrateError {
        let _ = link.send(
            &Message::Abort {
                reason: error.to_string(),
            },
            ANSWER,
        );
        if phase > Phase::Check
            && let Err(why) = precopy::see_running(self.vm, self.qmp)
        {
            if let NotSeen::QemuGone(_) = why {
                return MigrateError::Uncertain {
                    phase,
                    why: error.to_string(),
                    whereabouts: "This host's QEMU has ended, and the VM with it: the destination \
                                  does not run it. Its log says why it ended; start the VM anew"
                        .into(),
                };
            }
            let why = why.to_string();
            // Unless it has taken a disk, which shows that it was told to run the VM.
            let taken = self.vm.claim().is_err();
            let other = if taken {
                Other::CannotSay
            } else {
                Other::WillNot
            };
            self.vm.keep_paused(other, &why);
            return MigrateError::Uncertain {
                phase,
                why: error.to_string(),
                whereabouts: format!(
                    "The VM did not start again on this host: {why}. `vferry resolve` says what \
                     can be done"
                ),
            };
        }
        match sleep.map(Sleep::rouse) {
            Some(Err(why)) => {
                return MigrateError::Uncertain {
                    phase,
                    why: error.to_string(),
                    whereabouts: format!(
                        "The VM is on this host, and its guest was not seen to wake: {why}"
                    ),
                };
            }
            // QEMU resets the machine when it wakes it, and the sidecar with it, whose hook has halted the
            // devices as at the end of a migration.
            Some(Ok(())) => self.vm.run_again(),
            None => {}
        }
        match error {
            StepError::Refused(refused) => MigrateError::Refused(refused),
            StepError::Cancelled => MigrateError::Cancelled,
            error => match self.vm.refusal() {
                Some(refusal) => MigrateError::Failed {
                    phase,
                    why: format!("{error}: {refusal}"),
                },
                None => MigrateError::Failed {
                    phase,
                    why: error.to_string(),
                },
            },
        }
    }

    fn stop_if_cancelled(&self) -> Result<(), StepError> {
        if self.cancel.load(Ordering::Acquire) {
            Err(StepError::Cancelled)
        } else {
            Ok(())
        }
    }
}
