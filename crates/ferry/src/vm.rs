//! One VM's devices, between QEMU's hooks and the migration.
//!
//! The life cycle of `device::lifecycle` is kept here as a [`Stage`], and every step is taken in
//! answer to what QEMU does (see [`sidecar::Hooks`]), never by the clock:
//!
//! ```text
//!            stop hook, logged           SAVE       own QEMU completed
//!  Running ───────────────────► Marked ───────► Marked ◄─────────────► HandedOver
//!     ▲    halt, then mark        │                       taken back
//!     └──── rings run again ──────┘
//!
//!            a session begins             LOAD           source's word         rings run
//!  Running ───────────────────► Waiting ───────► Arrived ─────────────► Ready ───────────► Running
//! ```

mod drain;
mod files;
mod hooks;
mod late;
mod logs;
mod memory;
mod stage;
#[cfg(test)]
mod tests;
mod word;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use control_device::Tracked;
use device::Claim;
use device::lifecycle::Migratable;
use endpoint::{Carry, EndpointError, Endpoints};
use sidecar::LogHandle;

use crate::comparison::{Comparing, ToCompare, Whole};
use crate::cooperative::Guest;
use crate::cooperative::end::Ending;
use crate::cooperative::help::{Help, Step};
use crate::digest::{GuestRam, MemoryDigest, Secret, Urgency};
use crate::recovery::{Late, Recovered};
use crate::report::Marks;

pub use drain::Drainer;
pub use hooks::VmHooks;
use memory::touch;
pub(crate) use stage::{Stage, StageName};
pub use word::Unsettled;

/// A VM's devices.
#[derive(Debug, Clone)]
pub struct Vm(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    endpoints: Endpoints,
    log: LogHandle,
    guest: Option<Guest>,
    /// The devices are behind a virtual IOMMU.
    iommu: bool,
    controls: Controls,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    stage: Stage,
    timeline: Timeline,
    marks: Marks,
    /// Pages newly marked on the guest's word.
    marks_by_guest: u64,
    /// Pages newly marked because devices could write them.
    marks_by_iommu: Marks,
    session: Option<Session>,
    /// What the guest does for the migration away from here.
    help: Option<Help>,
    /// What the guest of a VM that has arrived here was told.
    ending: Option<Ending>,
    /// Who has drivers start their devices anew at the destination.
    starter: Starter,
    /// The devices that a guest which has come here has yet to reset.
    late: Vec<Late>,
    /// What of each device goes over, decided when they were halted.
    carry: Vec<Carry>,
    /// What is compared before the VM runs elsewhere.
    comparing: Comparing,
    /// What the guest of the VM that leaves was when QEMU last told.
    guest: Wakefulness,
    logging: bool,
    /// A migration away from here was begun by [`Vm::begin_migration`].
    outgoing: bool,
    /// The name of the migration under way or the last one, out or in.
    migration: String,
    /// What its digests of memory are made with.
    secret: Option<Secret>,
    /// Whether the migration under way to here, or the last one, may run the VM.
    word: word::Arrival,
    /// Why the VM is kept paused here.
    unsettled: Option<Unsettled>,
    refusal: Option<String>,
    sidecar_connected: bool,
}

/// Whether a guest is suspended to RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Wakefulness {
    #[default]
    Awake,
    Asleep,
}

/// Who has drivers start devices anew, of which only the configuration space goes over.
#[derive(Debug)]
enum Starter {
    /// The guest's error recovery, of the devices with these indices.
    Recovery(Vec<usize>),
    /// The guest sleeps: that it is woken.
    WakeUp,
}

impl Default for Starter {
    fn default() -> Self {
        Self::Recovery(Vec::new())
    }
}

impl Starter {
    fn recovers(&self) -> &[usize] {
        match self {
            Self::Recovery(devices) => devices,
            Self::WakeUp => &[],
        }
    }
}

/// When the steps were taken, in this process' monotonic time.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Timeline {
    pub(crate) log_started: Option<Instant>,
    pub(crate) stopping: Option<Instant>,
    pub(crate) halted: Option<Instant>,
    pub(crate) marked: Option<Instant>,
    pub(crate) saved: Option<Instant>,
    pub(crate) load_began: Option<Instant>,
    pub(crate) digested: Option<Instant>,
    pub(crate) loaded: Option<Instant>,
    pub(crate) running: Option<Instant>,
}

/// An incoming migration that was agreed on over the link.
#[derive(Debug, Clone, Default)]
pub(crate) struct Session {
    /// Guest memory; empty if it is neither to be verified nor compared.
    pub(crate) ram: Arc<Vec<GuestRam>>,
    /// It is to be digested at LOAD.
    pub(crate) verify: bool,
    /// What it is digested with.
    pub(crate) secret: Option<Secret>,
    /// Of each, once taken, and with what the source has sent since.
    pub(crate) digests: Vec<MemoryDigest>,
    /// What became of the devices that were left to the guest's error recovery.
    pub(crate) recovered: Vec<Recovered>,
}

impl Session {
    /// Takes the digests, if none were taken yet.
    pub(crate) fn digest(&mut self) -> std::io::Result<()> {
        if let Some(secret) = &self.secret
            && self.digests.is_empty()
        {
            let digests = self.ram.iter().map(|ram| ram.digest(Urgency::Now, secret));
            self.digests = digests.collect::<Result<_, _>>()?;
        }
        Ok(())
    }
}

/// Laws switched off on purpose, to prove that the checks can fail. **Unsound: for tests only.**
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Controls {
    /// Mark first and halt afterwards: what is written in between arrives stale.
    pub naive_order: bool,
    /// Do not log what devices write.
    pub no_log: bool,
}

impl Controls {
    fn any(self) -> bool {
        self.naive_order || self.no_log
    }
}

impl State {
    /// The VM runs: so do its devices, and a guest that was asked to help, here or where it comes
    /// from, is told that it is over, unless that migration is still under way. Says whether the devices did not run before.
    fn run(&mut self, guest: Option<&Guest>) -> bool {
        let arrived = matches!(self.stage.name(), StageName::Arrived | StageName::Ready);
        // Somebody's `cont` may have come before the two sides' word.
        if let Err(error) = self.stage.claim(&self.migration) {
            tracing::error!(
                %error,
                "the VM was let run here, but may run on the other host: its devices stay halted; \
                 end this QEMU"
            );
            return false;
        }
        let changed = self.stage.run();
        self.unsettled = None;
        if !self.outgoing {
            self.help = None;
        }
        // As soon as it can hear it, and whoever let it run: its devices stand still until then.
        if arrived {
            self.word.ran();
            self.ending = guest.and_then(Ending::begin);
        }
        changed
    }
}

impl Vm {
    /// The VM whose devices are `endpoints`, behind a virtual IOMMU if `iommu`, with the dirty log of
    /// its sidecar and the way to its guest, if there is one.
    pub fn new(
        endpoints: Endpoints,
        iommu: bool,
        log: LogHandle,
        guest: Option<Guest>,
        controls: Controls,
    ) -> Self {
        if controls.any() {
            tracing::error!(
                ?controls,
                "UNSOUND: a law of migration is switched off on purpose"
            );
        }
        let state = State {
            stage: Stage::running(endpoints.clone()),
            ..State::default()
        };
        Self(Arc::new(Inner {
            endpoints,
            log,
            guest,
            iommu,
            controls,
            state: Mutex::new(state),
            changed: Condvar::new(),
        }))
    }

    /// The devices.
    pub fn endpoints(&self) -> &Endpoints {
        &self.0.endpoints
    }

    /// The way to the guest.
    pub fn guest(&self) -> Option<&Guest> {
        self.0.guest.as_ref()
    }

    /// What the guest of a VM that has arrived here was told, if it was told anything.
    pub(crate) fn take_ending(&self) -> Option<Ending> {
        self.lock().ending.take()
    }

    /// What QEMU's sidecar calls.
    pub fn hooks(&self) -> VmHooks {
        VmHooks(self.clone())
    }

    /// Where the devices are, for `status`.
    pub fn stage_name(&self) -> &'static str {
        self.lock().stage.name().as_str()
    }

    /// Whether QEMU has connected to the sidecar.
    pub fn is_sidecar_connected(&self) -> bool {
        self.lock().sidecar_connected
    }

    /// Waits for QEMU to connect to the sidecar, however long it takes; `false` if it never does.
    pub fn wait_connected(&self) -> bool {
        self.wait(Duration::from_secs(u64::from(u32::MAX)), |state| {
            state.sidecar_connected
        })
    }

    pub(crate) fn timeline(&self) -> Timeline {
        self.lock().timeline
    }

    pub(crate) fn stage(&self) -> StageName {
        self.lock().stage.name()
    }

    /// Whether QEMU has a dirty log open: it migrates the VM.
    pub fn is_logging(&self) -> bool {
        self.lock().logging
    }

    /// Why the sidecar refused last, if it did since the migration began.
    pub(crate) fn refusal(&self) -> Option<String> {
        self.lock().refusal.clone()
    }

    /// Whether the devices are behind a virtual IOMMU.
    pub(crate) fn has_iommu(&self) -> bool {
        self.0.iommu
    }

    pub(crate) fn log(&self) -> LogHandle {
        self.0.log.clone()
    }

    /// From here on the stop hook counts on what the guest has said.
    pub(crate) fn set_help(&self, help: Help) {
        self.lock().help = Some(help);
    }

    /// The guest is about to be asked for more.
    pub(crate) fn take_tracked(&self) -> Option<Tracked> {
        match self.lock().help.take()?.step {
            Step::Tracked(tracked) => Some(tracked),
            Step::Quiesced(_) => None,
        }
    }

    /// What of each device went over.
    pub(crate) fn carried(&self) -> Vec<Carry> {
        self.lock().carry.clone()
    }

    /// Of the devices with these indices only the configuration space shall go over.
    pub(crate) fn set_to_recover(&self, devices: Vec<usize>) {
        self.lock().starter = Starter::Recovery(devices);
    }

    /// The names of those.
    pub(crate) fn to_recover(&self) -> Vec<String> {
        let state = self.lock();
        let devices = state.starter.recovers().iter();
        let devices = devices.filter_map(|&index| self.0.endpoints.0.get(index));
        devices.map(|device| device.name().to_owned()).collect()
    }

    /// Those of them that went over so.
    pub(crate) fn left_to_recovery(&self) -> Vec<String> {
        let state = self.lock();
        let devices = self.0.endpoints.0.iter().zip(&state.carry).enumerate();
        let left = devices.filter(|(index, (device, carry))| {
            state.starter.recovers().contains(index)
                && **carry == Carry::Configuration
                && device.is_in_use()
        });
        left.map(|(_, (device, _))| device.name().to_owned())
            .collect()
    }

    /// The guest sleeps.
    pub(crate) fn set_asleep(&self) {
        let mut state = self.lock();
        state.starter = Starter::WakeUp;
        state.guest = Wakefulness::Asleep;
    }

    /// The guest has fallen asleep by itself, or was woken.
    pub(crate) fn note_sleep(&self, sleeps: bool) {
        self.lock().guest = if sleeps {
            Wakefulness::Asleep
        } else {
            Wakefulness::Awake
        };
    }

    /// Whether the VM that leaves is one of a guest that sleeps.
    pub fn sleeps(&self) -> bool {
        self.lock().guest == Wakefulness::Asleep
    }

    /// The VM runs at the destination: the guest is told there that it is over.
    pub(crate) fn has_left(&self) {
        let mut state = self.lock();
        state.late.clear();
        if let Some(help) = state.help.take() {
            help.leave();
        }
    }

    pub(crate) fn begin_migration(&self, name: &str, secret: Secret) {
        self.close_logs();
        let mut state = self.lock();
        state.outgoing = true;
        name.clone_into(&mut state.migration);
        state.secret = Some(secret);
        state.help = None;
        state.ending = None;
        state.carry = Vec::new();
        state.starter = Starter::default();
        state.guest = Wakefulness::Awake;
        state.comparing = Comparing::default();
        state.unsettled = None;
        state.refusal = None;
        state.timeline = Timeline::default();
        state.marks = Marks::default();
        state.marks_by_guest = 0;
        state.marks_by_iommu = Marks::default();
    }

    /// The migration away from here is over, one way or the other. Where the VM is not known, the
    /// guest is told only when the VM runs here again.
    pub(crate) fn end_migration(&self) {
        self.close_logs();
        let mut state = self.lock();
        state.outgoing = false;
        state.comparing = Comparing::default();
        if state.stage.name() == StageName::Running {
            state.help = None;
        }
    }

    /// Waits until `done` holds of the stage.
    pub(crate) fn wait_stage(&self, limit: Duration, done: impl Fn(StageName) -> bool) -> bool {
        self.wait(limit, |state| done(state.stage.name()))
    }

    pub(crate) fn wait_logging(&self, limit: Duration) -> bool {
        self.wait(limit, |state| state.logging)
    }

    /// An incoming migration was agreed on: the devices stand still and wait for their state.
    /// Its memory may be verified, or compared before it runs.
    pub(crate) fn expect_arrival(
        &self,
        name: &str,
        secret: Secret,
        verify: bool,
        compare: bool,
    ) -> Result<(), String> {
        let ram = if verify || compare {
            self.guest_ram().map_err(|e| e.to_string())?
        } else {
            Vec::new()
        };
        let ram = Arc::new(ram);
        self.forget_files();
        let mut state = self.lock();
        state.ending = None;
        state.stage.wait_for_arrival()?;
        name.clone_into(&mut state.migration);
        state.word = word::Arrival::of(name);
        state.session = Some(Session {
            ram: Arc::clone(&ram),
            verify,
            secret: Some(secret),
            ..Session::default()
        });
        state.timeline = Timeline::default();
        drop(state);
        // While memory comes in; what is not done by LOAD is done there.
        touch(ram).map_err(|e| e.to_string())
    }

    /// Where nobody knows what a device wrote, memory may be compared before the VM runs elsewhere;
    /// it is in any case, if `always`.
    pub(crate) fn allow_comparison(&self, always: bool) -> std::io::Result<()> {
        let ram = self.guest_ram()?;
        let mut state = self.lock();
        let memory = ToCompare::new(ram, state.secret.clone().ok_or_else(memory::no_secret)?)?;
        touch(memory.ram())?;
        state.comparing = Comparing::allow(memory, always);
        Ok(())
    }

    pub(crate) fn may_compare(&self) -> bool {
        self.lock().comparing.is_allowed()
    }

    /// The memory that has to be compared before the VM may run elsewhere.
    pub(crate) fn to_compare(&self) -> Option<ToCompare> {
        self.lock().comparing.due()
    }

    /// The VM starts here: its devices take what only one host may have.
    ///
    /// # Errors
    /// When a device cannot have it. The VM must not run here then.
    pub fn start_here(&self) -> Result<(), EndpointError> {
        let _state = self.lock();
        self.0.endpoints.clone().acquire(Claim::Start)
    }

    /// The source's QEMU has completed: the state has left, and the other host may have what only
    /// one can.
    ///
    /// # Errors
    /// When the state cannot have left, as the devices run, or one cannot let go. They stay as
    /// they were.
    pub(crate) fn hand_over(&self, _: Whole) -> Result<(), String> {
        let mut state = self.lock();
        let State {
            stage, migration, ..
        } = &mut *state;
        let result = stage
            .hand_over(migration)
            .ok_or("the devices ran on while QEMU completed")?;
        result.map_err(|error| error.to_string())
    }

    /// Takes what only one host may have, before the VM runs here: at the source back, at the
    /// destination as the source has let go of it.
    ///
    /// # Errors
    /// When the other host has it: the VM must not run here.
    pub(crate) fn claim(&self) -> Result<(), EndpointError> {
        let mut state = self.lock();
        let State {
            stage, migration, ..
        } = &mut *state;
        stage.claim(migration)
    }

    /// The stop was the guest's doing, not the migration's: the devices run again, unless their
    /// state was taken meanwhile.
    pub(crate) fn undo_halt(&self) {
        let mut state = self.lock();
        if state.timeline.saved.is_none() {
            state.stage.run();
        }
        drop(state);
        self.0.changed.notify_all();
    }

    /// The VM runs here again, as QMP says, whatever the hooks have heard.
    pub(crate) fn run_again(&self) {
        self.lock().run(self.guest());
        self.0.changed.notify_all();
    }

    /// The incoming migration's session, which is over.
    pub(crate) fn take_session(&self) -> Session {
        self.lock().session.take().unwrap_or_default()
    }

    /// Does something with the session of a VM that has arrived and does not run yet.
    pub(crate) fn with_session<T>(&self, f: impl FnOnce(&mut Session) -> T) -> T {
        // Without the lock: whoever looks at the VM meanwhile must not wait for it.
        let mut session = self.take_session();
        let result = f(&mut session);
        self.lock().session = Some(session);
        result
    }

    fn wait(&self, limit: Duration, done: impl Fn(&State) -> bool) -> bool {
        let waited = self
            .0
            .changed
            .wait_timeout_while(self.lock(), limit, |state| !done(state));
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        done(&state)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
