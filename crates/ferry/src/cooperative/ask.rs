//! The source's side: what the guest is asked, and what is made of its answers.

use std::time::{Duration, Instant};

use control_device::spec::{Promise, features};
use control_device::{Outcome, Stopped, Tracked, Unavailable};
use endpoint::{Carry, Endpoint};
use qemu::QmpError;
use qemu::migration::{MigrationInfo, MigrationSettings};

use super::Guest;
use super::convergence::Convergence;
use super::help::{self, Help, Step};
use super::hold::{self, Hold, Limits};
use crate::report::{DeviceReport, millis};
use crate::{Strategy, Vm};

/// How often QEMU is asked how far it is while the guest's turn is near.
pub(crate) const WATCH: Duration = Duration::from_millis(10);

/// Why a migration cannot go on without the guest.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoHelp {
    /// The VM has no control device.
    #[error(
        "device `{0}` keeps no log of what it writes, and the VM has no control device through which its guest could tell: add a [guest] section to the configuration, or a virtual IOMMU (iommu in its [qemu] section), or let memory be compared (--compare if-needed)"
    )]
    NoControlDevice(String),
    /// Its virtual IOMMU keeps it from nothing.
    #[error(
        "device `{0}` keeps no log of what it writes, and the guest has its virtual IOMMU let it reach all of memory: have its kernel use the IOMMU, without iommu=pt or iommu.passthrough=1, or let memory be compared (--compare if-needed)"
    )]
    NotConfined(String),
    /// The guest cannot be asked.
    #[error("device `{0}` keeps no log of what it writes, and the guest cannot be asked: {1}")]
    Unavailable(String, Unavailable),
    /// It has not promised to tell.
    #[error("device `{0}` keeps no log of what it writes, and {1}")]
    NotKnown(String, String),
    /// QEMU refused.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// No thread to be had.
    #[error("holding QEMU until the guest has answered: {0}")]
    System(#[from] std::io::Error),
}

impl NoHelp {
    /// Nobody tells what this device writes.
    pub(crate) fn untold(vm: &Vm, device: String) -> Self {
        if vm.has_iommu() {
            Self::NotConfined(device)
        } else {
            Self::NoControlDevice(device)
        }
    }
}

/// What is asked of the guest in one migration.
#[derive(Debug)]
pub(crate) struct Cooperation<'a> {
    vm: &'a Vm,
    limits: &'a Limits<'a>,
    guest: &'a Guest,
    strategy: Strategy,
    /// What QEMU is to have when the guest has answered.
    settings: MigrationSettings,
    memory: u64,
    turn: Turn,
    /// How often each device had been switched on when the guest was first asked.
    starts: Vec<u64>,
    /// Why the devices are not left to their drivers, for all of them.
    unavailable: Option<Unavailable>,
    outcomes: Vec<Outcome<Stopped>>,
    quiesce_ms: Option<f64>,
}

/// Whose turn it is.
#[derive(Debug)]
enum Turn {
    /// QEMU copies; the guest is asked when little is left.
    Copying {
        _hold: Hold,
        convergence: Convergence,
    },
    /// Nothing more is asked.
    Asked,
}

impl<'a> Cooperation<'a> {
    /// Asks the guest to let the host know what devices write, where they keep no log. `None` if
    /// this migration needs nothing of the guest. To be called before QEMU copies memory, of
    /// which the VM has `memory` bytes.
    pub(crate) fn begin(
        vm: &'a Vm,
        limits: &'a Limits<'a>,
        strategy: Strategy,
        settings: MigrationSettings,
        memory: u64,
    ) -> Result<Option<Self>, NoHelp> {
        let without_log = vm.without_log();
        if strategy != Strategy::Cooperative && without_log.is_empty() {
            return Ok(None);
        }
        let Some(guest) = vm.guest() else {
            return match without_log.first() {
                Some((_, name)) if !vm.may_compare() => Err(NoHelp::untold(vm, name.clone())),
                _ => Ok(None),
            };
        };
        let mut this = Self {
            vm,
            limits,
            guest,
            strategy,
            settings,
            memory,
            turn: Turn::Asked,
            starts: help::starts(vm.endpoints()),
            unavailable: None,
            outcomes: Vec::new(),
            quiesce_ms: None,
        };
        // A promise for the time when the device has been stopped needs that it is.
        let ask = strategy == Strategy::Cooperative;
        let mut hopeless = false;
        match this.track(&without_log) {
            Err(why) if vm.may_compare() => {
                tracing::info!(%why, "memory will be compared");
                hopeless = true;
            }
            tracked => tracked?,
        }
        let unknown = vm.unknown_writer();
        if ask || (unknown.is_some() && !hopeless) {
            this.prepare_to_ask()?;
        }
        match (this.unavailable, unknown) {
            (Some(why), Some((_, name))) if !vm.may_compare() => {
                Err(NoHelp::Unavailable(name, why))
            }
            _ => Ok(Some(this)),
        }
    }

    /// Asks the guest to let the host know what these devices write.
    fn track(&self, without_log: &[(usize, String)]) -> Result<(), NoHelp> {
        let Some((_, name)) = without_log.first() else {
            return Ok(());
        };
        let guest = self.guest;
        let asked = guest.control.track(guest.deadlines.track);
        let asked = asked.map_err(|why| NoHelp::Unavailable(name.clone(), why))?;
        let end = guest.endpoint.bus().look().end();
        let tracked = asked.wait(end, || guest.memory());
        for (index, name) in without_log {
            promised(&tracked, *index).map_err(|why| NoHelp::NotKnown(name.clone(), why))?;
        }
        self.vm.set_help(self.help(Step::Tracked(tracked)));
        Ok(())
    }

    /// How often [`Cooperation::is_its_turn`] wants to be asked, if it does.
    pub(crate) fn interval(&self) -> Option<Duration> {
        matches!(self.turn, Turn::Copying { .. }).then_some(WATCH)
    }

    /// Whether so little is left to send that [`Cooperation::quiesce`] is next.
    pub(crate) fn is_its_turn(&mut self, info: &MigrationInfo) -> bool {
        let (Turn::Copying { convergence, .. }, Some(ram)) = (&mut self.turn, &info.ram) else {
            return false;
        };
        let limit = self.settings.downtime_limit;
        convergence.is_near(ram, hold::near(ram, limit, self.memory))
    }

    /// Asks the guest to stop its devices, and waits for it, at most until its deadline.
    pub(crate) fn quiesce(&mut self) -> Result<(), NoHelp> {
        self.limits.expect()?;
        let asked = self.ask_to_stop();
        // Whatever the answer is: devices may stand still now.
        self.turn = Turn::Asked;
        self.limits.loosen()?;
        asked
    }

    /// Milliseconds from asking until the last answer, if the guest was asked to stop devices.
    pub(crate) fn quiesce_ms(&self) -> Option<f64> {
        self.quiesce_ms
    }

    /// Adds to `report`, of device `index`, of which `carry` went over, what the guest did.
    pub(crate) fn complete(&self, report: &mut DeviceReport, index: usize, carry: Carry) {
        let outcome = self.outcomes.get(index);
        if let Some(Outcome::Done { took, .. }) = outcome {
            report.quiesce_ms = Some(millis(*took));
        }
        let stopped = carry == Carry::Configuration && report.strategy == Strategy::Cooperative;
        if self.strategy == Strategy::Cooperative && !stopped {
            report.why = Some(self.why_not(outcome));
        }
    }

    fn why_not(&self, outcome: Option<&Outcome<Stopped>>) -> String {
        let silent = || {
            let deadline = self.guest.deadlines.quiesce;
            format!("the guest did not stop it within {deadline:?}")
        };
        match (self.unavailable, outcome) {
            (Some(why), _) => why.to_string(),
            (None, Some(Outcome::Declined)) => {
                "the guest has no driver for it that can stop it".into()
            }
            (None, Some(Outcome::Failed { detail })) => {
                format!("the guest could not stop it (error {detail}), and let it run")
            }
            (None, Some(Outcome::Silent)) => silent(),
            (None, Some(Outcome::Done { value, .. })) => match value {
                Stopped::StillBusMaster => {
                    "the guest said that it had stopped it, but left bus mastering on".into()
                }
                Stopped::Verified => {
                    "the VM was stopped before the guest had answered, or the device was started anew"
                        .into()
                }
            },
            (None, None) => "the VM was stopped before the guest could be asked".into(),
        }
    }

    fn prepare_to_ask(&mut self) -> Result<(), NoHelp> {
        // Nobody there to be asked: known now, and not waited for.
        self.unavailable = match self.guest.control.driver() {
            None => Some(Unavailable::NoDriver),
            Some(offered) if offered & features::QUIESCE == 0 => Some(Unavailable::NotOffered),
            Some(_) => None,
        };
        if self.unavailable.is_some() {
            return Ok(());
        }
        self.limits.tighten()?;
        self.turn = Turn::Copying {
            _hold: Hold::start(self.vm.log(), self.memory)?,
            convergence: Convergence::default(),
        };
        Ok(())
    }

    fn ask_to_stop(&mut self) -> Result<(), NoHelp> {
        let deadline = self.guest.deadlines.quiesce;
        let began = Instant::now();
        let asked = if let Some(tracked) = self.vm.take_tracked() {
            tracked.quiesce(deadline)
        } else {
            self.starts = help::starts(self.vm.endpoints());
            self.guest.control.quiesce(deadline)
        };
        match asked {
            Ok(asked) => {
                let devices = &self.vm.endpoints().0;
                let quiesced = asked.wait(|index| look(devices.get(index)));
                self.outcomes = quiesced.outcomes().to_vec();
                self.quiesce_ms = Some(millis(began.elapsed()));
                tracing::info!(outcomes = ?self.outcomes, took = ?began.elapsed(), "guest asked to stop its devices");
                let help = self.help(Step::Quiesced(quiesced));
                self.vm.set_help(help);
            }
            Err(why) => self.unavailable = Some(why),
        }
        match self.vm.unknown_writer() {
            Some((index, name)) if !self.vm.may_compare() => {
                let why = self.why_not(self.outcomes.get(index));
                Err(NoHelp::NotKnown(name, why))
            }
            _ => Ok(()),
        }
    }

    fn help(&self, step: Step) -> Help {
        Help {
            guest: self.guest.clone(),
            strategy: self.strategy,
            step,
            starts: self.starts.clone(),
        }
    }
}

fn look(device: Option<&Endpoint>) -> Stopped {
    match device {
        Some(device) if !device.is_bus_master() => Stopped::Verified,
        _ => Stopped::StillBusMaster,
    }
}

/// Why the guest's promise for device `index` is none.
fn promised(tracked: &Tracked, index: usize) -> Result<(), String> {
    let outcome = tracked.promises().get(index).copied();
    match outcome.unwrap_or(Outcome::Silent) {
        Outcome::Done { value, .. } => match (value, tracked.table_refused()) {
            (Promise::Table | Promise::TableAfterQuiesce, Some(why)) => Err(why.to_string()),
            _ => Ok(()),
        },
        Outcome::Failed { detail } => Err(format!("the guest failed to track it (error {detail})")),
        Outcome::Declined => Err("the guest cannot track it".into()),
        Outcome::Silent => Err("the guest did not answer in time".into()),
    }
}
