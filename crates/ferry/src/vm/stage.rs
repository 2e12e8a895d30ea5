//! The life cycle's types, held where QEMU's calls can find them.

use device::DirtySink;
use device::lifecycle::{Arrived, Halted, HandedOver, Marked, Migratable, Ready, Running};
use endpoint::{Carry, EndpointError, EndpointState, Endpoints};
use sidecar::Veto;

/// Where the devices are. `Moving` only inside a method: a step consumes the one before it.
#[derive(Debug, Default)]
pub(crate) enum Stage {
    #[default]
    Moving,
    Running(Running<Endpoints>),
    Waiting(Halted<Endpoints>),
    Marked(Marked<Endpoints>),
    HandedOver(HandedOver<Endpoints>),
    Arrived(Arrived<Endpoints>),
    Ready(Ready<Endpoints>),
}

/// The names of the stages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StageName {
    Moving,
    Running,
    Waiting,
    Marked,
    HandedOver,
    Arrived,
    Ready,
}

impl StageName {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Moving => "moving",
            Self::Running => "running",
            Self::Waiting => "waiting for an arrival",
            Self::Marked => "halted and marked",
            Self::HandedOver => "handed over",
            Self::Arrived => "arrived",
            Self::Ready => "ready to run",
        }
    }
}

impl Stage {
    pub(crate) fn running(endpoints: Endpoints) -> Self {
        Self::Running(Running::new(endpoints))
    }

    pub(crate) fn name(&self) -> StageName {
        match self {
            Self::Moving => StageName::Moving,
            Self::Running(_) => StageName::Running,
            Self::Waiting(_) => StageName::Waiting,
            Self::Marked(_) => StageName::Marked,
            Self::HandedOver(_) => StageName::HandedOver,
            Self::Arrived(_) => StageName::Arrived,
            Self::Ready(_) => StageName::Ready,
        }
    }

    /// Halt, then mark. `halted` is called in between, and marks what others than the devices know
    /// of. Devices that do not run stay as they are.
    pub(crate) fn halt_and_mark<S: DirtySink>(
        &mut self,
        sink: &mut S,
        halted: impl FnOnce(&Halted<Endpoints>, &mut S) -> Result<(), Veto>,
    ) -> Result<(), Veto> {
        let running = match std::mem::take(self) {
            Self::Running(running) => running,
            other => {
                *self = other;
                return Ok(());
            }
        };
        let still = match running.halt() {
            Ok(still) => still,
            Err(failed) => {
                *self = Self::Running(failed.back_to);
                return Err(Veto::new(failed.error.to_string()));
            }
        };
        if let Err(veto) = halted(&still, sink) {
            *self = Self::Running(still.resume());
            return Err(veto);
        }
        match still.mark(sink) {
            Ok(marked) => {
                *self = Self::Marked(marked);
                Ok(())
            }
            Err(failed) => {
                *self = Self::Running(failed.back_to.resume());
                Err(Veto::new(failed.error.to_string()))
            }
        }
    }

    /// The devices' state as far as `carry` says, if they were halted and marked.
    pub(crate) fn save(
        &self,
        carry: &Vec<Carry>,
    ) -> Option<Result<Vec<EndpointState>, EndpointError>> {
        match self {
            Self::Marked(marked) => Some(marked.save(carry)),
            _ => None,
        }
    }

    /// The state has left: the other host may have what only one can. `None` if it cannot have
    /// left, as the devices are not halted and marked.
    pub(crate) fn hand_over(&mut self, migration: &str) -> Option<Result<(), EndpointError>> {
        let (next, result) = match std::mem::take(self) {
            Self::Marked(marked) => match marked.hand_over(migration) {
                Ok(gone) => (Self::HandedOver(gone), Some(Ok(()))),
                Err(failed) => (Self::Marked(failed.back_to), Some(Err(failed.error))),
            },
            other => (other, None),
        };
        *self = next;
        result
    }

    /// Takes what only one host may have, on either side: back, or from the source. Devices that
    /// have it stay as they are.
    pub(crate) fn claim(&mut self, migration: &str) -> Result<(), EndpointError> {
        let (next, result) = match std::mem::take(self) {
            Self::HandedOver(gone) => match gone.take_back(migration) {
                Ok(marked) => (Self::Marked(marked), Ok(())),
                Err(failed) => (Self::HandedOver(failed.back_to), Err(failed.error)),
            },
            Self::Arrived(arrived) => match arrived.claim(migration) {
                Ok(ready) => (Self::Ready(ready), Ok(())),
                Err(failed) => (Self::Arrived(failed.back_to), Err(failed.error)),
            },
            other => (other, Ok(())),
        };
        *self = next;
        result
    }

    pub(crate) fn wait_for_arrival(&mut self) -> Result<(), String> {
        let (next, result) = match std::mem::take(self) {
            Self::Running(running) => match running.halt() {
                Ok(still) => (Self::Waiting(still), Ok(())),
                Err(failed) => (Self::Running(failed.back_to), Err(failed.error.to_string())),
            },
            Self::Arrived(arrived) => (Self::Waiting(arrived.discard()), Ok(())),
            other @ Self::Waiting(_) => (other, Ok(())),
            other => {
                let name = other.name().as_str();
                (other, Err(format!("this side's devices are {name}")))
            }
        };
        *self = next;
        result
    }

    /// The VM does not run here: the source may have back what it let go of.
    pub(crate) fn discard_arrival(&mut self, migration: &str) -> Result<(), EndpointError> {
        let (next, result) = match std::mem::take(self) {
            Self::Arrived(arrived) => (Self::Waiting(arrived.discard()), Ok(())),
            Self::Ready(ready) => match ready.give_back(migration) {
                Ok(arrived) => (Self::Waiting(arrived.discard()), Ok(())),
                Err(failed) => (Self::Ready(failed.back_to), Err(failed.error)),
            },
            other => (other, Ok(())),
        };
        *self = next;
        result
    }

    /// Loads what arrived. Only devices that wait take a state.
    pub(crate) fn load(
        &mut self,
        state: <Endpoints as Migratable>::State,
    ) -> Result<(), Option<EndpointError>> {
        let (next, result) = match std::mem::take(self) {
            Self::Waiting(waiting) => match waiting.load(state) {
                Ok(arrived) => (Self::Arrived(arrived), Ok(())),
                Err(failed) => (Self::Waiting(failed.back_to), Err(Some(failed.error))),
            },
            other => (other, Err(None)),
        };
        *self = next;
        result
    }

    /// The VM runs here: so do its devices, if they have all they need. Says whether that changed
    /// anything.
    pub(crate) fn run(&mut self) -> bool {
        let (next, changed) = match std::mem::take(self) {
            Self::Marked(marked) => (Self::Running(marked.resume()), true),
            Self::Ready(ready) => (Self::Running(ready.run()), true),
            other => (other, false),
        };
        *self = next;
        changed
    }
}
