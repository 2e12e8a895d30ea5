//! One connection, with one owner.

use std::cell::Cell;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use rustls::{ClientConnection, Connection, Error, ServerConnection};

use crate::{PeerName, Peers, Role, TlsError, credentials};

/// Bytes that are written at once: the most of a record (RFC 8446, section 5.1).
const RECORD: usize = 1 << 14;
/// The first byte of a TLS client: the type of a record with a part of the handshake (as above).
const HANDSHAKE: u8 = 22;
/// How long, and for how many bytes, the other side may talk on before it reads that it was refused.
const PARTING: (Duration, u64) = (Duration::from_secs(1), 1 << 20);

/// A connection to a host whose name is known.
///
/// It has one owner, who reads and writes by turns; nobody holds a lock in a read. No call takes
/// longer than the limit that was set before it. A read that ran out of time has lost nothing, and the next one
/// goes on. A write that failed is the last one: what is left of it must not come out in front of what is said
/// later, as the other side would act on it.
pub struct TlsStream {
    channel: Channel,
    peer: PeerName,
    limit: Cell<Option<Duration>>,
    /// A write has failed.
    broken: bool,
}

/// Takes the connection of a host that comes as one of `peers`, within `limit`.
///
/// # Errors
/// See [`TlsError`]. The other side has been told, if it speaks TLS.
pub fn accept(
    socket: TcpStream,
    folder: &Path,
    peers: &Peers,
    limit: Duration,
) -> Result<TlsStream, TlsError> {
    let clock = Clock::start(Some(limit));
    let config = credentials::server(folder, peers)?;
    // Before rustls, which would answer what nobody understands.
    let first = first_byte(&socket, clock).map_err(|error| early(error, limit))?;
    if first.is_none_or(|byte| byte != HANDSHAKE) {
        return Err(first.map_or(TlsError::Closed, |_| TlsError::NotTls));
    }
    let connection = ServerConnection::new(config).map(Connection::from);
    Channel::new(connection, socket, Role::Server, peers)?.shake_hands(clock, limit)
}

/// Makes `socket`, which is connected, a connection to a host that is one of `peers`, within
/// `limit`. It may still turn out by the first read that the other side does not take this host
/// (RFC 8446, section 4.4.2.4 and figure 1: the server is the last to look at a certificate).
///
/// # Errors
/// See [`TlsError`]. The other side has been told, if it speaks TLS.
pub fn connect(
    socket: TcpStream,
    folder: &Path,
    peers: &Peers,
    limit: Duration,
) -> Result<TlsStream, TlsError> {
    let clock = Clock::start(Some(limit));
    let config = credentials::client(folder, peers)?;
    let connection = ClientConnection::new(config, peers.any()).map(Connection::from);
    Channel::new(connection, socket, Role::Client, peers)?.shake_hands(clock, limit)
}

/// Closes `socket` so that the other side can read what was written last: to close it with unread
/// bytes in it would take that away (`tcp_close` of Linux answers by a reset).
pub fn part(socket: &TcpStream) {
    let clock = Clock::start(Some(PARTING.0));
    let _ = socket.shutdown(Shutdown::Write);
    let mut left = PARTING.1;
    let mut chunk = [0; 1 << 12];
    while left > 0 && clock.limit_reads(socket).is_ok() {
        match (&*socket).read(&mut chunk) {
            Ok(0) | Err(_) => return,
            Ok(count) => left = left.saturating_sub(count as u64),
        }
    }
}

impl TlsStream {
    /// Who is at the other end: the first of the expected names that its certificate is for.
    pub fn peer(&self) -> &PeerName {
        &self.peer
    }

    /// Limits each following call; `None` waits for ever.
    pub fn set_limit(&self, limit: Option<Duration>) {
        self.limit.set(limit);
    }

    /// Has calls wait for nothing, whatever their limit: they fail with `WouldBlock`.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn set_nonblocking(&self, on: bool) -> io::Result<()> {
        self.channel.socket.set_nonblocking(on)
    }

    /// Whether anything can still be written.
    fn whole(&self) -> io::Result<()> {
        if self.broken {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(())
    }

    fn push(&mut self, clock: Clock) -> io::Result<()> {
        self.whole()?;
        let pushed = self.channel.push(clock);
        self.broken = pushed.is_err();
        pushed
    }
}

impl Read for TlsStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let clock = Clock::start(self.limit.get());
        loop {
            match self.channel.connection.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // The end, too.
                read => return read,
            }
            self.channel.pull(clock)?;
            // New keys are to be answered (RFC 8446, section 4.6.3).
            if self.channel.connection.wants_write() {
                self.push(clock)?;
            }
        }
    }
}

impl Write for TlsStream {
    /// All that it says it has written is with the system.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.whole()?;
        let clock = Clock::start(self.limit.get());
        let some = &bytes[..bytes.len().min(RECORD)];
        let count = self.channel.connection.writer().write(some)?;
        self.push(clock)?;
        Ok(count)
    }

    /// Nothing is kept back.
    fn flush(&mut self) -> io::Result<()> {
        self.whole()
    }
}

impl Drop for TlsStream {
    fn drop(&mut self) {
        // A courtesy, for which nobody waits.
        if !self.broken && self.channel.socket.set_nonblocking(true).is_ok() {
            self.channel.connection.send_close_notify();
            let _ = self.channel.connection.write_tls(&mut self.channel.socket);
        }
    }
}

impl fmt::Debug for TlsStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsStream")
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

/// TLS, and the socket below.
struct Channel {
    connection: Connection,
    socket: TcpStream,
    role: Role,
    peers: Peers,
}

impl Channel {
    fn new(
        connection: Result<Connection, Error>,
        socket: TcpStream,
        role: Role,
        peers: &Peers,
    ) -> Result<Self, TlsError> {
        let peers = peers.clone();
        let connection = connection.map_err(|error| TlsError::new(error, role, &peers))?;
        Ok(Self {
            connection,
            socket,
            role,
            peers,
        })
    }

    fn shake_hands(mut self, clock: Clock, limit: Duration) -> Result<TlsStream, TlsError> {
        match self.try_shake_hands(clock) {
            Ok(peer) => Ok(TlsStream {
                channel: self,
                peer,
                limit: Cell::new(None),
                broken: false,
            }),
            Err(TlsError::System(error)) => Err(early(error, limit)),
            Err(error) => {
                part(&self.socket);
                Err(error)
            }
        }
    }

    fn try_shake_hands(&mut self, clock: Clock) -> Result<PeerName, TlsError> {
        loop {
            self.push(clock)?;
            if !self.connection.is_handshaking() {
                break;
            }
            if self.pull(clock)? == 0 {
                return Err(TlsError::Closed);
            }
        }
        let flaw = |error| TlsError::new(error, self.role, &self.peers);
        if self.connection.alpn_protocol() != Some(crate::SPOKEN) {
            return Err(TlsError::NotVferry);
        }
        let chain = self.connection.peer_certificates().unwrap_or_default();
        let shown = chain.first().ok_or(Error::NoCertificatesPresented);
        shown
            .and_then(|certificate| self.peers.named_by(certificate))
            .map_err(flaw)
    }

    /// Reads once. Returns how many bytes came, of which none may be anything to read yet.
    fn pull(&mut self, clock: Clock) -> Result<usize, TlsError> {
        clock.limit_reads(&self.socket)?;
        let count = self.connection.read_tls(&mut self.socket)?;
        if let Err(error) = self.connection.process_new_packets() {
            // The other side is told, if it listens.
            let _ = self.push(clock);
            return Err(TlsError::new(error, self.role, &self.peers));
        }
        Ok(count)
    }

    /// Writes all that there is to write.
    fn push(&mut self, clock: Clock) -> io::Result<()> {
        while self.connection.wants_write() {
            clock.limit_writes(&self.socket)?;
            match self.connection.write_tls(&mut self.socket) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                Ok(_) | Err(_) => {}
            }
        }
        Ok(())
    }
}

/// When a call has to be over. Each wait for the system gets what is left.
#[derive(Clone, Copy)]
struct Clock(Option<Instant>);

impl Clock {
    fn start(limit: Option<Duration>) -> Self {
        Self(limit.map(|limit| Instant::now() + limit))
    }

    fn limit_reads(self, socket: &TcpStream) -> io::Result<()> {
        socket.set_read_timeout(self.left()?)
    }

    fn limit_writes(self, socket: &TcpStream) -> io::Result<()> {
        socket.set_write_timeout(self.left()?)
    }

    fn left(self) -> io::Result<Option<Duration>> {
        let left = self
            .0
            .map(|end| end.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(left)
    }
}

/// `None` at the end.
fn first_byte(socket: &TcpStream, clock: Clock) -> io::Result<Option<u8>> {
    let mut byte = [0];
    loop {
        clock.limit_reads(socket)?;
        match socket.peek(&mut byte) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            peeked => return Ok((peeked? > 0).then_some(byte[0])),
        }
    }
}

/// What the system says before there is a connection.
fn early(error: io::Error, limit: Duration) -> TlsError {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => TlsError::Timeout(limit),
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::UnexpectedEof => TlsError::Closed,
        _ => TlsError::System(error),
    }
}
