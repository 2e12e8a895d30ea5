//! The kernel's end: a socket for each request (`netlink(7)`, `rtnetlink(7)`).

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};

use super::messages::{Answer, answer, order, port, question};
use super::{Port, Ports, Setting};

/// The kernel answers at once, but for the time that a driver takes to program its card.
const ANSWER: Duration = Duration::from_secs(10);
/// Attributes are at most 64 KiB, so is the list of virtual functions; the rest is small.
const LARGEST: usize = 256 << 10;
/// There is one request on each socket.
const SEQUENCE: u32 = 1;

/// The kernel's rtnetlink.
#[derive(Debug)]
pub(crate) struct Netlink;

impl Ports for Netlink {
    fn read(&self, interface: u32, number: u16) -> io::Result<Port> {
        ask(&question(interface, SEQUENCE), |answer| match answer {
            Answer::Link(attributes) => Some(port(attributes, number)),
            Answer::Done | Answer::Other => None,
        })
    }

    fn set(&self, interface: u32, number: u16, setting: Setting) -> io::Result<()> {
        let order = order(interface, SEQUENCE, number, setting);
        ask(&order, |answer| (*answer == Answer::Done).then_some(Ok(())))
    }
}

fn ask<T>(
    request: &[u8],
    mut understand: impl FnMut(&Answer<'_>) -> Option<io::Result<T>>,
) -> io::Result<T> {
    let socket = open()?;
    send(&socket, request, SendFlags::empty())?;
    let deadline = Instant::now() + ANSWER;
    let mut datagram = vec![0; LARGEST];
    while Instant::now() < deadline {
        let (_, len) = recv(&socket, &mut *datagram, RecvFlags::TRUNC)?;
        let datagram = datagram.get(..len).ok_or(io::ErrorKind::FileTooLarge)?;
        if let Some(understood) = understand(&answer(datagram, SEQUENCE)?) {
            return understood;
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

fn open() -> io::Result<OwnedFd> {
    // `NETLINK_ROUTE` is protocol 0.
    let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the kernel that the tests run on: `lo` is always the first, and has no virtual functions.
    #[test]
    fn the_kernel_understands_what_it_is_asked() {
        let error = Netlink.read(1, 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound, "{error}");
        let error = Netlink.read(i32::MAX.cast_unsigned(), 0).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(19), "no such device: {error}");
        // Not its device's to have, or not ours to set.
        let error = Netlink.set(1, 0, Setting::Trust(true)).unwrap_err();
        assert!(matches!(error.raw_os_error(), Some(1 | 95)), "{error}");
    }
}
