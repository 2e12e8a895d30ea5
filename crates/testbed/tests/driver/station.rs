//! One more station of the guest's network: it answers ARP and echoes of any size, with the VLAN
//! tag that they came with, keeps what it sees, and sends what a test makes up.

use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use device::{FrameLink, Sent, TxFrame, TxOffload};
use etherparse::{Icmpv4Type, NetSlice, PacketBuilder, SlicedPacket, TransportSlice, VlanId};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use testbed::Testbed;
use uplink::Wire;

/// The station's address.
pub(crate) const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
/// Its address in the guest's network.
pub(crate) const IP: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 9);
/// Its address in a network that the guest has in a VLAN.
pub(crate) const VLAN_IP: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 9);

const TAG: u16 = 0x8100;
const ARP: u16 = 0x0806;
/// Frames kept.
const KEPT: usize = 4096;

/// A plugged-in station; dropping it unplugs it.
#[derive(Debug)]
pub(crate) struct Station {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    wire: Mutex<Wire>,
    seen: Mutex<Vec<Vec<u8>>>,
    stop: AtomicBool,
}

impl Station {
    /// Plugs one in.
    pub(crate) fn plug_in(testbed: &Testbed) -> Result<Self> {
        let wire = Wire::connect(testbed.wire())?;
        let fd = wire
            .fd()
            .context("the wire is down")?
            .try_clone_to_owned()?;
        let shared = Arc::new(Shared {
            wire: Mutex::new(wire),
            seen: Mutex::default(),
            stop: AtomicBool::new(false),
        });
        let thread = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                while !shared.stop.load(Ordering::Acquire) {
                    // Wakes up now and then to see whether it is to stop.
                    let pause = Timespec::try_from(Duration::from_millis(50)).ok();
                    let _ = poll(
                        &mut [PollFd::new(&fd.as_fd(), PollFlags::IN)],
                        pause.as_ref(),
                    );
                    shared.receive();
                }
            }
        });
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Sends a frame.
    pub(crate) fn send(&self, frame: &[u8]) -> Result<()> {
        self.shared.send(frame)
    }

    /// Forgets what it has seen.
    pub(crate) fn forget(&self) {
        lock(&self.shared.seen).clear();
    }

    /// All frames seen since that are `wanted`.
    pub(crate) fn seen(&self, wanted: impl Fn(&[u8]) -> bool) -> Vec<Vec<u8>> {
        let seen = lock(&self.shared.seen);
        seen.iter().filter(|frame| wanted(frame)).cloned().collect()
    }

    /// Waits until `count` of the frames seen are `wanted`.
    pub(crate) fn wait_for(
        &self,
        count: usize,
        wanted: impl Fn(&[u8]) -> bool,
        limit: Duration,
    ) -> Result<Vec<Vec<u8>>> {
        let deadline = Instant::now() + limit;
        loop {
            let seen = self.seen(&wanted);
            if seen.len() >= count {
                return Ok(seen);
            }
            let number = seen.len();
            ensure!(
                Instant::now() < deadline,
                "{number} of {count} frames came in {limit:?}"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Station {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn send(&self, frame: &[u8]) -> Result<()> {
        let mut wire = lock(&self.wire);
        let offload = TxOffload::None;
        let sent = wire.send(TxFrame {
            bytes: frame,
            offload,
        });
        ensure!(sent == Sent::Taken, "the station's wire is full");
        wire.flush();
        Ok(())
    }

    fn receive(&self) {
        loop {
            let mut wire = lock(&self.wire);
            let Some(frame) = wire.peek().map(|frame| frame.bytes.to_vec()) else {
                return;
            };
            wire.consume();
            drop(wire);
            if let Some(answer) = answer(&frame) {
                // A wire that is full loses the answer, as any network may.
                let _ = self.send(&answer);
            }
            let mut seen = lock(&self.seen);
            if seen.len() < KEPT {
                seen.push(frame);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The VLAN of a frame, if it is tagged, and its protocol.
pub(crate) fn vlan_and_protocol(frame: &[u8]) -> (Option<u16>, u16) {
    let word = |at: usize| match frame.get(at..at + 2) {
        Some(bytes) => u16::from_be_bytes([bytes[0], bytes[1]]),
        None => 0,
    };
    match word(12) {
        TAG => (Some(word(14) & 0xfff), word(16)),
        protocol => (None, protocol),
    }
}

/// What the station answers to a frame, if anything.
fn answer(frame: &[u8]) -> Option<Vec<u8>> {
    match vlan_and_protocol(frame) {
        (vlan, ARP) => answer_arp(frame, vlan),
        (vlan, _) => answer_echo(frame, vlan),
    }
}

/// RFC 826.
fn answer_arp(frame: &[u8], vlan: Option<u16>) -> Option<Vec<u8>> {
    const REQUEST: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 1];
    const ANSWER: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 2];
    let start = if vlan.is_some() { 18 } else { 14 };
    let arp = frame.get(start..start + 28)?;
    let (sender, asked) = (&arp[8..18], &arp[24..28]);
    if arp[..8] != REQUEST || ![IP.octets(), VLAN_IP.octets()].iter().any(|ip| ip == asked) {
        return None;
    }
    let mut answer = [&sender[..6], &MAC, &frame[12..start]].concat();
    answer.extend([&ANSWER[..], &MAC, asked, sender].concat());
    answer.resize(answer.len().max(60), 0);
    Some(answer)
}

/// An echo request to the station, whose checksums are right: else it is none.
fn answer_echo(frame: &[u8], vlan: Option<u16>) -> Option<Vec<u8>> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Icmpv4(icmp))) =
        (packet.net, packet.transport)
    else {
        return None;
    };
    let header = ip.header();
    let ours = [IP, VLAN_IP].contains(&header.destination_addr());
    let Icmpv4Type::EchoRequest(echo) = icmp.icmp_type() else {
        return None;
    };
    if !ours || !icmp_is_right(icmp.slice()) || frame[..6] != MAC {
        return None;
    }
    let sender: [u8; 6] = frame[6..12].try_into().expect("six bytes");
    let (from, to) = (header.destination(), header.source());
    let ethernet = PacketBuilder::ethernet2(MAC, sender);
    let answer = match vlan {
        Some(vlan) => ethernet
            .single_vlan(VlanId::try_new(vlan).ok()?)
            .ipv4(from, to, 64),
        None => ethernet.ipv4(from, to, 64),
    };
    let answer = answer.icmpv4_echo_reply(echo.id, echo.seq);
    let mut bytes = Vec::with_capacity(frame.len());
    answer.write(&mut bytes, icmp.payload()).ok()?;
    Some(bytes)
}

/// RFC 1071: with its checksum in it, a message sums up to all ones.
fn icmp_is_right(message: &[u8]) -> bool {
    etherparse::checksum::Sum16BitWords::new()
        .add_slice(message)
        .ones_complement()
        == 0
}
