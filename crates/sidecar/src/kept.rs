//! QEMU's connection, held by somebody else too, so that another process can go on with it.
//!
//! QEMU sets the device up once and does not come back. So what it has said is kept, message by
//! message, and said again to a fresh device, whose answers nobody hears. What was said of a migration is
//! not: a process that goes on has seen nothing of what devices wrote before it, and refuses to save.

use std::collections::BTreeMap;
use std::io::{self, IoSlice, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use keeper::{Conversation, Held, Journal, Limits, Line, Message, Worker, WorkerError};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::{Deserialize, Serialize};

/// The room that the sidecar's journal needs.
pub(crate) const LIMITS: Limits = Limits {
    state: 1 << 20,
    rare: 0,
    reply: MAX_MESSAGE,
};

/// Bytes of a message's header: request, flags, length of what follows.
const HEADER: usize = 12;
/// Longest message (`VHOST_USER_MAX_MSG_SIZE` of the `vhost` crate is less).
const MAX_MESSAGE: usize = 16 << 10;
const MAX_FDS: usize = 16;

/// The requests that set a device up (vhost-user specification, "Front-end message types").
mod request {
    pub(super) const GET_FEATURES: u32 = 1;
    pub(super) const SET_FEATURES: u32 = 2;
    pub(super) const SET_OWNER: u32 = 3;
    pub(super) const SET_MEM_TABLE: u32 = 5;
    pub(super) const SET_VRING_NUM: u32 = 8;
    pub(super) const SET_VRING_ADDR: u32 = 9;
    pub(super) const SET_VRING_BASE: u32 = 10;
    pub(super) const GET_VRING_BASE: u32 = 11;
    pub(super) const SET_VRING_KICK: u32 = 12;
    pub(super) const SET_VRING_CALL: u32 = 13;
    pub(super) const GET_PROTOCOL_FEATURES: u32 = 15;
    pub(super) const SET_PROTOCOL_FEATURES: u32 = 16;
    pub(super) const SET_VRING_ENABLE: u32 = 18;
    pub(super) const ADD_MEM_REG: u32 = 37;
    pub(super) const REM_MEM_REG: u32 = 38;
}

/// The connection, what was said on it, and who holds both.
#[derive(Debug)]
pub(crate) struct Kept {
    conversation: Conversation,
    journal: Arc<Journal>,
    worker: Arc<Worker>,
    said: Said,
    /// What has come and is not carried out.
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

/// What was said, in the order in which it is said again: what kind, of which ring or memory.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    /// So many descriptors have been given names.
    named: u64,
    messages: BTreeMap<String, Once>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Once {
    bytes: Vec<u8>,
    /// By which names the keeper holds what came along.
    fds: Vec<String>,
}

impl Kept {
    /// The connection over `line`, which is new, from its beginning on.
    pub(crate) fn begin(line: Line, worker: Arc<Worker>) -> io::Result<Self> {
        let journal = Arc::clone(line.journal());
        put(&journal, &Said::default(), None)?;
        line.hold(NAME, &worker).map_err(io::Error::other)?;
        Self::resume(line, worker)
    }

    /// The one that another process has left, if one has, and what came along with what was said. All else of
    /// the sidecar's that is held is let go of.
    pub(crate) fn find(held: &mut Held, worker: &Arc<Worker>) -> io::Result<Option<(Self, Held)>> {
        let line = Line::find(NAME, held).map_err(io::Error::other)?;
        let kept = line
            .map(|line| Self::resume(line, Arc::clone(worker)))
            .transpose()?;
        let names = held.keys().filter(|name| name.starts_with(PREFIX));
        let names: Vec<_> = names.cloned().collect();
        let mut fds: Held = names
            .iter()
            .filter_map(|name| held.remove_entry(name))
            .collect();
        // A process that dies has held what it has not come to say, or has not let go of yet what it has unsaid.
        let needed = kept.as_ref().map(Self::names).unwrap_or_default();
        for name in names.iter().filter(|name| !needed.contains(name)) {
            worker.let_go(name).map_err(io::Error::other)?;
            fds.remove(name);
        }
        Ok(kept.map(|kept| (kept, fds)))
    }

    /// The connection is over: nobody goes on with it.
    pub(crate) fn let_go(&self) -> io::Result<()> {
        let gone = |error| io::Error::other::<WorkerError>(error);
        Line::let_go(NAME, &self.worker).map_err(gone)?;
        for name in self.names() {
            self.worker.let_go(name).map_err(gone)?;
        }
        Ok(())
    }

    /// By which names what came along is held.
    fn names(&self) -> Vec<&String> {
        let messages = self.said.messages.values();
        messages.flat_map(|once| &once.fds).collect()
    }

    fn resume(line: Line, worker: Arc<Worker>) -> io::Result<Self> {
        let journal = Arc::clone(line.journal());
        let said = serde_json::from_slice(&journal.state())?;
        Ok(Self {
            conversation: line.resume().map_err(io::Error::other)?,
            journal,
            worker,
            said,
            bytes: Vec::new(),
            fds: Vec::new(),
        })
    }

    pub(crate) fn stream(&self) -> &Arc<UnixStream> {
        self.conversation.stream()
    }

    /// Says again to a fresh device at the other end of `to` all that was said; `act` has it carry out one
    /// message.
    pub(crate) fn say_again<E: From<io::Error>>(
        &self,
        to: &UnixStream,
        held: &mut Held,
        mut act: impl FnMut() -> Result<(), E>,
    ) -> Result<(), E> {
        for Once { bytes, fds } in self.said.messages.values() {
            let fds: Vec<_> = fds.iter().filter_map(|name| held.get(name)).collect();
            let fds: Vec<_> = fds.into_iter().map(AsFd::as_fd).collect();
            send(to, bytes, &fds)?;
            act()?;
            drain(to)?;
        }
        // The device has its own.
        held.clear();
        Ok(())
    }

    /// Takes what has been carried out from the socket: what is readable then is new.
    pub(crate) fn rest(&mut self) -> io::Result<()> {
        self.conversation.rest()
    }

    /// Takes what has come; `false` at the end.
    pub(crate) fn receive(&mut self) -> io::Result<bool> {
        let begun = self.bytes.len();
        self.bytes.resize(begun + MAX_MESSAGE, 0);
        let received = self.conversation.receive(&mut self.bytes[begun..])?;
        self.bytes.truncate(begun + received.len);
        if received.lost || self.fds.len() + received.fds.len() > MAX_FDS {
            return Err(io::Error::other("QEMU sent more descriptors than it may"));
        }
        self.fds.extend(received.fds);
        Ok(received.len > 0)
    }

    /// Length of the next message, if it is whole. QEMU waits for the answer to most: two come at once only
    /// where neither brings a descriptor, or the last one does.
    fn whole(&self) -> io::Result<Option<usize>> {
        let Some(len) = word(&self.bytes, 8) else {
            return Ok(None);
        };
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let len = len.saturating_add(HEADER);
        if len > MAX_MESSAGE {
            return Err(io::Error::other("QEMU sent a message that is too long"));
        }
        Ok((len <= self.bytes.len()).then_some(len))
    }

    /// Has the device at the other end of `to` carry out the next message that is whole, by `act`, and answers
    /// it; `false` if there is none.
    pub(crate) fn carry_out<E: From<io::Error>>(
        &mut self,
        to: &UnixStream,
        act: impl FnOnce() -> Result<(), E>,
    ) -> Result<bool, E> {
        let Some(len) = self.whole()? else {
            return Ok(false);
        };
        let rest = self.bytes.split_off(len);
        let message = std::mem::replace(&mut self.bytes, rest);
        // Descriptors come with the last message that has begun.
        let fds = if self.bytes.is_empty() {
            std::mem::take(&mut self.fds)
        } else {
            Vec::new()
        };
        let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        send(to, &message, &borrowed)?;
        act()?;
        let reply = drain(to)?;
        let old = self.said.hear(&message, &fds, &self.worker)?;
        let message = Message {
            len: len as u64,
            reply: (!reply.is_empty()).then_some(&reply),
        };
        put(&self.journal, &self.said, Some(message))?;
        for name in old {
            self.worker.let_go(&name).map_err(io::Error::other)?;
        }
        self.conversation.answer()?;
        Ok(true)
    }
}

fn put(journal: &Journal, said: &Said, message: Option<Message<'_>>) -> io::Result<()> {
    let state = serde_json::to_vec(said)?;
    let put = journal.put(&state, None, message);
    put.map_err(io::Error::other)
}

/// By which name the connection is held.
const NAME: &str = "sidecar";
/// What the names of descriptors begin with.
const PREFIX: &str = "sidecar/fd/";

impl Said {
    /// Remembers a message, in the place of one that it replaces. Returns the names of descriptors that are
    /// not needed any more, once this is in force.
    fn hear(
        &mut self,
        message: &[u8],
        fds: &[OwnedFd],
        worker: &Worker,
    ) -> io::Result<Vec<String>> {
        let mut old = Vec::new();
        let mut forget = |said: &mut Self, key: &str| {
            let once = said.messages.remove(key);
            old.extend(once.into_iter().flat_map(|once| once.fds));
        };
        let request = word(message, 0).unwrap_or(0);
        match request {
            request::GET_VRING_BASE => {
                // The ring stops, and lets go of these.
                for request in [
                    request::SET_VRING_KICK,
                    request::SET_VRING_CALL,
                    request::SET_VRING_ENABLE,
                ] {
                    let index = word(message, HEADER).unwrap_or(0).into();
                    forget(self, &key(rank(request).unwrap_or(0), index));
                }
            }
            request::REM_MEM_REG => {
                let rank = rank(request::ADD_MEM_REG).unwrap_or(0);
                forget(self, &key(rank, subject(request, message)));
            }
            _ => {
                let Some(rank) = rank(request) else {
                    return Ok(old);
                };
                let key = key(rank, subject(request, message));
                forget(self, &key);
                let mut names = Vec::new();
                for fd in fds {
                    self.named += 1;
                    let name = format!("{PREFIX}{}", self.named);
                    worker.hold(&name, fd).map_err(io::Error::other)?;
                    names.push(name);
                }
                let once = Once {
                    bytes: message.to_vec(),
                    fds: names,
                };
                self.messages.insert(key, once);
            }
        }
        Ok(old)
    }
}

/// When a request is said again, if it is: in the order in which QEMU says them.
fn rank(request: u32) -> Option<usize> {
    const ORDER: [u32; 13] = [
        request::GET_FEATURES,
        request::GET_PROTOCOL_FEATURES,
        request::SET_PROTOCOL_FEATURES,
        request::SET_OWNER,
        request::SET_FEATURES,
        request::SET_MEM_TABLE,
        request::ADD_MEM_REG,
        request::SET_VRING_NUM,
        request::SET_VRING_BASE,
        request::SET_VRING_ADDR,
        request::SET_VRING_KICK,
        request::SET_VRING_CALL,
        request::SET_VRING_ENABLE,
    ];
    ORDER.iter().position(|known| *known == request)
}

/// Of which ring or memory a message speaks.
fn subject(request: u32, message: &[u8]) -> u64 {
    let low = || u64::from(word(message, HEADER).unwrap_or(0));
    match request {
        request::SET_VRING_NUM
        | request::SET_VRING_BASE
        | request::SET_VRING_ADDR
        | request::SET_VRING_ENABLE => low(),
        // The other bits are flags.
        request::SET_VRING_KICK | request::SET_VRING_CALL => low() & 0xff,
        request::ADD_MEM_REG | request::REM_MEM_REG => {
            let half = |at| u64::from(word(message, at).unwrap_or(0));
            half(HEADER + 12) << 32 | half(HEADER + 8)
        }
        _ => 0,
    }
}

fn key(rank: usize, subject: u64) -> String {
    format!("{rank:02}-{subject:016x}")
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

fn send(to: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other("too many descriptors"));
    }
    // It is empty, and has room for more than the longest message.
    let sent = sendmsg(
        to,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    if sent != bytes.len() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    Ok(())
}

/// What the device has answered by now.
fn drain(mut from: &UnixStream) -> io::Result<Vec<u8>> {
    let mut reply = vec![0; MAX_MESSAGE];
    from.set_nonblocking(true)?;
    let read = from.read(&mut reply);
    from.set_nonblocking(false)?;
    let len = match read {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
        read => read?,
    };
    reply.truncate(len);
    Ok(reply)
}
