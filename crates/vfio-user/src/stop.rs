//! Ending a server from elsewhere.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

/// Makes a [`Server`](crate::Server) return at once, from any thread, for good.
#[derive(Debug, Clone)]
pub struct Stopper(Arc<OwnedFd>);

impl Stopper {
    pub(crate) fn new() -> Result<Self, Errno> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self(Arc::new(fd)))
    }

    /// Whatever the server waits for, it stops to wait for. A call into the
    /// [`Backend`](crate::Backend) that is under way is finished, and answered, first.
    pub fn stop(&self) {
        // The counter can only be full if it was written 2^64 times; then it is readable as well.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }
}

/// What ended a [`Stopper::wait`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Woken {
    Ready,
    Stopped,
    TimedOut,
}

impl Stopper {
    /// Whether it was used.
    pub fn is_stopped(&self) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(self.0.as_fd(), PollFlags::IN)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
    }

    /// Waits until `fd` is ready for `what`, has an error or has been hung up.
    pub(crate) fn wait(
        &self,
        fd: BorrowedFd<'_>,
        what: PollFlags,
        until: Option<Instant>,
    ) -> Result<Woken, Errno> {
        loop {
            let left = until.map(|t| t.saturating_duration_since(Instant::now()));
            let timeout = left.map(timespec);
            let mut fds = [
                PollFd::from_borrowed_fd(self.0.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(fd, what),
            ];
            match poll(&mut fds, timeout.as_ref()) {
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
                Ok(0) => return Ok(Woken::TimedOut),
                Ok(_) if !fds[0].revents().is_empty() => return Ok(Woken::Stopped),
                Ok(_) => return Ok(Woken::Ready),
            }
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec::try_from(duration).unwrap_or(Timespec {
        tv_sec: i64::MAX,
        tv_nsec: 0,
    })
}
