//! What is between the hosts, led through places where it can be held, cut or spoiled.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use ferry::link::Message;
use vferry::control::{Control, Reply, Request};

/// How much of a stream is led on at a time.
const CHUNK: usize = 256 << 10;
/// So much of memory has been sent before it counts as on its way.
const UNDER_WAY: usize = 1 << 20;
/// What the source's devices are called when the VM stands still.
const STOPPED: &str = "halted and marked";
/// And the destination's when all of the VM is there.
const ARRIVED: &str = "arrived";

/// Where everything on one wire passes.
#[derive(Debug, Clone, Default)]
pub(super) struct Gate(Arc<(Mutex<State>, Condvar)>);

#[derive(Debug, Default)]
struct State {
    flow: Flow,
    tripped: bool,
    /// The source has been told that the destination has ended.
    told: bool,
    sockets: Vec<UnixStream>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Flow {
    #[default]
    Open,
    Held,
    Cut,
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, flow: Flow) {
        let mut state = self.lock();
        if state.flow != Flow::Cut {
            state.flow = flow;
        }
        drop(state);
        self.0.1.notify_all();
    }

    /// What was waited for has come: nothing passes until the gate is opened. Once only.
    fn trip(&self) {
        let mut state = self.lock();
        if !state.tripped {
            state.tripped = true;
            if state.flow == Flow::Open {
                state.flow = Flow::Held;
            }
        }
        drop(state);
        self.0.1.notify_all();
    }

    fn has_tripped(&self) -> bool {
        self.lock().tripped
    }

    /// Waits until something may pass. Says whether it may.
    fn pass(&self) -> bool {
        let held = |state: &mut State| state.flow == Flow::Held;
        let state = self.0.1.wait_while(self.lock(), held);
        state.unwrap_or_else(PoisonError::into_inner).flow == Flow::Open
    }

    /// Whether it was reached within `limit`.
    pub(super) fn wait_tripped(&self, limit: Duration) -> bool {
        let not_yet = |state: &mut State| !state.tripped;
        let waited = self.0.1.wait_timeout_while(self.lock(), limit, not_yet);
        waited.unwrap_or_else(PoisonError::into_inner).0.tripped
    }

    /// The destination is gone: waits until the source has been told, if anything can pass. Says whether it has.
    pub(super) fn wait_told(&self, limit: Duration) -> bool {
        let to_be_told = |state: &mut State| {
            state.flow == Flow::Open && !state.sockets.is_empty() && !state.told
        };
        let waited = self.0.1.wait_timeout_while(self.lock(), limit, to_be_told);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    fn tell(&self) {
        self.lock().told = true;
        self.0.1.notify_all();
    }

    /// Nothing passes any more, and nobody is told.
    pub(super) fn hold(&self) {
        self.set(Flow::Held);
    }

    pub(super) fn open(&self) {
        self.set(Flow::Open);
    }

    /// Everybody is told that it has ended, and what was on its way is lost.
    pub(super) fn cut(&self) {
        self.set(Flow::Cut);
        for socket in &self.lock().sockets {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    fn add(&self, socket: &UnixStream) -> io::Result<()> {
        let socket = socket.try_clone()?;
        let mut state = self.lock();
        if state.flow == Flow::Cut {
            let _ = socket.shutdown(Shutdown::Both);
        }
        state.sockets.push(socket);
        Ok(())
    }
}

/// Where the first message that is stopped stands in the conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    Nowhere,
    Question(&'static str),
    Answer(&'static str),
}

impl Stop {
    fn is(self, frame: &[u8], question: bool) -> bool {
        let name = match self {
            Self::Question(name) if question => name,
            Self::Answer(name) if !question => name,
            _ => return false,
        };
        is_message(frame, name)
    }
}

/// When the stream is held.
#[derive(Debug, Clone)]
pub(super) enum HoldStream {
    Never,
    UnderWay,
    /// As soon as the source's devices, of which the process at this socket tells, stand still.
    Stopped(PathBuf),
    /// As soon as the destination's devices have arrived: what its QEMU says then.
    Arrived(PathBuf),
    /// As soon as this is set.
    Flag(Arc<AtomicBool>),
}

impl HoldStream {
    fn is_due(&self, passed: usize) -> bool {
        match self {
            Self::Never => false,
            Self::UnderWay => passed >= UNDER_WAY,
            Self::Stopped(control) => stage(control).is_ok_and(|stage| stage == STOPPED),
            Self::Arrived(control) => stage(control).is_ok_and(|stage| stage == ARRIVED),
            Self::Flag(flag) => flag.load(Ordering::Acquire),
        }
    }
}

/// What becomes of QEMU's stream on its way.
#[derive(Debug, Clone)]
pub(super) enum StreamIs {
    Led(HoldStream),
    Refused,
    Garbage,
}

/// Link and stream of one migration.
#[derive(Debug)]
pub(super) struct Between {
    /// As `vferry migrate --to` takes it.
    pub(super) to: String,
    pub(super) link: Gate,
    pub(super) stream: Gate,
}

impl Between {
    /// Listens in `folder` for the destination that listens at `link`.
    pub(super) fn start(
        folder: &Path,
        link: &str,
        stop: Stop,
        stream_is: StreamIs,
    ) -> Result<Self> {
        let there = path_of(link)?;
        // As between hosts: what is written to one that is gone seems to have been sent.
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let between = Self {
            to: format!("tcp:{}", listener.local_addr()?),
            link: Gate::default(),
            stream: Gate::default(),
        };
        let (gate, stream) = (between.link.clone(), between.stream.clone());
        let stream_socket = folder.join("relayed-stream.sock");
        thread::spawn(move || {
            let mut first = Some((gate, stop));
            for source in listener.incoming().flatten().map(as_socket) {
                let Ok(destination) = UnixStream::connect(&there) else {
                    // The source hears that nobody is there.
                    continue;
                };
                // Only the migration's own link is looked at: a later question passes.
                let (gate, stop) = first.take().unwrap_or((Gate::default(), Stop::Nowhere));
                let leads = Leads {
                    socket: stream_socket.clone(),
                    gate: stream.clone(),
                    is: stream_is.clone(),
                };
                let _ = lead_link(source, destination, &gate, stop, leads);
            }
        });
        Ok(between)
    }
}

/// How the stream is led, once it is known where the destination's QEMU listens.
struct Leads {
    socket: PathBuf,
    gate: Gate,
    is: StreamIs,
}

impl Leads {
    fn begin(self, uri: &str) -> Result<String> {
        let there = path_of(uri)?;
        let hold = match self.is {
            StreamIs::Refused => return Ok(format!("{uri}.absent")),
            StreamIs::Garbage => None,
            StreamIs::Led(hold) => Some(hold),
        };
        let listener = UnixListener::bind(&self.socket)?;
        let gate = self.gate;
        thread::spawn(move || {
            for source in listener.incoming().flatten() {
                let Ok(destination) = UnixStream::connect(&there) else {
                    continue;
                };
                match &hold {
                    Some(hold) => drop(lead(source, destination, &gate, hold.clone())),
                    None => drop((&destination).write_all(&[0x55; 4096])),
                }
            }
        });
        Ok(format!("unix:{}", self.socket.display()))
    }
}

/// The network of one host's device, led through a gate.
#[derive(Debug)]
pub(super) struct Uplink {
    pub(super) socket: PathBuf,
    pub(super) gate: Gate,
}

impl Uplink {
    pub(super) fn start(socket: PathBuf, wire: &Path) -> Result<Self> {
        let listener = UnixListener::bind(&socket)?;
        let gate = Gate::default();
        let (through, wire) = (gate.clone(), wire.to_owned());
        thread::spawn(move || {
            for near in listener.incoming().flatten() {
                if let Ok(far) = UnixStream::connect(&wire) {
                    let _ = lead(near, far, &through, HoldStream::Never);
                }
            }
        });
        Ok(Self { socket, gate })
    }
}

/// A link at whose end somebody answers whatever comes with `answer`.
pub(super) fn impostor(folder: &Path, answer: Vec<u8>) -> Result<String> {
    let path = folder.join("impostor.sock");
    let listener = UnixListener::bind(&path)?;
    thread::spawn(move || {
        for mut source in listener.incoming().flatten() {
            let mut some = [0; 1024];
            let _ = source.read(&mut some);
            let _ = source.write_all(&answer);
        }
    });
    Ok(format!("unix:{}", path.display()))
}

/// What the vferry at this control socket says of its devices.
pub(super) fn stage(control: &Path) -> Result<String> {
    let stream = UnixStream::connect(control)?;
    let patience = Some(Duration::from_secs(5));
    stream.set_read_timeout(patience)?;
    let mut control = Control::new(stream);
    control.writer()?.send(&Request::Status)?;
    match control.receive()? {
        Some(Reply::Status(status)) => Ok(status.stage),
        other => anyhow::bail!("no status but {other:?}"),
    }
}

/// A connected stream, of whatever family: it is read, written and shut down all the same.
fn as_socket(stream: TcpStream) -> UnixStream {
    // Messages are waited for.
    let _ = stream.set_nodelay(true);
    UnixStream::from(OwnedFd::from(stream))
}

/// Leads both ways.
fn lead(near: UnixStream, far: UnixStream, gate: &Gate, hold: HoldStream) -> io::Result<()> {
    gate.add(&near)?;
    gate.add(&far)?;
    let (back, to_near, through) = (far.try_clone()?, near.try_clone()?, gate.clone());
    let (hold, hold_back) = match hold {
        HoldStream::Arrived(_) => (HoldStream::Never, hold),
        hold => (hold, HoldStream::Never),
    };
    thread::spawn(move || pump(back, to_near, &through, &hold_back));
    let through = gate.clone();
    thread::spawn(move || pump(near, far, &through, &hold));
    Ok(())
}

fn pump(mut from: UnixStream, mut to: UnixStream, gate: &Gate, hold: &HoldStream) {
    let mut chunk = vec![0; CHUNK];
    let mut passed = 0;
    while let Ok(count @ 1..) = from.read(&mut chunk) {
        if !gate.has_tripped() && hold.is_due(passed) {
            gate.trip();
        }
        if !gate.pass() || to.write_all(&chunk[..count]).is_err() {
            break;
        }
        passed += count;
    }
    end(&from, &to, gate);
}

/// An end is led on like anything else: later, if the gate is held. What goes the other way is not
/// concerned.
fn end(from: &UnixStream, to: &UnixStream, gate: &Gate) {
    let _ = gate.pass();
    let _ = from.shutdown(Shutdown::Read);
    let _ = to.shutdown(Shutdown::Write);
}

fn lead_link(
    source: UnixStream,
    destination: UnixStream,
    gate: &Gate,
    stop: Stop,
    leads: Leads,
) -> io::Result<()> {
    gate.add(&source)?;
    gate.add(&destination)?;
    let (back, to_source, through) = (destination.try_clone()?, source.try_clone()?, gate.clone());
    thread::spawn(move || {
        answers(back, to_source, &through, stop, leads);
        through.tell();
    });
    let through = gate.clone();
    thread::spawn(move || questions(source, destination, &through, stop));
    Ok(())
}

fn questions(mut from: UnixStream, mut to: UnixStream, gate: &Gate, stop: Stop) {
    while let Ok(frame) = read_frame(&mut from) {
        if stop.is(&frame, true) {
            gate.trip();
        }
        if !gate.pass() || to.write_all(&frame).is_err() {
            break;
        }
        if is_message(&frame, "digests") {
            // Pages may follow.
            return pump(from, to, gate, &HoldStream::Never);
        }
    }
    end(&from, &to, gate);
}

fn answers(mut from: UnixStream, mut to: UnixStream, gate: &Gate, stop: Stop, leads: Leads) {
    let mut leads = Some(leads);
    while let Ok(mut frame) = read_frame(&mut from) {
        if is_message(&frame, "prepared")
            && let Some(leads) = leads.take()
            && let Ok(led) = lead_stream(&frame, leads)
        {
            frame = led;
        }
        if stop.is(&frame, false) {
            gate.trip();
        }
        if !gate.pass() || to.write_all(&frame).is_err() {
            break;
        }
        if is_message(&frame, "running") || is_message(&frame, "block-digests") {
            // Bytes that are no messages follow, or may.
            return pump(from, to, gate, &HoldStream::Never);
        }
    }
    end(&from, &to, gate);
}

/// `prepared`, with the place where the stream is led from.
fn lead_stream(frame: &[u8], leads: Leads) -> Result<Vec<u8>> {
    let Message::Prepared { uri } = serde_json::from_slice(&frame[4..])? else {
        anyhow::bail!("another message");
    };
    let uri = leads.begin(&uri)?;
    let body = serde_json::to_vec(&Message::Prepared { uri })?;
    let mut frame = u32::try_from(body.len())?.to_be_bytes().to_vec();
    frame.extend(body);
    Ok(frame)
}

fn is_message(frame: &[u8], name: &str) -> bool {
    let body = frame.get(4..).unwrap_or_default();
    body.starts_with(format!("{{\"message\":\"{name}\"").as_bytes())
}

fn read_frame(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut len = [0; 4];
    stream.read_exact(&mut len)?;
    let mut frame = len.to_vec();
    frame.resize(4 + u32::from_be_bytes(len) as usize, 0);
    stream.read_exact(&mut frame[4..])?;
    Ok(frame)
}

fn path_of(address: &str) -> Result<PathBuf> {
    let path = address.strip_prefix("unix:").context("a unix socket")?;
    Ok(path.into())
}
