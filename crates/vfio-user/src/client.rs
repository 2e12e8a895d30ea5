//! The way back to the client: its memory, by message.

use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;
use std::time::Duration;

use rustix::io::Errno;
use zerocopy::IntoBytes;

use crate::outbound::{Outbound, SendError};
use crate::server::Options;
use crate::stop::Stopper;
use crate::wire::{self, HEADER_LEN, Header, command, dma, flags};
use crate::{MAX_DATA_XFER_SIZE, MAX_DMA_READ, Negotiated};

/// Requests under way at once; each belongs to a thread that waits.
const MAX_WAITING: usize = 256;

/// Reads and writes the client's memory by `VFIO_USER_DMA_READ` and `_WRITE`.
///
/// The fallback for what could not be mapped, and the only way to what is no memory at all: QEMU
/// carries out these accesses in the device's bus-master address space, BARs of other devices
/// included. It answers `ENODEV` while the device is not a bus master and where nothing is.
///
/// May be cloned and used by several threads, *not* by the one that serves the connection: QEMU
/// answers only once its own command is answered, so waiting there would never end. For the same
/// reason, no call into the backend may wait for a thread that waits here.
#[derive(Debug, Clone)]
pub struct Client(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    outbound: Outbound,
    requests: Mutex<Requests>,
    max_data_xfer_size: AtomicU32,
    reply_timeout: Duration,
    /// The thread that serves the connection.
    server: Option<ThreadId>,
}

#[derive(Debug, Default)]
struct Requests {
    closed: bool,
    last_id: u16,
    waiting: HashMap<u16, SyncSender<Received>>,
}

/// A reply.
#[derive(Debug)]
struct Received {
    header: Header,
    body: Vec<u8>,
}

/// Why memory of the client could not be read or written by message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DmaMessageError {
    /// There is no client any more.
    #[error("the client is gone")]
    Closed,
    /// The client refused, as it does where nothing is mapped.
    #[error("the client refused the access: {0}")]
    Refused(Errno),
    /// The client did not answer in [`Options::reply_timeout`]. It may still do what was asked.
    #[error("the client did not answer in time")]
    Timeout,
    /// The client does not take messages in [`Options::send_timeout`].
    #[error("the client does not read from its socket")]
    NotReading,
    /// Called by the thread that serves the connection, which would wait for itself.
    #[error("DMA by message was asked for inside a call of the backend, where no answer can come")]
    InsideBackend,
    /// The reply does not fit the request.
    #[error("the client's reply does not fit the request")]
    BadReply,
    /// The range passes the end of the address space.
    #[error("the range passes the end of the address space")]
    BadRange,
    /// Too many threads wait already.
    #[error("{MAX_WAITING} requests are under way already")]
    Busy,
    /// The socket refused the message.
    #[error("the message could not be sent: {0}")]
    Send(Errno),
}

impl From<SendError> for DmaMessageError {
    fn from(error: SendError) -> Self {
        match error {
            SendError::Closed | SendError::Stopped => Self::Closed,
            SendError::TimedOut => Self::NotReading,
            SendError::System(errno) => Self::Send(errno),
        }
    }
}

impl Client {
    /// Reads `len` bytes from address `iova` on, at most [`MAX_DMA_READ`] with each message.
    ///
    /// # Errors
    /// [`DmaMessageError`]; a part may have been read.
    pub fn dma_read(&self, iova: u64, len: usize) -> Result<Vec<u8>, DmaMessageError> {
        check_range(iova, len)?;
        let mut data = Vec::new();
        while data.len() < len {
            let count = (len - data.len()).min(self.max_data()).min(MAX_DMA_READ);
            let access = dma::Access {
                iova: iova + data.len() as u64,
                count: count as u64,
            };
            let reply = self.request(command::DMA_READ, &access, &[])?;
            match wire::take::<dma::Access>(&reply.body) {
                Ok((echo, part)) if echo == access && part.len() == count => {
                    data.extend_from_slice(part);
                }
                _ => return Err(DmaMessageError::BadReply),
            }
        }
        Ok(data)
    }

    /// Writes `data` from address `iova` on, in as many messages as it takes.
    ///
    /// # Errors
    /// [`DmaMessageError`]; a part may have been written.
    pub fn dma_write(&self, iova: u64, data: &[u8]) -> Result<(), DmaMessageError> {
        self.writes(iova, data, |access, part| {
            let reply = self.request(command::DMA_WRITE, access, part)?;
            // The specification has address and count, QEMU up to 10.2 has nothing.
            let echo = access.iova.to_ne_bytes();
            if reply.body.is_empty() || reply.body.starts_with(&echo) {
                Ok(())
            } else {
                Err(DmaMessageError::BadReply)
            }
        })
    }

    /// As [`dma_write`](Self::dma_write), without waiting for, or learning, what came of it. This
    /// is in order with all other messages, and the only one that may be called anywhere.
    ///
    /// # Errors
    /// [`DmaMessageError`] where it could not be sent.
    pub fn dma_write_posted(&self, iova: u64, data: &[u8]) -> Result<(), DmaMessageError> {
        self.writes(iova, data, |access, part| {
            let id = self.requests().next_id();
            let flags = flags::COMMAND | flags::NO_REPLY;
            self.send(id, command::DMA_WRITE, flags, access, part)
        })
    }

    fn writes(
        &self,
        iova: u64,
        data: &[u8],
        write: impl Fn(&dma::Access, &[u8]) -> Result<(), DmaMessageError>,
    ) -> Result<(), DmaMessageError> {
        check_range(iova, data.len())?;
        let mut iova = iova;
        for part in data.chunks(self.max_data()) {
            let count = part.len() as u64;
            write(&dma::Access { iova, count }, part)?;
            iova = iova.wrapping_add(count);
        }
        Ok(())
    }

    fn request(
        &self,
        command: u16,
        access: &dma::Access,
        data: &[u8],
    ) -> Result<Received, DmaMessageError> {
        if self.0.server == Some(std::thread::current().id()) {
            return Err(DmaMessageError::InsideBackend);
        }
        let (waiter, replies) = sync_channel(1);
        let id = self.requests().enter(waiter)?;
        let sent = self.send(id, command, flags::COMMAND, access, data);
        let reply = sent.and_then(|()| {
            let reply = replies.recv_timeout(self.0.reply_timeout);
            reply.map_err(|error| match error {
                RecvTimeoutError::Timeout => DmaMessageError::Timeout,
                RecvTimeoutError::Disconnected => DmaMessageError::Closed,
            })
        });
        if reply.is_err() {
            self.requests().waiting.remove(&id);
        }
        let reply = reply?;
        match reply.header.error() {
            Some(errno) => Err(DmaMessageError::Refused(errno)),
            None if reply.header.command != command => Err(DmaMessageError::BadReply),
            None => Ok(reply),
        }
    }

    fn send(
        &self,
        id: u16,
        command: u16,
        flags: u32,
        access: &dma::Access,
        data: &[u8],
    ) -> Result<(), DmaMessageError> {
        let header = Header {
            id,
            command,
            size: wire::message_size(size_of_val(access) + data.len()),
            flags,
            errno: 0,
        };
        let mut head = [0; HEADER_LEN + size_of::<dma::Access>()];
        head[..HEADER_LEN].copy_from_slice(header.as_bytes());
        head[HEADER_LEN..].copy_from_slice(access.as_bytes());
        Ok(self.0.outbound.send([&head, data], None)?)
    }

    fn max_data(&self) -> usize {
        self.0.max_data_xfer_size.load(Ordering::Relaxed) as usize
    }

    fn requests(&self) -> MutexGuard<'_, Requests> {
        let requests = self.0.requests.lock();
        requests.unwrap_or_else(PoisonError::into_inner)
    }
}

/// The connection's side.
impl Client {
    /// For a connection that the calling thread is to serve.
    pub(crate) fn new(stream: Arc<UnixStream>, stop: &Stopper, options: &Options) -> Self {
        Self(Arc::new(Shared {
            outbound: Outbound::new(stream, stop.clone(), options.send_timeout),
            requests: Mutex::default(),
            max_data_xfer_size: AtomicU32::new(MAX_DATA_XFER_SIZE),
            reply_timeout: options.reply_timeout,
            server: Some(std::thread::current().id()),
        }))
    }

    /// A client that is gone.
    pub(crate) fn unreachable() -> Self {
        Self(Arc::new(Shared {
            outbound: Outbound::closed(),
            requests: Mutex::new(Requests {
                closed: true,
                ..Requests::default()
            }),
            max_data_xfer_size: AtomicU32::new(MAX_DATA_XFER_SIZE),
            reply_timeout: Duration::ZERO,
            server: None,
        }))
    }

    pub(crate) fn outbound(&self) -> &Outbound {
        &self.0.outbound
    }

    pub(crate) fn agreed(&self, negotiated: &Negotiated) {
        let size = negotiated.max_data_xfer_size.max(1);
        self.0.max_data_xfer_size.store(size, Ordering::Relaxed);
    }

    /// Hands a reply to whoever waits for it; whether somebody did. (A reply that comes too late
    /// is waited for by nobody.)
    pub(crate) fn complete(&self, header: Header, body: &[u8]) -> bool {
        let waiter = self.requests().waiting.remove(&header.id);
        waiter.is_some_and(|waiter| {
            let body = body.to_vec();
            waiter.try_send(Received { header, body }).is_ok()
        })
    }

    /// The connection is over: everybody who waits is told so, and so is everybody who comes.
    pub(crate) fn close(&self) {
        let mut requests = self.requests();
        requests.closed = true;
        requests.waiting.clear();
        drop(requests);
        self.0.outbound.close();
    }
}

impl Requests {
    fn enter(&mut self, waiter: SyncSender<Received>) -> Result<u16, DmaMessageError> {
        if self.closed {
            return Err(DmaMessageError::Closed);
        }
        if self.waiting.len() >= MAX_WAITING {
            return Err(DmaMessageError::Busy);
        }
        let id = self.next_id();
        self.waiting.insert(id, waiter);
        Ok(id)
    }

    /// An id that nobody waits with; as far as possible from the last ones, whose replies may come
    /// late.
    fn next_id(&mut self) -> u16 {
        loop {
            self.last_id = self.last_id.wrapping_add(1);
            if !self.waiting.contains_key(&self.last_id) {
                return self.last_id;
            }
        }
    }
}

fn check_range(iova: u64, len: usize) -> Result<(), DmaMessageError> {
    let end = iova.checked_add(len as u64);
    end.map(|_| ()).ok_or(DmaMessageError::BadRange)
}
