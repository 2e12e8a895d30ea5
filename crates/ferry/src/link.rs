//! The control link between the vferry processes of the two hosts.
//!
//! A thin conversation beside QEMU's stream: each message is a length (32 bits, big endian) and
//! that many bytes of JSON; two of them say that so many bytes of memory or digests follow. The source speaks
//! first and asks; the destination answers each message with one. The very first ones agree on a version
//! ([`greeting`]). Who may be at the other end, and who may listen, is the stream's matter.

pub mod greeting;
mod secret;

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use pci::{ConfigImage, MsixTable};
use serde::{Deserialize, Serialize};

use crate::check::Facts;
use crate::commit::Whereabouts;
use crate::cooperative::end::Restarts;
use crate::recovery::Recovered;
use crate::root_port::RootPort;
use greeting::Versions;

pub use secret::DigestKey;

/// No message is longer, in bytes, and nothing that follows one.
pub const MAX_MESSAGE: usize = 16 << 20;
/// Blocks in one question.
pub const MAX_BLOCKS: usize = 1024;
/// Pages in one message.
pub const MAX_PAGES: usize = 1024;

/// The limit of calls that wait for nothing.
const MOMENT: Duration = Duration::from_secs(1);

/// A message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Message {
    /// Source: I want to send you a VM. Destination: this is how I am.
    Check {
        /// What the sender is.
        facts: Box<Facts>,
    },
    /// Source: get ready.
    Prepare {
        /// The migration's name, which no other has: see [`name`].
        migration: String,
        /// What both sides make digests of memory with.
        digest_key: DigestKey,
        /// What the guest has programmed so far.
        functions: Vec<Function>,
        /// And the root ports that functions are behind.
        root_ports: Vec<RootPort>,
        /// Take digests of memory at LOAD.
        verify: bool,
        /// Memory may be compared before the word to run, and what differs be sent over this link.
        compare: bool,
    },
    /// Destination: QEMU listens there.
    Prepared {
        /// For QEMU's `migrate`.
        uri: String,
    },
    /// Source: my QEMU has completed and will not run the VM again. Run it.
    Run {
        /// What the guest had programmed when it stopped.
        functions: Vec<Function>,
        /// What is to be done then.
        then: Afterwards,
    },
    /// Destination: it runs.
    Running(Arrival),
    /// Source: the digests of memory file `file`, please.
    Digests {
        /// Number of the file.
        file: usize,
    },
    /// Destination: those of its blocks follow, 16 bytes each, little endian.
    BlockDigests {
        /// Bytes of the file, in whole pages; `None` if there is no such file.
        len: Option<u64>,
    },
    /// Source: the digests of the pages of these blocks, at most [`MAX_BLOCKS`].
    BlockPages {
        /// Number of the file.
        file: usize,
        /// Numbers of the blocks.
        blocks: Vec<usize>,
    },
    /// Destination: they follow, 16 bytes each, little endian, block after block.
    PageDigests {
        /// How many.
        count: usize,
    },
    /// Source: this is what is in these pages, at most [`MAX_PAGES`]. Their bytes follow.
    Pages {
        /// Number of the file.
        file: usize,
        /// Numbers of the pages.
        pages: Vec<usize>,
    },
    /// Destination: so it is here now.
    PagesWritten,
    /// Source: what became of the devices that were left to the guest's error recovery?
    Recover,
    /// Destination: this.
    Recovered {
        /// One for each device behind a root port.
        devices: Vec<Recovered>,
    },
    /// Source: what became of the devices that the guest was to start again?
    GuestEnd,
    /// Destination: this.
    GuestEnded(Restarts),
    /// Source, as its first message: where is the VM of this migration, which you were told to run?
    Settle {
        /// Its name.
        migration: String,
    },
    /// Destination: there.
    Settled {
        /// Here or not, and for how long.
        whereabouts: Whereabouts,
    },
    /// Either: it is over, for this reason.
    Abort {
        /// For the operator.
        reason: String,
    },
    /// Source: thank you.
    Goodbye,
}

/// One PCI function as the guest has programmed it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Function {
    /// Name of the device.
    pub name: String,
    /// Its configuration space.
    pub config: ConfigImage,
    /// Its MSI-X table, if it can be read (see `endpoint`).
    pub table: Option<MsixTable>,
}

/// What a VM needs when it runs at the destination.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Afterwards {
    /// Nothing.
    #[default]
    Nothing,
    /// It sleeps, and is to be woken.
    Wake,
    /// These devices, behind root ports, were left to the guest's error recovery.
    Recover(Vec<String>),
}

/// How the VM arrived.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arrival {
    /// Loading the devices' state, in milliseconds.
    pub restore_ms: f64,
    /// Of that, taking digests of memory.
    pub digest_ms: f64,
    /// From the word to run until the vCPUs and devices ran, in milliseconds.
    pub resume_ms: f64,
    /// Functions whose configuration had to be corrected after the VM stopped.
    pub corrected: usize,
    /// From then until the guest was awake, in milliseconds, if it was to be woken and woke.
    pub wake_ms: Option<f64>,
}

/// Why the link failed.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The other side is gone.
    #[error("the other host's vferry closed the control link")]
    Closed,
    /// No answer in time.
    #[error("the other host's vferry did not answer within {0:?}")]
    Timeout(Duration),
    /// A message too long.
    #[error(
        "the other host's vferry sent a message of {0} bytes, more than the {MAX_MESSAGE} allowed: it is not a vferry, or a hostile one"
    )]
    TooLong(usize),
    /// It is not asked again: an answer would be one to what it was asked before.
    #[error("the other host's vferry has not answered what it was asked before")]
    Unanswered,
    /// Not a message.
    #[error("the other host's vferry sent what is not a message of this version: {0}")]
    Malformed(String),
    /// The other side speaks TLS.
    #[error(
        "the other host's vferry speaks TLS, and this host's does not: set `tls` and `peers` in [migration] of this host's configuration too"
    )]
    Protected,
    /// No version that both know.
    #[error(
        "the other host's vferry speaks {theirs} of the control link, this one {ours}: update vferry on {}",
        ours.older(*theirs)
    )]
    Version {
        /// This side's.
        ours: Versions,
        /// The other's.
        theirs: Versions,
    },
    /// The other side gave up.
    #[error("the other host gave up: {0}")]
    Aborted(String),
    /// A message that does not belong here.
    #[error("the other host's vferry sent `{0}` out of order")]
    Unexpected(String),
    /// The system failed.
    #[error("the control link failed: {0}")]
    System(#[from] io::Error),
}

/// A connected stream with time limits.
pub trait Stream: Read + Write + Send {
    /// Limits each following read and write; `None` waits for ever. One that ran out of time fails
    /// with `WouldBlock` or `TimedOut`.
    ///
    /// # Errors
    /// When the system refuses.
    fn set_timeout(&self, limit: Option<Duration>) -> io::Result<()>;

    /// Has reads and writes wait for nothing, whatever their limit: they fail with `WouldBlock`.
    ///
    /// # Errors
    /// When the system refuses.
    fn set_nonblocking(&self, on: bool) -> io::Result<()>;
}

/// One end of the link.
pub struct Link {
    stream: Box<dyn Stream>,
    /// What has come of the next message. A wait may end in the middle of one.
    inbox: Vec<u8>,
    /// A message was sent in part: what came after it would be taken for the rest of it.
    broken: bool,
    /// A question had no answer in time. It may come yet.
    unanswered: bool,
    version: u32,
}

impl Link {
    /// Speaks over `stream`, where both sides know already that they speak `version`. All but tests
    /// have to [`greet`](Self::greet) or [`welcome`](Self::welcome).
    pub fn agreed(stream: Box<dyn Stream>, version: u32) -> Self {
        Self {
            stream,
            inbox: Vec::new(),
            broken: false,
            unanswered: false,
            version,
        }
    }

    /// The version that was agreed on.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Sends a message, within `limit`.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub fn send(&mut self, message: &Message, limit: Duration) -> Result<(), LinkError> {
        self.send_body(message, limit)
    }

    fn send_body(&mut self, message: &impl Serialize, limit: Duration) -> Result<(), LinkError> {
        let body = serde_json::to_vec(message).map_err(io::Error::from)?;
        let len = u32::try_from(body.len())
            .ok()
            .filter(|len| *len as usize <= MAX_MESSAGE);
        let len = len.ok_or(LinkError::TooLong(body.len()))?;
        let mut frame = len.to_be_bytes().to_vec();
        frame.extend_from_slice(&body);
        self.send_bytes(&frame, limit)
    }

    /// Waits up to `limit` for a message. After [`LinkError::Timeout`] one can wait again: what has
    /// come so far is kept.
    ///
    /// # Errors
    /// See [`LinkError`]; an `Abort` of the other side is one too.
    pub fn receive(&mut self, limit: Duration) -> Result<Message, LinkError> {
        parse(&self.receive_body(MAX_MESSAGE, limit)?)
    }

    /// A message that has come already; `None` if there is none, or not all of one.
    ///
    /// Without a limit of the socket's: the system counts one in ticks of its clock, of which there may be 100 a
    /// second, and a VM that stands still waits.
    ///
    /// # Errors
    /// As there.
    pub fn look(&mut self) -> Result<Option<Message>, LinkError> {
        match self.receive(Duration::ZERO) {
            Ok(message) => Ok(Some(message)),
            Err(LinkError::Timeout(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn receive_body(&mut self, most: usize, limit: Duration) -> Result<Vec<u8>, LinkError> {
        let deadline = Instant::now() + limit;
        self.fill(4, deadline, limit)?;
        let head = [self.inbox[0], self.inbox[1], self.inbox[2], self.inbox[3]];
        let len = u32::from_be_bytes(head) as usize;
        if len > most {
            return Err(match head {
                // A TLS record with an alert or a part of the handshake (RFC 8446, section 5.1).
                [21 | 22, 3, ..] => LinkError::Protected,
                _ => LinkError::TooLong(len),
            });
        }
        self.fill(4 + len, deadline, limit)?;
        let rest = self.inbox.split_off(4 + len);
        let mut message = std::mem::replace(&mut self.inbox, rest);
        Ok(message.split_off(4))
    }

    /// Sends bytes that the message before has announced, within `limit`.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub fn send_bytes(&mut self, bytes: &[u8], limit: Duration) -> Result<(), LinkError> {
        if self.broken {
            return Err(LinkError::Closed);
        }
        let written = self.write(bytes, limit);
        self.broken = written.is_err();
        written
    }

    fn write(&mut self, bytes: &[u8], limit: Duration) -> Result<(), LinkError> {
        let deadline = Instant::now() + limit;
        let mut rest = bytes;
        while !rest.is_empty() {
            self.set_timeout(deadline, limit)?;
            match self.stream.write(rest) {
                Ok(0) => return Err(LinkError::Closed),
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ended(error, limit)),
            }
        }
        Ok(())
    }

    /// Waits up to `limit` for `len` bytes that the message before has announced.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub fn receive_bytes(&mut self, len: usize, limit: Duration) -> Result<Vec<u8>, LinkError> {
        if len > MAX_MESSAGE {
            return Err(LinkError::TooLong(len));
        }
        self.fill(len, Instant::now() + limit, limit)?;
        let rest = self.inbox.split_off(len);
        Ok(std::mem::replace(&mut self.inbox, rest))
    }

    /// Sends `question` and waits for the answer, `limit` for each.
    ///
    /// # Errors
    /// See [`LinkError`]; [`LinkError::Unanswered`] from the first question on that had no answer in time.
    pub fn ask(&mut self, question: &Message, limit: Duration) -> Result<Message, LinkError> {
        self.begin_to_ask(question, limit)?;
        let answer = self.receive(limit);
        self.unanswered = matches!(answer, Err(LinkError::Timeout(_)));
        answer
    }

    /// Sends `question`, whose answer the caller receives.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub fn begin_to_ask(&mut self, question: &Message, limit: Duration) -> Result<(), LinkError> {
        if self.unanswered {
            return Err(LinkError::Unanswered);
        }
        self.send(question, limit)
    }

    /// Reads until `len` bytes are there. Memory is taken as they come, not as they are announced. What has come
    /// is in time: a process that was stopped meanwhile looks late.
    fn fill(&mut self, len: usize, deadline: Instant, limit: Duration) -> Result<(), LinkError> {
        let mut chunk = [0; 1 << 14];
        while self.inbox.len() < len {
            let room = chunk.len().min(len - self.inbox.len());
            let read = match self.set_timeout(deadline, limit) {
                Ok(()) => self.stream.read(&mut chunk[..room]),
                Err(LinkError::Timeout(_)) => {
                    // Which a protected stream looks at.
                    self.stream.set_timeout(Some(MOMENT))?;
                    self.stream.set_nonblocking(true)?;
                    let read = self.stream.read(&mut chunk[..room]);
                    self.stream.set_nonblocking(false)?;
                    read
                }
                Err(error) => return Err(error),
            };
            match read {
                Ok(0) => return Err(LinkError::Closed),
                Ok(count) => self.inbox.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ended(error, limit)),
            }
        }
        Ok(())
    }

    /// Lets the other side read what was sent: TCP takes it away when one closes with unread bytes.
    fn part(&mut self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let mut chunk = [0; 1 << 12];
        while self.set_timeout(deadline, limit).is_ok() {
            if matches!(self.stream.read(&mut chunk), Ok(0) | Err(_)) {
                return;
            }
        }
    }

    /// For the next call of what has until `deadline`.
    fn set_timeout(&mut self, deadline: Instant, limit: Duration) -> Result<(), LinkError> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(LinkError::Timeout(limit));
        }
        Ok(self.stream.set_timeout(Some(left))?)
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}

/// Parses one message's body. For fuzzers too.
///
/// # Errors
/// [`LinkError::Malformed`], or [`LinkError::Aborted`] for an `Abort`.
pub fn parse(body: &[u8]) -> Result<Message, LinkError> {
    match serde_json::from_slice(body) {
        Ok(Message::Abort { reason }) => Err(LinkError::Aborted(printable(&reason))),
        Ok(message) => Ok(message),
        // It quotes the other side's own words.
        Err(error) => Err(LinkError::Malformed(printable(&error.to_string()))),
    }
}

/// A message that was not expected, as an error.
pub fn unexpected(message: &Message) -> LinkError {
    let value = serde_json::to_value(message).unwrap_or_default();
    let name = value
        .get("message")
        .and_then(|name| name.as_str())
        .unwrap_or("?");
    LinkError::Unexpected(name.into())
}

/// A name for a migration, which no other has.
///
/// # Errors
/// When the system has no random number to give.
pub fn name() -> io::Result<String> {
    Ok(format!("{:032x}", u128::from_be_bytes(random()?)))
}

fn random() -> io::Result<[u8; 16]> {
    let mut bytes = [0; 16];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    if filled < bytes.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes)
}

/// Whether that is such a name.
pub(crate) fn is_name(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// What the other side wrote goes to a terminal: bounded, and without control characters.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(2000)
        .collect()
}

fn ended(error: io::Error, limit: Duration) -> LinkError {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => LinkError::Timeout(limit),
        io::ErrorKind::BrokenPipe
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::UnexpectedEof => LinkError::Closed,
        _ => LinkError::System(error),
    }
}

mod streams {
    use super::{Duration, Stream, io};

    impl Stream for std::os::unix::net::UnixStream {
        fn set_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
            self.set_read_timeout(limit)?;
            self.set_write_timeout(limit)
        }

        fn set_nonblocking(&self, on: bool) -> io::Result<()> {
            self.set_nonblocking(on)
        }
    }

    impl Stream for std::net::TcpStream {
        fn set_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
            self.set_read_timeout(limit)?;
            self.set_write_timeout(limit)
        }

        fn set_nonblocking(&self, on: bool) -> io::Result<()> {
            self.set_nonblocking(on)
        }
    }
}

#[cfg(test)]
mod tests;
