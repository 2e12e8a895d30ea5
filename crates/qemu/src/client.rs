//! The QMP client.

use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::connection::{Events, Reply, Shared};
use crate::system::Rests;
use crate::{Disconnect, QmpError, Version};

/// How long [`Qmp::execute`] waits for an answer. A healthy QEMU answers in milliseconds, but its
/// main loop may be held by a device for as long as vfio-user's message timeout, 5 s.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a socket that is not there yet is looked for again.
const CONNECT_RETRY: Duration = Duration::from_millis(10);

/// A connection to one QEMU's monitor, past the capabilities negotiation.
///
/// All methods take `&self` and may be called from several threads; QEMU carries the commands out
/// one after the other. Dropping it closes the connection and leaves QEMU running.
#[derive(Debug)]
pub struct Qmp {
    shared: Arc<Shared>,
    writer: Mutex<UnixStream>,
    reader: Option<JoinHandle<()>>,
    next_id: AtomicU64,
    version: Version,
    path: Option<PathBuf>,
    pub(crate) rests: Option<Arc<dyn Rests>>,
}

impl Qmp {
    /// Has `rests` told of each time in which this client [stops the vCPUs](Qmp::while_stopped).
    #[must_use]
    pub fn telling(mut self, rests: Arc<dyn Rests>) -> Self {
        self.rests = Some(rests);
        self
    }

    /// Connects to the QMP socket at `path`, waiting until `deadline` for it to appear and for
    /// QEMU to greet.
    ///
    /// # Errors
    ///
    /// [`QmpError::NoListener`] if there is none by the deadline, [`QmpError::NoGreeting`] if it
    /// stays silent, and what [`Qmp::execute`] may return.
    pub fn connect(path: &Path, deadline: Instant) -> Result<Self, QmpError> {
        loop {
            let error = match UnixStream::connect(path) {
                Ok(stream) => {
                    let mut qmp = Self::from_stream(stream, deadline)?;
                    qmp.path = Some(path.to_owned());
                    return Ok(qmp);
                }
                Err(error) => error,
            };
            // A QEMU that is just starting has not made its socket yet, or not called listen.
            let absent = matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            );
            if !absent {
                return Err(QmpError::Connect {
                    path: path.to_owned(),
                    source: error,
                });
            }
            if Instant::now() >= deadline {
                return Err(QmpError::NoListener {
                    path: path.to_owned(),
                });
            }
            thread::sleep(CONNECT_RETRY);
        }
    }

    /// Takes over a stream whose other end is QEMU's monitor, before its greeting was read.
    ///
    /// # Errors
    ///
    /// As [`Qmp::connect`].
    pub fn from_stream(stream: UnixStream, deadline: Instant) -> Result<Self, QmpError> {
        let lost = |error: io::Error| QmpError::Disconnected {
            waiting_for: "the greeting".to_owned(),
            reason: Disconnect::Io(error.to_string()),
        };
        // A QEMU that no longer reads its monitor must not hold us for ever either.
        stream
            .set_write_timeout(Some(DEFAULT_TIMEOUT))
            .map_err(lost)?;
        let source = stream.try_clone().map_err(lost)?;
        let shared = Arc::new(Shared::default());
        let reader = thread::Builder::new()
            .name("qmp-reader".to_owned())
            .spawn({
                let shared = Arc::clone(&shared);
                move || {
                    let reason = shared.read_all(source);
                    shared.close(reason);
                }
            })
            .map_err(lost)?;
        // From here on, dropping `qmp` ends the thread.
        let mut qmp = Self {
            shared,
            writer: Mutex::new(stream),
            reader: Some(reader),
            next_id: AtomicU64::new(1),
            version: Version::default(),
            path: None,
            rests: None,
        };
        qmp.version = qmp
            .shared
            .wait("the greeting", deadline, |state| state.greeting.clone())
            .map_err(|error| match error {
                QmpError::Timeout { waited, .. } => QmpError::NoGreeting { waited },
                other => other,
            })?;
        qmp.agree(deadline)?;
        Ok(qmp)
    }

    /// Ends the negotiation. Out-of-band commands are asked for, as [`Qmp::execute_out_of_band`] needs
    /// them; a monitor that has none does without.
    fn agree(&self, deadline: Instant) -> Result<(), QmpError> {
        let with = json!({ "enable": ["oob"] });
        match self.execute_by("qmp_capabilities", with, deadline) {
            Err(QmpError::Refused { .. }) => {
                self.execute_by("qmp_capabilities", json!({}), deadline)?;
                Ok(())
            }
            other => other.map(drop),
        }
    }

    /// The socket, if it was connected to by its path.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The version that QEMU greeted with.
    pub fn version(&self) -> &Version {
        &self.version
    }

    /// Runs a command and returns its result, waiting up to [`DEFAULT_TIMEOUT`].
    ///
    /// # Errors
    ///
    /// [`QmpError::Refused`] with QEMU's words, [`QmpError::Timeout`] or
    /// [`QmpError::Disconnected`].
    pub fn execute(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.execute_by(command, arguments, Instant::now() + DEFAULT_TIMEOUT)
    }

    /// Runs a command and returns its result, waiting until `deadline`.
    ///
    /// A command whose deadline passed may still be carried out; its late answer is dropped.
    ///
    /// # Errors
    ///
    /// As [`Qmp::execute`].
    pub fn execute_by(
        &self,
        command: &str,
        arguments: Value,
        deadline: Instant,
    ) -> Result<Value, QmpError> {
        self.run("execute", command, arguments, deadline)
    }

    /// Runs one of the few commands that QEMU carries out even while its main loop is held up, and
    /// those before it wait.
    ///
    /// # Errors
    ///
    /// As [`Qmp::execute`].
    pub fn execute_out_of_band(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        let deadline = Instant::now() + DEFAULT_TIMEOUT;
        self.run("exec-oob", command, arguments, deadline)
    }

    fn run(
        &self,
        how: &str,
        command: &str,
        arguments: Value,
        deadline: Instant,
    ) -> Result<Value, QmpError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let mut line = json!({ "id": id });
        line[how] = command.into();
        line["arguments"] = arguments;
        self.shared.lock().replies.insert(id, None);
        self.send(&line);
        let reply = self
            .shared
            .wait(&format!("`{command}`"), deadline, |state| {
                let answered = state.replies.get(&id)?.is_some();
                answered
                    .then(|| state.replies.remove(&id).flatten())
                    .flatten()
            });
        match reply {
            Ok(Reply::Return(value)) => Ok(value),
            Ok(Reply::Error { class, description }) => Err(QmpError::Refused {
                command: command.to_owned(),
                class,
                description,
            }),
            Err(error) => {
                self.shared.lock().replies.remove(&id);
                Err(error)
            }
        }
    }

    /// Runs a command without arguments and parses its result.
    pub(crate) fn query<T: DeserializeOwned>(&self, command: &str) -> Result<T, QmpError> {
        let reply = self.execute(command, json!({}))?;
        serde_json::from_value(reply).map_err(|error| unexpected(command, error.to_string()))
    }

    /// A reader of the events that arrive from now on.
    pub fn events(&self) -> Events {
        self.shared.events()
    }

    /// A line that was cut short cannot be continued, so a failed write ends the connection; the
    /// waiting half reports it.
    fn send(&self, message: &Value) {
        let line = format!("{message}\n");
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = writer.write_all(line.as_bytes()) {
            let reason = match error.kind() {
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                    Disconnect::PeerClosed
                }
                _ => Disconnect::Io(error.to_string()),
            };
            self.shared.close(reason);
        }
    }
}

impl Drop for Qmp {
    fn drop(&mut self) {
        self.shared.close(Disconnect::ClosedHere);
        let writer = self
            .writer
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        // Fails only if the peer has closed already; the reader ends in both cases.
        let _ = writer.shutdown(Shutdown::Both);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

pub(crate) fn unexpected(command: &str, problem: impl Into<String>) -> QmpError {
    QmpError::UnexpectedReply {
        command: command.to_owned(),
        problem: problem.into(),
    }
}
