//! As much as goes, one way: what a NIC carries is counted where it arrives, and what it is nobody checks.

use std::io::{IoSlice, Read, Write};
use std::net::{Ipv4Addr, TcpStream, UdpSocket};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_send_buffer_size_force;
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, sendmmsg};
use rustix::process::setpriority_process;

use crate::options::{Peer, TcpOptions, Window};

/// What flows, into the guest or out of it.
#[derive(Debug, Args)]
pub(crate) struct FloodOptions {
    #[arg(value_enum)]
    flow: Flow,
    #[command(flatten)]
    peer: Peer,
    #[command(flatten)]
    tcp: TcpOptions,
    /// Bytes of payload in each UDP packet.
    #[arg(long, default_value_t = 18)]
    payload: usize,
    #[command(flatten)]
    window: Window,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Flow {
    TcpIn,
    TcpOut,
    /// A port is there and nobody reads it: so the kernel need not say that there is none.
    UdpIn,
    UdpOut,
}

/// UDP port at either end (RFC 863).
const DISCARD: u16 = 9;

/// Bytes of TCP that are moved by one call.
const BLOCK: usize = 64 * 1024;

/// UDP packets that are sent by one call.
const BATCH: usize = 64;

/// Bytes that may wait for the NIC.
const SEND_BUFFER: usize = 4 << 20;

/// The highest priority (`nice`): a guest that is flooded has little time for its programs.
const ABOVE_ALL: i32 = -20;

/// What IPv4 and UDP leave of 64 KiB.
const MAX_PAYLOAD: usize = 65_535 - 20 - 8;

pub(crate) fn run(options: &FloodOptions) -> Result<()> {
    let peer = options.peer.peer;
    let connect = || {
        let port = options.tcp.tcp_port;
        TcpStream::connect((peer, port)).with_context(|| format!("{peer} takes no TCP at {port}"))
    };
    match options.flow {
        Flow::TcpIn => take(connect()?),
        Flow::TcpOut => give(connect()?),
        Flow::UdpIn => {
            setpriority_process(None, ABOVE_ALL).context("cannot have priority")?;
            let _port = socket(DISCARD)?;
            options.window.print(|| Ok((packets()?, 0)))
        }
        Flow::UdpOut => send(peer, options.payload),
    }
}

/// How many IPv4 packets this machine has received (RFC 4293, `ipIfStatsInReceives`): a driver may count those
/// that its NIC had no room for, and every few seconds only.
fn packets() -> Result<u64> {
    const PATH: &str = "/proc/net/snmp";
    let text = std::fs::read_to_string(PATH).with_context(|| format!("cannot read {PATH}"))?;
    in_receives(&text).with_context(|| format!("{PATH} has no Ip: InReceives"))
}

/// A line of names, and one of values.
fn in_receives(text: &str) -> Option<u64> {
    let mut of_ip = text.lines().filter_map(|line| line.strip_prefix("Ip:"));
    let (names, values) = (of_ip.next()?, of_ip.next()?);
    let mut both = names.split_whitespace().zip(values.split_whitespace());
    let (_, value) = both.find(|(name, _)| *name == "InReceives")?;
    value.parse().ok()
}

fn take(mut stream: TcpStream) -> Result<()> {
    let mut block = vec![0; BLOCK];
    loop {
        let count = stream.read(&mut block).context("TCP broke")?;
        ensure!(count > 0, "the peer closed the connection");
    }
}

fn give(mut stream: TcpStream) -> Result<()> {
    let block = vec![0; BLOCK];
    loop {
        stream.write_all(&block).context("TCP broke")?;
    }
}

/// The kernel holds it up where the NIC does not keep pace.
fn send(peer: Ipv4Addr, payload: usize) -> Result<()> {
    ensure!(
        payload <= MAX_PAYLOAD,
        "--payload must be {MAX_PAYLOAD} bytes at most"
    );
    let socket = socket(0)?;
    // With what a socket has by default it would wait for the NIC to say that a few packets have gone.
    set_socket_send_buffer_size_force(&socket, SEND_BUFFER).context("cannot enlarge the buffer")?;
    socket
        .connect((peer, DISCARD))
        .with_context(|| format!("no route to {peer}: has the interface an address?"))?;
    let payload = vec![0; payload];
    let piece = [IoSlice::new(&payload)];
    loop {
        let mut controls = [(); BATCH].map(|()| SendAncillaryBuffer::default());
        let mut messages: Vec<_> = controls
            .iter_mut()
            .map(|control| MMsgHdr::new(&piece, control))
            .collect();
        match sendmmsg(&socket, &mut messages, SendFlags::empty()) {
            // A port that is closed says so, and a queue that is full at times.
            Ok(_) | Err(Errno::INTR | Errno::CONNREFUSED | Errno::NOBUFS) => {}
            Err(error) => return Err(error).context("cannot send"),
        }
    }
}

fn socket(port: u16) -> Result<UdpSocket> {
    UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))
        .with_context(|| format!("cannot listen at UDP port {port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_found_by_its_name() {
        let text = "Ip: Forwarding InReceives InHdrErrors\nIp: 2 1234 5\nIcmp: InMsgs\nIcmp: 7\n";
        assert_eq!(in_receives(text), Some(1234));
        assert_eq!(in_receives("Ip: Forwarding\nIp: 2\n"), None);
        assert_eq!(in_receives(""), None);
        assert!(packets().expect("every Linux has it") < u64::MAX);
    }
}
