//! One VM's devices, between QEMU's hooks and the migration.
//!
//! The life cycle of `device::lifecycle` is kept here as a [`Stage`], and every step is taken in
//! answer to what QEMU does (see [`sidecar::Hooks`]), never by the clock:
//!
//! ```text
//!            stop hook, logged           SAVE       own QEMU completed
//!  Running ───────────────────► Marked ───────► Marked ──────────────► HandedOver
//!     ▲    halt, then mark        │
//!     └──── rings run again ──────┘
//!
//!            a session begins             LOAD            rings run
//!  Running ───────────────────► Waiting ───────► Arrived ───────────► Running
//! ```

mod drain;
mod hooks;
mod stage;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use endpoint::Endpoints;
use sidecar::LogHandle;

use crate::digest::{GuestRam, MemoryDigest, Urgency};
use crate::report::Marks;

pub use drain::Drainer;
pub use hooks::VmHooks;
pub(crate) use stage::{Stage, StageName};

/// A VM's devices.
#[derive(Debug, Clone)]
pub struct Vm(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    endpoints: Endpoints,
    log: LogHandle,
    controls: Controls,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    stage: Stage,
    timeline: Timeline,
    marks: Marks,
    session: Option<Session>,
    logging: bool,
    /// A migration away from here was begun by [`Vm::begin_migration`].
    outgoing: bool,
    refusal: Option<String>,
    sidecar_connected: bool,
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
#[derive(Debug, Default)]
pub(crate) struct Session {
    /// Guest memory to be digested at LOAD; empty if it is not to be verified.
    pub(crate) ram: Arc<Vec<GuestRam>>,
    pub(crate) digests: Vec<MemoryDigest>,
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

impl Vm {
    /// The VM whose devices are `endpoints`, with the dirty log of its sidecar.
    pub fn new(endpoints: Endpoints, log: LogHandle, controls: Controls) -> Self {
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
            controls,
            state: Mutex::new(state),
            changed: Condvar::new(),
        }))
    }

    /// The devices.
    pub fn endpoints(&self) -> &Endpoints {
        &self.0.endpoints
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

    /// Pages marked so far in the migration under way or the last one.
    pub fn marks(&self) -> Marks {
        self.lock().marks.clone()
    }

    pub(crate) fn timeline(&self) -> Timeline {
        self.lock().timeline
    }

    pub(crate) fn stage(&self) -> StageName {
        self.lock().stage.name()
    }

    pub(crate) fn is_logging(&self) -> bool {
        self.lock().logging
    }

    /// Why the sidecar refused last, if it did since the migration began.
    pub(crate) fn refusal(&self) -> Option<String> {
        self.lock().refusal.clone()
    }

    pub(crate) fn begin_migration(&self) {
        let mut state = self.lock();
        state.outgoing = true;
        state.refusal = None;
        state.timeline = Timeline::default();
        state.marks = Marks::default();
    }

    /// The migration away from here is over, one way or the other.
    pub(crate) fn end_migration(&self) {
        self.lock().outgoing = false;
    }

    /// Waits until `done` holds of the stage.
    pub(crate) fn wait_stage(&self, limit: Duration, done: impl Fn(StageName) -> bool) -> bool {
        self.wait(limit, |state| done(state.stage.name()))
    }

    pub(crate) fn wait_logging(&self, limit: Duration) -> bool {
        self.wait(limit, |state| state.logging)
    }

    /// An incoming migration was agreed on: the devices stand still and wait for their state.
    pub(crate) fn expect_arrival(&self, verify: bool) -> Result<(), String> {
        let ram = if verify {
            self.guest_ram().map_err(|e| e.to_string())?
        } else {
            Vec::new()
        };
        let ram = Arc::new(ram);
        let mut state = self.lock();
        state.stage.wait_for_arrival()?;
        state.session = Some(Session {
            ram: Arc::clone(&ram),
            digests: Vec::new(),
        });
        state.timeline = Timeline::default();
        drop(state);
        // While memory comes in, in the background; what is not done by LOAD is done there.
        let touch = move || ram.iter().for_each(GuestRam::touch);
        std::thread::Builder::new()
            .name("touch".into())
            .spawn(touch)
            .map_err(|e| e.to_string())?;
        Ok(())
    }

    /// The incoming migration came to nothing.
    pub(crate) fn forget_arrival(&self) {
        let mut state = self.lock();
        state.session = None;
        state.stage.discard_arrival();
    }

    /// The source's QEMU has completed: the state has left. `false` if it cannot have, as the
    /// devices run.
    #[must_use]
    pub(crate) fn hand_over(&self) -> bool {
        self.lock().stage.hand_over()
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
        self.lock().stage.run();
        self.0.changed.notify_all();
    }

    /// The incoming migration's session, which is over.
    pub(crate) fn take_session(&self) -> Session {
        self.lock().session.take().unwrap_or_default()
    }

    /// Digests of all guest memory as it is now, without haste. Meaningful only while nothing
    /// writes it.
    pub(crate) fn digest_memory(&self) -> std::io::Result<Vec<(GuestRam, MemoryDigest)>> {
        let digest = |ram: GuestRam| {
            let digest = ram.digest(Urgency::Background)?;
            Ok((ram, digest))
        };
        self.guest_ram()?.into_iter().map(digest).collect()
    }

    fn guest_ram(&self) -> std::io::Result<Vec<GuestRam>> {
        let Some(endpoint) = self.0.endpoints.0.first() else {
            return Ok(Vec::new());
        };
        endpoint
            .bus()
            .memory_files()
            .into_iter()
            .map(GuestRam::map)
            .collect()
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
