//! Requests and replies of which none is lost or done twice.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, RecvMsg, ReturnFlags, recvmsg,
};
use rustix::pipe::SpliceFlags;

use crate::MAX_REPLY;
use crate::journal::{Journal, JournalError, Outcome};
use crate::layout::word;

/// What is looked at of what comes: no more than is taken by one `read`.
const PEEK: usize = PAGE;
/// No read goes into two pages. A process that is being killed does not get a page that it lacks, and the
/// kernel, which leaves such a read's bytes in the socket, may have written those before it.
const PAGE: usize = 4096;
/// What follows a reply in the pipe.
const MARK: u8 = 0xa5;

/// What answers requests.
pub trait Service {
    /// How long the request is that begins with `begun`, which is never empty.
    fn length(&self, begun: &[u8]) -> Length;

    /// Keeps descriptors that come with the request that begins at byte `at` of the stream, where a
    /// successor finds them by that number. Called before they are taken, and again, with copies of
    /// the same, if they come to a successor once more.
    ///
    /// # Errors
    /// When they cannot be kept: the request is not taken then.
    fn keep(&mut self, at: u64, fds: Vec<OwnedFd>) -> io::Result<()>;

    /// Carries out `request`, which begins at byte `at` of the stream, and returns the reply if it wants one. Called again with the same
    /// request in another process, from the state before, if this one dies before the outcome is
    /// in force: what it does outside of the state must bear that.
    fn handle(&mut self, at: u64, request: &[u8]) -> Option<Vec<u8>>;

    /// The state, complete.
    fn save(&self) -> Vec<u8>;

    /// Is called at each step, for tests that die there.
    fn at(&mut self, _point: Point) {}
}

/// What [`Service::length`] says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    /// It is to be asked again when there are so many bytes, which is more than there are.
    AtLeast(usize),
    /// So many.
    Exactly(usize),
    /// It is none: the stream is lost.
    Nonsense,
}

/// The steps of an exchange, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// It is known what comes.
    Peeked,
    /// The intent to take it is written down.
    Intended,
    /// It is in the inbox.
    Taken,
    /// It is counted as taken.
    Counted,
    /// The request is carried out.
    Handled,
    /// Its outcome is in the other slot.
    Written,
    /// That slot is in force.
    Committed,
    /// The reply is in the pipe.
    Piped,
    /// The reply is sent.
    Sent,
    /// It is written down that it is.
    Answered,
}

impl Point {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Peeked,
        Self::Intended,
        Self::Taken,
        Self::Counted,
        Self::Handled,
        Self::Written,
        Self::Committed,
        Self::Piped,
        Self::Sent,
        Self::Answered,
    ];
}

/// Why an exchange cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The socket or the pipe failed.
    #[error("the connection: {0}")]
    System(#[from] io::Error),
    /// The journal failed.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// What came is no request, or longer than there is room for.
    #[error("the client sent what is no request, or a longer one than any: the stream is lost")]
    Nonsense,
    /// More descriptors came than the system hands over.
    #[error(
        "descriptors that the client sent could not be received: this process has too many open"
    )]
    Descriptors,
    /// Descriptors that came could not be kept.
    #[error("descriptors that the client sent are not kept for a successor: {0}")]
    NotKept(io::Error),
    /// The client left in the middle of a request.
    #[error("the client closed the connection in the middle of a request")]
    Truncated,
}

impl From<Errno> for ExchangeError {
    fn from(errno: Errno) -> Self {
        Self::System(errno.into())
    }
}

/// One connection, whose socket, pipe and journal somebody else holds too.
#[derive(Debug)]
pub struct Exchange {
    stream: UnixStream,
    pipe: (OwnedFd, OwnedFd),
    journal: Journal,
    last: Outcome,
}

impl Exchange {
    /// At the beginning, or wherever another process has left it: the reply that is under way is
    /// sent. `stream` and the `pipe`'s ends (to read from, to write to) are blocking.
    ///
    /// # Errors
    /// When the journal cannot be gone on with, or the client is gone.
    pub fn resume(
        stream: UnixStream,
        pipe: (OwnedFd, OwnedFd),
        journal: Journal,
    ) -> Result<Self, ExchangeError> {
        let last = journal.in_force()?;
        let exchange = Self {
            stream,
            pipe,
            journal,
            last,
        };
        exchange.find_taken()?;
        let in_pipe = rustix::io::ioctl_fionread(&exchange.pipe.0)?;
        let in_pipe = usize::try_from(in_pipe).unwrap_or(usize::MAX);
        if in_pipe > MAX_REPLY + 1 {
            return Err(JournalError::Unusable("its pipe holds more than a reply").into());
        }
        exchange.answer(in_pipe, &mut |_| {})?;
        Ok(exchange)
    }

    /// The state that is in force.
    pub fn state(&self) -> &[u8] {
        &self.last.state
    }

    /// Answers requests until the client leaves.
    ///
    /// # Errors
    /// [`ExchangeError`]; the connection is to be closed.
    pub fn serve(&mut self, service: &mut dyn Service) -> Result<(), ExchangeError> {
        while self.serve_one(service)? {}
        Ok(())
    }

    /// Takes one request and answers it; `false` if the client has left instead.
    fn serve_one(&mut self, service: &mut dyn Service) -> Result<bool, ExchangeError> {
        let Some(request) = self.take(service)? else {
            return Ok(false);
        };
        let reply = service.handle(self.last.taken, &request);
        service.at(Point::Handled);
        let taken = self.journal.word(word::TAKEN);
        let state = service.save();
        let next = self
            .journal
            .next(self.last.number, taken, &state, reply.as_deref())?;
        self.journal.write(&next);
        service.at(Point::Written);
        self.journal.put_in_force(next.number);
        self.last = next;
        service.at(Point::Committed);
        self.answer(0, &mut |point| service.at(point))?;
        Ok(true)
    }

    /// The next request, whole.
    fn take(&mut self, service: &mut dyn Service) -> Result<Option<Vec<u8>>, ExchangeError> {
        let mut begun = self.journal.inbox(0, self.begun()?);
        loop {
            if let Length::Exactly(length) = self.length(service, &begun)?
                && length == begun.len()
            {
                return Ok(Some(begun));
            }
            let (coming, fds) = self.peek(PEEK)?;
            if coming.is_empty() {
                return if begun.is_empty() {
                    Ok(None)
                } else {
                    Err(ExchangeError::Truncated)
                };
            }
            service.at(Point::Peeked);
            let known = [&*begun, &*coming].concat();
            let (Length::Exactly(length) | Length::AtLeast(length)) =
                self.length(service, &known)?
            else {
                return Err(ExchangeError::Nonsense);
            };
            let left = length.saturating_sub(begun.len());
            if !fds.is_empty() {
                self.keep(service, left)?;
            }
            let len = coming.len().min(left).min(PAGE - begun.len() % PAGE);
            self.read(service, begun.len(), coming[0], len)?;
            begun.extend(self.journal.inbox(begun.len(), len));
        }
    }

    /// Has the descriptors kept that come with the `left` bytes of the request that are not taken. A
    /// peek shows descriptors of whatever comes next, also beyond the bytes that it has room for, but ends
    /// with the bytes that they came with: so they are of a later request if one byte more is shown.
    fn keep(&self, service: &mut dyn Service, left: usize) -> Result<(), ExchangeError> {
        let (coming, fds) = self.peek(left.saturating_add(1))?;
        if fds.is_empty() || coming.len() > left {
            return Ok(());
        }
        let kept = service.keep(self.last.taken, fds);
        kept.map_err(ExchangeError::NotKept)
    }

    fn length(&self, service: &dyn Service, begun: &[u8]) -> Result<Length, ExchangeError> {
        if begun.is_empty() {
            return Ok(Length::AtLeast(1));
        }
        let length = service.length(begun);
        let room = self.journal.limits().request;
        match length {
            Length::Exactly(0) | Length::Nonsense => Err(ExchangeError::Nonsense),
            Length::Exactly(len) | Length::AtLeast(len) if len > room => {
                Err(ExchangeError::Nonsense)
            }
            Length::AtLeast(len) if len <= begun.len() => Err(ExchangeError::Nonsense),
            length => Ok(length),
        }
    }

    /// Takes `len` bytes, the first of which is `first`, to place `at` of the inbox.
    fn read(
        &self,
        service: &mut dyn Service,
        at: usize,
        first: u8,
        len: usize,
    ) -> Result<(), ExchangeError> {
        let taken = self.journal.word(word::TAKEN);
        self.journal.put_inbox(at, !first);
        self.journal
            .set(word::INTENT, (len as u64) << 8 | u64::from(first));
        self.journal.set(word::INTENT_AT, taken);
        service.at(Point::Intended);
        let read = self.journal.read_inbox(self.stream.as_fd(), at, len)?;
        service.at(Point::Taken);
        if read != len {
            let error = "what was there to be read is gone: another process reads this socket";
            return Err(io::Error::other(error).into());
        }
        self.journal.set(word::TAKEN, taken + len as u64);
        service.at(Point::Counted);
        Ok(())
    }

    /// Counts what another process had taken, if it did not come to counting it.
    fn find_taken(&self) -> Result<(), ExchangeError> {
        let taken = self.journal.word(word::TAKEN);
        let at = self.begun()?;
        if self.journal.word(word::INTENT_AT) != taken || at >= self.journal.limits().request {
            return Ok(());
        }
        let intent = self.journal.word(word::INTENT);
        if self.journal.inbox(at, 1) == intent.to_le_bytes()[..1] {
            self.journal
                .set(word::TAKEN, taken.saturating_add(intent >> 8));
            self.begun()?;
        }
        Ok(())
    }

    /// Bytes of the next request that are in the inbox.
    fn begun(&self) -> Result<usize, ExchangeError> {
        let begun = self.journal.word(word::TAKEN).checked_sub(self.last.taken);
        let begun = begun.and_then(|begun| usize::try_from(begun).ok());
        let begun = begun.filter(|begun| *begun <= self.journal.limits().request);
        begun.ok_or(JournalError::Unusable("it counts more than its inbox holds").into())
    }

    /// At most `len` bytes of what comes, without taking them, and copies of the descriptors that come
    /// with them; nothing at the stream's end.
    fn peek(&self, len: usize) -> Result<(Vec<u8>, Vec<OwnedFd>), ExchangeError> {
        let mut bytes = vec![0; len];
        let mut control = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = RecvAncillaryBuffer::new(&mut control);
        let flags = RecvFlags::PEEK | RecvFlags::CMSG_CLOEXEC;
        let received: RecvMsg = loop {
            let mut space = [IoSliceMut::new(&mut bytes)];
            match recvmsg(&self.stream, &mut space, &mut control, flags) {
                Err(Errno::INTR) => {}
                Err(Errno::CONNRESET) => return Ok(Default::default()),
                received => break received?,
            }
        };
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        if received.flags.contains(ReturnFlags::CTRUNC) {
            return Err(ExchangeError::Descriptors);
        }
        bytes.truncate(received.bytes);
        Ok((bytes, fds))
    }

    /// Sends what is left to be sent of the last reply, of which so much is `in_pipe`.
    fn answer(&self, mut in_pipe: usize, at: &mut dyn FnMut(Point)) -> Result<(), ExchangeError> {
        let (from, into) = &self.pipe;
        let number = self.last.number;
        if let Some(reply) = &self.last.reply
            && self.journal.word(word::ANSWERED) != number
        {
            if in_pipe == 0 {
                let marked = [reply, &[MARK][..]].concat();
                // In one piece, as the pipe is empty and it is no longer than `PIPE_BUF`.
                in_pipe = rustix::io::write(into, &marked)?;
            }
            at(Point::Piped);
            while in_pipe > 1 {
                in_pipe -= self.send(in_pipe - 1)?;
            }
            at(Point::Sent);
            self.journal.set(word::ANSWERED, number);
            at(Point::Answered);
        }
        if in_pipe > 0 {
            rustix::io::read(from, &mut [0; MAX_REPLY + 1])?;
        }
        Ok(())
    }

    /// Sends at most `len` bytes of what is in the pipe.
    fn send(&self, len: usize) -> Result<usize, ExchangeError> {
        let flags = SpliceFlags::empty();
        loop {
            match rustix::pipe::splice(&self.pipe.0, None, &self.stream, None, len, flags) {
                Ok(0) => return Err(Errno::PIPE.into()),
                Err(Errno::INTR) => {}
                sent => return Ok(sent?),
            }
        }
    }
}
