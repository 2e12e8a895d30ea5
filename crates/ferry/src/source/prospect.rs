//! What is looked at before anything is touched, and what it tells of the migration that would be.

use qemu::Iommu;
use qemu::system::RunState;
use serde::{Deserialize, Serialize};

use super::outcome::known_by;
use super::{ANSWER, MigrateError, Options, Source, StepError, choice};
use crate::check::{self, Refused};
use crate::comparison::Comparison;
use crate::cooperative::ask::NoHelp;
use crate::link::{self, Link, LinkError, Message};
use crate::{Phase, Strategy, recovery};

/// How a VM would go over, as far as both sides can tell beforehand. What the guest does when it is asked
/// is not known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prospect {
    /// How the devices' state would go over.
    pub strategy: Strategy,
    /// The devices.
    pub devices: Vec<DeviceProspect>,
}

/// One device of such a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceProspect {
    /// Its name.
    pub name: String,
    /// Who knows what it writes; see [`crate::report::DeviceReport::dirty_log`].
    pub dirty_log: String,
}

impl Source<'_> {
    /// Has both sides look whether the VM can be migrated, and touches nothing.
    ///
    /// # Errors
    /// [`MigrateError::Refused`] with all that stands against it, or when a side cannot tell.
    pub fn look(self, link: &mut Link, options: &Options) -> Result<Prospect, MigrateError> {
        self.vm.refuse_unsettled()?;
        let looked = self.check(link, options).and_then(|strategy| {
            if strategy == Strategy::Recovery {
                let all = recovery::prepare(self.qmp, self.slots, |index| self.is_device(index));
                all.map_err(|why| Refused(vec![why.to_string()]))?;
            }
            Ok(self.prospect(strategy))
        });
        match looked {
            Ok(prospect) => {
                // Only a courtesy: the other side ends with the connection as well.
                let _ = link.send(&Message::Goodbye, ANSWER);
                Ok(prospect)
            }
            Err(error) => Err(self.give_up(link, Phase::Check, error, None)),
        }
    }

    /// Whether this function is not the control device.
    pub(super) fn is_device(&self, index: usize) -> bool {
        let control = self.vm.guest().map(|guest| guest.endpoint.name());
        let slot = self.slots.get(index);
        slot.is_some_and(|slot| Some(slot.endpoint.name()) != control)
    }

    fn prospect(&self, strategy: Strategy) -> Prospect {
        let without_log = self.vm.without_log();
        let otherwise = if strategy == Strategy::Recovery || self.vm.unknown_writer().is_some() {
            "comparison"
        } else {
            "guest"
        };
        let slots = self.slots.iter().enumerate();
        let devices = slots.filter(|(index, _)| self.is_device(*index));
        let devices = devices.map(|(index, slot)| DeviceProspect {
            name: slot.endpoint.name().to_owned(),
            dirty_log: known_by(self.vm, index, slot, &without_log, otherwise).to_owned(),
        });
        Prospect {
            strategy,
            devices: devices.collect(),
        }
    }

    /// What stands against it on either side, or else by which strategy it goes over.
    pub(super) fn check(&self, link: &mut Link, options: &Options) -> Result<Strategy, StepError> {
        let state = self.qmp.run_status()?.status;
        let mut reasons = check::source(&self.facts, &state, &self.qmp.virtual_iommu()?);
        if let Err(error) = self.qmp.refuse_unsound_capabilities() {
            reasons.push(error.to_string());
        }
        if !self.vm.is_sidecar_connected() {
            reasons.push(
                "QEMU has no vhost-user-fs device connected to vferry, through which it tells of \
                 a migration: start it with the arguments of `vferry qemu-args`"
                    .into(),
            );
        }
        for slot in self
            .slots
            .iter()
            .filter(|slot| !slot.endpoint.is_connected())
        {
            reasons.push(format!(
                "device `{}` is not connected to QEMU",
                slot.endpoint.name()
            ));
        }
        reasons.extend(self.without_guest(options));
        // One that runs here has what only one host may have, if that was possible at all.
        if matches!(state, RunState::Running | RunState::Suspended)
            && let Err(error) = self.vm.start_here()
        {
            reasons.push(error.to_string());
        }
        if options.strategy == Some(Strategy::Recovery)
            && options.comparison == Comparison::Never
            && let Some((_, name)) = self.vm.without_log().first()
        {
            reasons.push(format!(
                "device `{name}` keeps no log of what it writes, so memory has to be compared: use \
                 --compare if-needed, or --strategy cooperative"
            ));
        }
        if options.strategy != Some(Strategy::Recovery) && self.vm.has_late() {
            reasons.push(
                "the guest has yet to recover a device with which it came here: use --strategy \
                 recovery again"
                    .into(),
            );
        }
        if options.strategy == Some(Strategy::Sleep) && !self.qmp.can_suspend()? {
            reasons.push("this machine cannot be woken once its guest is suspended to RAM".into());
        }
        // QEMU resets it when it wakes the guest, and `virtio_iommu_drv` in Linux has no `restore`.
        if options.strategy == Some(Strategy::Sleep) && self.facts.iommu == Some(Iommu::Virtio) {
            reasons.push(
                "a guest that is woken does not set its virtio-iommu up again, and all devices \
                 behind it would be dead: use another strategy, or intel-iommu"
                    .into(),
            );
        }
        let question = Message::Check {
            facts: Box::new(self.facts.clone()),
        };
        let mut left = self.without_state();
        match link.ask(&question, ANSWER) {
            Ok(Message::Check { facts }) => {
                reasons.extend(check::compare(&self.facts, &facts));
                left.extend(check::states_not_taken(&self.facts, &facts));
            }
            Ok(other) => return Err(link::unexpected(&other).into()),
            Err(LinkError::Aborted(reason)) => reasons.push(reason),
            Err(error) => return Err(error.into()),
        }
        let machine = &self.facts.machine;
        let memory = machine.base_memory.saturating_add(machine.plugged_memory);
        reasons.extend(check::room(memory));
        let strategy = self.choose(options.strategy, &left);
        reasons.extend(choice::unreadable(strategy, &left));
        if reasons.is_empty() {
            Ok(strategy)
        } else {
            Err(Refused(reasons).into())
        }
    }

    /// What needs a control device where the VM has none.
    fn without_guest(&self, options: &Options) -> Option<String> {
        if self.vm.guest().is_some() {
            return None;
        }
        if options.strategy == Some(Strategy::Cooperative) {
            return Some(
                "the VM has no control device through which its guest could help: add a [guest] \
                 section to the configurations of both hosts, and start the VM with it"
                    .into(),
            );
        }
        let (_, name) = self.vm.without_log().into_iter().next()?;
        let not_known = self.vm.unknown_writer().is_some();
        (not_known && options.comparison == Comparison::Never)
            .then(|| NoHelp::untold(self.vm, name).to_string())
    }
}
