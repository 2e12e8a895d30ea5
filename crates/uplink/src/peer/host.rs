//! The peer as a host of the network: what it answers and what it sends.

use load_format::{NotNumbered, Numbered};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetFrame, EthernetProtocol, Icmpv4Packet, Icmpv4Repr,
    IpAddress, IpProtocol, Ipv4Packet, UdpPacket,
};

use super::frames::{Frames, Route};
use super::ledger::Ledger;
use super::pace::Pacer;
use super::tcp::Transfer;
use super::{Load, PeerConfig};

/// The peer's own protocol state. Frames come in by [`receive`](Self::receive), time by
/// [`advance`](Self::advance), and what is to be sent is [drained](Self::drain).
#[derive(Debug)]
pub(crate) struct Host {
    config: PeerConfig,
    /// Tells this run's numbers from those of an earlier peer.
    stream: u32,
    guest_mac: Option<[u8; 6]>,
    udp: Pacer,
    next_udp: u64,
    icmp: Pacer,
    next_echo: u64,
    ask: Pacer,
    transfer: Transfer,
    /// Bytes of payload.
    flood: Option<usize>,
    /// Nothing is sent unasked.
    silent: bool,
    outgoing: Frames,
}

/// Identifies our echo requests among others' (the low bits of "vf").
const ECHO_IDENT: u16 = 0x7666;

/// Bytes of an echo's payload.
const ECHO_PAYLOAD: usize = 56;

/// ARP requests per second as long as the guest's address is unknown.
const ASKS_PER_SECOND: u32 = 10;

/// Longest echo request that is answered: one that fits an Ethernet frame.
const MAX_ECHO: usize = 1472;

/// Frames of a flood between two looks at whether the wire takes more, and their bytes.
const FLOOD_BURST: usize = 64;
const FLOOD_BYTES: usize = 64 * 1024;

impl Host {
    pub(crate) fn new(config: PeerConfig, now_nanos: u64) -> Self {
        let [a, b, c, d, ..] = now_nanos.to_le_bytes();
        Self {
            // Any value that the next start of a peer is unlikely to repeat.
            stream: u32::from_le_bytes([a, b, c, d]),
            guest_mac: None,
            udp: Pacer::new(config.udp_per_second, now_nanos),
            next_udp: 0,
            icmp: Pacer::new(config.icmp_per_second, now_nanos),
            next_echo: 0,
            ask: Pacer::new(ASKS_PER_SECOND, now_nanos),
            transfer: Transfer::new(&config, now_nanos),
            flood: None,
            silent: false,
            outgoing: Frames::default(),
            config,
        }
    }

    /// Takes a frame from the network. Whatever it holds, this is bounded work.
    pub(crate) fn receive(&mut self, frame: &[u8], now_nanos: u64, ledger: &mut Ledger) {
        if self.understand(frame, now_nanos, ledger).is_none() {
            ledger.foreign += 1;
        }
    }

    /// Sends what is due.
    pub(crate) fn advance(&mut self, now_nanos: u64, ledger: &mut Ledger) {
        if self.silent {
            return;
        }
        let Some(route) = self.route_to_guest() else {
            if self.ask.due(now_nanos) > 0 {
                let everyone = Route {
                    to_mac: [0xff; 6],
                    ..self.route([0; 6])
                };
                everyone.arp(&mut self.outgoing, ArpOperation::Request);
            }
            return;
        };
        for _ in 0..self.udp.due(now_nanos) {
            let packet = self.numbered(self.next_udp, now_nanos);
            let ports = (self.config.udp_port, self.config.guest_udp_port);
            route.udp(
                &mut self.outgoing,
                ports,
                self.config.udp_payload,
                |payload| {
                    packet.write(payload);
                },
            );
            ledger.udp_sent(now_nanos);
            self.next_udp += 1;
        }
        for _ in 0..self.icmp.due(now_nanos) {
            let mut data = [0; ECHO_PAYLOAD];
            self.numbered(self.next_echo, now_nanos).write(&mut data);
            // The sequence field wraps; the payload's number does not.
            let seq_no = (self.next_echo & 0xffff) as u16;
            let echo = Icmpv4Repr::EchoRequest {
                ident: ECHO_IDENT,
                seq_no,
                data: &data,
            };
            route.echo(&mut self.outgoing, &echo);
            ledger.echo_sent();
            self.next_echo += 1;
        }
        self.transfer
            .advance(now_nanos, &route, &mut self.outgoing, ledger.tcp_mut());
    }

    /// From now on this is what is sent.
    pub(super) fn set_load(&mut self, load: Load, now_nanos: u64) {
        self.udp = Pacer::new(0, now_nanos);
        self.icmp = Pacer::new(load.icmp_per_second, now_nanos);
        self.transfer
            .carry_anything(load.tcp_bytes_per_second, now_nanos);
        self.flood = load.flood;
    }

    /// While `silent`, it answers ARP and echo requests, and sends nothing else.
    pub(super) fn set_silent(&mut self, silent: bool) {
        self.silent = silent;
    }

    /// Whether it would like to send more at any time.
    pub(super) fn floods(&self) -> bool {
        !self.silent && self.flood.is_some() && self.guest_mac.is_some()
    }

    /// Sends a burst of what it [floods](Self::floods) the guest with.
    pub(super) fn flood(&mut self) {
        let Some((payload, route)) = self.flood.zip(self.route_to_guest()) else {
            return;
        };
        let payload = payload.min(Load::MAX_FLOOD);
        let ports = (self.config.udp_port, Load::FLOOD_PORT);
        for _ in 0..(FLOOD_BYTES / payload.max(1)).clamp(1, FLOOD_BURST) {
            route.udp(&mut self.outgoing, ports, payload, |_| ());
        }
    }

    /// The guest's Ethernet address, once it is known.
    pub(crate) fn guest_mac(&self) -> Option<[u8; 6]> {
        self.guest_mac
    }

    /// When [`advance`](Self::advance) has something to do next.
    pub(crate) fn next_due(&self) -> u64 {
        if self.silent {
            return u64::MAX;
        }
        if self.guest_mac.is_none() {
            return self.ask.next_due();
        }
        self.udp
            .next_due()
            .min(self.icmp.next_due())
            .min(self.transfer.next_due())
    }

    /// Gives all frames that are to be sent to `send`.
    pub(crate) fn drain(&mut self, mut send: impl FnMut(&[u8])) {
        let mut index = 0;
        while let Some(frame) = self.outgoing.at(index) {
            send(frame);
            index += 1;
        }
        self.outgoing.clear();
    }

    /// `None` for a frame that is damaged or not for us.
    fn understand(&mut self, frame: &[u8], now_nanos: u64, ledger: &mut Ledger) -> Option<()> {
        let frame = EthernetFrame::new_checked(frame).ok()?;
        match frame.ethertype() {
            EthernetProtocol::Arp => self.arp(frame.payload()),
            EthernetProtocol::Ipv4 => {
                self.ipv4(frame.src_addr().0, frame.payload(), now_nanos, ledger)
            }
            _ => None,
        }
    }

    fn arp(&mut self, payload: &[u8]) -> Option<()> {
        let ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr,
            source_protocol_addr,
            target_protocol_addr,
            ..
        } = ArpRepr::parse(&ArpPacket::new_checked(payload).ok()?).ok()?
        else {
            return None;
        };
        if !source_hardware_addr.is_unicast() {
            return None;
        }
        if source_protocol_addr == self.config.guest_ip {
            self.guest_mac = Some(source_hardware_addr.0);
        }
        if operation == ArpOperation::Request && target_protocol_addr == self.config.ip {
            let back = Route {
                to_ip: source_protocol_addr,
                ..self.route(source_hardware_addr.0)
            };
            back.arp(&mut self.outgoing, ArpOperation::Reply);
        }
        Some(())
    }

    fn ipv4(
        &mut self,
        from_mac: [u8; 6],
        packet: &[u8],
        now_nanos: u64,
        ledger: &mut Ledger,
    ) -> Option<()> {
        let ip = Ipv4Packet::new_checked(packet).ok()?;
        let whole = !ip.more_frags() && ip.frag_offset() == 0;
        let ours = ip.dst_addr() == self.config.ip && ip.src_addr() == self.config.guest_ip;
        if !(whole && ours && ip.verify_checksum()) {
            return None;
        }
        self.guest_mac.get_or_insert(from_mac);
        match ip.next_header() {
            IpProtocol::Udp => self.udp(ip.payload(), now_nanos, ledger),
            IpProtocol::Icmp => self.icmp(ip.payload(), now_nanos, ledger),
            // It would only be collected.
            IpProtocol::Tcp if self.silent => Some(()),
            IpProtocol::Tcp => {
                self.transfer.receive(packet);
                Some(())
            }
            _ => None,
        }
    }

    fn udp(&self, datagram: &[u8], now_nanos: u64, ledger: &mut Ledger) -> Option<()> {
        let datagram = UdpPacket::new_checked(datagram).ok()?;
        if datagram.dst_port() != self.config.udp_port {
            return None;
        }
        let (guest, own) = (
            IpAddress::Ipv4(self.config.guest_ip),
            IpAddress::Ipv4(self.config.ip),
        );
        match Numbered::read(datagram.payload()) {
            Ok(packet) if datagram.verify_checksum(&guest, &own) => {
                ledger.udp_received(&packet, now_nanos);
            }
            Ok(_) | Err(NotNumbered::Corrupt { .. }) => ledger.udp_corrupt += 1,
            Err(NotNumbered::Foreign) => return None,
        }
        Some(())
    }

    fn icmp(&mut self, message: &[u8], now_nanos: u64, ledger: &mut Ledger) -> Option<()> {
        let packet = Icmpv4Packet::new_checked(message).ok()?;
        match Icmpv4Repr::parse(&packet, &ChecksumCapabilities::default()).ok()? {
            Icmpv4Repr::EchoRequest {
                ident,
                seq_no,
                data,
            } if data.len() <= MAX_ECHO => {
                let reply = Icmpv4Repr::EchoReply {
                    ident,
                    seq_no,
                    data,
                };
                self.route_to_guest()?.echo(&mut self.outgoing, &reply);
            }
            Icmpv4Repr::EchoReply {
                ident: ECHO_IDENT,
                data,
                ..
            } => match Numbered::read(data) {
                Ok(packet) if packet.stream == self.stream => {
                    ledger.echo_answered(&packet, now_nanos);
                }
                Ok(_) | Err(NotNumbered::Foreign) => return None,
                Err(NotNumbered::Corrupt { .. }) => ledger.icmp_corrupt += 1,
            },
            _ => return None,
        }
        Some(())
    }

    fn numbered(&self, number: u64, now_nanos: u64) -> Numbered {
        Numbered {
            stream: self.stream,
            number,
            sent_nanos: now_nanos,
            seen: None,
        }
    }

    fn route_to_guest(&self) -> Option<Route> {
        self.guest_mac.map(|mac| self.route(mac))
    }

    fn route(&self, to_mac: [u8; 6]) -> Route {
        Route {
            from_mac: self.config.mac,
            from_ip: self.config.ip,
            to_mac,
            to_ip: self.config.guest_ip,
        }
    }
}

#[cfg(test)]
mod tests;
