//! Waiting for descriptors with a deadline.

use std::io;
use std::time::Instant;

use rustix::event::{PollFd, Timespec};
use rustix::io::Errno;

/// How long a wait may last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Remaining {
    /// Only look.
    Nothing,
    Until(Instant),
    Forever,
}

impl Remaining {
    pub(crate) fn until(deadline: Option<Instant>) -> Self {
        deadline.map_or(Self::Forever, Self::Until)
    }
}

/// Waits until one of `fds` is ready, `remaining` is over or a signal came.
pub(crate) fn wait(fds: &mut [PollFd<'_>], remaining: Remaining) -> io::Result<()> {
    let timeout = match remaining {
        Remaining::Nothing => Some(Timespec::default()),
        Remaining::Until(at) => {
            let left = at.saturating_duration_since(Instant::now());
            // A time too long for the kernel's type is as good as for ever.
            Timespec::try_from(left).ok()
        }
        Remaining::Forever => None,
    };
    match rustix::event::poll(fds, timeout.as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
