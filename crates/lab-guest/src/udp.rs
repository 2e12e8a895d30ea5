//! Numbered UDP: sends at a rate, and keeps account of what the peer sends.

use std::io::IoSlice;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use load_format::{GuestUdpReport, NotNumbered, Numbered, Run, Seen, Sequence, Silence};
use rustix::io::Errno;
use rustix::net::{MMsgHdr, RecvFlags, SendAncillaryBuffer, SendFlags, sockopt};

use crate::{UdpOptions, now_nanos};

/// What was counted; shared with those who ask.
#[derive(Debug, Default)]
pub(crate) struct Account(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    sent: u64,
    send_errors: u64,
    received: Sequence,
    corrupt: u64,
}

/// The sender and receiver.
#[derive(Debug)]
pub(crate) struct Udp {
    socket: UdpSocket,
    account: Arc<Account>,
    stream: u32,
    next_number: u64,
    rate: u64,
    tick_nanos: u64,
    payload: usize,
    /// Room for one burst of payloads.
    outgoing: Vec<u8>,
}

/// What the kernel may hold for us while we do not look: seconds of the lab's load.
const RECEIVE_BUFFER: usize = 8 * 1024 * 1024;

/// Packets sent at once at most, also after a stall: more would overrun a NIC's ring, and memory
/// for them would have to be found just then.
const MAX_BURST: usize = 16;

impl Udp {
    pub(crate) fn new(peer: Ipv4Addr, options: &UdpOptions, account: Arc<Account>) -> Result<Self> {
        ensure!(
            (Numbered::MIN_LEN..=1472).contains(&options.payload),
            "--payload must be {} to 1472 bytes",
            Numbered::MIN_LEN
        );
        ensure!(
            (1..=1_000_000).contains(&options.tick_us),
            "--tick-us must be 1 to 1000000"
        );
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, options.listen))
            .with_context(|| format!("cannot listen at UDP port {}", options.listen))?;
        // Beyond net.core.rmem_max only root may go.
        if sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER).is_err() {
            sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER)
                .context("cannot enlarge the receive buffer")?;
        }
        socket
            .connect(SocketAddr::from((peer, options.udp_port)))
            .with_context(|| format!("no route to {peer}: has the interface an address?"))?;
        let [a, b, c, d, ..] = now_nanos().to_le_bytes();
        Ok(Self {
            socket,
            account,
            stream: u32::from_le_bytes([a, b, c, d]),
            next_number: 0,
            rate: options.rate.into(),
            tick_nanos: u64::from(options.tick_us) * 1000,
            payload: options.payload,
            outgoing: vec![0xff; options.payload * MAX_BURST],
        })
    }

    /// Never returns. Once per tick it takes all that came and sends all that is due, so that the
    /// number of system calls per packet stays low.
    pub(crate) fn run(&mut self) {
        let mut last = now_nanos();
        let mut due_billionths = 0_u64;
        let mut next_tick = last;
        loop {
            let now = now_nanos();
            let passed = now.saturating_sub(last).min(1_000_000_000);
            last = now;
            self.receive(now);
            due_billionths += passed * self.rate;
            let due = due_billionths / 1_000_000_000;
            due_billionths %= 1_000_000_000;
            self.send(due.min(MAX_BURST as u64), now);

            next_tick = (next_tick + self.tick_nanos).max(now);
            std::thread::sleep(Duration::from_nanos(next_tick.saturating_sub(now_nanos())));
        }
    }

    fn receive(&self, now_nanos: u64) {
        let mut buffer = [0; 2048];
        let mut counts = self.account.counts();
        loop {
            match rustix::net::recv(&self.socket, &mut buffer, RecvFlags::DONTWAIT) {
                Ok((payload, _)) => match Numbered::read(&buffer[..payload.min(2048)]) {
                    Ok(packet) => {
                        counts
                            .received
                            .arrive(packet.stream, packet.number, now_nanos);
                    }
                    Err(NotNumbered::Corrupt { .. } | NotNumbered::Foreign) => counts.corrupt += 1,
                },
                // The peer's port is closed as long as the peer does not run.
                Err(Errno::INTR | Errno::CONNREFUSED) => {}
                Err(_) => return,
            }
        }
    }

    fn send(&mut self, count: u64, now_nanos: u64) {
        let seen = self
            .account
            .counts()
            .received
            .newest()
            .map(|(number, at)| Seen {
                number,
                age_nanos: now_nanos.saturating_sub(at),
            });
        self.outgoing.clear();
        for number in self.next_number..self.next_number + count {
            let start = self.outgoing.len();
            self.outgoing.resize(start + self.payload, 0);
            let packet = Numbered {
                stream: self.stream,
                number,
                sent_nanos: now_nanos,
                seen,
            };
            packet.write(&mut self.outgoing[start..]);
        }
        let pieces: Vec<_> = self
            .outgoing
            .chunks(self.payload)
            .map(|payload| [IoSlice::new(payload)])
            .collect();
        let mut controls: Vec<_> = pieces
            .iter()
            .map(|_| SendAncillaryBuffer::default())
            .collect();
        let mut messages: Vec<_> = std::iter::zip(&pieces, &mut controls)
            .map(|(piece, control)| MMsgHdr::new(piece, control))
            .collect();
        // What the kernel refuses is not numbered: the next packets take those numbers.
        let sent = match rustix::net::sendmmsg(&self.socket, &mut messages, SendFlags::DONTWAIT) {
            Ok(sent) => sent as u64,
            Err(_) => 0,
        };
        self.next_number += sent;
        let mut counts = self.account.counts();
        counts.sent += sent;
        counts.send_errors += count.saturating_sub(sent);
    }
}

impl Account {
    pub(crate) fn report(&self, now_nanos: u64) -> GuestUdpReport {
        let counts = self.counts();
        let received = &counts.received;
        GuestUdpReport {
            sent: counts.sent,
            send_errors: counts.send_errors,
            received: received.received(),
            lost: received.lost(),
            lost_runs: received
                .gaps()
                .map(|gap| Run {
                    first: gap.first,
                    last: gap.last,
                })
                .collect(),
            lost_elsewhere: received.lost_in_forgotten_gaps(),
            duplicates: received.duplicates(),
            reordered: received.reordered(),
            corrupt: counts.corrupt,
            longest_gap_nanos: received
                .longest_silence(now_nanos)
                .as_ref()
                .map_or(0, Silence::nanos),
        }
    }

    pub(crate) fn reset(&self) {
        let mut counts = self.counts();
        counts.received.start_window();
        *counts = Counts {
            received: std::mem::take(&mut counts.received),
            ..Counts::default()
        };
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
