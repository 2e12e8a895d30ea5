//! A running `vferry migrate`, and what it said.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ferry::report::Progress;
use ferry::{Phase, Report};
use rustix::process::{Pid, Signal, kill_process};
use vferry::control::Reply;

use super::cases::Says;

/// The command. Dropping it kills it.
#[derive(Debug)]
pub(super) struct Migrate {
    child: Child,
    replies: Option<JoinHandle<Option<Reply>>>,
    errors: Option<JoinHandle<String>>,
}

/// How it ended.
#[derive(Debug)]
pub(super) struct Outcome {
    /// `None` if it did not end in time.
    pub(super) status: Option<ExitStatus>,
    pub(super) stderr: String,
    pub(super) report: Option<Report>,
}

impl Migrate {
    /// `quiesce` is set when the guest is asked to stop its devices.
    pub(super) fn spawn(mut command: Command, quiesce: Arc<AtomicBool>) -> Result<Self> {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let lines = BufReader::new(child.stdout.take().context("stdout is piped")?).lines();
        let mut stderr = child.stderr.take().context("stderr is piped")?;
        let replies = thread::spawn(move || {
            let mut last = None;
            for line in lines.map_while(Result::ok) {
                let Ok(reply) = serde_json::from_str(&line) else {
                    continue;
                };
                if let Reply::Progress(Progress::Phase { phase }) = &reply
                    && *phase == Phase::Quiesce
                {
                    quiesce.store(true, Ordering::Release);
                }
                last = Some(reply);
            }
            last
        });
        let errors = thread::spawn(move || {
            let mut text = String::new();
            let _ = stderr.read_to_string(&mut text);
            text
        });
        Ok(Self {
            child,
            replies: Some(replies),
            errors: Some(errors),
        })
    }

    pub(super) fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn has_ended(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_some())
    }

    /// Waits for its end until `deadline`, and kills it then.
    pub(super) fn wait(&mut self, deadline: Instant) -> Outcome {
        while !self.has_ended() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
        let status = self.child.try_wait().ok().flatten();
        let _ = self.child.kill();
        let _ = self.child.wait();
        let last = self.replies.take().and_then(|thread| thread.join().ok());
        let stderr = self.errors.take().and_then(|thread| thread.join().ok());
        Outcome {
            status,
            stderr: stderr.unwrap_or_default(),
            report: match last.flatten() {
                Some(Reply::Done { report }) => Some(report),
                _ => None,
            },
        }
    }
}

impl Drop for Migrate {
    fn drop(&mut self) {
        // Fails if it has ended, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Outcome {
    /// The VM has arrived.
    pub(super) fn is_done(&self) -> bool {
        self.status.is_some_and(|status| status.success()) && self.report.is_some()
    }

    /// What is wrong with what it said.
    pub(super) fn differs_from(&self, says: Says) -> Option<String> {
        let code = self.status.and_then(|status| status.code());
        let failed_with = |words| code == Some(1) && self.stderr.contains(words);
        let right = match says {
            Says::Gone => return None,
            Says::Done => self.is_done(),
            Says::DoneOr(words) => self.is_done() || failed_with(words),
            Says::Why(words) => failed_with(words),
        };
        let said = self.stderr.trim();
        (!right).then(|| match self.status {
            Some(status) => {
                format!("the command ended with {status} and said {said:?}, not {says:?}")
            }
            None => format!("the command did not end, and said {said:?}"),
        })
    }
}
