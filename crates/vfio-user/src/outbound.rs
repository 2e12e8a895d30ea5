//! The sending half of a connection, shared by the thread that serves it and the device's own.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::cmsg_space;
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::stop::{Stopper, Woken};

/// Sends whole messages, one at a time.
#[derive(Debug)]
pub(crate) struct Outbound(Mutex<Option<Open>>);

#[derive(Debug)]
struct Open {
    stream: Arc<UnixStream>,
    stop: Stopper,
    timeout: Duration,
}

/// Why a message was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SendError {
    /// The connection is over.
    Closed,
    /// The server was stopped.
    Stopped,
    /// The client does not read.
    TimedOut,
    /// The socket refused it.
    System(Errno),
}

impl Outbound {
    pub(crate) fn new(stream: Arc<UnixStream>, stop: Stopper, timeout: Duration) -> Self {
        Self(Mutex::new(Some(Open {
            stream,
            stop,
            timeout,
        })))
    }

    /// One that is closed already.
    pub(crate) fn closed() -> Self {
        Self(Mutex::new(None))
    }

    /// Sends `parts` as one message, with `fd` if there is one: a single `sendmsg`, unless the
    /// socket is full. An error after a part of the message was sent ends the connection.
    pub(crate) fn send(
        &self,
        parts: [&[u8]; 2],
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<(), SendError> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Open {
            stream,
            stop,
            timeout,
        }) = &*open
        else {
            return Err(SendError::Closed);
        };
        let until = Instant::now().checked_add(*timeout);
        let mut sent = 0;
        match send_until(stream, stop, until, parts, fd, &mut sent) {
            Ok(()) => Ok(()),
            Err(error) => {
                if sent > 0 {
                    // The client would take what comes next for the rest of this message.
                    let _ = stream.shutdown(Shutdown::Both);
                    *open = None;
                }
                Err(error)
            }
        }
    }

    /// Runs `send`, which sends a whole message by other means, while nobody else sends.
    pub(crate) fn exclusively<E>(&self, send: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        let _open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        send()
    }

    /// Nothing is sent any more; the socket is let go of.
    pub(crate) fn close(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

fn send_until(
    stream: &UnixStream,
    stop: &Stopper,
    until: Option<Instant>,
    [first, second]: [&[u8]; 2],
    fd: Option<BorrowedFd<'_>>,
    sent: &mut usize,
) -> Result<(), SendError> {
    while *sent < first.len() + second.len() {
        let rest = [
            IoSlice::new(&first[(*sent).min(first.len())..]),
            IoSlice::new(&second[sent.saturating_sub(first.len())..]),
        ];
        // Descriptors go with the first byte.
        match send_once(stream, &rest, fd.filter(|_| *sent == 0)) {
            Ok(len) => *sent += len,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => match stop.wait(stream.as_fd(), PollFlags::OUT, until) {
                Ok(Woken::Ready) => {}
                Ok(Woken::Stopped) => return Err(SendError::Stopped),
                Ok(Woken::TimedOut) => return Err(SendError::TimedOut),
                Err(errno) => return Err(SendError::System(errno)),
            },
            Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => return Err(SendError::Closed),
            Err(errno) => return Err(SendError::System(errno)),
        }
    }
    Ok(())
}

fn send_once(
    stream: &UnixStream,
    bytes: &[IoSlice<'_>],
    fd: Option<BorrowedFd<'_>>,
) -> Result<usize, Errno> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = fd.map(|fd| [fd]);
    if let Some(fds) = &fds
        && !control.push(SendAncillaryMessage::ScmRights(fds))
    {
        return Err(Errno::NOBUFS);
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    sendmsg(stream, bytes, &mut control, flags)
}
