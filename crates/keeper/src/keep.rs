//! The keeper itself: holds, starts, starts again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::store::{self, Store, VARIABLES};
use crate::watch::Watch;
use crate::wire::{self, MAX_HELD};
use crate::worker::Held;

/// How many workers have died is told to the next one in this variable.
pub(crate) const RESTARTS: &str = "KEEPER_RESTARTS";

/// How many workers of the [next](Which::Next) program have come to serve.
pub(crate) const UPGRADES: &str = "KEEPER_UPGRADES";

/// Why the last one did not, if the program before goes on.
pub(crate) const REFUSAL: &str = "KEEPER_REFUSAL";

/// What a worker says once it serves.
pub(crate) const READY: &str = "READY=1";

/// The exit status with which a worker says that no other can do better.
pub const GIVEN_UP: i32 = 70;

/// The exit status with which a worker that serves makes room for one of the next program.
pub const HANDED_OVER: i32 = 71;

/// How long a worker of the next program may take until it serves: whoever waits for an answer may wait for
/// as long again, while one of the program before is started.
const TRIAL: Duration = Duration::from_secs(2);

/// Which program a worker is to be of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// The one before, or the first.
    Same,
    /// The one that is to take its place, if it can.
    Next,
}

/// How often a worker may die.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// So often,
    pub deaths: usize,
    /// in any such time.
    pub within: Duration,
}

impl Default for Rate {
    fn default() -> Self {
        Self {
            deaths: 10,
            within: Duration::from_mins(1),
        }
    }
}

/// What happens to workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// One was started.
    Started {
        /// Its process.
        pid: u32,
    },
    /// It serves. From here on a program that was the next is the same.
    Serves {
        /// Which program it is of.
        which: Which,
    },
    /// Its process is no more.
    Ended,
    /// It has died by that, and another is started.
    Died {
        /// How.
        status: ExitStatus,
        /// How many have, this one included.
        deaths: u64,
    },
}

/// Why a keeper has nothing more to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// A worker has ended of its own accord, with this status.
    Exited(i32),
    /// No other worker is wanted.
    Unwanted,
}

/// Why a keeper gives up.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// Workers die too often.
    #[error(
        "the worker has died {deaths} times within {within:?}, the last time by {status}: it is not started \
         again, and what it serves stands still; see its log for why, then end the VM's QEMU and start both \
         anew"
    )]
    TooOften {
        /// How often.
        deaths: usize,
        /// In which time.
        within: Duration,
        /// How the last one ended.
        status: ExitStatus,
    },
    /// The system refused.
    #[error("the worker cannot be started or watched: {0}")]
    System(#[from] io::Error),
}

/// Holds descriptors by name, and has one worker run.
#[derive(Debug, Default)]
pub struct Keeper {
    held: BTreeMap<String, OwnedFd>,
    /// Who holds it all, too.
    store: Option<Store>,
    /// What it was to hold, and could not.
    unheld: BTreeSet<String>,
    rate: Rate,
    recent: VecDeque<Instant>,
    deaths: u64,
    /// The worker that runs, or ran last, has served.
    is_ready: bool,
    /// One has.
    has_served: bool,
    upgrades: u64,
    refusal: Option<String>,
    /// The worker that runs.
    watch: Watch,
}

impl Keeper {
    /// One that holds nothing yet.
    pub fn new(rate: Rate) -> Self {
        Self {
            rate,
            ..Self::default()
        }
    }

    /// One that goes on with what `store` has `held`: the one before has died, or made room.
    pub fn with_store(rate: Rate, store: Store, held: Held) -> Self {
        Self {
            rate,
            deaths: (!held.is_empty()).into(),
            held,
            store: Some(store),
            ..Self::default()
        }
    }

    /// Holds `fd` as `name`; whether there is room.
    pub fn hold(&mut self, name: &str, fd: OwnedFd) -> bool {
        let room = self.held.len() < MAX_HELD || self.held.contains_key(name);
        let holds = room && wire::is_name(name);
        if holds {
            if let Some(store) = &mut self.store {
                let stored = store.hold(name, fd.as_fd(), &self.held);
                say_unless_stored(name, stored);
            }
            self.unheld.remove(name);
            self.held.insert(name.into(), fd);
        }
        holds
    }

    /// Has workers run, one after the other, until one ends of its own accord: one that a signal has ended
    /// (a panic that aborts, too) has died, and so has a successor that fails before it is
    /// [ready](crate::Worker::ready), unless with [`GIVEN_UP`]. One that ends with [`HANDED_OVER`] is followed by one
    /// of the next program; if that does not serve, by one of the program before. `worker` makes the command of each,
    /// if another is wanted; its standard input is the keeper.
    ///
    /// # Errors
    /// [`KeeperError`].
    pub fn run(
        &mut self,
        worker: &mut dyn FnMut(Which) -> Option<Command>,
        tell: &mut dyn FnMut(Event),
    ) -> Result<Ended, KeeperError> {
        let mut which = Which::Same;
        loop {
            let Some(command) = worker(which) else {
                return Ok(Ended::Unwanted);
            };
            let ended = self.run_one(command, which, tell);
            if which == Which::Next && !self.is_ready {
                which = Which::Same;
                let why = ended.map_or_else(|error| error.to_string(), |status| status.to_string());
                tracing::error!(
                    why,
                    "the next program does not serve; the one before goes on"
                );
                self.refusal = Some(why);
                continue;
            }
            which = Which::Same;
            let status = ended?;
            if self.is_ready && status.code() == Some(HANDED_OVER) {
                which = Which::Next;
                continue;
            }
            if let Some(code) = status.code()
                && !self.counts_as_death(code)
            {
                return Ok(Ended::Exited(code));
            }
            self.deaths += 1;
            let deaths = self.deaths;
            tracing::error!(%status, deaths, "the worker has died");
            self.bound(status)?;
            tell(Event::Died { status, deaths });
        }
    }

    /// A successor that fails before it serves may have met what passes: the next one tries again.
    fn counts_as_death(&self, code: i32) -> bool {
        (self.deaths > 0 || self.has_served) && !self.is_ready && code != 0 && code != GIVEN_UP
    }

    fn bound(&mut self, status: ExitStatus) -> Result<(), KeeperError> {
        self.recent.push_back(Instant::now());
        let deaths = self.recent_deaths();
        if deaths > self.rate.deaths {
            return Err(KeeperError::TooOften {
                deaths,
                within: self.rate.within,
                status,
            });
        }
        Ok(())
    }

    fn run_one(
        &mut self,
        mut command: Command,
        which: Which,
        tell: &mut dyn FnMut(Event),
    ) -> io::Result<ExitStatus> {
        self.is_ready = false;
        self.watch = Watch::default();
        let kind = (AddressFamily::UNIX, SocketType::SEQPACKET);
        let (ours, theirs) = socketpair(kind.0, kind.1, SocketFlags::CLOEXEC, None)?;
        self.tell_history(&mut command, which);
        command.stdin(theirs);
        for variable in VARIABLES {
            command.env_remove(variable);
        }
        let mut child = command.spawn()?;
        // It has a copy of the worker's end.
        drop(command);
        tell(Event::Started { pid: child.id() });
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or(Errno::SRCH)?;
        let served = pidfd_open(pid, PidfdFlags::empty())
            .map_err(io::Error::from)
            .and_then(|pidfd| self.serve(&ours, (pid, &pidfd), which, tell));
        if let Err(error) = served {
            // Nobody is to serve whom nobody watches.
            let _ = child.kill();
            let _ = child.wait();
            tell(Event::Ended);
            return Err(error);
        }
        let status = reap(&mut child);
        tell(Event::Ended);
        status
    }

    /// What has come of those before.
    fn tell_history(&self, command: &mut Command, which: Which) {
        let upgrades = self.upgrades + u64::from(which == Which::Next);
        command.env(RESTARTS, self.deaths.to_string());
        command.env(UPGRADES, upgrades.to_string());
        match &self.refusal {
            Some(why) if which == Which::Same => command.env(REFUSAL, why),
            _ => command.env_remove(REFUSAL),
        };
    }

    /// Does what the worker says, until it has ended; ends it where it is watched and says nothing.
    ///
    /// # Errors
    /// When it cannot be heard, or is of the next program and does not serve in time: it runs then.
    fn serve(
        &mut self,
        socket: &OwnedFd,
        (pid, pidfd): (Pid, &OwnedFd),
        which: Which,
        tell: &mut dyn FnMut(Event),
    ) -> io::Result<()> {
        let until = (which == Which::Next).then(|| Instant::now() + TRIAL);
        // One that does not even take what there is would have this process wait as well.
        set_socket_timeout(socket, Timeout::Send, until.map(|_| TRIAL))?;
        if !self.hand_out(socket)? {
            return Ok(());
        }
        let mut silent = false;
        loop {
            let mut fds = [
                PollFd::new(pidfd, PollFlags::IN),
                PollFd::new(socket, PollFlags::IN),
            ];
            let watched = if silent { 1 } else { 2 };
            let trial = until.filter(|_| !self.is_ready);
            let next = trial.into_iter().chain(self.watch.until()).min();
            match poll(&mut fds[..watched], next.map(time_left).as_ref()) {
                Err(Errno::INTR) => continue,
                Ok(0) if trial.is_some_and(|until| until <= Instant::now()) => {
                    return Err(io::Error::other(NOT_IN_TIME));
                }
                Ok(0) => {
                    if let Some(silent_for) = self.watch.is_over() {
                        self.end_hung(pid, silent_for)?;
                    }
                    continue;
                }
                polled => polled?,
            };
            let ended = !fds[0].revents().is_empty();
            // Also what a dead one has said last.
            loop {
                match wire::receive(socket.as_fd(), RecvFlags::DONTWAIT) {
                    Ok(Some((words, fds))) => {
                        let was_ready = self.is_ready;
                        self.hear(&words, fds);
                        if self.is_ready && !was_ready {
                            self.note_service(which);
                            tell(Event::Serves { which });
                        }
                    }
                    Ok(None) => {
                        silent = true;
                        break;
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
            if ended {
                return Ok(());
            }
        }
    }

    /// Ends the worker, `pid`, which has not been heard for so long, if another can take its place.
    fn end_hung(&mut self, pid: Pid, silent_for: Duration) -> io::Result<()> {
        let left = self.rate.deaths.saturating_sub(self.recent_deaths());
        if left > 0 && self.unheld.is_empty() {
            // First: what is said may have to wait for somebody who reads it.
            kill_process(pid, Signal::KILL)?;
            self.watch = Watch::default();
            tracing::error!(?silent_for, "the worker hangs: it is ended");
        } else {
            let (unheld, more_may_die) = (self.unheld.len(), left);
            tracing::error!(
                ?silent_for,
                unheld,
                more_may_die,
                "the worker hangs, and no other could take its place: it is left"
            );
        }
        Ok(())
    }

    /// How many have died within the time that counts.
    fn recent_deaths(&mut self) -> usize {
        let now = Instant::now();
        let within = self.rate.within;
        self.recent.retain(|at| now.duration_since(*at) < within);
        self.recent.len()
    }

    fn note_service(&mut self, which: Which) {
        self.has_served = true;
        if self.store.is_some()
            && let Err(error) = store::tell_service(self.deaths)
        {
            tracing::error!(%error, "the service manager is not told that this unit serves");
        }
        if which == Which::Next {
            self.upgrades += 1;
            self.refusal = None;
        }
    }

    /// Gives the worker all there is; whether it took it.
    fn hand_out(&self, socket: &OwnedFd) -> io::Result<bool> {
        let names = self.held.iter();
        let packets = names.map(|(name, fd)| (format!("FDNAME={name}"), Some(fd.as_fd())));
        for (words, fd) in packets.chain([("HELD=1".to_owned(), None)]) {
            match wire::send(socket.as_fd(), &words, fd) {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(io::Error::other(NOT_IN_TIME));
                }
                sent => sent?,
            }
        }
        Ok(true)
    }

    /// What it holds, once more.
    pub(crate) fn copies(&self) -> io::Result<Held> {
        let held = self.held.iter();
        held.map(|(name, fd)| Ok((name.clone(), fd.try_clone()?)))
            .collect()
    }

    /// Whoever says it without a descriptor had one, which the system could not give to this process.
    fn hold_or_say(&mut self, name: &str, fd: Option<OwnedFd>) {
        if fd.is_some_and(|fd| self.hold(name, fd)) {
            return;
        }
        tracing::error!(name, "not held: no name, no room, or no descriptor left");
        if self.unheld.len() < MAX_HELD {
            self.unheld.insert(name.into());
        }
    }

    /// Says into a barrier's pipe, which closes then, how many descriptors are not held, if any are not.
    fn end_barrier(&self, pipe: &OwnedFd) {
        if self.unheld.is_empty() {
            return;
        }
        let count = self.unheld.len() as u64;
        // Who leaves no room for it hears nothing.
        let _ = rustix::fs::fcntl_setfl(pipe, OFlags::NONBLOCK);
        let _ = rustix::io::write(pipe, &count.to_le_bytes());
    }

    /// What is not understood is nothing.
    pub(crate) fn hear(&mut self, words: &str, mut fds: Vec<OwnedFd>) {
        let has = |word: &str| words.lines().any(|line| line == word);
        let name = words.lines().find_map(|line| line.strip_prefix("FDNAME="));
        match (name, fds.pop()) {
            (Some(name), fd) if has("FDSTORE=1") => self.hold_or_say(name, fd),
            (Some(name), None) if has("FDSTOREREMOVE=1") => {
                self.unheld.remove(name);
                if self.held.remove(name).is_some()
                    && let Some(store) = &mut self.store
                {
                    say_unless_stored(name, store.let_go(name));
                }
            }
            (None, None) if has(READY) => self.is_ready = true,
            (None, Some(pipe)) if has("BARRIER=1") => self.end_barrier(&pipe),
            _ => self.watch.hear(words),
        }
    }
}

/// Why a worker of the next program is ended.
const NOT_IN_TIME: &str = "it did not serve within 2 s";

fn say_unless_stored(name: &str, stored: io::Result<()>) {
    if let Err(error) = stored {
        tracing::error!(
            name, %error,
            "the service manager does not hold it: if this process dies, nobody can go on from here"
        );
    }
}

fn time_left(until: Instant) -> Timespec {
    let left = until.saturating_duration_since(Instant::now());
    // It is some seconds.
    Timespec::try_from(left).unwrap_or_default()
}

fn reap(child: &mut Child) -> io::Result<ExitStatus> {
    loop {
        match child.wait() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            status => return status,
        }
    }
}
