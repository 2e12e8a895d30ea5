//! The worker's side.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::pipe::PipeFlags;
use rustix::process::{PidfdFlags, getpid, pidfd_open};

use crate::keep::{READY, REFUSAL, RESTARTS, UPGRADES};
use crate::watch::{ALIVE, LIMIT};
use crate::wire;

/// By which name a worker's own process is held.
const PROCESS: &str = "worker";
/// How long the process before may take to be gone: who waits for an answer may do so for 5 s.
const GONE: Timespec = Timespec {
    tv_sec: 3,
    tv_nsec: 0,
};

/// What the keeper held, by name.
pub type Held = BTreeMap<String, OwnedFd>;

/// Why the keeper cannot be talked to.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// No keeper started this process, or it is gone.
    #[error("there is no keeper at this process's standard input: {0}")]
    NoKeeper(io::Error),
    /// The process before is still there.
    #[error(
        "the process before this one has not ended within 3 s, and the two must not serve side by side: \
         what it has begun, as on a disk, may still take place"
    )]
    StillThere,
    /// The name is too long, or has characters that systemd does not take.
    #[error(
        "`{0}` is no name of a descriptor: 1 to 255 printable characters, none of them a colon"
    )]
    Name(String),
}

/// A worker's way to its keeper.
#[derive(Debug)]
pub struct Worker {
    socket: OwnedFd,
    is_last: AtomicBool,
}

impl Worker {
    /// The keeper that has started this process, and what it held. The process before has ended by then, and with it
    /// whatever the kernel did in its name.
    ///
    /// # Errors
    /// When there is none.
    pub fn start() -> Result<(Self, Held), WorkerError> {
        let socket = io::stdin().as_fd().try_clone_to_owned();
        let socket = socket.map_err(WorkerError::NoKeeper)?;
        // Nobody is to serve whom nobody watches. One that is dead already has closed the socket.
        let die = Some(rustix::process::Signal::KILL);
        let asked = rustix::process::set_parent_process_death_signal(die);
        asked.map_err(|errno| WorkerError::NoKeeper(errno.into()))?;
        let mut held = Held::new();
        loop {
            let packet = wire::receive(socket.as_fd(), RecvFlags::empty());
            let Some((words, mut fds)) = packet.map_err(WorkerError::NoKeeper)? else {
                return Err(WorkerError::NoKeeper(Errno::PIPE.into()));
            };
            match (words.strip_prefix("FDNAME="), fds.pop()) {
                (Some(name), Some(fd)) => drop(held.insert(name.into(), fd)),
                _ => break,
            }
        }
        let worker = Self::over(socket);
        if let Some(before) = held.remove(PROCESS) {
            wait_for_end(&before, GONE)?;
        }
        let own = pidfd_open(getpid(), PidfdFlags::empty());
        worker.hold(PROCESS, own.map_err(|e| WorkerError::NoKeeper(e.into()))?)?;
        Ok((worker, held))
    }

    /// One whose keeper is at the other end of `socket`.
    pub(crate) fn over(socket: OwnedFd) -> Self {
        Self {
            socket,
            is_last: AtomicBool::new(false),
        }
    }

    /// How many workers have died before this one.
    pub fn deaths() -> u64 {
        number(RESTARTS)
    }

    /// How often workers of the next program have come to serve, this one included.
    pub fn upgrades() -> u64 {
        number(UPGRADES)
    }

    /// Why a worker of the next program has not, if that was the last that was to.
    pub fn refusal() -> Option<String> {
        std::env::var(REFUSAL).ok()
    }

    /// It serves: from here on its end is its own affair ([`Keeper::run`](crate::Keeper::run)).
    ///
    /// # Errors
    /// When the keeper is gone.
    pub fn ready(&self) -> Result<(), WorkerError> {
        self.say(READY)
    }

    /// Has the keeper end this process once it has not been heard to be [`alive`](Self::alive) for `limit` and a moment
    /// more, and have another go on; from here on, or no more.
    ///
    /// # Errors
    /// When the keeper is gone, or cannot be told.
    pub fn watch(&self, limit: Option<Duration>) -> Result<(), WorkerError> {
        let gone_on_with = !self.is_last.load(Ordering::Relaxed);
        let limit = limit.filter(|_| gone_on_with);
        let limit = limit.map_or(0, |limit| limit.as_micros());
        self.say(&format!("{LIMIT}{limit}"))
    }

    /// Nobody could go on from what this process has come to: it is not [watched](Self::watch) from here on.
    pub fn watch_no_more(&self) {
        self.is_last.store(true, Ordering::Relaxed);
        // A keeper that is gone watches nobody.
        let _ = self.watch(None);
    }

    /// It is. What waits to be read by a keeper that is busy says so, too.
    ///
    /// # Errors
    /// When the keeper is gone.
    pub fn alive(&self) -> Result<(), WorkerError> {
        match wire::send_if_room(self.socket.as_fd(), ALIVE) {
            Err(error) if is_gone(&error) => Err(WorkerError::NoKeeper(error)),
            // It is said again soon.
            _ => Ok(()),
        }
    }

    fn say(&self, words: &str) -> Result<(), WorkerError> {
        wire::send(self.socket.as_fd(), words, None).map_err(WorkerError::NoKeeper)
    }

    /// Has the keeper hold `fd` as `name`, instead of what it may hold by that name. Sure once
    /// [`barrier`](Self::barrier) has returned.
    ///
    /// # Errors
    /// When `name` is none, or the keeper is gone.
    pub fn hold(&self, name: &str, fd: impl AsFd) -> Result<(), WorkerError> {
        check(name)?;
        let words = format!("FDSTORE=1\nFDNAME={name}");
        let sent = wire::send(self.socket.as_fd(), &words, Some(fd.as_fd()));
        sent.map_err(WorkerError::NoKeeper)
    }

    /// Has the keeper let go of `name`.
    ///
    /// # Errors
    /// As [`hold`](Self::hold).
    pub fn let_go(&self, name: &str) -> Result<(), WorkerError> {
        check(name)?;
        self.say(&format!("FDSTOREREMOVE=1\nFDNAME={name}"))
    }

    /// Waits until the keeper has done all that it was told.
    ///
    /// # Errors
    /// When the keeper is gone.
    pub fn barrier(&self) -> Result<(), WorkerError> {
        self.unheld().map(drop)
    }

    /// How many descriptors the keeper was to hold and does not, for want of room, once it has done all that it was
    /// told: it closes a pipe then (`sd_notify_barrier`), and says so by that before.
    ///
    /// # Errors
    /// When the keeper is gone.
    pub fn unheld(&self) -> Result<u64, WorkerError> {
        let wait = || -> io::Result<u64> {
            let (ours, theirs) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
            wire::send(self.socket.as_fd(), "BARRIER=1", Some(theirs.as_fd()))?;
            drop(theirs);
            loop {
                let mut count = [0; 8];
                match rustix::io::read(&ours, &mut count) {
                    Err(Errno::INTR) => {}
                    Ok(8) => return Ok(u64::from_le_bytes(count)),
                    read => return Ok(read.map(|_| 0)?),
                }
            }
        };
        wait().map_err(WorkerError::NoKeeper)
    }
}

/// A keeper starts no worker before the one before has ended. But where that keeper itself was killed, another may be
/// there sooner than its worker is gone.
///
/// A process is told to have ended when all its threads have, and a thread that ends waits for what it has begun by
/// `io_uring` (`io_uring_files_cancel`, called by `do_exit` before `exit_notify`), as for a call that it is in.
fn wait_for_end(before: &OwnedFd, most: Timespec) -> Result<(), WorkerError> {
    let mut fds = [PollFd::new(before, PollFlags::IN)];
    loop {
        match poll(&mut fds, Some(&most)) {
            Err(Errno::INTR) => {}
            Ok(0) => return Err(WorkerError::StillThere),
            Ok(_) => return Ok(()),
            Err(errno) => return Err(WorkerError::NoKeeper(errno.into())),
        }
    }
}

fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected};
    matches!(error.kind(), BrokenPipe | ConnectionReset | NotConnected)
}

fn number(variable: &str) -> u64 {
    let number = std::env::var(variable).ok();
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

fn check(name: &str) -> Result<(), WorkerError> {
    if wire::is_name(name) {
        return Ok(());
    }
    Err(WorkerError::Name(name.into()))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use rustix::process::Pid;

    use super::*;

    #[test]
    fn a_process_that_runs_is_waited_for_and_no_longer_than_it_may_take() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let before = pidfd_open(pid.unwrap(), PidfdFlags::empty()).unwrap();
        let short = Timespec {
            tv_sec: 0,
            tv_nsec: 1_000_000,
        };
        let waited = wait_for_end(&before, short);
        assert!(matches!(waited, Err(WorkerError::StillThere)));
        let waiting = std::thread::spawn(move || {
            wait_for_end(&before, GONE).unwrap();
            // Nobody has asked how it ended yet.
            before
        });
        child.kill().unwrap();
        let before = waiting.join().unwrap();
        child.wait().unwrap();
        wait_for_end(&before, short).unwrap();
    }
}
