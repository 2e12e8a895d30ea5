//! `recovery`: the guest's kernel has its own driver start a fresh device.
//!
//! For devices whose state nobody can save, and guests into which nothing can be installed. At the
//! source the host halts the device and marks what it wrote, as always, but of its state only the
//! configuration space goes over. At the destination the device is as after power-on. Before the
//! VM runs there, the root port that the device is behind reports a fatal error (PCI Express Base
//! 5.0, section 6.2), and a kernel that owns error reporting recovers: it has the driver let go of
//! the device, resets the bus behind the port, and has the driver start the device anew
//! (`pcie_do_recovery` in Linux).
//!
//! The reset takes from QEMU what the guest had programmed. Some drivers write it back (`igb`,
//! `nvme`), others count on finding it (`ixgbevf`, and all that do not call `pci_restore_state`),
//! so it is programmed from outside: after the reset the device does not answer until it is, and
//! kernels wait for that. Bus mastering stays off until the driver switches it on.

use std::time::{Duration, Instant};

use endpoint::{Endpoint, Endpoints};
use qemu::system::RunState;
use qemu::{Place, Qmp, QmpError};
use serde::{Deserialize, Serialize};

use crate::link::Function;
use crate::report::millis;
use crate::restore::{self, RestoreError, Slot};
use crate::root_port;

/// How long a guest may take until all of its drivers have switched their devices on. Less than the
/// source waits for the answer.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long after its driver has started it a device is watched for its first work. An idle one has
/// none.
const WORK: Duration = Duration::from_secs(1);
/// How often devices are looked at meanwhile.
const LOOK: Duration = Duration::from_millis(1);

/// What became of one device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recovered {
    /// Its name.
    pub device: String,
    /// How far it got.
    pub outcome: Outcome,
}

/// How far a device got.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Outcome {
    /// Its driver has switched it on.
    Started(Times),
    /// No driver used it: bus mastering was off, and no error was reported.
    NotInUse,
    /// The guest restarted its machine, and starts it as after power-on.
    Restarted,
    /// It does not work: why.
    Failed(String),
}

/// Milliseconds since the VM runs at the destination.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Times {
    /// Until the guest reset the bus.
    pub reset_ms: f64,
    /// Until the device was programmed again, and answered.
    pub answered_ms: f64,
    /// Until its driver let it be bus master.
    pub started_ms: f64,
    /// Until it did its first work: a frame, a completed command. `None` if it was not asked to
    /// within a second.
    pub worked_ms: Option<f64>,
}

/// Why a VM's devices cannot be left to its guest's error recovery.
#[derive(Debug, thiserror::Error)]
pub enum NotPossible {
    /// There is nothing that could report an error.
    #[error(
        "device `{0}` is not behind a root port, which would have to report an error: write \
         root-port = true in the configurations of both hosts, and start the VM with it"
    )]
    NoRootPort(String),
    /// Nobody would hear of it.
    #[error(
        "the guest does not handle errors that the root port of device `{0}` reports: its firmware \
         or kernel has not got that far, its kernel has no PCIEAER or was started with pci=noaer, \
         or it was suspended to RAM and its firmware did not restore the window to configuration \
         space"
    )]
    NotHandled(String),
    /// The root port is not there, or QEMU refused.
    #[error(transparent)]
    RootPort(#[from] RestoreError),
    /// QEMU refused.
    #[error(transparent)]
    Qmp(#[from] QmpError),
}

/// Those of the devices that are `wanted`, by index, if they can be recovered: none of a guest that is
/// asleep, whose drivers start their devices when it is woken.
pub(crate) fn prepare(
    qmp: &Qmp,
    slots: &[Slot],
    wanted: impl Fn(usize) -> bool,
) -> Result<Vec<usize>, NotPossible> {
    if qmp.run_status()?.status == RunState::Suspended {
        return Ok(Vec::new());
    }
    let devices = || {
        let all = slots.iter().enumerate();
        all.filter(|(index, _)| wanted(*index))
    };
    let mut ports = Vec::new();
    for (_, slot) in devices() {
        let name = slot.endpoint.name();
        match slot.place {
            // A driver that has yet to start it finds it as after power-on.
            Place::RootPort(_) if !slot.endpoint.is_in_use() => {}
            Place::RootPort(at) => ports.push((name, at)),
            Place::MainBus(_) => return Err(NotPossible::NoRootPort(name.into())),
        }
    }
    if ports.is_empty() {
        return Ok(devices().map(|(index, _)| index).collect());
    }
    let look = || {
        for (name, at) in ports {
            if !qmp.handles_fatal_errors(at)? {
                return Err(NotPossible::NotHandled(name.into()));
            }
        }
        Ok(())
    };
    qmp.at_rest(look)??;
    Ok(devices().map(|(index, _)| index).collect())
}

/// The devices at the destination that drivers use.
#[derive(Debug)]
pub(crate) struct Recovery<'a> {
    qmp: &'a Qmp,
    in_use: Vec<(&'a Slot, &'a Function)>,
    not_in_use: Vec<&'a Slot>,
}

impl<'a> Recovery<'a> {
    /// Of `devices`, those that drivers use have an error reported by the root ports that they are
    /// behind. To be called when QEMU has loaded the VM, and before the VM runs.
    pub(crate) fn begin(
        qmp: &'a Qmp,
        slots: &'a [Slot],
        functions: &'a [Function],
        devices: &[String],
    ) -> Result<Self, NotPossible> {
        let mut this = Self {
            qmp,
            in_use: Vec::new(),
            not_in_use: Vec::new(),
        };
        for slot in slots {
            let Place::RootPort(at) = slot.place else {
                continue;
            };
            if !devices.iter().any(|name| name == slot.endpoint.name()) {
                continue;
            }
            let function = functions.iter().find(|f| f.name == slot.endpoint.name());
            match function {
                Some(function) if slot.endpoint.is_in_use() => {
                    // Another kernel may have come since the source has looked.
                    if !qmp.handles_fatal_errors(at)? {
                        return Err(NotPossible::NotHandled(function.name.clone()));
                    }
                    slot.endpoint.leave_at_reset(programme(function)?);
                    this.in_use.push((slot, function));
                    root_port::report_error(qmp, at)?;
                }
                _ => this.not_in_use.push(slot),
            }
        }
        Ok(this)
    }

    /// Sees the devices through it, of a VM that runs since `running`. What the guest may still do
    /// is left in the second list, to be [seen to](see_to) when it does.
    pub(crate) fn complete(mut self, running: Instant) -> (Vec<Recovered>, Vec<Late>) {
        let idle = self.not_in_use.iter();
        let mut done: Vec<_> = idle
            .map(|slot| recovered(slot, Outcome::NotInUse))
            .collect();
        let mut late = Vec::new();
        let waiting = self.in_use.iter();
        let mut waiting: Vec<_> = waiting
            .map(|(slot, function)| (*slot, *function, Step::Reset))
            .collect();
        // One after the other: two that stop the vCPUs and select configuration registers at a time
        // would do so for each other.
        while !waiting.is_empty() {
            let is_over = running.elapsed() > PATIENCE;
            waiting.retain_mut(|(slot, function, step)| {
                let outcome = match go_on(self.qmp, slot, function, *step, running) {
                    Ok(Progress::Restarted) => Outcome::Restarted,
                    Ok(Progress::Waiting(next)) if !is_over => {
                        *step = next;
                        return true;
                    }
                    Ok(Progress::Started(times) | Progress::Waiting(Step::Work { times, .. })) => {
                        Outcome::Started(times)
                    }
                    Ok(Progress::Waiting(next)) => {
                        if let Step::Reset = next {
                            late.push(Late((*function).clone()));
                        }
                        Outcome::Failed(next.too_late().to_string())
                    }
                    Err(why) => Outcome::Failed(why.to_string()),
                };
                done.push(recovered(slot, outcome));
                false
            });
            std::thread::sleep(LOOK);
        }
        // These still have to be absent when the reset comes.
        self.in_use
            .retain(|(_, function)| late.iter().all(|late| late.0.name != function.name));
        (done, late)
    }
}

/// A device whose guest has not reset it within [`PATIENCE`]: it may be stuck, and go on later.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Late(Function);

/// Programs those of the devices `late` that the guest has reset meanwhile, and takes them from the
/// list.
///
/// # Errors
/// When QEMU does not do it for one of them, which then answers as after power-on.
pub(crate) fn see_to(late: &mut Vec<Late>, slots: &[Slot], qmp: &Qmp) -> Result<(), RestoreError> {
    let slot_of = |late: &Late| {
        let mut slots = slots.iter();
        slots.find(|slot| slot.endpoint.name() == late.0.name)
    };
    let has_left = |late: &mut Late| slot_of(late).is_some_and(|slot| slot.endpoint.has_left());
    let mut result = Ok(());
    for gone in late.extract_if(.., has_left) {
        if let Some(slot) = slot_of(&gone) {
            tracing::info!(device = gone.0.name, "reset by the guest, late");
            if let Err(error) = answer(qmp, slot, &gone.0) {
                result = result.and(Err(error));
            }
        }
    }
    result
}

/// What another process of this VM had yet to program when it died.
///
/// # Errors
/// When it is in a form that this one does not know.
pub(crate) fn left(endpoints: &Endpoints) -> Result<Vec<Late>, RestoreError> {
    let left = endpoints.0.iter().filter_map(Endpoint::programme);
    let late = left.map(|programme| serde_json::from_value(programme).map(Late));
    late.collect::<Result<_, _>>()
        .map_err(RestoreError::Programme)
}

/// As an endpoint keeps it.
fn programme(function: &Function) -> Result<serde_json::Value, RestoreError> {
    serde_json::to_value(function).map_err(RestoreError::Programme)
}

impl Drop for Recovery<'_> {
    /// Whatever became of them, they answer.
    fn drop(&mut self) {
        for (slot, _) in &self.in_use {
            slot.endpoint.appear();
        }
    }
}

fn recovered(slot: &Slot, outcome: Outcome) -> Recovered {
    Recovered {
        device: slot.endpoint.name().into(),
        outcome,
    }
}

/// What is waited for.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// The guest resets the bus.
    Reset,
    /// Its driver lets the device be bus master. The device had done so much work by the reset.
    Start {
        reset_ms: f64,
        answered_ms: f64,
        before: u64,
    },
    /// It works.
    Work { times: Times, before: u64 },
}

impl Step {
    fn too_late(self) -> NotRecovered {
        match self {
            Self::Reset => NotRecovered::NoReset,
            Self::Start { .. } | Self::Work { .. } => NotRecovered::NotStarted,
        }
    }
}

enum Progress {
    Waiting(Step),
    Started(Times),
    Restarted,
}

/// Why a device does not work.
#[derive(Debug, thiserror::Error)]
enum NotRecovered {
    #[error(
        "the guest did not reset it within {PATIENCE:?} of the error that its root port reported"
    )]
    NoReset,
    #[error(
        "its driver did not switch it on within {PATIENCE:?}, though the guest has reset it: it may \
         have no error handlers"
    )]
    NotStarted,
    #[error(
        "it could not be programmed after its reset: {0}. If the VM is paused there, QMP `cont` \
         lets it run"
    )]
    Restore(#[from] RestoreError),
}

fn go_on(
    qmp: &Qmp,
    slot: &Slot,
    function: &Function,
    step: Step,
    running: Instant,
) -> Result<Progress, NotRecovered> {
    let name = slot.endpoint.name();
    match step {
        Step::Reset if slot.endpoint.has_left() => {
            let reset_ms = millis(running.elapsed());
            let before = slot.endpoint.work_done();
            tracing::info!(device = name, after_ms = reset_ms, "reset by the guest");
            if !answer(qmp, slot, function)? {
                return Ok(Progress::Restarted);
            }
            let answered_ms = millis(running.elapsed());
            tracing::info!(device = name, after_ms = answered_ms, "programmed anew");
            Ok(Progress::Waiting(Step::Start {
                reset_ms,
                answered_ms,
                before,
            }))
        }
        Step::Start {
            reset_ms,
            answered_ms,
            before,
        } if slot.endpoint.is_bus_master() => {
            let started_ms = millis(running.elapsed());
            tracing::info!(
                device = name,
                after_ms = started_ms,
                "started by its driver"
            );
            let times = Times {
                reset_ms,
                answered_ms,
                started_ms,
                worked_ms: None,
            };
            Ok(Progress::Waiting(Step::Work { times, before }))
        }
        Step::Work { times, before } => {
            let now = millis(running.elapsed());
            let works = slot.endpoint.work_done() != before;
            let is_idle = now > times.started_ms + millis(WORK);
            if !works && !is_idle {
                return Ok(Progress::Waiting(step));
            }
            Ok(Progress::Started(Times {
                worked_ms: works.then_some(now),
                ..times
            }))
        }
        step => Ok(Progress::Waiting(step)),
    }
}

/// The device, which the guest has reset, is programmed as it was and answers. `false` if it was the
/// whole machine that was reset: it answers then as after power-on.
fn answer(qmp: &Qmp, slot: &Slot, function: &Function) -> Result<bool, RestoreError> {
    let program = || {
        // A reset of the bus leaves the port that has made it as it was.
        if let Place::RootPort(at) = slot.place
            && root_port::is_as_after_reset(qmp, at)?
        {
            return Ok(false);
        }
        restore::program_anew(qmp, slot, function)?;
        Ok(true)
    };
    let done = qmp.at_rest(|| {
        slot.endpoint.answer();
        let done = program();
        // Before the guest can use it: it is not to be programmed again then, by another process either.
        slot.endpoint.appear();
        done
    });
    // Whatever became of it: absent, it would be lost for good.
    slot.endpoint.appear();
    done?
}

#[cfg(test)]
mod tests {
    use pci::ConfigSpace;
    use serde_json::json;
    use vfio_user::Backend as _;

    use super::*;
    use crate::scripted;

    /// Whatever comes of it. A process that dies before that has another one do it anew, and afterwards none.
    #[test]
    fn a_device_is_programmed_while_the_vcpus_stand_still_and_never_again() {
        let space = ConfigSpace::of(&control_device::spec::pci::LAYOUT);
        let (model, _) = control_device::new(&[]).unwrap();
        let endpoint = Endpoint::new("a", space, Box::new(model)).unwrap();
        let function = Function {
            name: "a".into(),
            config: endpoint.config_image(),
            table: None,
        };
        let wanted = programme(&function).unwrap();
        endpoint.leave_at_reset(wanted.clone());
        endpoint.frontend().reset().unwrap();
        assert!(endpoint.has_left());

        let late = left(&Endpoints(vec![endpoint.clone()])).unwrap();
        assert_eq!(late, [Late(function.clone())]);

        let seen = endpoint.clone();
        let (qmp, peer) = scripted::qemu(move |command, _| {
            match command {
                "query-status" => return json!({ "running": true, "status": "running" }),
                "cont" => assert_eq!(seen.programme(), None),
                _ => assert_eq!(seen.programme().as_ref(), Some(&wanted), "at {command}"),
            }
            json!({})
        });
        let slot = Slot {
            endpoint: endpoint.clone(),
            place: Place::MainBus("00:05.0".parse().unwrap()),
            iommu: None,
        };
        let _ = answer(&qmp, &slot, &function);
        drop(qmp);
        let heard = peer.join().unwrap();
        assert!(heard.len() > 3, "{heard:?}");
        assert_eq!(heard.last().map(String::as_str), Some("cont"));
        assert!(!endpoint.has_left());
    }
}
