//! The `sleep` strategy: the guest suspends itself to RAM, is carried asleep, and is woken at the
//! destination. Its drivers do for their devices what they do each time that a machine sleeps, and
//! nothing of vferry is in the guest.
//!
//! It is asked when little of its memory is left to send, so that it does not sleep while all of
//! that is copied; QEMU is held meanwhile, as for the `cooperative` strategy.
//!
//! # What it does not do
//!
//! * A guest that somebody else woke, under SeaBIOS on a q35 machine, cannot be sent to sleep any
//!   more until it reboots: the machine's firmware has not put its chipset back (`chipset.rs`, which
//!   does so after each wake-up by vferry), and its watchdog resets it soon after, if the driver
//!   `iTCO_wdt` is loaded. That is so, too, for one that an alarm wakes while vferry has it asleep.
//! * It is not for devices that keep no log of what they write: those need the guest's word, as with
//!   any strategy, for the time before the guest sleeps.

mod chipset;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use qemu::migration::{MigrationInfo, MigrationSettings};
use qemu::system::RunState;
use qemu::{AgentError, Events, GuestAgent, Qmp, QmpError};

use crate::cooperative::convergence::Convergence;
use crate::cooperative::hold::{self, Hold, Limits};
use crate::report::{DeviceReport, millis};
use crate::{Phase, Strategy, Vm};
use chipset::{Chipset, Found};

/// How often QEMU is asked how far it is, and whether the guest sleeps.
const WATCH: Duration = Duration::from_millis(10);
/// How long after the deadline a guest may still fall asleep, and is woken.
const AFTERTHOUGHT: Duration = Duration::from_secs(5);
/// How long QEMU may take to load the last of a guest, or to wake it.
const REACT: Duration = Duration::from_secs(10);
/// How long after one another the chipset of a guest that is woken is looked at, until its firmware has come to it:
/// nobody tells when. Where it leaves all as it is, as OVMF may, these are spent in vain.
const LOOKS: [Duration; 6] = [
    Duration::from_millis(10),
    Duration::from_millis(20),
    Duration::from_millis(40),
    Duration::from_millis(80),
    Duration::from_millis(160),
    Duration::from_millis(320),
];

/// How a guest is put to sleep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bedtime {
    /// By whom.
    pub ask: Ask,
    /// How long the guest may take.
    pub deadline: Duration,
}

impl Default for Bedtime {
    /// The key, and half a minute: a desktop needs some seconds.
    fn default() -> Self {
        Self {
            ask: Ask::Key,
            deadline: Duration::from_secs(30),
        }
    }
}

/// Who is asked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Ask {
    /// The guest's owner: the sleep key of the keyboard is pressed, which Linux's systemd and
    /// Windows take as it is configured there, by default as the wish to sleep.
    #[default]
    Key,
    /// The QEMU guest agent, whose channel has its socket here.
    Agent(PathBuf),
}

/// Why the guest does not sleep.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Awake {
    #[error(
        "the guest did not suspend itself within {0:?} after its sleep key was pressed: nothing in it reacts to the key, suspending is forbidden or failed, one of its drivers refuses (a virtiofs mount's does; `dmesg` in the guest tells), or it has slept before, not by vferry, and SeaBIOS has not put its q35 chipset back (until it reboots)"
    )]
    Key(Duration),
    #[error(
        "the guest did not suspend itself within {0:?} after its agent was asked to: `dmesg` in the guest tells which driver refused, if one did"
    )]
    AgentAsked(Duration),
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error(transparent)]
    Qmp(#[from] QmpError),
    #[error("holding QEMU until the guest sleeps: {0}")]
    System(#[from] std::io::Error),
    #[error("cancelled")]
    Cancelled,
}

/// One guest's way to sleep and back.
#[derive(Debug)]
pub(crate) struct Sleep<'a> {
    qmp: &'a Qmp,
    limits: &'a Limits<'a>,
    bedtime: &'a Bedtime,
    /// What QEMU is to have when the guest sleeps.
    settings: MigrationSettings,
    memory: u64,
    copying: Option<(Hold, Convergence)>,
    asked: Option<Instant>,
    fell_asleep: Option<Instant>,
}

impl<'a> Sleep<'a> {
    /// To be called before QEMU copies memory, of which the VM has `memory` bytes. `None` if the
    /// guest sleeps already: then it is not woken either.
    pub(crate) fn begin(
        vm: &Vm,
        qmp: &'a Qmp,
        limits: &'a Limits<'a>,
        bedtime: &'a Bedtime,
        settings: MigrationSettings,
        memory: u64,
    ) -> Result<Option<Self>, Awake> {
        if qmp.run_status()?.status == RunState::Suspended {
            return Ok(None);
        }
        limits.tighten()?;
        Ok(Some(Self {
            qmp,
            limits,
            bedtime,
            settings,
            memory,
            copying: Some((Hold::start(vm.log(), memory)?, Convergence::default())),
            asked: None,
            fell_asleep: None,
        }))
    }

    /// How often [`Sleep::is_its_turn`] wants to be asked, if it does.
    pub(crate) fn interval(&self) -> Option<Duration> {
        self.copying.is_some().then_some(WATCH)
    }

    /// Whether so little is left to send that [`Sleep::fall_asleep`] is next.
    pub(crate) fn is_its_turn(&mut self, info: &MigrationInfo) -> bool {
        let (Some((_, convergence)), Some(ram)) = (&mut self.copying, &info.ram) else {
            return false;
        };
        convergence.is_near(
            ram,
            hold::near(ram, self.settings.downtime_limit, self.memory),
        )
    }

    /// Asks the guest to sleep, and waits until it does, at most until its deadline.
    pub(crate) fn fall_asleep(
        &mut self,
        events: &mut Events,
        cancel: &AtomicBool,
    ) -> Result<(), Awake> {
        let began = Instant::now();
        let deadline = began + self.bedtime.deadline;
        self.asked = Some(began);
        self.limits.expect()?;
        // What the guest has done before is no answer.
        events.pending().for_each(drop);
        let mut agent = self.ask(deadline)?;
        while self.qmp.run_status()?.status != RunState::Suspended {
            if let Some(agent) = &mut agent {
                agent.refusal()?;
            }
            if cancel.load(Ordering::Acquire) {
                return Err(Awake::Cancelled);
            }
            if Instant::now() >= deadline {
                return Err(match agent {
                    Some(_) => Awake::AgentAsked(self.bedtime.deadline),
                    None => Awake::Key(self.bedtime.deadline),
                });
            }
            // SUSPEND is what is waited for; any event is a reason to look.
            match events.next(Instant::now() + 5 * WATCH) {
                Ok(event) if event.name == "WAKEUP" => {
                    tracing::info!("the guest has slept and was woken, not by vferry: once more");
                    agent = self.ask(deadline)?;
                }
                _ => {}
            }
        }
        self.fell_asleep = Some(Instant::now());
        tracing::info!(took = ?began.elapsed(), "the guest sleeps");
        // QEMU may stop now.
        self.copying = None;
        self.limits.loosen()?;
        Ok(())
    }

    fn ask(&self, deadline: Instant) -> Result<Option<GuestAgent>, Awake> {
        match &self.bedtime.ask {
            Ask::Key => {
                self.qmp.press_sleep_key()?;
                Ok(None)
            }
            Ask::Agent(path) => {
                let mut agent = GuestAgent::connect(path, deadline)?;
                agent.suspend_to_ram(deadline)?;
                Ok(Some(agent))
            }
        }
    }

    /// Adds what became of it, at the destination too, where it took `wake_ms` to wake the guest.
    pub(crate) fn complete(
        &self,
        wake_ms: Option<f64>,
        phases_ms: &mut BTreeMap<Phase, f64>,
        devices: &mut [DeviceReport],
    ) {
        // QEMU may have stopped the VM before the guest could be asked: it arrives awake.
        let Some((asked, asleep)) = self.asked.zip(self.fell_asleep) else {
            return;
        };
        phases_ms.insert(Phase::Suspend, millis(asleep.duration_since(asked)));
        phases_ms.extend(wake_ms.map(|ms| (Phase::Recover, ms)));
        for device in devices {
            device.strategy = Strategy::Sleep;
            if wake_ms.is_none() {
                device.fault = Some(
                    "the guest was not seen to wake at the destination; QMP `query-status` there \
                     tells, `system_wakeup` wakes it"
                        .into(),
                );
            }
        }
    }

    /// The VM stays here: a guest that was asked to sleep is woken, also if it falls asleep only
    /// now.
    pub(crate) fn rouse(&self) -> Result<(), NotWoken> {
        if self.asked.is_none() {
            return Ok(());
        }
        let until = match self.fell_asleep {
            Some(_) => Instant::now(),
            None => Instant::now() + AFTERTHOUGHT,
        };
        loop {
            let status = self.qmp.run_status().map_err(NotWoken::Asleep)?;
            if status.status == RunState::Suspended {
                return wake(self.qmp);
            }
            if Instant::now() >= until {
                return Ok(());
            }
            std::thread::sleep(5 * WATCH);
        }
    }
}

/// Why the guest is not awake, or cannot be known to be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotWoken {
    #[error("{0}; QMP `system_wakeup` wakes it")]
    Asleep(QmpError),
    /// Woken, and stopped for its chipset.
    #[error("{0}; if it is paused, QMP `cont` lets it run")]
    Paused(QmpError),
}

/// Wakes the guest, and sees its vCPUs run, with the chipset that it had.
pub(crate) fn wake(qmp: &Qmp) -> Result<(), NotWoken> {
    if sleeps(qmp).map_err(NotWoken::Asleep)? {
        let chipset = chipset_of_sleeper(qmp);
        wake_up(qmp).map_err(NotWoken::Asleep)?;
        if let Some(chipset) = chipset {
            mend_while_firmware_runs(qmp, chipset).map_err(NotWoken::Paused)?;
        }
    } else {
        tracing::warn!(
            "the guest was woken, not by vferry: if its firmware is SeaBIOS, it cannot sleep \
             again before it reboots"
        );
    }
    Ok(())
}

/// What a guest's chipset was, and has been made again before firmware had come to it.
#[derive(Debug)]
pub(crate) struct ToMend(Chipset);

impl ToMend {
    /// To be called once the vCPUs run. Puts it back until it is seen that firmware has been there, or for as long
    /// as [`LOOKS`] last. Who has paused the VM between two of these finds it paused.
    pub(crate) fn mend(&self, qmp: &Qmp) -> Result<(), QmpError> {
        for pause in LOOKS {
            std::thread::sleep(pause);
            let found = qmp.at_rest(|| self.0.put_back(qmp))?;
            if !matches!(told(found), Some(Found::AsItWas | Found::AfterReset)) {
                return Ok(());
            }
        }
        tracing::warn!(
            "the firmware of the guest that was woken was not seen to have been at its chipset: if it is \
             SeaBIOS and comes later, a migration by recovery is refused until the guest reboots"
        );
        Ok(())
    }
}

/// Wakes the guest of a QEMU that has completed its migration, and leaves it to `cont` to let it run: what is to be
/// mended after that.
///
/// Of a VM that was suspended when it stopped, QEMU 11.1 remembers that, and would make it `suspended`
/// again at `cont`, to which it knows no way from `postmigrate`: it aborts (`runstate_set`). What it
/// does from there is to reset the machine, and then it has forgotten (`qemu_system_reset`). That is all
/// that a wake-up is as well, as the firmware sees it: it finds RAM as it was, and by the sign that QEMU
/// has put into CMOS when the guest fell asleep (`rtc_notify_suspend`), it goes to where the guest
/// wants to be woken, instead of booting.
///
/// One without that sign is not reset: its guest does not sleep.
pub(crate) fn wake_unsent(qmp: &Qmp) -> Result<Option<ToMend>, QmpError> {
    if !chipset::wakes_at_reset(qmp)? {
        return Ok(None);
    }
    tracing::warn!("the guest, which sleeps, is woken: QEMU does not let it sleep on");
    let chipset = chipset_of_sleeper(qmp);
    let deadline = Instant::now() + REACT;
    let mut events = qmp.events();
    qmp.reset()?;
    events.wait_for("RESET", |_| true, deadline)?;
    // QEMU tells it before it has gone on to there.
    while qmp.run_status()?.status == RunState::PostMigrate {
        if Instant::now() >= deadline {
            return Err(QmpError::Timeout {
                waiting_for: "QEMU to have reset the machine".into(),
                waited: REACT,
            });
        }
        std::thread::sleep(WATCH / 10);
    }
    let Some(chipset) = chipset else {
        return Ok(None);
    };
    // Before it runs: what the guest writes to ACPI's registers until they are there is lost.
    told(chipset.put_back(qmp));
    Ok(Some(ToMend(chipset)))
}

fn chipset_of_sleeper(qmp: &Qmp) -> Option<Chipset> {
    Chipset::read(qmp).unwrap_or_else(|error| {
        tracing::warn!(%error, "the chipset of the guest that sleeps cannot be read");
        None
    })
}

/// Waits until the guest that arrives either sleeps or runs.
fn sleeps(qmp: &Qmp) -> Result<bool, QmpError> {
    let began = Instant::now();
    loop {
        let status = qmp.run_status()?;
        if status.running {
            return Ok(false);
        }
        if status.status == RunState::Suspended {
            return Ok(true);
        }
        if began.elapsed() >= REACT {
            return Err(QmpError::Timeout {
                waiting_for: "the guest to be there".into(),
                waited: began.elapsed(),
            });
        }
        std::thread::sleep(WATCH / 10);
    }
}

/// On return QEMU has reset the machine, and the vCPUs run.
fn wake_up(qmp: &Qmp) -> Result<(), QmpError> {
    let mut events = qmp.events();
    qmp.wake_up()?;
    events.wait_for("WAKEUP", |_| true, Instant::now() + REACT)?;
    Ok(())
}

/// Not before [`wake_up`] has returned: QEMU would let the vCPUs run although they are stopped.
fn mend_while_firmware_runs(qmp: &Qmp, chipset: Chipset) -> Result<(), QmpError> {
    let found = qmp.while_stopped(|| chipset.put_back(qmp))?;
    match told(found) {
        Some(Found::AfterReset) => ToMend(chipset).mend(qmp),
        _ => Ok(()),
    }
}

/// How the chipset was found, if it could be put back.
fn told(put_back: Result<Found, QmpError>) -> Option<Found> {
    put_back
        .inspect_err(|error| {
            tracing::warn!(%error, "the guest is awake, but cannot sleep again before it reboots");
        })
        .ok()
}
