//! How a running load is asked: one byte in, one line of JSON out, over an abstract unix socket
//! (which needs no writable folder).

use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use load_format::GuestReport;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::{dirty, disk, now_nanos, tcp, udp};

/// The parts that run.
#[derive(Debug)]
pub(crate) struct Load {
    udp: Option<Arc<udp::Account>>,
    tcp: Option<Arc<tcp::Account>>,
    dirty: Option<Arc<dirty::Account>>,
    disk: Option<Arc<disk::Account>>,
    window_start: AtomicU64,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Request {
    Report,
    Reset,
    /// Answered with the number of the pass, which is not over then.
    Verify,
}

/// How long one who asks may take to do so.
const PATIENCE: Duration = Duration::from_secs(10);

/// Between two looks at whether a disk is read through.
const VERIFY_TICK: Duration = Duration::from_millis(200);

impl Load {
    /// The load whose parts keep these accounts; its window begins now.
    pub(crate) fn new(
        udp: Option<Arc<udp::Account>>,
        tcp: Option<Arc<tcp::Account>>,
        dirty: Option<Arc<dirty::Account>>,
        disk: Option<Arc<disk::Account>>,
    ) -> Self {
        Self {
            udp,
            tcp,
            dirty,
            disk,
            window_start: AtomicU64::new(now_nanos()),
        }
    }

    fn report(&self) -> GuestReport {
        let now = now_nanos();
        GuestReport {
            window_nanos: now.saturating_sub(self.window_start.load(Ordering::Relaxed)),
            udp: self.udp.as_ref().map(|account| account.report(now)),
            tcp: self.tcp.as_ref().map(|account| account.report()),
            dirty: self.dirty.as_ref().map(|account| account.report()),
            disk: self.disk.as_ref().map(|account| account.report(now)),
        }
    }

    fn reset(&self) {
        self.window_start.store(now_nanos(), Ordering::Relaxed);
        if let Some(account) = &self.udp {
            account.reset();
        }
        if let Some(account) = &self.tcp {
            account.reset();
        }
        if let Some(account) = &self.dirty {
            account.reset();
        }
        if let Some(account) = &self.disk {
            account.reset();
        }
    }

    fn answer(&self, mut stream: UnixStream) -> Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut request = [0];
        stream.read_exact(&mut request)?;
        let answer = match Request::from_byte(request[0]) {
            Some(Request::Report) => serde_json::to_string(&self.report())?,
            Some(Request::Reset) => {
                self.reset();
                "{}".to_owned()
            }
            Some(Request::Verify) => match &self.disk {
                Some(account) => account.ask_pass().to_string(),
                None => "0".to_owned(),
            },
            None => "{\"error\":\"unknown request\"}".to_owned(),
        };
        Ok(writeln!(stream, "{answer}")?)
    }
}

impl Request {
    fn byte(self) -> u8 {
        match self {
            Self::Report => b'r',
            Self::Reset => b'0',
            Self::Verify => b'v',
        }
    }

    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Report, Self::Reset, Self::Verify]
            .into_iter()
            .find(|request| request.byte() == byte)
    }
}

/// Where a load is asked; made before the load starts, so that whoever sees traffic can ask.
#[derive(Debug)]
pub(crate) struct Control(UnixListener);

impl Control {
    /// Takes the name; it goes with the process.
    pub(crate) fn listen(name: &str) -> Result<Self> {
        UnixListener::bind_addr(&address(name)?)
            .map(Self)
            .with_context(|| format!("cannot listen as '{name}': is another load running?"))
    }

    /// Answers requests until `lasting` is over, then prints the report; without it, for ever.
    pub(crate) fn serve(&self, load: &Load, lasting: Option<Duration>) -> Result<()> {
        let end = lasting.map(|lasting| Instant::now() + lasting);
        loop {
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                println!("{}", serde_json::to_string(&load.report())?);
                return Ok(());
            }
            let timeout = left.and_then(|left| Timespec::try_from(left).ok());
            match poll(&mut [PollFd::new(&self.0, PollFlags::IN)], timeout.as_ref()) {
                Ok(0) | Err(Errno::INTR) => continue,
                other => other.context("cannot wait for requests")?,
            };
            let (stream, _) = self.0.accept().context("cannot accept a request")?;
            if let Err(error) = load.answer(stream) {
                eprintln!("lab-guest: a request was not answered: {error:#}");
            }
        }
    }
}

/// Asks the running load and prints its answer.
pub(crate) fn ask(name: &str, request: Request) -> Result<()> {
    print!("{}", answer(name, request)?);
    Ok(())
}

/// Has the running disk load read all that it knows, and prints the report when it has.
pub(crate) fn verify(name: &str) -> Result<()> {
    let pass: u64 = answer(name, Request::Verify)?
        .trim()
        .parse()
        .context("the load does not know how to verify")?;
    ensure!(pass > 0, "the load that runs as '{name}' has no disk");
    loop {
        let answer = answer(name, Request::Report)?;
        let report: GuestReport = serde_json::from_str(&answer)?;
        if report.disk.is_some_and(|disk| disk.verified_passes >= pass) {
            print!("{answer}");
            return Ok(());
        }
        std::thread::sleep(VERIFY_TICK);
    }
}

fn answer(name: &str, request: Request) -> Result<String> {
    let mut stream = UnixStream::connect_addr(&address(name)?)
        .with_context(|| format!("no load runs as '{name}'; start one with 'lab-guest load'"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream
        .write_all(&[request.byte()])
        .context("the load went away")?;
    let mut answer = String::new();
    stream
        .read_to_string(&mut answer)
        .context("the load does not answer")?;
    ensure!(!answer.is_empty(), "the load went away without an answer");
    Ok(answer)
}

fn address(name: &str) -> Result<SocketAddr> {
    SocketAddr::from_abstract_name(name)
        .with_context(|| format!("'{name}' cannot name a socket: give at most 107 bytes"))
}
