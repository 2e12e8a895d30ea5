//! A keeper in this process, for tests of what a worker leaves.

use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, socketpair};

use crate::keep::Keeper;
use crate::wire;
use crate::worker::{Held, Worker};

/// It holds what the workers made by it say, and starts none. It goes when the last of them does.
#[derive(Debug)]
pub struct KeeperHere(Arc<Mutex<Keeper>>);

impl KeeperHere {
    /// One that holds nothing yet.
    pub fn new() -> Self {
        Self(Arc::default())
    }

    /// A worker, as one is that it would have started.
    ///
    /// # Errors
    /// When the system has no descriptor or thread left.
    pub fn worker(&self) -> io::Result<Worker> {
        let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
        let (ours, theirs) = socketpair(family, kind, SocketFlags::CLOEXEC, None)?;
        let keeper = Arc::clone(&self.0);
        let listen = move || {
            while let Ok(Some((words, fds))) = wire::receive(ours.as_fd(), RecvFlags::empty()) {
                let mut keeper = keeper.lock().unwrap_or_else(PoisonError::into_inner);
                keeper.hear(&words, fds);
            }
        };
        thread::Builder::new().spawn(listen)?;
        Ok(Worker::over(theirs))
    }

    /// What is held once `worker` has been heard.
    ///
    /// # Errors
    /// When the system has no descriptor left.
    pub fn held(&self, worker: &Worker) -> io::Result<Held> {
        worker.barrier().map_err(io::Error::other)?;
        let keeper = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        keeper.copies()
    }
}

impl Default for KeeperHere {
    fn default() -> Self {
        Self::new()
    }
}
