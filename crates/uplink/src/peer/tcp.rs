//! The TCP transfer, served by smoltcp over bare IP: Ethernet and ARP are the host's.

use load_format::{Checked, Content};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetProtocol, HardwareAddress, IpCidr, Ipv4Cidr};

use super::PeerConfig;
use super::frames::{Frames, Route};
use super::ledger::TcpLedger;
use super::pace::Budget;

/// One connection that carries content both ways, and a second socket that listens for the next:
/// a guest that starts again is served at once.
pub(super) struct Transfer {
    interface: Interface,
    sockets: SocketSet<'static>,
    handles: [SocketHandle; 2],
    current: Option<Current>,
    port: u16,
    budget: Budget,
    /// What is carried is the content that both ends know.
    has_content: bool,
    incoming: Frames,
    next_due: u64,
}

#[derive(Debug)]
struct Current {
    handle: SocketHandle,
    /// Bytes given to the socket.
    sent: u64,
    /// Of those, bytes that the guest has acknowledged.
    acknowledged: u64,
    /// Bytes received and checked.
    received: u64,
}

/// How often content is given to the socket, in nanoseconds.
const TICK: u64 = 2_000_000;

const MTU: usize = 1500;

impl Transfer {
    pub(super) fn new(config: &PeerConfig, now_nanos: u64) -> Self {
        let mut nothing = IpPort {
            incoming: &Frames::default(),
            next: 0,
            route: &Route {
                from_mac: config.mac,
                from_ip: config.ip,
                to_mac: [0; 6],
                to_ip: config.guest_ip,
            },
            outgoing: &mut Frames::default(),
        };
        let mut settings = Config::new(HardwareAddress::Ip);
        settings.random_seed = now_nanos;
        let mut interface = Interface::new(settings, &mut nothing, instant(now_nanos));
        interface.update_ip_addrs(|addresses| {
            let own = IpCidr::Ipv4(Ipv4Cidr::new(config.ip, config.prefix));
            addresses
                .push(own)
                .expect("an interface has room for one address");
        });
        let mut sockets = SocketSet::new(Vec::new());
        let handles = [(); 2].map(|()| {
            let buffer = || tcp::SocketBuffer::new(vec![0; config.tcp_buffer]);
            let mut socket = tcp::Socket::new(buffer(), buffer());
            // The rate is ours to keep; what it gives should leave at once.
            socket.set_nagle_enabled(false);
            sockets.add(socket)
        });
        Self {
            interface,
            sockets,
            handles,
            current: None,
            port: config.tcp_port,
            budget: Budget::new(config.tcp_bytes_per_second, now_nanos),
            has_content: true,
            incoming: Frames::default(),
            next_due: now_nanos,
        }
    }

    /// From now on sends so many bytes per second, and any bytes are right.
    pub(super) fn carry_anything(&mut self, bytes_per_second: u32, now_nanos: u64) {
        self.budget = Budget::new(bytes_per_second, now_nanos);
        self.has_content = false;
        self.next_due = now_nanos;
    }

    /// Takes an IPv4 packet that holds TCP; it is looked at with the next [`advance`](Self::advance).
    pub(super) fn receive(&mut self, packet: &[u8]) {
        self.incoming
            .push(packet.len(), |bytes| bytes.copy_from_slice(packet));
    }

    /// Does what came in, checks the content and sends as much as the rate allows.
    pub(super) fn advance(
        &mut self,
        now_nanos: u64,
        route: &Route,
        outgoing: &mut Frames,
        ledger: &mut TcpLedger,
    ) {
        if self.incoming.is_empty() && now_nanos < self.next_due {
            return;
        }
        self.poll(now_nanos, route, outgoing);
        self.follow_connections(ledger);
        if self.transfer(now_nanos, ledger) {
            self.poll(now_nanos, route, outgoing);
        }
        self.plan(now_nanos);
    }

    pub(super) fn next_due(&self) -> u64 {
        self.next_due
    }

    fn poll(&mut self, now_nanos: u64, route: &Route, outgoing: &mut Frames) {
        let mut port = IpPort {
            incoming: &self.incoming,
            next: 0,
            route,
            outgoing,
        };
        self.interface
            .poll(instant(now_nanos), &mut port, &mut self.sockets);
        self.incoming.clear();
    }

    /// Notes connections that came and went, and keeps a socket listening.
    fn follow_connections(&mut self, ledger: &mut TcpLedger) {
        for handle in self.handles {
            let is_current = self
                .current
                .as_ref()
                .is_some_and(|now| now.handle == handle);
            let socket = self.sockets.get_mut::<tcp::Socket>(handle);
            match socket.state() {
                tcp::State::Established if !is_current => {
                    ledger.connected();
                    let current = Current {
                        handle,
                        sent: 0,
                        acknowledged: 0,
                        received: 0,
                    };
                    if let Some(before) = self.current.replace(current) {
                        ledger.closed();
                        self.sockets.get_mut::<tcp::Socket>(before.handle).abort();
                    }
                }
                tcp::State::Established | tcp::State::Listen | tcp::State::SynReceived => {}
                state => {
                    if is_current {
                        ledger.closed();
                        self.current = None;
                    }
                    if state == tcp::State::Closed {
                        socket
                            .listen(self.port)
                            .expect("a closed socket and a checked port");
                    } else {
                        // The guest closed it: nothing is left to say.
                        socket.abort();
                    }
                }
            }
        }
    }

    /// Moves content; tells whether the socket may have something to send.
    fn transfer(&mut self, now_nanos: u64, ledger: &mut TcpLedger) -> bool {
        let budget = self.budget.bytes(now_nanos);
        let Some(current) = &mut self.current else {
            return false;
        };
        let has_content = self.has_content;
        let socket = self.sockets.get_mut::<tcp::Socket>(current.handle);
        let mut moved = false;
        while socket.can_recv() {
            let checked = socket.recv(|bytes| {
                let checked = if has_content {
                    Content::FROM_GUEST.check(current.received, bytes)
                } else {
                    Checked::default()
                };
                ledger.received(bytes.len(), checked, now_nanos);
                (bytes.len(), bytes.len() as u64)
            });
            let Ok(count) = checked else { break };
            current.received += count;
            moved = true;
        }
        let mut left = budget;
        while left > 0 && socket.can_send() {
            let given = socket.send(|room| {
                let count = room.len().min(left);
                if has_content {
                    Content::TO_GUEST.fill(current.sent, &mut room[..count]);
                }
                (count, count)
            });
            let Ok(count) = given else { break };
            if count == 0 {
                break;
            }
            current.sent += count as u64;
            left -= count;
            moved = true;
        }
        self.budget.spend(budget - left);
        let acknowledged = current.sent.saturating_sub(socket.send_queue() as u64);
        ledger.acknowledged(acknowledged.saturating_sub(current.acknowledged), now_nanos);
        current.acknowledged = current.acknowledged.max(acknowledged);
        moved
    }

    fn plan(&mut self, now_nanos: u64) {
        let tick = if self.current.is_some() {
            now_nanos + TICK
        } else {
            u64::MAX
        };
        let timer = self.interface.poll_at(instant(now_nanos), &self.sockets);
        let timer = timer.map_or(u64::MAX, |at| {
            u64::try_from(at.total_micros())
                .unwrap_or(0)
                .saturating_mul(1000)
        });
        // Not at once again, whatever smoltcp would like: the thread must not spin.
        self.next_due = tick.min(timer.max(now_nanos + TICK / 2));
    }
}

impl std::fmt::Debug for Transfer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transfer")
            .field("current", &self.current)
            .finish_non_exhaustive()
    }
}

fn instant(nanos: u64) -> Instant {
    Instant::from_micros(i64::try_from(nanos / 1000).unwrap_or(i64::MAX))
}

/// The packets of one pass, as smoltcp sees a network device.
struct IpPort<'a> {
    incoming: &'a Frames,
    next: usize,
    route: &'a Route,
    outgoing: &'a mut Frames,
}

impl Device for IpPort<'_> {
    type RxToken<'a>
        = Received<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = ToSend<'a>
    where
        Self: 'a;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, ToSend<'_>)> {
        let packet = self.incoming.at(self.next)?;
        self.next += 1;
        Some((
            Received(packet),
            ToSend {
                route: self.route,
                outgoing: self.outgoing,
            },
        ))
    }

    fn transmit(&mut self, _: Instant) -> Option<ToSend<'_>> {
        Some(ToSend {
            route: self.route,
            outgoing: self.outgoing,
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MTU;
        capabilities
    }
}

struct Received<'a>(&'a [u8]);

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

struct ToSend<'a> {
    route: &'a Route,
    outgoing: &'a mut Frames,
}

impl TxToken for ToSend<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        self.route
            .ethernet(self.outgoing, EthernetProtocol::Ipv4, len, f)
    }
}
