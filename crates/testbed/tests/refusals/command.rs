//! A running `vferry migrate`, as somebody at a terminal sees it.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ferry::Phase;
use ferry::report::Progress;
use qemu::Qmp;
use qemu::migration::MigrationStatus;
use rustix::process::{Pid, Signal, kill_process};
use testbed::Host;
use vferry::control::Reply;

use crate::PATIENCE;

/// The command. Dropping it kills it.
pub(crate) struct Command {
    child: Child,
    replies: Receiver<Reply>,
}

/// How it ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) status: ExitStatus,
    pub(crate) stderr: String,
    /// The last thing it printed.
    pub(crate) last: Option<Reply>,
}

impl Command {
    /// Asks for a migration from `host` to `link`, verified.
    pub(crate) fn migrate(host: &Host, link: &str) -> Result<Self> {
        let mut command = host.command("migrate");
        command.args(["--json", "--verify", "--to", link]);
        Self::spawn(command)
    }

    /// Asks whether that would be refused.
    pub(crate) fn look(host: &Host, link: &str) -> Result<Self> {
        let mut command = host.command("check");
        command.args(["--json", "--to", link]);
        Self::spawn(command)
    }

    pub(crate) fn spawn(mut command: std::process::Command) -> Result<Self> {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let lines = BufReader::new(child.stdout.take().context("stdout is piped")?).lines();
        let (sender, replies) = mpsc::channel();
        thread::spawn(move || {
            let parsed = lines.map_while(Result::ok);
            for reply in parsed.map_while(|line| serde_json::from_str(&line).ok()) {
                let _ = sender.send(reply);
            }
        });
        Ok(Self { child, replies })
    }

    /// Waits until memory is being copied, as the command and `qmp`, the source's QEMU, say.
    pub(crate) fn wait_precopy(&mut self, qmp: &Qmp) -> Result<()> {
        self.wait_phase(Phase::Precopy)?;
        let deadline = Instant::now() + PATIENCE;
        while qmp.migration()?.status != MigrationStatus::Active {
            ensure!(Instant::now() < deadline, "QEMU copies no memory");
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Waits until this phase begins, as the command says.
    pub(crate) fn wait_phase(&mut self, phase: Phase) -> Result<()> {
        let begins = Reply::Progress(Progress::Phase { phase });
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.next(deadline)? {
                Some(reply) if reply == begins => return Ok(()),
                Some(Reply::Progress(_)) => {}
                other => bail!("no phase {phase} but {other:?}: {}", self.stderr()?),
            }
        }
    }

    /// What Ctrl-C does.
    pub(crate) fn interrupt(&self) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), Signal::INT)?)
    }

    pub(crate) fn wait(mut self) -> Result<Outcome> {
        let deadline = Instant::now() + PATIENCE;
        let mut last = None;
        while let Some(reply) = self.next(deadline)? {
            last = Some(reply);
        }
        let stderr = self.stderr()?;
        Ok(Outcome {
            status: self.child.wait()?,
            stderr,
            last,
        })
    }

    fn next(&self, deadline: Instant) -> Result<Option<Reply>> {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.replies.recv_timeout(left) {
            Ok(reply) => Ok(Some(reply)),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => bail!("`vferry migrate` did not get on"),
        }
    }

    fn stderr(&mut self) -> Result<String> {
        let mut text = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            stderr.read_to_string(&mut text)?;
        }
        Ok(text)
    }
}

impl Drop for Command {
    fn drop(&mut self) {
        // Fails if it has ended, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Outcome {
    /// It failed, and says all of `words`.
    pub(crate) fn refused(&self, words: &[&str]) -> Result<()> {
        ensure!(self.status.code() == Some(1), "it did not fail: {self:?}");
        let why = match &self.last {
            Some(Reply::Failed { why }) => why,
            other => bail!("it printed {other:?} last"),
        };
        ensure!(
            self.stderr.contains(why.as_str()),
            "standard error tells another reason: {self:?}"
        );
        for word in words {
            ensure!(why.contains(word), "not a word of `{word}`: {why}");
        }
        Ok(())
    }
}
