//! How this process can be replaced by another when it dies.
//!
//! It can, as long as the VM is here and its devices run: [`Survival::note`] writes that down, before
//! they are halted for a migration, and after they run again. A process that finds it written that they did
//! not ends, and the keeper with it: what the devices are then is between the two hosts of a migration, and
//! this one's part of it died with its process.

use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use anyhow::{Context, bail};
use endpoint::Endpoint;
use ferry::Vm;
use keeper::{Held, Journal, Limits, Line, Worker};
use sidecar::{Hooks, LogStart, Stop, Stopped, Veto};
use vfio_user::{Ended, Negotiated, ServeError, Server};

/// By which name the word is held that says whether the VM's devices run here.
const WORD: &str = "vm";
const RUN: u64 = 0;
const DO_NOT_RUN: u64 = 1;

/// What the keeper held, and the way to it.
#[derive(Debug)]
pub(crate) struct Survival {
    worker: Arc<Worker>,
    word: Journal,
    held: Mutex<Held>,
}

impl Survival {
    /// Of this process, which a keeper has started.
    pub(crate) fn begin() -> anyhow::Result<Self> {
        let (worker, mut held) = Worker::start()?;
        let word = if let Some(left) = held.remove(WORD) {
            Journal::open(left)?
        } else {
            let limits = Limits {
                state: 0,
                rare: 0,
                reply: 0,
            };
            let word = Journal::create(limits)?;
            worker.hold(WORD, &word)?;
            word
        };
        if word.mark() != RUN {
            bail!(
                "the process that served this VM died while its devices were halted for a migration, so \
                 no other goes on: see on both hosts where the VM runs (docs/commit-protocol.md), then end \
                 its QEMU here"
            );
        }
        Ok(Self {
            worker: Arc::new(worker),
            word,
            held: Mutex::new(held),
        })
    }

    pub(crate) fn worker(&self) -> &Arc<Worker> {
        &self.worker
    }

    pub(crate) fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The devices are about to be halted, or to wait for another host's.
    pub(crate) fn note_halt(&self) {
        self.word.set_mark(DO_NOT_RUN);
    }

    /// Whether the devices run.
    pub(crate) fn note(&self, vm: &Vm) {
        let runs = vm.stage_name() == "running";
        self.word.set_mark(if runs { RUN } else { DO_NOT_RUN });
    }

    /// Goes on with what another process has left of a device, if one has.
    pub(crate) fn take_over(&self, endpoint: &Endpoint) -> anyhow::Result<Option<Left>> {
        let mut held = self.held();
        let Some(line) = Line::find(endpoint.name(), &mut held)? else {
            return Ok(None);
        };
        let (journal, worker) = (Arc::clone(line.journal()), Arc::clone(&self.worker));
        let negotiated = endpoint.take_over(journal, worker, &mut held)?;
        Ok(Some(Left { line, negotiated }))
    }

    /// Serves a device that a successor can go on with. `ending` is how its connection can be ended.
    pub(crate) fn serve(
        &self,
        server: &Server,
        endpoint: &Endpoint,
        left: Option<Left>,
        ending: &OnceLock<Arc<UnixStream>>,
    ) -> anyhow::Result<Ended> {
        let Left { line, negotiated } = match left {
            Some(left) => {
                endpoint.restart();
                left
            }
            None => match self.begin_line(server, endpoint)? {
                Some(left) => left,
                None => return Ok(Ended::Stopped),
            },
        };
        let _ = ending.set(Arc::clone(line.stream()));
        let conversation = line.resume().context("its connection")?;
        let mut frontend = endpoint.frontend();
        let served: Result<_, ServeError> =
            server.serve_kept(conversation, negotiated, &mut frontend);
        Ok(served?)
    }

    /// Waits for QEMU; `None` if there is no more waiting.
    fn begin_line(&self, server: &Server, endpoint: &Endpoint) -> anyhow::Result<Option<Left>> {
        let Some(stream) = server.accept()? else {
            return Ok(None);
        };
        let line = Line::new(stream, endpoint::kept::LIMITS)?;
        endpoint.keep(Arc::clone(line.journal()), Arc::clone(&self.worker))?;
        line.hold(endpoint.name(), &self.worker)?;
        Ok(Some(Left {
            line,
            negotiated: None,
        }))
    }
}

/// What another process has left of a device's connection.
#[derive(Debug)]
pub(crate) struct Left {
    line: Line,
    negotiated: Option<Negotiated>,
}

/// Hooks around which it is written down whether the devices run.
pub(crate) struct Noting<H> {
    pub(crate) hooks: H,
    pub(crate) vm: Vm,
    pub(crate) survival: Option<Arc<Survival>>,
}

impl<H> Noting<H> {
    fn note(&self) {
        if let Some(survival) = &self.survival {
            survival.note(&self.vm);
        }
    }
}

impl<H: Hooks> Hooks for Noting<H> {
    fn connected(&mut self) {
        self.hooks.connected();
    }

    fn log_started(&mut self, start: LogStart) {
        self.hooks.log_started(start);
    }

    fn log_stopped(&mut self) {
        self.hooks.log_stopped();
    }

    fn stopping(&mut self, stop: Stop<'_>) -> Result<(), Veto> {
        if let Some(survival) = &self.survival {
            survival.note_halt();
        }
        let stopped = self.hooks.stopping(stop);
        self.note();
        stopped
    }

    fn restarted(&mut self) {
        self.hooks.restarted();
        self.note();
    }

    fn save(&mut self, stopped: Stopped) -> Result<Vec<u8>, Veto> {
        self.hooks.save(stopped)
    }

    fn load(&mut self, blob: Vec<u8>) -> Result<(), Veto> {
        self.hooks.load(blob)
    }

    fn refused(&mut self, why: &Veto) {
        self.hooks.refused(why);
    }

    fn disconnected(&mut self, why: Option<&sidecar::Error>) {
        self.hooks.disconnected(why);
    }
}
