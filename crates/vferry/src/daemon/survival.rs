//! How this process can be replaced by another when it dies.
//!
//! The configuration is the one that the first process has read: what its file says since is another run's.
//!
//! It can, as long as the VM is this host's, whether its devices run or are halted for a migration:
//! [`Survival::note`] writes down which, before they are halted, and after they run again. Where they were halted, the
//! next process has the VM run on here: nobody has told the other host to run it, and nobody can any more. What says
//! that something of the VM is let go of is written before it is ([`LettingGo`]); a process that finds that, or a VM
//! that was on its way here, ends, and the keeper with it: where the VM is then is between the two hosts, and this
//! one's part of it died with its process.
//!
//! While the devices run and another process could go on, the keeper watches this one
//! ([`Survival::be_watched`]): one that hangs then is as one that has died. Halted devices have nobody who waits
//! for their answer.
//!
//! It is written there, too, that vferry has stopped the vCPUs for a moment ([`Rests`]): a successor lets them run again.

mod word;

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::Context;
use endpoint::Endpoint;
use ferry::Vm;
use ferry::source::LettingGo;
use keeper::{HANDED_OVER, Held, Journal, Limits, Line, Worker};
use qemu::system::Rests;
use sidecar::{Hooks, LogStart, Stop, Stopped, Veto};
use vfio_user::{Ended, Negotiated, ServeError, Server};

pub(crate) use word::Halted;
use word::{Place, WORD, Word, now};

/// By which name the configuration is held.
const CONFIGURATION: &str = "configuration";

/// What the keeper held, and the way to it.
#[derive(Debug)]
pub(crate) struct Survival {
    worker: Arc<Worker>,
    is_first: bool,
    is_stored: bool,
    word: Mutex<Word>,
    held: Mutex<Held>,
}

impl Survival {
    /// Of this process, which a keeper has started, which others outlive if it `is_stored`; and the text of the configuration, that of the file at
    /// `path` at first.
    pub(crate) fn begin(path: &Path, is_stored: bool) -> anyhow::Result<(Self, String)> {
        let (worker, mut held) = Worker::start()?;
        let is_first = !held.contains_key(CONFIGURATION);
        let text = if let Some(left) = held.remove(CONFIGURATION) {
            let mut text = String::new();
            let mut file = File::from(left);
            file.rewind()?;
            file.read_to_string(&mut text)?;
            text
        } else {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            let flags = rustix::fs::MemfdFlags::CLOEXEC;
            let mut file = File::from(rustix::fs::memfd_create("configuration", flags)?);
            file.write_all(text.as_bytes())?;
            worker.hold(CONFIGURATION, &file)?;
            text
        };
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
        let word = Word::open(word, now())?;
        let survival = Self {
            worker: Arc::new(worker),
            is_first,
            is_stored,
            word: Mutex::new(word),
            held: Mutex::new(held),
        };
        Ok((survival, text))
    }

    /// Nobody has served this VM before.
    pub(crate) fn is_first(&self) -> bool {
        self.is_first
    }

    /// A process that is told to end is to leave QEMU's connections as they are: they outlive the keeper, too.
    pub(crate) fn is_stored(&self) -> bool {
        self.is_stored
    }

    pub(crate) fn worker(&self) -> &Arc<Worker> {
        &self.worker
    }

    pub(crate) fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What listens as `name`: what another process has left, with which `go_on` goes on, or else what `bind`
    /// makes, which is held from here on, so that somebody who comes while nobody serves is served later.
    pub(crate) fn listening<T: AsFd>(
        survival: Option<&Self>,
        name: &str,
        go_on: impl FnOnce(OwnedFd) -> anyhow::Result<T>,
        bind: impl FnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let Some(survival) = survival else {
            return bind();
        };
        let name = format!("listening/{name}");
        let left = survival.held().remove(&name);
        if let Some(left) = left {
            return go_on(left);
        }
        let bound = bind()?;
        survival.worker.hold(&name, &bound)?;
        Ok(bound)
    }

    /// Writes down whether the devices run, which `runs` looks at.
    pub(crate) fn note(&self, runs: impl FnOnce() -> bool) {
        // Held while it is looked at: nobody writes what was so before.
        let mut word = self.word();
        word.write(runs());
    }

    /// Has the keeper notice from here on if this process hangs for `limit` while it serves devices that run.
    pub(crate) fn be_watched(&self, limit: Duration) {
        let worker = Arc::clone(&self.worker);
        self.word().be_watched(worker, limit);
    }

    /// Runs `act`, which may halt the devices of a guest that is `asleep` or not, or may not halt them, and writes
    /// down before that they do not run, and after it whether they do.
    pub(crate) fn around<R>(
        &self,
        asleep: bool,
        act: impl FnOnce() -> R,
        runs: impl FnOnce() -> bool,
    ) -> R {
        let mut word = self.word();
        // Of what another process has left nothing more is known than that.
        word.asleep = asleep || word.brings_back && word.asleep;
        word.write(false);
        let result = act();
        word.write(runs());
        result
    }

    /// Ends this process, so that one of the next program goes on, at a moment at which no device has anything
    /// half done. Returns only if the devices do not run here. `say` is done at that moment.
    pub(crate) fn leave(&self, vm: &Vm, say: impl FnOnce()) {
        // Nobody halts them from here on.
        let _word = self.word();
        if !runs(vm) {
            return;
        }
        for endpoint in &vm.endpoints().0 {
            endpoint.hold_still();
        }
        say();
        std::process::exit(HANDED_OVER)
    }

    /// A VM is on its way here, or is no more.
    pub(crate) fn note_arrival(&self, arriving: bool, runs: impl FnOnce() -> bool) {
        let mut word = self.word();
        word.place = if arriving {
            Place::Arrives
        } else {
            Place::Here
        };
        word.write(runs());
    }

    /// The vCPUs of devices that run are stopped for a moment, maybe by another process that has died since.
    pub(crate) fn rests(&self) -> bool {
        let word = self.word();
        word.is_running() && word.rests.is_some()
    }

    /// Another process died while the devices were halted, and QEMU was not seen to run the VM since. Whether its
    /// guest sleeps.
    pub(crate) fn brings_back(&self) -> Option<bool> {
        let word = self.word();
        word.brings_back.then_some(word.asleep)
    }

    /// It was seen to.
    pub(crate) fn is_back(&self) {
        let mut word = self.word();
        word.brings_back = false;
        word.put();
    }

    fn rest(&self, since: Option<u64>) {
        let mut word = self.word();
        word.rests = since;
        word.put();
    }

    fn word(&self) -> MutexGuard<'_, Word> {
        self.word.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes on with what another process has left of a device, if one has.
    pub(crate) fn take_over(&self, endpoint: &Endpoint) -> anyhow::Result<Option<Left>> {
        let mut held = self.held();
        let name = endpoint::kept::prefix(endpoint.name());
        let Some(line) = Line::find(&name, &mut held)? else {
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
        if server.stopper().is_stopped() {
            return Ok(Ended::Stopped);
        }
        let conversation = line.resume().context("its connection")?;
        let mut frontend = endpoint.frontend();
        let ended: Result<_, ServeError> =
            server.serve_kept(conversation, negotiated, &mut frontend);
        Ok(ended?)
    }

    /// Waits for QEMU; `None` if there is no more waiting.
    fn begin_line(&self, server: &Server, endpoint: &Endpoint) -> anyhow::Result<Option<Left>> {
        let Some(stream) = server.accept()? else {
            return Ok(None);
        };
        let line = Line::new(stream, endpoint::kept::LIMITS)?;
        endpoint.keep(Arc::clone(line.journal()), Arc::clone(&self.worker))?;
        line.hold(&endpoint::kept::prefix(endpoint.name()), &self.worker)?;
        Ok(Some(Left {
            line,
            negotiated: None,
        }))
    }
}

impl LettingGo for Survival {
    fn begins(&self) {
        let mut word = self.word();
        word.place = Place::Leaves;
        word.put();
    }
}

impl Rests for Survival {
    fn begin(&self) {
        self.rest(Some(now()));
    }

    fn end(&self) {
        self.rest(None);
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

/// Whether the VM's devices run here.
pub(super) fn runs(vm: &Vm) -> bool {
    vm.stage_name() == "running"
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
        let Self {
            hooks,
            vm,
            survival,
        } = self;
        match (&stop, survival) {
            (Stop::Logged(_), Some(survival)) => {
                survival.around(vm.sleeps(), || hooks.stopping(stop), || runs(vm))
            }
            // Nothing is halted.
            (Stop::Unlogged, _) | (_, None) => hooks.stopping(stop),
        }
    }

    fn restarted(&mut self) {
        self.hooks.restarted();
        if let Some(survival) = &self.survival {
            survival.note(|| runs(&self.vm));
        }
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

#[cfg(test)]
mod tests {
    use super::word::{GONE, HALTED, LONGEST_REST, RUN};
    use super::*;

    fn word() -> Mutex<Word> {
        let limits = Limits {
            state: 0,
            rare: 0,
            reply: 0,
        };
        Mutex::new(Word::open(Journal::create(limits).unwrap(), 0).unwrap())
    }

    fn survival() -> Survival {
        Survival {
            worker: Arc::new(keeper::KeeperHere::new().worker().unwrap()),
            is_first: true,
            is_stored: false,
            word: word(),
            held: Mutex::default(),
        }
    }

    fn mark(survival: &Survival) -> u64 {
        survival.word().journal.mark()
    }

    #[test]
    fn it_is_written_that_devices_do_not_run_before_they_are_halted() {
        let survival = survival();
        assert_eq!(mark(&survival), RUN);
        survival.note(|| false);
        assert_eq!(mark(&survival), HALTED);
        survival.note(|| true);
        assert_eq!(mark(&survival), RUN);
    }

    /// Somebody looks at devices that run, and they are halted before he writes that down.
    #[test]
    fn what_was_so_before_a_halt_is_not_written_after_it() {
        let survival = survival();
        let running = std::sync::atomic::AtomicBool::new(true);
        let (survival, running) = (&survival, &running);
        let runs = || running.load(std::sync::atomic::Ordering::SeqCst);
        std::thread::scope(|scope| {
            let (inside, seen) = std::sync::mpsc::channel();
            scope.spawn(move || {
                survival.around(
                    false,
                    || {
                        inside.send(()).unwrap();
                        // The other is about to look; whenever it does, it is not before the end of this.
                        std::thread::yield_now();
                        running.store(false, std::sync::atomic::Ordering::SeqCst);
                    },
                    runs,
                );
            });
            seen.recv().unwrap();
            survival.note(runs);
        });
        assert_eq!(mark(survival), HALTED);
    }

    /// As the process after this one finds it `later` seconds from now.
    fn successor(survival: &Survival, later: u64) -> Result<Survival, Halted> {
        let journal = survival.word().journal.as_fd().try_clone_to_owned();
        let journal = Journal::open(journal.unwrap()).unwrap();
        Ok(Survival {
            word: Mutex::new(Word::open(journal, now() + later)?),
            ..self::survival()
        })
    }

    #[test]
    fn a_successor_learns_that_the_vcpus_are_stopped_for_a_moment_if_devices_run() {
        let survival = survival();
        assert!(!successor(&survival, 0).unwrap().rests());
        Rests::begin(&survival);
        assert!(successor(&survival, 0).unwrap().rests());
        survival.note(|| false);
        assert!(!survival.rests());
        assert_eq!(successor(&survival, 0).unwrap().brings_back(), Some(false));
        survival.note(|| true);
        let next = successor(&survival, 0).unwrap();
        assert!(next.rests());
        next.end();
        assert!(!successor(&next, 0).unwrap().rests());
        assert_eq!(mark(&next), RUN);
    }

    #[test]
    fn a_vm_whose_devices_were_halted_is_brought_back_unless_something_of_it_is_let_go_of() {
        let survival = survival();
        survival.note(|| false);
        let next = successor(&survival, 0).unwrap();
        assert_eq!(next.brings_back(), Some(false));
        // It may die as well, whatever it has written down meanwhile.
        next.note(|| true);
        next.around(false, || (), || true);
        let last = successor(&next, 0).unwrap();
        assert_eq!(last.brings_back(), Some(false));
        last.is_back();
        assert_eq!(mark(&last), RUN);
        assert_eq!(successor(&last, 0).unwrap().brings_back(), None);

        survival.note(|| false);
        survival.begins();
        successor(&survival, 0).unwrap_err();
        // Whatever else is looked at meanwhile.
        survival.note(|| false);
        successor(&survival, 0).unwrap_err();
        // It has come back.
        survival.note(|| true);
        assert_eq!(successor(&survival, 0).unwrap().brings_back(), None);
        survival.note(|| false);
        assert_eq!(successor(&survival, 0).unwrap().brings_back(), Some(false));
    }

    /// Else it is ended while nobody could go on, or nobody waits for it.
    #[test]
    fn a_process_is_watched_exactly_while_devices_run_that_another_could_go_on_with() {
        let survival = survival();
        let watched = |survival: &Survival| survival.word().is_watched();
        assert!(!watched(&survival), "it does not serve yet");
        survival.be_watched(Duration::from_secs(3));
        assert!(watched(&survival));
        survival.around(false, || (), || false);
        assert_eq!(mark(&survival), HALTED);
        assert!(!watched(&survival));
        let next = successor(&survival, 0).unwrap();
        next.be_watched(Duration::from_secs(3));
        assert!(!watched(&next), "the VM is yet to be brought back");
        next.note(|| true);
        assert!(!watched(&next));
        next.is_back();
        assert!(watched(&next));
        survival.note(|| true);
        assert!(watched(&survival), "the migration was given up");
        survival.begins();
        assert!(!watched(&survival), "something is let go of");
        survival.note(|| true);
        assert!(watched(&survival), "it has come back");
        survival.note_arrival(true, || true);
        assert!(!watched(&survival), "a VM is on its way");
        survival.note_arrival(false, || true);
        assert!(watched(&survival));
        Rests::begin(&survival);
        assert!(watched(&survival), "its vCPUs do not run for a moment");
    }

    /// It has to be woken otherwise than by QEMU's `cont`.
    #[test]
    fn a_successor_learns_that_a_guest_that_is_brought_back_sleeps() {
        let survival = survival();
        survival.around(true, || (), || false);
        let next = successor(&survival, 0).unwrap();
        assert_eq!(next.brings_back(), Some(true));
        next.around(false, || (), || true);
        assert_eq!(successor(&next, 0).unwrap().brings_back(), Some(true));
        survival.note(|| true);
        survival.around(false, || (), || false);
        assert_eq!(successor(&survival, 0).unwrap().brings_back(), Some(false));
    }

    /// The operator may have paused the VM since.
    #[test]
    fn a_rest_of_long_ago_is_none() {
        let survival = survival();
        Rests::begin(&survival);
        let next = successor(&survival, LONGEST_REST).unwrap();
        assert!(!next.rests());
    }

    #[test]
    fn devices_do_not_run_while_a_vm_is_on_its_way() {
        let survival = survival();
        survival.note_arrival(true, || true);
        survival.note(|| true);
        assert_eq!(mark(&survival), GONE);
        survival.note_arrival(false, || true);
        assert_eq!(mark(&survival), RUN);
    }
}
