//! One client, from its first byte to its last.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use keeper::Conversation;
use local_socket::reserve;
use rustix::cmsg_space;
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, RecvMsg, ReturnFlags, recvmsg,
};

use crate::backend::{Backend, Done};
use crate::client::Client;
use crate::frame::{Found, Frame, Framer};
use crate::outbound::SendError;
use crate::server::Options;
use crate::session::{Outcome, Session, Violation};
use crate::stop::{Stopper, Woken};
use crate::{MAX_MESSAGE, Negotiated};

/// All that the kernel lets through in one message (`SCM_MAX_FD`): with less room, descriptors
/// would be lost instead of refused.
const SCM_MAX_FD: usize = 253;

/// Longest message on a connection that outlives its process: the longest that QEMU sends are the replies to
/// [`Client::dma_read`].
const MAX_KEPT_MESSAGE: usize = 64 << 10;

/// Complaints about one client that are logged.
const MAX_COMPLAINTS: u32 = 16;

/// How serving a client came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The client closed the connection.
    Disconnected,
    /// The [`Stopper`] was used.
    Stopped,
}

/// Why serving a client failed. The connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ServeError {
    /// The client broke the protocol.
    #[error(transparent)]
    Violation(#[from] Violation),
    /// The client let its replies lie for [`Options::send_timeout`].
    #[error("the client does not read its replies: it hangs, or is stopped by a debugger")]
    NotReading,
    /// No connection could be accepted.
    #[error("accepting a connection: {0}")]
    Accept(Errno),
    /// The socket failed.
    #[error("the connection's socket: {0}")]
    Socket(Errno),
    /// What came of a message could not be made to outlive the process.
    #[error("what the device has come to cannot be kept for another process to go on with: {0}")]
    Keep(Errno),
}

/// What ends a connection, seen from inside.
enum End {
    Ended(Ended),
    Failed(ServeError),
}

impl<E: Into<ServeError>> From<E> for End {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

impl From<SendError> for End {
    fn from(error: SendError) -> Self {
        match error {
            SendError::Closed => Self::Ended(Ended::Disconnected),
            SendError::Stopped => Self::Ended(Ended::Stopped),
            SendError::TimedOut => Self::Failed(ServeError::NotReading),
            SendError::System(errno) => Self::Failed(ServeError::Socket(errno)),
        }
    }
}

pub(crate) struct Connection<'s> {
    stream: Arc<UnixStream>,
    /// The way in which bytes come and go, if the connection is to outlive the process.
    kept: Option<Conversation>,
    stop: &'s Stopper,
    framer: Framer,
    session: Session,
    client: Client,
    complaints: u32,
}

impl<'s> Connection<'s> {
    pub(crate) fn new(
        stream: UnixStream,
        resumed: Option<Negotiated>,
        stop: &'s Stopper,
        options: &Options,
    ) -> Self {
        let stream = Arc::new(stream);
        Self {
            client: Client::new(Arc::clone(&stream), stop, options),
            stream,
            kept: None,
            stop,
            framer: Framer::new(MAX_MESSAGE),
            session: resumed.map_or_else(Session::new, Session::resume),
            complaints: 0,
        }
    }

    pub(crate) fn kept(
        conversation: Conversation,
        resumed: Option<Negotiated>,
        stop: &'s Stopper,
        options: &Options,
    ) -> Self {
        let stream = Arc::clone(conversation.stream());
        let session = resumed.map_or_else(Session::new, Session::resume);
        Self {
            client: Client::new(Arc::clone(&stream), stop, options),
            stream,
            kept: Some(conversation),
            stop,
            framer: Framer::new(MAX_KEPT_MESSAGE),
            session: session.with_single_writes(),
            complaints: 0,
        }
    }

    pub(crate) fn serve(mut self, backend: &mut dyn Backend) -> Result<Ended, ServeError> {
        if let Some(negotiated) = self.session.negotiated() {
            self.client.agreed(&negotiated);
            self.session.connect(backend, self.client.clone());
        }
        let end = loop {
            let answered = self.answer_all(backend);
            backend.settle();
            if let Err(end) = answered.and_then(|()| self.receive()) {
                break end;
            }
        };
        // First, so that no thread of the backend waits for the client when it is to let go.
        self.client.close();
        self.session.end(backend);
        if !matches!(end, End::Ended(Ended::Stopped)) {
            // Somebody else may keep the socket open; the client is to see that this is the end.
            let _ = self.stream.shutdown(Shutdown::Both);
        }
        match end {
            End::Ended(ended) => Ok(ended),
            End::Failed(error) => Err(error),
        }
    }

    /// Answers every message that is whole.
    fn answer_all(&mut self, backend: &mut dyn Backend) -> Result<(), End> {
        loop {
            let found = self.framer.find();
            let len = match &found {
                Found::Incomplete => return Ok(()),
                Found::TooLong(header) if self.kept.is_some() => {
                    return Err(Violation::TooLong(header.size).into());
                }
                Found::Message(Frame { header, .. })
                | Found::TooLong(header)
                | Found::Lost(header) => header.size.into(),
            };
            backend.begin();
            let mut done = Done {
                len,
                reply: None,
                agreed: None,
            };
            if let Found::Message(frame) = &found
                && frame.header.is_reply()
            {
                if !self.client.complete(frame.header, frame.body) {
                    tracing::debug!(id = frame.header.id, "a reply that nobody waits for");
                }
                backend.commit(done).map_err(ServeError::Keep)?;
                continue;
            }
            let Some(answer) = self.session.answer(found, backend) else {
                continue;
            };
            done.reply = answer.reply.as_ref().map(|reply| reply.bytes);
            if let Outcome::Agreed(negotiated) = answer.outcome {
                done.agreed = Some(negotiated);
            }
            // Before the client can act on it, and so that a successor knows of it.
            if let Outcome::Failed { errno, .. } = answer.outcome {
                backend.refused(errno);
            }
            backend.commit(done).map_err(ServeError::Keep)?;
            if let Some(reply) = answer.reply {
                let outbound = self.client.outbound();
                if let Some(kept) = &self.kept {
                    // A client that is gone is found to be so by the next look at what it says.
                    let answered = outbound.exclusively(|| kept.answer());
                    answered.map_err(|e| end_of(&e))?;
                } else {
                    let fd = reply.fd.as_ref().map(AsFd::as_fd);
                    outbound.send([reply.bytes, &[]], fd)?;
                }
            }
            match answer.outcome {
                Outcome::Done => {}
                Outcome::Failed { command, errno } => {
                    complain(&mut self.complaints, command, errno);
                }
                Outcome::Agreed(negotiated) => {
                    self.client.agreed(&negotiated);
                    self.session.connect(backend, self.client.clone());
                }
                Outcome::Close(violation) => return Err(violation.into()),
            }
        }
    }

    fn received(&mut self, len: usize, fds: Vec<OwnedFd>, lost: bool) {
        if !fds.is_empty() {
            reserve::have_come();
        }
        self.framer.received(len, fds, lost);
    }

    /// Waits for more and takes it.
    fn receive(&mut self) -> Result<(), End> {
        if let Some(kept) = &mut self.kept {
            reserve::make_room_seldom();
            let received = kept.receive(self.framer.space());
            let received = received.map_err(|e| end_of(&e))?;
            if received.len == 0 {
                return Err(match self.framer.is_amid_message() {
                    _ if self.stop.is_stopped() => End::Ended(Ended::Stopped),
                    true => Violation::Truncated.into(),
                    false => End::Ended(Ended::Disconnected),
                });
            }
            self.received(received.len, received.fds, received.lost);
            return Ok(());
        }
        match self.stop.wait(self.stream.as_fd(), PollFlags::IN, None) {
            Ok(Woken::Stopped) => return Err(End::Ended(Ended::Stopped)),
            Ok(Woken::Ready | Woken::TimedOut) => {}
            Err(errno) => return Err(ServeError::Socket(errno).into()),
        }
        reserve::make_room_seldom();
        match receive(&self.stream, self.framer.space()) {
            Ok((0, ..)) if self.framer.is_amid_message() => Err(Violation::Truncated.into()),
            Ok((0, ..)) | Err(Errno::CONNRESET) => Err(End::Ended(Ended::Disconnected)),
            Ok((len, fds, lost)) => {
                self.received(len, fds, lost);
                Ok(())
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(errno) => Err(ServeError::Socket(errno).into()),
        }
    }
}

impl Drop for Connection<'_> {
    fn drop(&mut self) {
        // Also where the backend panics: copies of the client would keep the socket open.
        self.client.close();
    }
}

/// What a socket's error is to its connection.
fn end_of(error: &io::Error) -> End {
    match Errno::from_io_error(error) {
        Some(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => End::Ended(Ended::Disconnected),
        Some(Errno::AGAIN) => ServeError::NotReading.into(),
        errno => ServeError::Socket(errno.unwrap_or(Errno::IO)).into(),
    }
}

/// One `recvmsg`: bytes, descriptors, and whether there were more of those than could be taken.
fn receive(stream: &UnixStream, space: &mut [u8]) -> Result<(usize, Vec<OwnedFd>, bool), Errno> {
    let mut control = [MaybeUninit::uninit(); cmsg_space!(ScmRights(SCM_MAX_FD))];
    let mut control = RecvAncillaryBuffer::new(&mut control);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let mut space = [IoSliceMut::new(space)];
    let RecvMsg { bytes, flags, .. } = recvmsg(stream, &mut space, &mut control, flags)?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    Ok((bytes, fds, flags.contains(ReturnFlags::CTRUNC)))
}

/// Logs a refused command; a client that goes on and on is not given the log to fill.
fn complain(complaints: &mut u32, command: u16, errno: Errno) {
    if *complaints < MAX_COMPLAINTS {
        *complaints += 1;
        tracing::warn!(command, %errno, "refused a vfio-user command");
        if *complaints == MAX_COMPLAINTS {
            tracing::warn!("further refusals on this connection are not logged");
        }
    }
}
