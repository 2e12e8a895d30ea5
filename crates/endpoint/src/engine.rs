//! The thread that does a model's work beside register accesses.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use device::{Model, Progress};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::Endpoint;

/// An endpoint's engine; stops and joins when dropped.
#[derive(Debug)]
pub struct Engine {
    endpoint: Endpoint,
    thread: Option<JoinHandle<()>>,
}

impl Engine {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn start(endpoint: &Endpoint) -> std::io::Result<Self> {
        let running = endpoint.clone();
        let thread = std::thread::Builder::new()
            .name(format!("engine-{}", endpoint.name()))
            .spawn(move || run(&running))?;
        Ok(Self {
            endpoint: endpoint.clone(),
            thread: Some(thread),
        })
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.endpoint.0.stopping.store(true, Ordering::Release);
        self.endpoint.0.kick.kick();
        if let Some(thread) = self.thread.take() {
            // A panic has been reported by the thread itself.
            let _ = thread.join();
        }
    }
}

/// Wakes an engine.
#[derive(Debug)]
pub(crate) struct Kick(OwnedFd);

impl Kick {
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self(eventfd(
            0,
            EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
        )?))
    }

    pub(crate) fn kick(&self) {
        // Full means that a wake-up is on its way already.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    fn clear(&self) {
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

fn run(endpoint: &Endpoint) {
    let mut wait = Wait {
        fd: None,
        events: PollFlags::empty(),
    };
    while !endpoint.is_stopping() {
        match step(endpoint, &mut wait) {
            // Another thread may wait for the lock just released.
            Progress::More => std::thread::yield_now(),
            Progress::Idle(timeout) => wait.wait(&endpoint.0.kick, timeout),
        }
    }
}

fn step(endpoint: &Endpoint, wait: &mut Wait) -> Progress {
    endpoint.in_turn(|| {
        endpoint.access(|model, access| {
            let progress = model.poll(access);
            wait.look_at(model, access.memory.is_some());
            progress
        })
    })
}

/// What the engine waits for, taken from the model while its lock is held.
#[derive(Debug)]
struct Wait {
    /// A duplicate, so that the wait needs no lock.
    fd: Option<(RawFd, OwnedFd)>,
    events: PollFlags,
}

impl Wait {
    fn look_at(&mut self, model: &dyn Model, may_receive: bool) {
        self.events = PollFlags::empty();
        self.events
            .set(PollFlags::IN, may_receive && model.poll_read());
        self.events.set(PollFlags::OUT, model.poll_write());
        let Some(fd) = model.poll_fd() else {
            self.fd = None;
            return;
        };
        // Models keep their descriptor for life or drop it; the number tells which.
        if self
            .fd
            .as_ref()
            .is_none_or(|(raw, _)| *raw != fd.as_raw_fd())
        {
            self.fd = fd
                .try_clone_to_owned()
                .ok()
                .map(|own| (fd.as_raw_fd(), own));
        }
    }

    fn wait(&mut self, kick: &Kick, timeout: Option<Duration>) {
        let timeout = timeout.and_then(|t| Timespec::try_from(t).ok());
        let kick_fd = PollFd::new(&kick.0, PollFlags::IN);
        let fd = self
            .fd
            .as_ref()
            .map_or(kick.0.as_fd(), |(_, fd)| fd.as_fd());
        let mut fds = [kick_fd, PollFd::from_borrowed_fd(fd, self.events)];
        let count = if self.fd.is_some() && !self.events.is_empty() {
            fds.len()
        } else {
            1
        };
        // An interrupted wait is a wake-up like any other.
        let _ = poll(&mut fds[..count], timeout.as_ref());
        // Most wake-ups are by the network, and have nothing to be cleared.
        if !fds[0].revents().is_empty() {
            kick.clear();
        }
    }
}
