//! A service manager with one unit, which holds what that tells it to as systemd does, and starts it again.

use std::fs::{self, File};
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use command_fds::{CommandFdExt as _, FdMapping};
use lab::Guarded;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{Pid, Signal, kill_process};

use crate::Host;

/// How long a process may take to end, or to serve.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(5);
/// `SD_LISTEN_FDS_START`.
const FIRST: i32 = 3;

/// The service manager.
#[derive(Debug)]
pub struct Manager {
    /// What the unit's process finds in `NOTIFY_SOCKET`.
    pub socket: PathBuf,
    unit: Arc<Mutex<Unit>>,
}

/// What it knows of the unit.
#[derive(Debug, Default)]
struct Unit {
    stored: Vec<(String, OwnedFd)>,
    status: String,
    /// How often it has said that it serves.
    ready: u64,
}

impl Manager {
    /// One that listens in `folder`.
    ///
    /// # Errors
    /// When it cannot.
    pub fn start(folder: &Path) -> Result<Self> {
        let socket = folder.join("notify.sock");
        let listener = UnixDatagram::bind(&socket)?;
        let unit = Arc::<Mutex<Unit>>::default();
        let heard = Arc::clone(&unit);
        thread::Builder::new()
            .name("manager".into())
            .spawn(move || {
                while let Ok((words, fds)) = receive(&listener) {
                    lock(&heard).hear(&words, fds);
                }
            })?;
        Ok(Self { socket, unit })
    }

    /// What the unit has said last of how it is.
    pub fn status(&self) -> String {
        lock(&self.unit).status.clone()
    }

    /// How many descriptors it holds.
    pub fn stored(&self) -> usize {
        lock(&self.unit).stored.len()
    }

    /// Ends the unit's `process`, which serves `host`, by `signal`, and starts `vferry run` again with what is held. Says
    /// how the first ended.
    ///
    /// # Errors
    /// When the one does not end, or the other does not come to serve.
    pub fn restart(
        &self,
        host: &Host,
        process: &Guarded,
        signal: Signal,
    ) -> Result<(ExitStatus, Guarded)> {
        let worker = host.status()?.pid;
        let pid = i32::try_from(process.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.context("it has a process")?, signal)?;
        let ended = process.wait(Instant::now() + PATIENCE);
        let ended = ended.context("it does not end")?;
        // systemd starts no other before all of the unit's processes are gone.
        // Nobody may have asked for how it ended: what has ended has no program.
        let is_there = || fs::read_link(format!("/proc/{worker}/exe")).is_ok();
        wait("its worker does not end", || !is_there())?;
        let ready = lock(&self.unit).ready;
        let log = File::options().append(true).open(host.log_file())?;
        let again = Guarded::spawn(self.command(host)?, &log)?;
        wait("it is not started again", || {
            lock(&self.unit).ready > ready || again.exit_status().is_some()
        })?;
        ensure!(
            again.exit_status().is_none(),
            "it has ended; it said:\n{}",
            host.log()
        );
        Ok((ended, again))
    }

    fn command(&self, host: &Host) -> Result<Command> {
        let unit = lock(&self.unit);
        let mut command = Command::new("sh");
        // The process that it becomes keeps its number.
        command
            .args(["-c", "LISTEN_PID=$$ exec \"$0\" run \"$1\""])
            .arg(host.vferry())
            .arg(&host.config)
            .env("NOTIFY_SOCKET", &self.socket)
            .env("LISTEN_FDS", unit.stored.len().to_string());
        let names = unit.stored.iter().map(|(name, _)| name.as_str());
        command.env("LISTEN_FDNAMES", names.collect::<Vec<_>>().join(":"));
        let mappings = (FIRST..).zip(&unit.stored).map(|(child_fd, (_, fd))| {
            Ok(FdMapping {
                parent_fd: fd.try_clone()?,
                child_fd,
            })
        });
        command.fd_mappings(mappings.collect::<Result<_>>()?)?;
        Ok(command)
    }
}

impl Unit {
    fn hear(&mut self, words: &str, fds: Vec<OwnedFd>) {
        let has = |word: &str| words.lines().any(|line| line == word);
        let value = |key: &str| {
            let mut lines = words.lines();
            lines.find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
        };
        let name = value("FDNAME").unwrap_or("stored");
        if has("FDSTORE=1") {
            for fd in fds {
                // `service_add_fd_store`: nothing is held twice.
                if !self.stored.iter().any(|(_, held)| is_same(held, &fd)) {
                    self.stored.push((name.to_owned(), fd));
                }
            }
        } else if has("FDSTOREREMOVE=1") {
            self.stored.retain(|(stored, _)| stored != name);
        }
        if let Some(status) = value("STATUS") {
            status.clone_into(&mut self.status);
        }
        self.ready += u64::from(has("READY=1"));
    }
}

fn receive(socket: &UnixDatagram) -> Result<(String, Vec<OwnedFd>)> {
    let mut bytes = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut packet = [IoSliceMut::new(&mut bytes)];
    let received = recvmsg(socket, &mut packet, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    let words = String::from_utf8_lossy(&bytes[..received.bytes]).into_owned();
    Ok((words, fds))
}

/// `same_fd` of systemd: kcmp(2).
#[expect(unsafe_code, reason = "kcmp has no safe wrapper")]
fn is_same(a: &OwnedFd, b: &OwnedFd) -> bool {
    const KCMP_FILE: libc::c_long = 0;
    let pid = rustix::process::getpid().as_raw_pid();
    let (a, b) = (a.as_raw_fd(), b.as_raw_fd());
    // SAFETY: it is given numbers, two of which are of descriptors that live for the call, and writes nothing.
    unsafe { libc::syscall(libc::SYS_kcmp, pid, pid, KCMP_FILE, a, b) == 0 }
}

fn wait(what: &str, done: impl Fn() -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        ensure!(Instant::now() < deadline, "{what}");
        thread::sleep(LOOK);
    }
    Ok(())
}

fn lock(unit: &Mutex<Unit>) -> MutexGuard<'_, Unit> {
    unit.lock().unwrap_or_else(PoisonError::into_inner)
}
