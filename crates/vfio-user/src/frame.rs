//! From a stream of bytes and file descriptors to whole messages.
//!
//! [`Framer`] does no I/O: whoever reads (a socket, a fuzzer) puts bytes and descriptors in, and
//! takes messages out. It reads ahead, so that a message, or a row of posted writes, costs one
//! `recvmsg`.
//!
//! Which descriptors belong to which message: the kernel hands over descriptors with the first
//! byte of the `sendmsg` that carried them, and ends a `recvmsg` after the bytes of that
//! `sendmsg` (`unix_stream_read_generic`). So the message that they came with is the last one that
//! has begun in what was received. Only a client that puts several messages into one `sendmsg`,
//! which none does, would find them with the last of those.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use crate::MAX_MSG_FDS;
use crate::wire::{self, HEADER_LEN, Header};

/// What is kept free for a `recvmsg` when nothing larger is awaited.
const READ_AHEAD: usize = 16 * 1024;

/// Descriptors that may wait for their messages: those of one that is being received and of one
/// that begins in the same read.
const MAX_WAITING_FDS: usize = 2 * MAX_MSG_FDS;

/// A whole message.
#[derive(Debug)]
pub struct Frame<'a> {
    /// Its header; its size is that of `body`, plus [`HEADER_LEN`].
    pub header: Header,
    /// What follows the header.
    pub body: &'a [u8],
    /// The descriptors that came with it.
    pub fds: Vec<OwnedFd>,
    /// There were more descriptors than could be received.
    pub fds_lost: bool,
}

/// What [`Framer::find`] finds.
#[derive(Debug)]
pub enum Found<'a> {
    /// Nothing whole yet.
    Incomplete,
    /// A message.
    Message(Frame<'a>),
    /// The header of a message that is too long. Its body is dropped as it comes in.
    TooLong(Header),
    /// A header that says that the message is shorter than a header: where the next message
    /// begins cannot be known.
    Lost(Header),
}

/// Cuts a stream into messages.
#[derive(Debug)]
pub struct Framer {
    buffer: Vec<u8>,
    /// The part of `buffer` that holds bytes not yet given out.
    start: usize,
    end: usize,
    /// Bytes received since the beginning.
    received: u64,
    /// Bytes still to be dropped of a message that was too long.
    skip: u64,
    max_message: usize,
    /// Descriptors whose message is not whole, each with the [`Position`] it came in at.
    waiting: VecDeque<(Position, OwnedFd)>,
    /// First and last read that lost descriptors whose message is not whole.
    lost: Option<(Position, Position)>,
}

/// Bytes received from the beginning to the end of a read.
type Position = u64;

impl Framer {
    /// A framer for messages of at most `max_message` bytes, header included.
    pub fn new(max_message: usize) -> Self {
        Self {
            buffer: vec![0; READ_AHEAD],
            start: 0,
            end: 0,
            received: 0,
            skip: 0,
            max_message,
            waiting: VecDeque::new(),
            lost: None,
        }
    }

    /// Where the next bytes go; never empty. To be called when [`find`](Self::find) has found
    /// nothing whole.
    pub fn space(&mut self) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        let needed = self.awaited().unwrap_or(HEADER_LEN).max(READ_AHEAD);
        if self.start + needed > self.buffer.len() || self.end == self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.buffer.len() < needed {
            self.buffer.resize(needed, 0);
        }
        &mut self.buffer[self.end..]
    }

    /// Says that `len` bytes were put into [`space`](Self::space), and which descriptors came with
    /// them; `lost` if there were more.
    pub fn received(&mut self, len: usize, fds: Vec<OwnedFd>, lost: bool) {
        let len = len.min(self.buffer.len() - self.end);
        self.end += len;
        self.received += len as u64;
        let position = self.received;
        let room = MAX_WAITING_FDS.saturating_sub(self.waiting.len());
        if lost || fds.len() > room {
            let first = self.lost.map_or(position, |(first, _)| first);
            self.lost = Some((first, position));
        }
        let fds = fds.into_iter().take(room);
        self.waiting.extend(fds.map(|fd| (position, fd)));
    }

    /// Whether a message has begun and is not whole.
    pub fn is_amid_message(&self) -> bool {
        self.skip > 0 || self.start != self.end
    }

    /// The next message, if there is a whole one.
    pub fn find(&mut self) -> Found<'_> {
        if !self.skipped() {
            return Found::Incomplete;
        }
        let Some(header) = self.header() else {
            return Found::Incomplete;
        };
        let size = header.size as usize;
        if size < HEADER_LEN {
            return Found::Lost(header);
        }
        if size > self.max_message {
            self.start += HEADER_LEN;
            self.skip = (size - HEADER_LEN) as u64;
            self.skipped();
            return Found::TooLong(header);
        }
        if self.end - self.start < size {
            return Found::Incomplete;
        }
        let body = self.start + HEADER_LEN..self.start + size;
        self.start += size;
        let (fds, fds_lost) = self.fds();
        Found::Message(Frame {
            header,
            body: &self.buffer[body],
            fds,
            fds_lost,
        })
    }

    /// Drops what is to be dropped; whether all of it was.
    fn skipped(&mut self) -> bool {
        if self.skip == 0 {
            return true;
        }
        let here = usize::try_from(self.skip).unwrap_or(usize::MAX);
        let here = here.min(self.end - self.start);
        self.start += here;
        self.skip -= here as u64;
        self.fds();
        self.skip == 0
    }

    fn header(&self) -> Option<Header> {
        let (header, _) = wire::take::<Header>(&self.buffer[self.start..self.end]).ok()?;
        Some(header)
    }

    /// Bytes of the message that has begun.
    fn awaited(&self) -> Option<usize> {
        let size = self.header().filter(|_| self.skip == 0)?.size as usize;
        Some(size.min(self.max_message))
    }

    /// The descriptors that came with the message that ends at `start`, and whether some were
    /// lost: those of reads that ended in it.
    fn fds(&mut self) -> (Vec<OwnedFd>, bool) {
        if self.waiting.is_empty() && self.lost.is_none() {
            return (Vec::new(), false);
        }
        let end = self.received - (self.end - self.start) as u64;
        let count = self.waiting.iter().take_while(|(at, _)| *at <= end).count();
        let fds = self.waiting.drain(..count).map(|(_, fd)| fd).collect();
        let lost = self.lost.is_some_and(|(first, _)| first <= end);
        if lost {
            self.lost = self
                .lost
                .map(|(_, last)| (last, last))
                .filter(|(last, _)| *last > end);
        }
        (fds, lost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};
    use zerocopy::IntoBytes;

    const MAX: usize = 64;

    fn message(id: u16, body_len: usize) -> Vec<u8> {
        let header = Header {
            id,
            size: wire::message_size(body_len),
            ..Header::default()
        };
        let body = (0..=u8::MAX).cycle().take(body_len);
        header.as_bytes().iter().copied().chain(body).collect()
    }

    fn fds(count: usize) -> Vec<OwnedFd> {
        let fd = || eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd can be made");
        std::iter::repeat_with(fd).take(count).collect()
    }

    fn put(framer: &mut Framer, bytes: &[u8], fds: Vec<OwnedFd>) {
        framer.space()[..bytes.len()].copy_from_slice(bytes);
        framer.received(bytes.len(), fds, false);
    }

    /// `(id, body length, descriptors)` of every message that is whole.
    fn whole(framer: &mut Framer) -> Vec<(u16, usize, usize)> {
        let mut found = vec![];
        while let Found::Message(m) = framer.find() {
            assert!(!m.fds_lost);
            found.push((m.header.id, m.body.len(), m.fds.len()));
        }
        found
    }

    #[test]
    fn a_message_in_single_bytes_is_found_once_it_is_whole() {
        let mut framer = Framer::new(MAX);
        let bytes = message(7, 20);
        for (i, byte) in bytes.iter().enumerate() {
            assert_eq!(whole(&mut framer), [], "after {i} bytes");
            put(&mut framer, &[*byte], vec![]);
        }
        assert_eq!(whole(&mut framer), [(7, 20, 0)]);
        assert!(!framer.is_amid_message());
    }

    #[test]
    fn several_messages_in_one_read_are_all_found() {
        let mut framer = Framer::new(MAX);
        let bytes = [message(1, 0), message(2, 48), message(3, 5)].concat();
        put(&mut framer, &bytes[..bytes.len() - 1], vec![]);
        assert_eq!(whole(&mut framer), [(1, 0, 0), (2, 48, 0)]);
        assert!(framer.is_amid_message());
        put(&mut framer, &bytes[bytes.len() - 1..], vec![]);
        assert_eq!(whole(&mut framer), [(3, 5, 0)]);
    }

    #[test]
    fn descriptors_go_with_the_last_message_begun() {
        let mut framer = Framer::new(MAX);
        let bytes = [message(1, 4), message(2, 4)].concat();
        put(&mut framer, &bytes, fds(2));
        assert_eq!(whole(&mut framer), [(1, 4, 0), (2, 4, 2)]);
    }

    #[test]
    fn descriptors_wait_for_the_rest_of_their_message() {
        let mut framer = Framer::new(MAX);
        put(&mut framer, &message(1, 40)[..20], fds(1));
        assert_eq!(whole(&mut framer), []);
        let rest = [&message(1, 40)[20..], &message(2, 8)[..17]].concat();
        put(&mut framer, &rest, fds(3));
        assert_eq!(whole(&mut framer), [(1, 40, 1)]);
        put(&mut framer, &message(2, 8)[17..], vec![]);
        assert_eq!(whole(&mut framer), [(2, 8, 3)]);
    }

    #[test]
    fn a_message_that_is_too_long_is_dropped_with_its_descriptors() {
        let mut framer = Framer::new(MAX);
        put(&mut framer, &message(1, MAX - HEADER_LEN), vec![]);
        assert_eq!(whole(&mut framer), [(1, MAX - HEADER_LEN, 0)]);
        let long = message(2, 20_000);
        put(&mut framer, &long[..100], fds(1));
        assert!(matches!(framer.find(), Found::TooLong(h) if h.id == 2));
        for chunk in long[100..].chunks(999) {
            assert!(matches!(framer.find(), Found::Incomplete));
            assert!(framer.is_amid_message());
            put(&mut framer, chunk, vec![]);
        }
        assert!(matches!(framer.find(), Found::Incomplete));
        assert!(!framer.is_amid_message());
        put(&mut framer, &message(3, 1), vec![]);
        assert_eq!(whole(&mut framer), [(3, 1, 0)]);
    }

    #[test]
    fn a_size_below_the_header_loses_the_stream() {
        let mut framer = Framer::new(MAX);
        let mut bytes = message(9, 0);
        bytes[4] = 15;
        put(&mut framer, &bytes, vec![]);
        assert!(matches!(framer.find(), Found::Lost(h) if h.id == 9));
    }

    #[test]
    fn descriptors_without_end_are_closed_and_said_to_be_lost() {
        let mut framer = Framer::new(MAX);
        let bytes = message(1, 40);
        for byte in &bytes {
            put(&mut framer, &[*byte], fds(1));
            assert!(framer.waiting.len() <= MAX_WAITING_FDS);
        }
        let Found::Message(m) = framer.find() else {
            panic!("the message is whole");
        };
        assert!(m.fds_lost);
        put(&mut framer, &message(2, 0), fds(1));
        assert_eq!(whole(&mut framer), [(2, 0, 1)]);
    }

    #[test]
    fn a_loss_is_told_to_the_message_it_befell() {
        let mut framer = Framer::new(MAX);
        let second = message(2, 4);
        framer.space()[..20].copy_from_slice(&message(1, 4));
        framer.received(18, vec![], true);
        assert!(matches!(framer.find(), Found::Incomplete));
        framer.space()[2..22].copy_from_slice(&second);
        framer.space()[..2].copy_from_slice(&message(1, 4)[18..]);
        framer.received(22, vec![], true);
        for id in [1, 2] {
            assert!(matches!(framer.find(), Found::Message(m) if m.fds_lost && m.header.id == id));
        }
    }
}
