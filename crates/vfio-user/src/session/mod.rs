//! What a connection has come to, and the answer to each message.
//!
//! A [`Session`] does no I/O. It takes what the [`Framer`] found and says what is to be sent back:
//! one reply to every command that wants one, errors included.

mod device;
mod dma;
mod feature;
mod irqs;
mod region;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;
use zerocopy::IntoBytes;

use crate::backend::Backend;
use crate::client::Client;
use crate::frame::{Found, Frame, Framer};
use crate::migration::Machine;
use crate::version::{self, Negotiated};
use crate::wire::{HEADER_LEN, Header, command};
use crate::{MAX_MESSAGE, MAX_MSG_FDS};

/// The server's side of one connection.
#[derive(Debug, Default)]
pub struct Session {
    negotiated: Option<Negotiated>,
    /// The backend was told of the client.
    connected: bool,
    regions: region::Regions,
    dma_maps: usize,
    /// Several writes in one message are not offered.
    single_writes: bool,
    machine: Machine,
    /// The reply, header and all. Kept, so that register accesses allocate nothing.
    reply: Vec<u8>,
}

/// What came of a message.
#[derive(Debug)]
pub struct Answer<'a> {
    /// What is to be sent.
    pub reply: Option<Reply<'a>>,
    /// What else there is to it.
    pub outcome: Outcome,
}

/// A reply.
#[derive(Debug)]
pub struct Reply<'a> {
    /// The whole message.
    pub bytes: &'a [u8],
    /// The descriptor that goes with it.
    pub fd: Option<Arc<OwnedFd>>,
}

/// See [`Answer`].
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The command was carried out.
    Done,
    /// The two sides agreed: once the reply is sent, [`Session::connect`] is due.
    Agreed(Negotiated),
    /// The command failed, and the reply says so.
    Failed {
        /// The command's number.
        command: u16,
        /// What was wrong.
        errno: Errno,
    },
    /// Nothing more can come of this connection; to be closed after the reply.
    Close(Violation),
}

/// Why a connection cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Something other than `VFIO_USER_VERSION` came first.
    #[error(
        "the client sent command {0} before it proposed a version: it does not speak vfio-user"
    )]
    NotNegotiated(u16),
    /// The proposal was not acceptable.
    #[error("the client proposed a version or capabilities that are not supported ({0})")]
    Version(Errno),
    /// A message claimed to be shorter than its header.
    #[error("the client sent a message of {0} bytes, less than a header: the stream is lost")]
    TooShort(u32),
    /// A message was longer than fits beside others into the socket, of which it is not taken before it has been
    /// carried out.
    #[error("the client sent a message of {0} bytes, more than any that this device asks for")]
    TooLong(u32),
    /// The stream ended inside a message.
    #[error("the client closed the connection in the middle of a message")]
    Truncated,
}

impl Session {
    /// A session at its beginning: the client is to propose a version.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same, which does not offer `VFIO_USER_REGION_WRITE_MULTI`: what of such a message has been carried
    /// out when the process dies would be carried out again with the rest.
    #[must_use]
    pub fn with_single_writes(self) -> Self {
        Self {
            single_writes: true,
            ..self
        }
    }

    /// A session taken over, with what had been agreed on.
    pub fn resume(negotiated: Negotiated) -> Self {
        Self {
            negotiated: Some(negotiated),
            ..Self::default()
        }
    }

    /// What was agreed on, if it was.
    pub fn negotiated(&self) -> Option<Negotiated> {
        self.negotiated
    }

    /// Gives `backend` its `client`.
    pub fn connect(&mut self, backend: &mut dyn Backend, client: Client) {
        self.connected = true;
        backend.connected(client);
    }

    /// Ends the session; `backend` lets go of what is the client's.
    pub fn end(&mut self, backend: &mut dyn Backend) {
        if let Some(migration) = backend.migration() {
            self.machine.end(migration);
        }
        if std::mem::take(&mut self.connected) {
            backend.disconnected();
        }
    }

    /// Carries out what came in, if anything whole did. Replies of the client are none of the
    /// session's business and are dropped.
    pub fn answer(&mut self, found: Found<'_>, backend: &mut dyn Backend) -> Option<Answer<'_>> {
        match found {
            Found::Incomplete => None,
            Found::Message(frame) if frame.header.is_reply() => None,
            Found::Message(frame) => Some(self.command(frame, backend)),
            Found::TooLong(header) => Some(self.refuse(&header, Errno::INVAL)),
            Found::Lost(header) => {
                let mut answer = self.refuse(&header, Errno::INVAL);
                answer.outcome = Outcome::Close(Violation::TooShort(header.size));
                Some(answer)
            }
        }
    }

    fn command(&mut self, frame: Frame<'_>, backend: &mut dyn Backend) -> Answer<'_> {
        let header = frame.header;
        let Some(negotiated) = self.negotiated else {
            return self.negotiate(&frame);
        };
        self.reply.clear();
        self.reply.resize(HEADER_LEN, 0);
        match self.dispatch(frame, &negotiated, backend) {
            Ok(fd) => self.accept(&header, fd),
            Err(errno) => self.refuse(&header, errno),
        }
    }

    fn negotiate(&mut self, frame: &Frame<'_>) -> Answer<'_> {
        let header = frame.header;
        if !header.is_command() || header.command != command::VERSION {
            let mut answer = self.refuse(&header, Errno::INVAL);
            answer.outcome = Outcome::Close(Violation::NotNegotiated(header.command));
            return answer;
        }
        self.reply.clear();
        self.reply.resize(HEADER_LEN, 0);
        match version::negotiate(frame.body, !self.single_writes, &mut self.reply) {
            Ok(negotiated) => {
                self.negotiated = Some(negotiated);
                let mut answer = self.accept(&header, None);
                answer.outcome = Outcome::Agreed(negotiated);
                answer
            }
            Err(errno) => {
                let mut answer = self.refuse(&header, errno);
                answer.outcome = Outcome::Close(Violation::Version(errno));
                answer
            }
        }
    }

    /// Carries out a command; the body of the reply is appended to `self.reply`.
    ///
    /// Descriptors that a command does not take are closed here.
    fn dispatch(
        &mut self,
        frame: Frame<'_>,
        negotiated: &Negotiated,
        backend: &mut dyn Backend,
    ) -> Result<Option<Arc<OwnedFd>>, Errno> {
        if !frame.header.is_command() {
            return Err(Errno::INVAL);
        }
        let body = frame.body;
        match frame.header.command {
            command::REGION_READ => self.region_read(body, negotiated, backend)?,
            command::REGION_WRITE => self.region_write(body, negotiated, backend)?,
            command::REGION_WRITE_MULTI => self.region_write_multi(body, negotiated, backend)?,
            command::DMA_MAP => self.dma_map(frame, backend)?,
            command::DMA_UNMAP => self.dma_unmap(body, backend)?,
            command::DEVICE_GET_INFO => self.device_info(body, backend)?,
            command::DEVICE_GET_REGION_INFO => {
                return self.region_info(body, negotiated, backend);
            }
            command::DEVICE_GET_IRQ_INFO => self.irq_info(body, backend)?,
            command::DEVICE_SET_IRQS => irqs::set(frame, backend)?,
            command::DEVICE_RESET => {
                backend.reset()?;
                self.machine.reset();
            }
            command::DEVICE_FEATURE => self.device_feature(body, negotiated, backend)?,
            command::MIG_DATA_READ => self.mig_data_read(body, negotiated, backend)?,
            command::MIG_DATA_WRITE => self.mig_data_write(body, negotiated, backend)?,
            // Known, and not offered.
            command::DEVICE_GET_REGION_IO_FDS | command::DIRTY_PAGES => {
                return Err(Errno::NOTSUP);
            }
            // A second VERSION, what only a server sends, and what nobody knows: as libvfio-user.
            _ => return Err(Errno::INVAL),
        }
        Ok(None)
    }

    fn accept(&mut self, header: &Header, fd: Option<Arc<OwnedFd>>) -> Answer<'_> {
        let reply = header.reply(self.reply.len() - HEADER_LEN);
        self.send(header, reply, fd, Outcome::Done)
    }

    /// Says `errno`, and nothing else ("the reply message must only include the reply header").
    fn refuse(&mut self, header: &Header, errno: Errno) -> Answer<'_> {
        self.reply.clear();
        self.reply.resize(HEADER_LEN, 0);
        let command = header.command;
        let outcome = Outcome::Failed { command, errno };
        self.send(header, header.error_reply(errno), None, outcome)
    }

    fn send(
        &mut self,
        command: &Header,
        reply: Header,
        fd: Option<Arc<OwnedFd>>,
        outcome: Outcome,
    ) -> Answer<'_> {
        self.reply[..HEADER_LEN].copy_from_slice(reply.as_bytes());
        // A reply is never answered, not even one that makes no sense.
        let wanted = !command.no_reply() && !command.is_reply();
        Answer {
            reply: wanted.then_some(Reply {
                bytes: &self.reply,
                fd,
            }),
            outcome,
        }
    }

    fn append(&mut self, part: &(impl IntoBytes + zerocopy::Immutable)) {
        self.reply.extend_from_slice(part.as_bytes());
    }
}

/// The descriptors of a command that takes some.
///
/// # Errors
/// `EMFILE` when not all that were sent could be received, `EINVAL` when there are more than were
/// agreed on.
fn all_fds(frame: Frame<'_>) -> Result<Vec<OwnedFd>, Errno> {
    if frame.fds_lost {
        return Err(Errno::MFILE);
    }
    if frame.fds.len() > MAX_MSG_FDS {
        return Err(Errno::INVAL);
    }
    Ok(frame.fds)
}

/// A size on the wire, which `argsz` must leave room for.
///
/// # Errors
/// `EINVAL` when it does not.
fn room(argsz: u32, needed: usize) -> Result<u32, Errno> {
    let needed = u32::try_from(needed).map_err(|_| Errno::INVAL)?;
    if argsz < needed {
        return Err(Errno::INVAL);
    }
    Ok(needed)
}

/// Runs a whole connection without a socket: `pieces` are what each read brings, bytes and
/// descriptors. Returns all that would have been sent back, and how it ended.
///
/// For fuzzers and tests: nothing here blocks, and the [`Client`] that `backend` is given reaches
/// nobody.
///
/// # Errors
/// The [`Violation`] for which the connection would have been closed.
pub fn replay<'p>(
    pieces: impl IntoIterator<Item = (&'p [u8], Vec<OwnedFd>)>,
    backend: &mut dyn Backend,
    sent: &mut Vec<u8>,
) -> Result<(), Violation> {
    let mut session = Session::new();
    let ended = replay_pieces(pieces, &mut session, backend, sent);
    session.end(backend);
    ended
}

fn replay_pieces<'p>(
    pieces: impl IntoIterator<Item = (&'p [u8], Vec<OwnedFd>)>,
    session: &mut Session,
    backend: &mut dyn Backend,
    sent: &mut Vec<u8>,
) -> Result<(), Violation> {
    let mut framer = Framer::new(MAX_MESSAGE);
    for (mut bytes, mut fds) in pieces {
        while !bytes.is_empty() {
            let space = framer.space();
            let len = space.len().min(bytes.len());
            space[..len].copy_from_slice(&bytes[..len]);
            framer.received(len, std::mem::take(&mut fds), false);
            bytes = &bytes[len..];
            loop {
                let found = framer.find();
                if matches!(found, Found::Incomplete) {
                    break;
                }
                let Some(answer) = session.answer(found, backend) else {
                    continue;
                };
                sent.extend_from_slice(answer.reply.map_or(&[], |r| r.bytes));
                match answer.outcome {
                    Outcome::Done | Outcome::Failed { .. } => {}
                    Outcome::Agreed(_) => session.connect(backend, Client::unreachable()),
                    Outcome::Close(violation) => return Err(violation),
                }
            }
        }
    }
    if framer.is_amid_message() {
        return Err(Violation::Truncated);
    }
    Ok(())
}
