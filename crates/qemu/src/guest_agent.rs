//! The QEMU guest agent (`qemu-ga`), as far as putting a guest to sleep goes.
//!
//! The other end of the socket is a program in the guest: nothing that it says is trusted, what is
//! read is bounded, and nothing waits for it without a deadline.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};

/// Longest line that is taken. An answer to what is asked here has less than 100 bytes; what an
/// earlier client has left unread may be longer, and is skipped.
const MAX_LINE: usize = 64 << 10;
/// The byte that begins an answer to `guest-sync-delimited`, and resets the agent's parser.
const DELIMITER: u8 = 0xff;
/// How long [`GuestAgent::refusal`] listens.
const LISTEN: Duration = Duration::from_millis(1);

/// Why the agent was not asked, or did not do it.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The socket cannot be used.
    #[error("the guest agent's socket {path}: {source}", path = .path.display())]
    Socket {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Nobody answers.
    #[error("no guest agent answers at {path} within {waited:?}: is `qemu-ga` started in the guest?", path = .path.display())]
    Silent {
        /// Where.
        path: PathBuf,
        /// How long.
        waited: Duration,
    },
    /// The agent said no.
    #[error("the guest agent refused: {0}")]
    Refused(String),
}

/// A conversation with the agent in one guest.
#[derive(Debug)]
pub struct GuestAgent {
    path: PathBuf,
    stream: UnixStream,
    /// Read, and not yet a whole line.
    line: Vec<u8>,
}

impl GuestAgent {
    /// Connects to the socket of the agent's channel at `path`, and sees the agent answer before
    /// `deadline`.
    ///
    /// # Errors
    ///
    /// [`AgentError::Socket`] or [`AgentError::Silent`].
    pub fn connect(path: &Path, deadline: Instant) -> Result<Self, AgentError> {
        let began = Instant::now();
        let failed = |source| AgentError::Socket {
            path: path.to_owned(),
            source,
        };
        let stream = UnixStream::connect(path).map_err(failed)?;
        let mut this = Self {
            path: path.to_owned(),
            stream,
            line: Vec::new(),
        };
        // What an earlier client has asked may still be answered: only this number is ours.
        let id = std::process::id() | 1 << 30;
        this.send("guest-sync-delimited", &json!({ "id": id }), deadline)?;
        loop {
            let Some(answer) = this.receive(deadline)? else {
                return Err(AgentError::Silent {
                    path: this.path,
                    waited: began.elapsed(),
                });
            };
            if answer.value.as_ref().and_then(Value::as_u64) == Some(id.into()) {
                return Ok(this);
            }
        }
    }

    /// `guest-suspend-ram`. The agent answers only if it refuses: see [`GuestAgent::refusal`].
    ///
    /// # Errors
    ///
    /// [`AgentError::Socket`].
    pub fn suspend_to_ram(&mut self, deadline: Instant) -> Result<(), AgentError> {
        self.send("guest-suspend-ram", &json!({}), deadline)
    }

    /// What the agent has answered since, which is a refusal.
    ///
    /// # Errors
    ///
    /// [`AgentError::Refused`]. A connection that ended is none: QEMU's end closes when the guest
    /// goes to sleep.
    pub fn refusal(&mut self) -> Result<(), AgentError> {
        match self.receive(Instant::now() + LISTEN) {
            Ok(Some(Answer {
                error: Some(error), ..
            })) => Err(AgentError::Refused(printable(&error.desc))),
            _ => Ok(()),
        }
    }

    fn send(
        &mut self,
        command: &str,
        arguments: &Value,
        deadline: Instant,
    ) -> Result<(), AgentError> {
        let mut message = vec![DELIMITER];
        message.extend(
            json!({ "execute": command, "arguments": arguments })
                .to_string()
                .bytes(),
        );
        message.push(b'\n');
        self.stream
            .set_write_timeout(Some(until(deadline)))
            .and_then(|()| self.stream.write_all(&message))
            .map_err(|source| self.failed(source))
    }

    /// The next answer; `None` if there is none before `deadline`.
    fn receive(&mut self, deadline: Instant) -> Result<Option<Answer>, AgentError> {
        loop {
            let mut byte = [0];
            let read = self
                .stream
                .set_read_timeout(Some(until(deadline)))
                .and_then(|()| self.stream.read(&mut byte));
            match read {
                Ok(0) => return Err(self.failed(ErrorKind::UnexpectedEof.into())),
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock || e.kind() == ErrorKind::TimedOut => {
                    return Ok(None);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => return Err(self.failed(e)),
            }
            match byte {
                [b'\n'] => {
                    let line = std::mem::take(&mut self.line);
                    // Anything else is what somebody else has asked for.
                    if let Ok(answer) = serde_json::from_slice(&line) {
                        return Ok(Some(answer));
                    }
                }
                [DELIMITER] => self.line.clear(),
                [byte] if self.line.len() < MAX_LINE => self.line.push(byte),
                // The rest of a line that is too long is none.
                [_] => {}
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
        }
    }

    fn failed(&self, source: io::Error) -> AgentError {
        AgentError::Socket {
            path: self.path.clone(),
            source,
        }
    }
}

/// A timeout of zero would mean none.
fn until(deadline: Instant) -> Duration {
    deadline
        .saturating_duration_since(Instant::now())
        .max(Duration::from_millis(1))
}

fn printable(text: &str) -> String {
    text.chars()
        .take(200)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "return")]
    value: Option<Value>,
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Refusal {
    desc: String,
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixListener;
    use std::thread::{self, JoinHandle};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// An agent that answers the first command by `first`, where `ID` stands for the number that
    /// it was asked with, and the second by `second`.
    fn agent(
        first: &'static [u8],
        second: &'static [u8],
    ) -> (tempfile::TempDir, PathBuf, JoinHandle<Vec<String>>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent");
        let listener = UnixListener::bind(&path).unwrap();
        let thread = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap());
            let mut asked = Vec::new();
            for answer in [first, second] {
                let mut line = Vec::new();
                if lines.read_until(b'\n', &mut line).unwrap() == 0 {
                    break;
                }
                assert_eq!(line[0], DELIMITER);
                let command: Value = serde_json::from_slice(&line[1..]).unwrap();
                asked.push(command["execute"].as_str().unwrap().to_owned());
                let id = command["arguments"]["id"].to_string();
                let answer = answer
                    .split(|byte| *byte == b'#')
                    .collect::<Vec<_>>()
                    .join(id.as_bytes());
                stream.write_all(&answer).unwrap();
            }
            // Until the other side is done.
            let _ = lines.read_until(b'\n', &mut Vec::new());
            asked
        });
        (folder, path, thread)
    }

    fn connect(path: &Path) -> Result<GuestAgent, AgentError> {
        GuestAgent::connect(path, Instant::now() + PATIENCE)
    }

    #[test]
    fn a_suspend_is_asked_for_once_the_agent_has_answered() {
        let left_over = b"{\"return\": {}}\nrubbish\n{\"retu\xff{\"return\": #}\n";
        let (_folder, path, agent) = agent(left_over, b"");
        let mut asking = connect(&path).unwrap();
        asking.suspend_to_ram(Instant::now() + PATIENCE).unwrap();
        asking.refusal().unwrap();
        drop(asking);
        assert_eq!(
            agent.join().unwrap(),
            ["guest-sync-delimited", "guest-suspend-ram"]
        );
    }

    #[test]
    fn a_refusal_is_told_in_the_agents_words() {
        let error =
            b"{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\\u0007 suspend\"}}\n";
        let (_folder, path, _agent) = agent(b"\xff{\"return\": #}\n", error);
        let mut asking = connect(&path).unwrap();
        asking.suspend_to_ram(Instant::now() + PATIENCE).unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            match asking.refusal() {
                Ok(()) => assert!(Instant::now() < deadline, "no refusal"),
                Err(error) => {
                    assert!(
                        error.to_string().ends_with("refused: no  suspend"),
                        "{error}"
                    );
                    break;
                }
            }
        }
    }

    #[test]
    fn a_silent_agent_is_given_up_at_the_deadline() {
        let (_folder, path, _agent) = agent(b"{\"return\": 5}\n", b"");
        let error = GuestAgent::connect(&path, Instant::now() + Duration::from_millis(50));
        assert!(matches!(error, Err(AgentError::Silent { .. })), "{error:?}");
        let nobody = path.with_file_name("nobody");
        assert!(matches!(connect(&nobody), Err(AgentError::Socket { .. })));
    }
}
