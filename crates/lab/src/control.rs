//! The host's half of the conversation with `init.sh` on the guest's second serial line.
//!
//! The line has no flow control and may carry the rest of an older conversation (a command that
//! timed out, another QEMU's), so each request has a token that its answer repeats, and whatever
//! is not that answer is passed over.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

/// Longest command, in bytes. The guest's tty drops what its driver cannot buffer.
const MAX_COMMAND: usize = 16 << 10;
/// Longest answer: the guest sends at most 1 MiB of standard output and 64 KiB of standard error.
const MAX_LINE: usize = 2 << 20;
/// How often the caller is asked whether waiting still makes sense.
const CHECK: Duration = Duration::from_millis(200);

/// What a command in the guest did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Exit status; 137 if it was killed at its time limit.
    pub status: i32,
    /// Standard output, the first MiB of it.
    pub stdout: String,
    /// Standard error, the first 64 KiB of it.
    pub stderr: String,
}

impl Output {
    /// Standard output of a command that must succeed.
    ///
    /// # Errors
    ///
    /// If its status is not 0, with what it printed.
    pub fn success(self) -> Result<String> {
        let Self {
            status,
            stdout,
            stderr,
        } = self;
        ensure!(
            status == 0,
            "the command in the guest failed with status {status}: {stdout}{stderr}"
        );
        Ok(stdout)
    }
}

/// How long an answer may stay out before the guest is made to look.
const NUDGE: Duration = Duration::from_secs(1);

/// The host's end of the line.
#[derive(Debug)]
pub(crate) struct Control {
    stream: UnixStream,
    received: Vec<u8>,
}

impl Control {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            received: Vec::new(),
        }
    }

    /// Waits for the guest's first word.
    pub(crate) fn wait_ready(
        &mut self,
        deadline: Instant,
        alive: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        self.wait_for(deadline, alive, |line| (line == b"READY").then_some(Ok(())))
    }

    /// Runs a command in the guest's shell.
    pub(crate) fn run(
        &mut self,
        command: &str,
        deadline: Instant,
        alive: impl FnMut() -> Result<()>,
    ) -> Result<Output> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        ensure!(
            command.len() <= MAX_COMMAND,
            "a command of {} bytes; at most {MAX_COMMAND} fit the guest's serial line, so put it \
             into the initrd as a program",
            command.len()
        );
        let token = format!(
            "{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let left = deadline.saturating_duration_since(Instant::now());
        let seconds = left.as_secs() + 1;
        let request = format!("RUN {token} {seconds} {}\n", BASE64.encode(command));
        self.stream.set_write_timeout(Some(left.max(CHECK)))?;
        self.stream
            .write_all(request.as_bytes())
            .context("cannot write to the guest's serial line")?;
        self.wait_for(deadline, alive, |line| answer(line, &token))
    }

    fn wait_for<T>(
        &mut self,
        deadline: Instant,
        mut alive: impl FnMut() -> Result<()>,
        mut wanted: impl FnMut(&[u8]) -> Option<Result<T>>,
    ) -> Result<T> {
        let mut nudged = Instant::now();
        loop {
            while let Some(line) = self.next_line() {
                if let Some(result) = wanted(line.trim_ascii()) {
                    return result;
                }
            }
            alive()?;
            if nudged.elapsed() >= NUDGE {
                nudged = Instant::now();
                self.nudge()?;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "the guest did not answer in time");
            self.receive(left.min(CHECK))?;
        }
    }

    /// An empty line, which the guest passes over. Once in a while an emulated guest that idles does
    /// not take notice of its serial line in time; the next byte makes it look.
    fn nudge(&mut self) -> Result<()> {
        self.stream.set_write_timeout(Some(CHECK))?;
        match self.stream.write(b"\n") {
            Ok(_) => Ok(()),
            // It is full: there is more than enough to look at.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error).context("cannot write to the guest's serial line"),
        }
    }

    fn next_line(&mut self) -> Option<Vec<u8>> {
        let end = self.received.iter().position(|byte| *byte == b'\n')?;
        Some(self.received.drain(..=end).collect())
    }

    fn receive(&mut self, timeout: Duration) -> Result<()> {
        let mut chunk = [0; 16 << 10];
        self.stream.set_read_timeout(Some(timeout))?;
        match self.stream.read(&mut chunk) {
            Ok(0) => bail!("QEMU closed the guest's serial line"),
            Ok(count) => self.received.extend_from_slice(&chunk[..count]),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock
                | io::ErrorKind::TimedOut
                | io::ErrorKind::Interrupted => {}
                _ => return Err(error).context("cannot read the guest's serial line"),
            },
        }
        ensure!(
            self.received.len() <= MAX_LINE,
            "the guest sent a line longer than {MAX_LINE} bytes"
        );
        Ok(())
    }
}

/// `DONE TOKEN STATUS =STDOUT =STDERR`; `None` if it is not the answer to this request.
fn answer(line: &[u8], token: &str) -> Option<Result<Output>> {
    let line = std::str::from_utf8(line).ok()?;
    // The end of an older answer may stand before it, if that was cut off by a move to this QEMU.
    let (_, rest) = line.rsplit_once("DONE ")?;
    let rest = rest.strip_prefix(token)?.strip_prefix(' ')?;
    Some(parse(rest).context("the guest's answer was garbled on its serial line"))
}

fn parse(fields: &str) -> Result<Output> {
    let mut fields = fields.split(' ');
    let mut field = || fields.next().context("too short");
    let status = field()?.parse().context("no exit status")?;
    let mut text = || -> Result<String> {
        let encoded = field()?.strip_prefix('=').context("no output")?;
        Ok(String::from_utf8_lossy(&BASE64.decode(encoded)?).into_owned())
    };
    Ok(Output {
        status,
        stdout: text()?,
        stderr: text()?,
    })
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::thread;

    use proptest::prelude::*;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    /// A guest that answers each request with `answers`' next, in which `TOKEN` stands for its
    /// token.
    fn guest(answers: &'static [&str]) -> Control {
        let (ours, theirs) = UnixStream::pair().unwrap();
        thread::spawn(move || {
            let mut lines = BufReader::new(theirs.try_clone().unwrap()).lines();
            for answer in answers {
                let request = lines.next().unwrap().unwrap();
                let token = request.split(' ').nth(1).unwrap();
                (&theirs)
                    .write_all(answer.replace("TOKEN", token).as_bytes())
                    .unwrap();
            }
            // Stays connected until the host hangs up.
            let _ = lines.next();
        });
        Control::new(ours)
    }

    #[test]
    fn an_answer_is_found_amid_the_rest_of_older_conversations() {
        let mut control = guest(&[
            "READY\nDONE 1-1 0 =b2xk =\nd29ybGQ= =DONE TOKEN 3 =aGVsbG8= =d29y\nDONE 9",
            "9 0 = =\nDONE TOKEN 0 = =\n",
        ]);
        let output = control.run("true", soon(), || Ok(())).unwrap();
        let (stdout, stderr) = ("hello".to_owned(), "wor".to_owned());
        assert_eq!(
            output,
            Output {
                status: 3,
                stdout,
                stderr
            }
        );
        assert_eq!(
            control
                .run("true", soon(), || Ok(()))
                .unwrap()
                .success()
                .unwrap(),
            ""
        );
    }

    #[test]
    fn a_garbled_answer_is_an_error() {
        for line in [
            "DONE TOKEN\n",
            "DONE TOKEN x = =\n",
            "DONE TOKEN 0 =? =\n",
            "DONE TOKEN 0 =\n",
        ] {
            let mut control = guest(Box::leak(Box::new([line])));
            // The first has no space after the token, so it is nobody's answer.
            let deadline = Instant::now() + Duration::from_millis(100);
            assert!(control.run("true", deadline, || Ok(())).is_err(), "{line}");
        }
    }

    #[test]
    fn waiting_ends_when_the_vm_does() {
        let mut control = guest(&[""]);
        let error = control
            .run("true", soon(), || bail!("QEMU is dead"))
            .unwrap_err();
        assert_eq!(error.to_string(), "QEMU is dead");
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        let error = Control::new(ours)
            .wait_ready(soon(), || Ok(()))
            .unwrap_err();
        assert!(error.to_string().contains("closed"), "{error}");
    }

    #[test]
    fn a_command_that_does_not_fit_the_line_is_refused() {
        let error = guest(&[])
            .run(&"x".repeat(MAX_COMMAND + 1), soon(), || Ok(()))
            .unwrap_err();
        assert!(error.to_string().contains("initrd"), "{error}");
    }

    proptest! {
        #[test]
        fn no_line_makes_the_parser_panic(line: Vec<u8>, rest in "[0-9]{0,3}( =[a-zA-Z0-9=+/]{0,9}){0,3}") {
            let _ = answer(&line, "1-1");
            let _ = answer(format!("DONE 1-1 {rest}").as_bytes(), "1-1");
        }
    }
}
