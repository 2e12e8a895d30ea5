//! A child process that does not outlive us, however we end.

use std::fs::File;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process_group};

/// Leads the process group of the child, and kills all of it when its standard input ends. That
/// pipe's other end is in this process alone, so it ends when this process does, by SIGKILL too.
/// (`PR_SET_PDEATHSIG` would fire when the *thread* that made the child ends.)
const GUARDIAN: &str = "trap '' HUP INT TERM; read -r end; kill -s KILL 0";

/// A child in a process group of its own, so that a Ctrl-C on the terminal does not reach it.
/// Dropping it kills it.
#[derive(Debug)]
pub struct Guarded {
    guardian: Child,
    child: Mutex<Child>,
}

impl Guarded {
    /// Starts `command`, with standard output and error in `log`.
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub fn spawn(mut command: Command, log: &File) -> Result<Self> {
        use std::os::unix::process::CommandExt;

        let name = command.get_program().to_string_lossy().into_owned();
        let mut guardian = Command::new("/bin/sh")
            .args(["-c", GUARDIAN])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("cannot start a shell to guard QEMU")?;
        let spawned = i32::try_from(guardian.id())
            .context("a process id above 31 bits")
            .and_then(|group| {
                command
                    .stdin(Stdio::null())
                    .stdout(log.try_clone()?)
                    .stderr(log.try_clone()?)
                    .process_group(group)
                    .spawn()
                    .with_context(|| format!("cannot run {name}"))
            });
        match spawned {
            Ok(child) => Ok(Self {
                guardian,
                child: Mutex::new(child),
            }),
            Err(error) => {
                drop(guardian.stdin.take());
                let _ = guardian.wait();
                Err(error)
            }
        }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .id()
    }

    /// How it ended; `None` while it runs.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        self.child
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .try_wait()
            .ok()
            .flatten()
    }

    /// Kills it, and all that it has started in its process group. It has ended when this returns.
    pub fn kill(&self) {
        // The guardian is not reaped yet, so its id still names this group and no other.
        if let Some(group) = i32::try_from(self.guardian.id())
            .ok()
            .and_then(Pid::from_raw)
        {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self
            .child
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .wait();
    }

    /// Waits for it to end by itself.
    pub fn wait(&self, deadline: Instant) -> Option<ExitStatus> {
        loop {
            let status = self.exit_status();
            if status.is_some() || Instant::now() >= deadline {
                return status;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.kill();
        let _ = self.guardian.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper() -> Guarded {
        let mut command = Command::new("sleep");
        command.arg("1000");
        Guarded::spawn(command, &tempfile::tempfile().unwrap()).unwrap()
    }

    fn exists(id: u32) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        !stat.is_empty() && !stat.contains(") Z ")
    }

    #[test]
    fn dropping_it_kills_it() {
        let process = sleeper();
        let id = process.id();
        assert!(exists(id));
        drop(process);
        assert!(!exists(id));
    }

    #[test]
    fn losing_the_pipe_kills_it() {
        let mut process = sleeper();
        assert_eq!(process.exit_status(), None);
        drop(process.guardian.stdin.take());
        let status = process.wait(Instant::now() + Duration::from_secs(10));
        assert!(status.is_some_and(|status| !status.success()), "{status:?}");
    }

    #[test]
    fn it_outlives_the_thread_that_made_it() {
        let process = thread::spawn(sleeper).join().unwrap();
        assert_eq!(
            process.wait(Instant::now() + Duration::from_millis(50)),
            None
        );
    }

    #[test]
    fn a_program_that_does_not_exist_is_named() {
        let command = Command::new("/no/such/program");
        let error = Guarded::spawn(command, &tempfile::tempfile().unwrap()).unwrap_err();
        assert!(
            format!("{error:#}").contains("/no/such/program"),
            "{error:#}"
        );
    }
}
