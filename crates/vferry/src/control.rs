//! What the commands say to the process that serves a VM: one line of JSON per message, over the
//! control socket of its configuration.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::rehearsal::Rehearsal;
use crate::resolution::Resolution;
use ferry::commit::Way;
use ferry::comparison::Comparison;
use ferry::report::Progress;
use ferry::source::Prospect;
use ferry::vm::Unsettled;
use ferry::{Report, Strategy};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// No line is longer, in bytes: room for a report that lists stale memory.
const MAX_LINE: u64 = 64 << 20;

/// No request is longer, in bytes: a few words and names of hosts.
const MAX_REQUEST: u64 = 64 << 10;

/// From a command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// How are you?
    Status,
    /// Migrate; progress follows, then `Done` or `Failed`.
    Migrate {
        /// The other vferry's link, `unix:PATH` or `tcp:ADDRESS:PORT`.
        to: String,
        /// Compare memory.
        verify: bool,
        /// Compare it before the VM runs there, and send what differs.
        #[serde(default)]
        compare: Comparison,
        /// Which strategy; vferry chooses if `None`.
        strategy: Option<Strategy>,
        /// Instead of the configuration's.
        downtime_limit_ms: Option<u64>,
    },
    /// Look whether a migration would be refused, on both hosts, and touch nothing; then `Prospect` or `Failed`.
    Check {
        /// As for a migration.
        to: String,
        /// As for a migration.
        compare: Comparison,
        /// As for a migration.
        strategy: Option<Strategy>,
    },
    /// Give up the migration asked for on this connection.
    Cancel,
    /// What can be done for a VM that is kept paused, as the other host may run it? Or do it.
    Resolve {
        /// What is to be done, if anything.
        way: Option<Way>,
    },
    /// Make room for a process of the program that lies where the keeper's was started from.
    Upgrade,
    /// Ask the guest for what a migration asks of it.
    Rehearse {
        /// How long it is to track what devices write, in milliseconds; less if the connection
        /// ends.
        hold_ms: u64,
        /// How long its devices are to stand still, in milliseconds; as above.
        stopped_ms: u64,
    },
}

/// From the process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    /// The answer to `Status`.
    Status(Status),
    /// A migration gets on.
    Progress(Progress),
    /// It succeeded.
    Done {
        /// How it went.
        report: Report,
    },
    /// The answer to `Check`, if nothing stands against the migration.
    Prospect(Prospect),
    /// The answer to `Rehearse`.
    Rehearsed(Rehearsal),
    /// The answer to `Upgrade`: the process ends now.
    HandsOver(HandsOver),
    /// The answer to `Resolve`.
    Resolve(Resolution),
    /// It did not, or the request was not understood.
    Failed {
        /// Why, and where the VM is.
        why: String,
    },
}

/// A process that makes room for another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandsOver {
    /// Of which version of vferry it is.
    pub version: String,
    /// The process.
    pub pid: u32,
    /// How often one of the next program has come to serve before.
    pub upgrades: u64,
}

/// How a VM's process is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Name of the VM.
    pub vm: String,
    /// The process that serves it.
    #[serde(default)]
    pub pid: u32,
    /// How many processes that served it have died; `None` if none could be gone on with.
    #[serde(default)]
    pub deaths: Option<u64>,
    /// Of which version of vferry it is; of one that did not say so if empty.
    #[serde(default)]
    pub version: String,
    /// How often one of the next program has come to serve; `None` if none could go on.
    #[serde(default)]
    pub upgrades: Option<u64>,
    /// Why one of the next program did not, the last time that it was to.
    #[serde(default)]
    pub upgrade_refused: Option<String>,
    /// Descriptors that the keeper was to hold and does not: no other process can go on without them.
    #[serde(default)]
    pub unheld: u64,
    /// Where its devices are in the life cycle.
    pub stage: String,
    /// Whether a migration is under way.
    pub migrating: bool,
    /// Whether QEMU is connected to the sidecar.
    pub sidecar_connected: bool,
    /// Whether the guest has a driver for the control device; `None` if there is none.
    #[serde(default)]
    pub guest_driver: Option<bool>,
    /// The devices.
    pub devices: Vec<DeviceStatus>,
    /// Pages marked in the migration under way, or the last one.
    pub pages_marked: u64,
    /// Why the VM is kept paused here, if the other host may run it.
    #[serde(default)]
    pub unsettled: Option<Unsettled>,
}

/// How a device is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// Its name.
    pub name: String,
    /// Whether QEMU is connected to it.
    pub connected: bool,
    /// Why it does not run as it did before it was halted last, if it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// What the model shows of itself.
    pub model: serde_json::Value,
}

/// One end of the control connection.
#[derive(Debug)]
pub struct Control {
    reader: BufReader<UnixStream>,
}

impl Control {
    /// Speaks over `stream`.
    pub fn new(stream: UnixStream) -> Self {
        Self {
            reader: BufReader::new(stream),
        }
    }

    /// Another handle for writing.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn writer(&self) -> io::Result<Writer> {
        Ok(Writer {
            stream: self.reader.get_ref().try_clone()?,
            broken: false,
        })
    }

    /// The next message, or `None` at the end.
    ///
    /// # Errors
    /// When the line is no message, or too long.
    pub fn receive<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        self.line(MAX_LINE)
    }

    /// A command's next words, or `None` if it has no more. They have to come within `limit`, if there is one.
    ///
    /// # Errors
    /// When the line is no request, too long, or not there in time.
    pub fn request(&mut self, limit: Option<Duration>) -> io::Result<Option<Request>> {
        self.reader.get_ref().set_read_timeout(limit)?;
        self.line(MAX_REQUEST)
    }

    fn line<T: DeserializeOwned>(&mut self, most: u64) -> io::Result<Option<T>> {
        let mut line = Vec::new();
        let count = self
            .reader
            .by_ref()
            .take(most)
            .read_until(b'\n', &mut line)?;
        if count == 0 {
            return Ok(None);
        }
        parse(&line).map(Some)
    }

    /// Waits for the other end to say something or to go away, at most for `limit`.
    pub fn linger(&mut self, limit: Duration) {
        // The system knows no wait of no time.
        let limit = limit.max(Duration::from_millis(1));
        if self.reader.get_ref().set_read_timeout(Some(limit)).is_ok() {
            // Whichever way it ends, it has ended.
            let _ = self.reader.fill_buf();
        }
    }
}

/// Sends messages.
#[derive(Debug)]
pub struct Writer {
    stream: UnixStream,
    /// A message was cut short: nothing that follows could be understood.
    broken: bool,
}

impl Writer {
    /// Sends one message.
    ///
    /// # Errors
    /// When the other end is gone.
    pub fn send<T: Serialize>(&mut self, message: &T) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        if self.broken {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let written = self.stream.write_all(&line);
        self.broken = written.is_err();
        written
    }

    /// Gives up on a reader that takes nothing for `limit`.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn set_patience(&self, limit: Duration) -> io::Result<()> {
        self.stream.set_write_timeout(Some(limit))
    }
}

/// Parses one line. For fuzzers too.
///
/// # Errors
/// When it is no message.
pub fn parse<T: DeserializeOwned>(line: &[u8]) -> io::Result<T> {
    serde_json::from_slice(line).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    use proptest::prelude::*;

    #[test]
    fn messages_arrive_one_by_one_and_the_end_is_told() {
        let (a, b) = UnixStream::pair().unwrap();
        let mut writer = Control::new(a).writer().unwrap();
        writer.send(&Request::Status).unwrap();
        writer.send(&Request::Cancel).unwrap();
        drop(writer);
        let mut control = Control::new(b);
        assert_eq!(control.receive().unwrap(), Some(Request::Status));
        assert_eq!(control.receive().unwrap(), Some(Request::Cancel));
        assert_eq!(control.receive::<Request>().unwrap(), None);
    }

    #[test]
    fn a_reader_that_does_not_read_holds_nobody_up() {
        let (a, _b) = UnixStream::pair().unwrap();
        let mut writer = Control::new(a).writer().unwrap();
        writer.set_patience(Duration::from_millis(1)).unwrap();
        let long = Reply::Failed {
            why: "x".repeat(1 << 20),
        };
        assert!(writer.send(&long).is_err());
        assert!(
            writer.send(&Request::Cancel).is_err(),
            "after half a message"
        );
    }

    #[test]
    fn lingering_ends_with_the_other_end() {
        let (a, b) = UnixStream::pair().unwrap();
        let mut control = Control::new(b);
        let began = Instant::now();
        control.linger(Duration::from_millis(20));
        assert!(began.elapsed() >= Duration::from_millis(20), "a is there");
        drop(a);
        control.linger(Duration::from_hours(1));
        assert_eq!(control.receive::<Request>().unwrap(), None);
    }

    #[test]
    fn a_command_has_to_say_what_it_wants() {
        let (mut a, b) = UnixStream::pair().unwrap();
        let mut control = Control::new(b);
        let silent = control
            .request(Some(Duration::from_millis(20)))
            .unwrap_err();
        assert_eq!(silent.kind(), io::ErrorKind::WouldBlock);
        a.write_all(&vec![b' '; 64 << 10]).unwrap();
        a.write_all(b"{\"request\":\"status\"}\n").unwrap();
        assert!(control.request(None).is_err(), "too long");
        // The rest of it.
        let asked = control.request(None).unwrap();
        assert_eq!(asked, Some(Request::Status));
    }

    #[test]
    fn a_line_without_end_is_an_error_not_memory() {
        let (mut a, b) = UnixStream::pair().unwrap();
        let writer = std::thread::spawn(move || {
            let _ = a.write_all(&vec![b'['; 65 << 20]);
        });
        assert!(Control::new(b).receive::<Request>().is_err());
        writer.join().unwrap();
    }

    proptest! {
        #[test]
        fn garbage_is_an_error(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(parse::<Request>(&line).is_err());
        }
    }
}
