//! One connection, none of whose messages is lost, carried out twice or answered twice.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, RecvMsg, ReturnFlags, recvmsg,
};
use rustix::pipe::{PipeFlags, SpliceFlags};

use crate::journal::{Journal, JournalError};
use crate::layout::word;
use crate::peek;

/// What of a reply is in the pipe at once: less than one holds (pipe(7)).
const PIECE: usize = 32 << 10;
/// How long to wait for the rest of a message, of which a part has come.
const REST: Duration = Duration::from_micros(200);
/// How long a client may leave an answer unread, as QEMU waits for one.
const PATIENCE: Duration = Duration::from_secs(5);
/// All that the kernel lets through in one message (`SCM_MAX_FD`).
const MAX_FDS: usize = 253;

/// Bytes that have come, and descriptors that came with them.
#[derive(Debug, Default)]
pub struct Received {
    /// How many bytes; 0 at the end of the stream.
    pub len: usize,
    /// Copies of the descriptors: they come again to a successor, until their message is carried out.
    pub fds: Vec<OwnedFd>,
    /// There were more descriptors than could be received.
    pub lost: bool,
}

/// The socket, pipe and journal of a connection, which somebody else holds too.
#[derive(Debug)]
pub struct Conversation {
    stream: Arc<UnixStream>,
    pipe: (OwnedFd, OwnedFd),
    journal: Arc<Journal>,
    /// Bytes in the socket that have been shown.
    shown: u64,
    /// For what is taken out of the socket: it has been seen.
    unread: Vec<u8>,
}

impl Conversation {
    /// The pipe that a conversation needs: to read from, to write to.
    ///
    /// # Errors
    /// When the system has no descriptor left.
    pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
        Ok(rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?)
    }

    /// At the beginning, or wherever another process has left it: the reply that is under way is
    /// sent. `stream` and the `pipe`'s ends are blocking; what is sent waits for 5 s, then fails by `EAGAIN`.
    ///
    /// # Errors
    /// When the journal cannot be gone on with, or the client is gone.
    pub fn resume(
        stream: Arc<UnixStream>,
        pipe: (OwnedFd, OwnedFd),
        journal: Arc<Journal>,
    ) -> Result<Self, JournalError> {
        // To `splice` as well.
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut conversation = Self {
            stream,
            pipe,
            journal,
            shown: 0,
            unread: vec![0; PIECE],
        };
        conversation.find_consumed()?;
        let in_pipe = rustix::io::ioctl_fionread(&conversation.pipe.0).map_err(io::Error::from)?;
        let in_pipe = usize::try_from(in_pipe).unwrap_or(usize::MAX);
        conversation.send(in_pipe)?;
        Ok(conversation)
    }

    /// The socket.
    pub fn stream(&self) -> &Arc<UnixStream> {
        &self.stream
    }

    /// Takes what has been carried out from the socket, waits for more, and shows that.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn receive(&mut self, space: &mut [u8]) -> io::Result<Received> {
        self.consume()?;
        let room = space.len();
        let received = self.look(space)?;
        let received = if received.fds.is_empty() || received.len < room || room < 2 {
            received
        } else {
            // Descriptors are shown with the last bytes that there is room for, even if they came with
            // later ones, or came with more. With one byte less, what they came with is not all shown, so
            // they are shown again.
            peek::set(&self.stream, self.shown)?;
            let len = self.look(&mut space[..room - 1])?.len;
            Received {
                len,
                ..Received::default()
            }
        };
        self.shown += received.len as u64;
        Ok(received)
    }

    fn look(&self, space: &mut [u8]) -> io::Result<Received> {
        loop {
            // The kernel forgets what was looked at when it waits (`skip` in
            // `unix_stream_read_generic`), so it waits only where that is nothing.
            match peek_at(&self.stream, space, self.shown == 0) {
                // The rest of a message is on its way: whoever sends it does nothing else.
                Err(Errno::AGAIN) => thread::sleep(REST),
                Err(Errno::INTR) => {}
                Err(Errno::CONNRESET) => return Ok(Received::default()),
                found => return Ok(found?),
            }
        }
    }

    /// Takes what has been carried out from the socket, so that it is readable only if there is more.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn rest(&mut self) -> io::Result<()> {
        self.consume()
    }

    /// Sends the reply to the message that was carried out last, if it has not been.
    ///
    /// # Errors
    /// When the client is gone, or does not read.
    pub fn answer(&self) -> io::Result<()> {
        self.send(0)
    }

    /// Finds out how much the process before has taken out of the socket.
    fn find_consumed(&mut self) -> Result<(), JournalError> {
        let consumed = self.journal.word(word::CONSUMED);
        let (mut base, amid) = (consumed >> 1, consumed & 1 != 0);
        if amid {
            let left = peek::of(&self.stream)?;
            let gone = self.journal.word(word::SHOWN).checked_sub(left);
            base += gone.ok_or(JournalError::Unusable(
                "the socket shows more than there was",
            ))?;
            self.journal.set(word::CONSUMED, base << 1);
        }
        let taken = self.journal.position().taken;
        let left = taken.checked_sub(base);
        self.shown = left.ok_or(JournalError::Unusable("more is gone than was carried out"))?;
        peek::set(&self.stream, self.shown)?;
        Ok(())
    }

    /// Takes what has been carried out from the socket. What the socket says of how much of it has been
    /// looked at tells, to a successor, how much is gone.
    fn consume(&mut self) -> io::Result<()> {
        loop {
            let base = self.journal.word(word::CONSUMED) >> 1;
            let left = self.journal.position().taken.saturating_sub(base);
            if left == 0 {
                return Ok(());
            }
            let len = usize::try_from(left).map_or(PIECE, |left| left.min(PIECE));
            self.journal.set(word::SHOWN, self.shown);
            self.journal.set(word::CONSUMED, base << 1 | 1);
            let space = &mut self.unread[..len];
            let received = rustix::net::recv(&self.stream, space, RecvFlags::DONTWAIT);
            let gone = match received {
                Ok((_, 0)) | Err(Errno::AGAIN) => {
                    let error = "what was seen is gone: another process reads this socket";
                    return Err(io::Error::other(error));
                }
                Ok((_, gone)) => gone as u64,
                Err(Errno::INTR) => 0,
                Err(errno) => return Err(errno.into()),
            };
            self.journal.set(word::CONSUMED, (base + gone) << 1);
            self.shown = self.shown.saturating_sub(gone);
        }
    }

    /// Sends what is left of the last reply, of which so much is `in_pipe`.
    fn send(&self, mut in_pipe: usize) -> io::Result<()> {
        let position = self.journal.position();
        let Some(len) = position.reply else {
            return Ok(());
        };
        let pieces = len.div_ceil(PIECE).max(1);
        let mut stage = Sending::of(self.journal.word(word::REPLY));
        if stage.message != position.messages {
            stage = Sending {
                message: position.messages,
                sent: 0,
                piped: false,
            };
        }
        if stage.sent >= pieces {
            return Ok(());
        }
        let reply = self.journal.reply(position).unwrap_or_default();
        while stage.sent < pieces {
            let from = (stage.sent * PIECE).min(reply.len());
            let piece = &reply[from..(from + PIECE).min(reply.len())];
            if !stage.piped {
                self.journal.set(word::REPLY, stage.word());
                while in_pipe < piece.len() {
                    match rustix::io::write(&self.pipe.1, &piece[in_pipe..]) {
                        Err(Errno::INTR) => {}
                        written => in_pipe += written?,
                    }
                }
                stage.piped = true;
                self.journal.set(word::REPLY, stage.word());
            }
            while in_pipe > 0 {
                in_pipe -= self.splice(in_pipe)?;
            }
            stage.piped = false;
            stage.sent += 1;
            self.journal.set(word::REPLY, stage.word());
        }
        Ok(())
    }

    /// Sends at most `len` bytes of what is in the pipe.
    fn splice(&self, len: usize) -> io::Result<usize> {
        let flags = SpliceFlags::empty();
        match rustix::pipe::splice(&self.pipe.0, None, &self.stream, None, len, flags) {
            Ok(0) => Err(Errno::PIPE.into()),
            Err(Errno::INTR) => Ok(0),
            sent => Ok(sent?),
        }
    }
}

/// How far the reply to a message is sent. A piece is in the pipe or on its way there from when this is
/// written down until it says that it is `piped`; it leaves the pipe only after that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sending {
    message: u64,
    sent: usize,
    piped: bool,
}

impl Sending {
    fn of(word: u64) -> Self {
        Self {
            message: word >> 24,
            sent: usize::try_from(word >> 1 & 0x7f_ffff).unwrap_or(usize::MAX),
            piped: word & 1 != 0,
        }
    }

    fn word(self) -> u64 {
        self.message << 24 | (self.sent as u64) << 1 | u64::from(self.piped)
    }
}

/// What comes next, without taking it.
fn peek_at(stream: &UnixStream, space: &mut [u8], wait: bool) -> Result<Received, Errno> {
    let mut control = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut control);
    let mut flags = RecvFlags::PEEK | RecvFlags::CMSG_CLOEXEC;
    flags.set(RecvFlags::DONTWAIT, !wait);
    let mut space = [IoSliceMut::new(space)];
    let RecvMsg { bytes, flags, .. } = recvmsg(stream, &mut space, &mut control, flags)?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    Ok(Received {
        len: bytes,
        fds,
        lost: flags.contains(ReturnFlags::CTRUNC),
    })
}

impl AsFd for Conversation {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests;
