//! A client that says what it is told to, right or wrong, written without the crate's wire types.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::cmsg_space;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use vfio_user::{Ended, Errno, Options, ServeError, Server, Stopper};

use crate::device::Device;

pub(crate) const VERSION: u16 = 1;
pub(crate) const DMA_MAP: u16 = 2;
pub(crate) const DMA_UNMAP: u16 = 3;
pub(crate) const GET_INFO: u16 = 4;
pub(crate) const GET_REGION_INFO: u16 = 5;
pub(crate) const GET_IRQ_INFO: u16 = 7;
pub(crate) const SET_IRQS: u16 = 8;
pub(crate) const REGION_READ: u16 = 9;
pub(crate) const REGION_WRITE: u16 = 10;
pub(crate) const DMA_READ: u16 = 11;
pub(crate) const DMA_WRITE: u16 = 12;
pub(crate) const RESET: u16 = 13;
pub(crate) const WRITE_MULTI: u16 = 15;
pub(crate) const FEATURE: u16 = 16;
pub(crate) const MIG_READ: u16 = 17;
pub(crate) const MIG_WRITE: u16 = 18;

pub(crate) const REPLY: u32 = 1;
pub(crate) const NO_REPLY: u32 = 0x10;
pub(crate) const ERROR: u32 = 0x20;

pub(crate) fn u32s(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

pub(crate) fn u64s(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// A header, with a size that may be a lie.
pub(crate) fn header(id: u16, command: u16, size: u32, flags: u32) -> Vec<u8> {
    let [i, c] = [id, command].map(u16::to_le_bytes);
    [&i[..], &c, &u32s(&[size, flags, 0])].concat()
}

pub(crate) fn message(id: u16, command: u16, flags: u32, body: &[u8]) -> Vec<u8> {
    let size = u32::try_from(16 + body.len()).unwrap();
    [header(id, command, size, flags), body.to_vec()].concat()
}

/// A proposal of version 0.0 with the capabilities that QEMU 11.1 sends.
pub(crate) fn proposal() -> Vec<u8> {
    let json = br#"{"capabilities":{"pgsizes":4096,"max_msg_fds":16,"max_dma_maps":65535,
        "max_data_xfer_size":1048576,"write_multiple":true,
        "migration":{"pgsize":4096,"max_bitmap_size":268435456}}}"#;
    [&[0, 0, 0, 0], &json[..], &[0]].concat()
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) id: u16,
    pub(crate) command: u16,
    pub(crate) flags: u32,
    pub(crate) errno: u32,
    pub(crate) body: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
}

impl Received {
    /// The body of a reply, or the errno it has instead.
    pub(crate) fn result(self) -> Result<Vec<u8>, Errno> {
        if self.flags & ERROR == 0 {
            assert_eq!((self.flags, self.errno), (REPLY, 0));
            return Ok(self.body);
        }
        assert_eq!(self.flags, REPLY | ERROR);
        assert!(self.body.is_empty(), "an error is only a header");
        Err(Errno::from_raw_os_error(self.errno.cast_signed()))
    }
}

pub(crate) struct Peer {
    pub(crate) stream: UnixStream,
    last_id: u16,
}

impl Peer {
    pub(crate) fn new(stream: UnixStream) -> Self {
        let timeout = Some(Duration::from_secs(10));
        stream.set_read_timeout(timeout).unwrap();
        stream.set_write_timeout(timeout).unwrap();
        Self { stream, last_id: 0 }
    }

    pub(crate) fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(253))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        }
        let mut sent = 0;
        while sent < bytes.len() {
            let rest = [IoSlice::new(&bytes[sent..])];
            sent += sendmsg(&self.stream, &rest, &mut control, SendFlags::NOSIGNAL)?;
            control.clear();
        }
        Ok(())
    }

    /// The next message; `None` once the connection is closed.
    pub(crate) fn receive(&self) -> Option<Received> {
        let mut fds = vec![];
        let head: [u8; 16] = self.receive_exactly(16, &mut fds)?.try_into().unwrap();
        let word = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap());
        let len = (word(4) as usize)
            .checked_sub(16)
            .expect("a size of a header or more");
        let body = self.receive_exactly(len, &mut fds)?;
        Some(Received {
            id: u16::from_le_bytes([head[0], head[1]]),
            command: u16::from_le_bytes([head[2], head[3]]),
            flags: word(8),
            errno: word(12),
            body,
            fds,
        })
    }

    fn receive_exactly(&self, len: usize, fds: &mut Vec<OwnedFd>) -> Option<Vec<u8>> {
        let mut bytes = vec![0; len];
        let mut have = 0;
        while have < len {
            let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(16))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut rest = [IoSliceMut::new(&mut bytes[have..])];
            let flags = RecvFlags::CMSG_CLOEXEC;
            let received = match recvmsg(&self.stream, &mut rest, &mut control, flags) {
                Ok(received) => received,
                Err(Errno::CONNRESET) => return None,
                Err(errno) => panic!("receiving: {errno}"),
            };
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(received) = message {
                    fds.extend(received);
                }
            }
            if received.bytes == 0 {
                return None;
            }
            have += received.bytes;
        }
        Some(bytes)
    }

    /// Sends a command and receives its reply.
    pub(crate) fn call(&mut self, command: u16, body: &[u8], fds: &[BorrowedFd<'_>]) -> Received {
        self.last_id = self.last_id.wrapping_add(1);
        let id = self.last_id;
        self.send(&message(id, command, 0, body), fds)
            .expect("the server reads");
        let reply = self.receive().expect("the server answers");
        assert_eq!((reply.id, reply.command), (id, command));
        reply
    }

    pub(crate) fn ask(&mut self, command: u16, body: &[u8]) -> Result<Vec<u8>, Errno> {
        self.call(command, body, &[]).result()
    }

    pub(crate) fn negotiate(&mut self) {
        self.ask(VERSION, &proposal())
            .expect("the version is accepted");
    }
}

/// A device that is served by a thread of its own.
pub(crate) struct Served {
    pub(crate) stopper: Stopper,
    thread: JoinHandle<(Device, Result<Ended, ServeError>)>,
}

impl Served {
    /// Serves `device` to a client that has negotiated already.
    pub(crate) fn start(device: Device) -> (Self, Peer) {
        let (served, mut peer) = Self::start_raw(device, Options::default());
        peer.negotiate();
        (served, peer)
    }

    /// Serves `device` to a client that has said nothing yet.
    pub(crate) fn start_raw(mut device: Device, options: Options) -> (Self, Peer) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let server = listening().with_options(options);
        let stopper = server.stopper();
        let thread = thread::spawn(move || {
            let ended = server.serve_stream(ours, None, &mut device);
            (device, ended)
        });
        (Self { stopper, thread }, Peer::new(theirs))
    }

    /// What became of the device, and how it ended.
    pub(crate) fn end(self) -> (Device, Result<Ended, ServeError>) {
        self.thread.join().expect("the server does not panic")
    }
}

/// A server on a socket that nobody else finds.
pub(crate) fn listening() -> Server {
    let folder = tempfile::tempdir().unwrap();
    let listener = std::os::unix::net::UnixListener::bind(folder.path().join("s")).unwrap();
    Server::from_listener(listener).unwrap()
}

pub(crate) fn eventfds(count: usize) -> Vec<OwnedFd> {
    let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
    let fd = || rustix::event::eventfd(0, flags).unwrap();
    std::iter::repeat_with(fd).take(count).collect()
}

pub(crate) fn borrowed(fds: &[OwnedFd]) -> Vec<BorrowedFd<'_>> {
    fds.iter().map(AsFd::as_fd).collect()
}

/// What an eventfd was signalled with, and forgets.
pub(crate) fn signalled(fd: &OwnedFd) -> u64 {
    let mut count = [0; 8];
    match rustix::io::read(fd, &mut count) {
        Ok(8) => u64::from_ne_bytes(count),
        _ => 0,
    }
}

/// What the peer has mapped with `fd`, as it would find it.
pub(crate) fn same_file(one: impl AsFd, other: impl AsFd) -> bool {
    let [one, other] = [one.as_fd(), other.as_fd()].map(|fd| rustix::fs::fstat(fd).unwrap());
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}
