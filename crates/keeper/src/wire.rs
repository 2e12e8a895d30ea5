//! Words and descriptors between keeper and worker: one packet each.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Descriptors that a keeper holds at most.
pub const MAX_HELD: usize = 1024;
/// Longest name of a descriptor, in bytes, as systemd has it.
pub const MAX_NAME: usize = 255;

/// Longest packet: what is longer is cut off, and then not understood.
const MAX_PACKET: usize = 512;

/// Whether systemd takes it for a name as well.
pub(crate) fn is_name(name: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_graphic() && byte != b':';
    !name.is_empty() && name.len() <= MAX_NAME && name.bytes().all(good)
}

pub(crate) fn send(
    socket: BorrowedFd<'_>,
    words: &str,
    fd: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    send_with(socket, words, fd, SendFlags::empty())
}

/// As [`send`], if there is room for it.
pub(crate) fn send_if_room(socket: BorrowedFd<'_>, words: &str) -> io::Result<()> {
    send_with(socket, words, None, SendFlags::DONTWAIT)
}

fn send_with(
    socket: BorrowedFd<'_>,
    words: &str,
    fd: Option<BorrowedFd<'_>>,
    flags: SendFlags,
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = fd.map(|fd| [fd]);
    if let Some(fds) = &fds
        && !control.push(SendAncillaryMessage::ScmRights(fds))
    {
        return Err(Errno::NOBUFS.into());
    }
    loop {
        let packet = [IoSlice::new(words.as_bytes())];
        match sendmsg(socket, &packet, &mut control, flags | SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            sent => return Ok(sent.map(drop)?),
        }
    }
}

/// The next packet; `None` at the end.
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    flags: RecvFlags,
) -> io::Result<Option<(String, Vec<OwnedFd>)>> {
    let mut bytes = [0; MAX_PACKET];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = flags | RecvFlags::CMSG_CLOEXEC;
    let received = loop {
        let mut packet = [IoSliceMut::new(&mut bytes)];
        match recvmsg(socket, &mut packet, &mut control, flags) {
            Err(Errno::INTR) => {}
            Err(Errno::CONNRESET) => return Ok(None),
            received => break received?,
        }
    };
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    let words = String::from_utf8_lossy(&bytes[..received.bytes]).into_owned();
    Ok(Some((words, fds)))
}
