//! A learning switch: wires of other processes, and one inner port for whoever drives it.

mod table;

use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use device::{FrameLink, Sent, TxFrame, TxOffload};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::framing::MIN_FRAME;
use crate::{UplinkError, Wire};
use table::Table;

/// The number of a wire, in the order in which they were plugged in, from 0; never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port(pub u64);

/// Forwards Ethernet frames between its ports.
///
/// An address is at the port from which it was last seen, so the announcement of a VM that moved,
/// or any frame of it, moves its address to the new wire. Every port has a bounded queue; what does
/// not fit is dropped and counted at that port. The addresses kept per port are bounded too.
///
/// It has no thread: its owner calls [`wait`](Self::wait), [`turn`](Self::turn),
/// [`inject`](Self::inject) and [`flush`](Self::flush) in a loop.
#[derive(Debug)]
pub struct Switch {
    inner_mac: [u8; 6],
    listener: Option<Listener>,
    slots: Vec<Option<Slot>>,
    table: Table,
    ports_ever: u64,
    forged: u64,
    dropped_at_closed_ports: u64,
}

/// What a switch has done.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SwitchReport {
    /// The wires that are plugged in.
    pub ports: Vec<PortReport>,
    /// Wires ever plugged in.
    pub ports_ever: u64,
    /// Frames from a wire that claimed the inner port's address or a group's; dropped.
    pub forged: u64,
    /// Frames dropped at ports that are gone now.
    pub dropped_at_closed_ports: u64,
}

/// What one port has done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortReport {
    /// Which one.
    pub port: Port,
    /// Frames that came from the wire.
    pub received: u64,
    /// Frames put on the wire's queue.
    pub sent: u64,
    /// Frames dropped because that queue was full.
    pub dropped: u64,
}

#[derive(Debug)]
struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// No more descriptors or memory: no use in asking again at once.
    paused_until: Option<Instant>,
}

#[derive(Debug)]
struct Slot {
    wire: Wire,
    ready: bool,
    report: PortReport,
}

/// Wires at one time; more are closed at once.
const MAX_PORTS: usize = 64;

/// Frames taken from one wire before the others have their turn.
const FRAMES_PER_TURN: usize = 256;

/// How long a listener rests after the kernel could not accept.
const LISTENER_PAUSE: Duration = Duration::from_secs(1);

impl Switch {
    /// A switch without wires, whose inner port has the address `inner_mac`.
    pub fn new(inner_mac: [u8; 6]) -> Self {
        Self {
            inner_mac,
            listener: None,
            slots: Vec::new(),
            table: Table::default(),
            ports_ever: 0,
            forged: 0,
            dropped_at_closed_ports: 0,
        }
    }

    /// Plugs in every wire that connects to the unix socket `path`, which is removed again when the
    /// switch is dropped.
    ///
    /// # Errors
    ///
    /// [`UplinkError::Listen`], also when something is at `path` already.
    pub fn listen(&mut self, path: impl AsRef<Path>) -> Result<(), UplinkError> {
        let path = path.as_ref();
        let listen = || {
            let socket = UnixListener::bind(path)?;
            socket.set_nonblocking(true)?;
            Ok(Listener {
                socket,
                path: path.into(),
                paused_until: None,
            })
        };
        self.listener = Some(listen().map_err(|source| UplinkError::Listen {
            path: path.into(),
            source,
        })?);
        Ok(())
    }

    /// Plugs in the wire over `stream`, or closes it if there are too many.
    pub fn attach(&mut self, stream: UnixStream) -> Option<Port> {
        let slot = match self.slots.iter().position(Option::is_none) {
            Some(free) => free,
            None if self.slots.len() < MAX_PORTS => {
                self.slots.push(None);
                self.slots.len() - 1
            }
            None => return None,
        };
        let port = Port(self.ports_ever);
        self.ports_ever += 1;
        tracing::debug!(port = port.0, "wire plugged in");
        self.slots[slot] = Some(Slot {
            wire: Wire::from_stream(stream),
            ready: true,
            report: PortReport {
                port,
                received: 0,
                sent: 0,
                dropped: 0,
            },
        });
        Some(port)
    }

    /// Waits until a wire has something, can take something or plugs in, until `wake` is readable,
    /// or for `timeout`. Tells whether `wake` is.
    ///
    /// # Errors
    ///
    /// What `ppoll(2)` answers, except `EINTR`.
    pub fn wait(&mut self, timeout: Duration, wake: BorrowedFd<'_>) -> io::Result<bool> {
        let timeout = if self.slots.iter().flatten().any(|slot| slot.ready) {
            Duration::ZERO
        } else {
            timeout
        };
        let listening = self.listener.as_mut().is_some_and(Listener::listens);
        let mut fds = Vec::with_capacity(self.slots.len() + 2);
        fds.push(PollFd::from_borrowed_fd(wake, PollFlags::IN));
        let polled =
            |slot: &Option<Slot>| slot.as_ref().is_some_and(|slot| slot.wire.fd().is_some());
        for slot in self.slots.iter().flatten() {
            if let Some(fd) = slot.wire.fd() {
                let mut interest = PollFlags::IN;
                interest.set(PollFlags::OUT, slot.wire.wants_write());
                fds.push(PollFd::from_borrowed_fd(fd, interest));
            }
        }
        if let Some(listener) = self.listener.as_ref().filter(|_| listening) {
            fds.push(PollFd::new(&listener.socket, PollFlags::IN));
        }
        let timeout = Timespec::try_from(timeout).ok();
        match poll(&mut fds, timeout.as_ref()) {
            Err(Errno::INTR) => return Ok(false),
            other => other?,
        };
        let mut fired = fds
            .iter()
            .map(|fd| !fd.revents().is_empty())
            .collect::<Vec<_>>()
            .into_iter();
        let woken = fired.next().unwrap_or(false);
        for slot in self.slots.iter_mut().filter(|slot| polled(slot)).flatten() {
            slot.ready |= fired.next().unwrap_or(false);
        }
        if listening && fired.next().unwrap_or(false) {
            self.accept();
        }
        Ok(woken)
    }

    /// Takes what the wires have, forwards it, and shows `inner` what is for the inner port.
    pub fn turn(&mut self, mut inner: impl FnMut(&[u8])) {
        for index in 0..self.slots.len() {
            // Taken out for the time being, so that its frames can go to the other ports.
            let Some(mut slot) = self.slots[index].take_if(|slot| slot.ready) else {
                continue;
            };
            slot.ready = false;
            let mut taken = 0;
            while let Some(frame) = slot.wire.peek() {
                self.forward(index, frame.bytes, &mut inner);
                slot.wire.consume();
                slot.report.received += 1;
                taken += 1;
                if taken == FRAMES_PER_TURN {
                    slot.ready = true;
                    break;
                }
            }
            if slot.ready || slot.wire.fd().is_some() {
                self.slots[index] = Some(slot);
            } else {
                tracing::debug!(port = slot.report.port.0, "wire unplugged");
                self.dropped_at_closed_ports += slot.report.dropped;
                self.table.forget(index);
            }
        }
    }

    /// Sends a frame from the inner port.
    pub fn inject(&mut self, frame: &[u8]) {
        let Some(&destination) = frame.first_chunk() else {
            return;
        };
        match self
            .table
            .find(destination)
            .filter(|_| !is_group(destination))
        {
            Some(slot) => self.send(slot, frame),
            None => self.flood(frame),
        }
    }

    /// Hands all that is queued to the wires, as far as they take it.
    pub fn flush(&mut self) {
        for slot in self.slots.iter_mut().flatten() {
            if slot.wire.wants_write() {
                slot.wire.flush();
            }
        }
    }

    /// The wire at which `mac` was last seen.
    pub fn port_of(&self, mac: [u8; 6]) -> Option<Port> {
        let slot = self.slots.get(self.table.find(mac)?)?.as_ref()?;
        Some(slot.report.port)
    }

    /// Whether the wire at which `mac` was last seen has taken all that was sent to it.
    pub fn takes_more(&self, mac: [u8; 6]) -> bool {
        let slot = self.table.find(mac).and_then(|slot| self.slots.get(slot));
        slot.and_then(Option::as_ref)
            .is_some_and(|slot| !slot.wire.wants_write())
    }

    /// What it has done since it was made.
    pub fn report(&self) -> SwitchReport {
        SwitchReport {
            ports: self
                .slots
                .iter()
                .flatten()
                .map(|slot| slot.report.clone())
                .collect(),
            ports_ever: self.ports_ever,
            forged: self.forged,
            dropped_at_closed_ports: self.dropped_at_closed_ports,
        }
    }

    fn accept(&mut self) {
        while let Some(listener) = &mut self.listener {
            match listener.socket.accept() {
                Ok((stream, _)) => {
                    if self.attach(stream).is_none() {
                        tracing::debug!("all {MAX_PORTS} ports are taken: wire refused");
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept wires for a second");
                    listener.paused_until = Some(Instant::now() + LISTENER_PAUSE);
                    return;
                }
            }
        }
    }

    fn forward(&mut self, from: usize, frame: &[u8], inner: &mut impl FnMut(&[u8])) {
        debug_assert!(frame.len() >= MIN_FRAME, "the wire gives no shorter ones");
        let Some((&destination, &source)) = frame
            .split_first_chunk::<6>()
            .and_then(|(destination, rest)| Some((destination, rest.first_chunk::<6>()?)))
        else {
            return;
        };
        if source == self.inner_mac || is_group(source) {
            self.forged += 1;
            return;
        }
        self.table.learn(source, from);
        if is_group(destination) {
            inner(frame);
            self.flood(frame);
        } else if destination == self.inner_mac {
            inner(frame);
        } else {
            match self.table.find(destination) {
                Some(slot) if slot == from => {}
                Some(slot) => self.send(slot, frame),
                None => self.flood(frame),
            }
        }
    }

    /// To all wires; the one it came from is not among them, see [`turn`](Self::turn).
    fn flood(&mut self, frame: &[u8]) {
        for slot in 0..self.slots.len() {
            self.send(slot, frame);
        }
    }

    fn send(&mut self, slot: usize, frame: &[u8]) {
        let Some(slot) = self.slots.get_mut(slot).and_then(Option::as_mut) else {
            return;
        };
        match slot.wire.send(TxFrame {
            bytes: frame,
            offload: TxOffload::None,
        }) {
            Sent::Taken => slot.report.sent += 1,
            Sent::Full => slot.report.dropped += 1,
        }
    }
}

impl Listener {
    fn listens(&mut self) -> bool {
        self.paused_until = self.paused_until.filter(|until| Instant::now() < *until);
        self.paused_until.is_none()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Broadcast and multicast addresses (IEEE 802, the I/G bit).
fn is_group(mac: [u8; 6]) -> bool {
    mac[0] & 1 != 0
}

#[cfg(test)]
mod tests;
