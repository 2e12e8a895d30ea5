//! Frames to be sent, and how they are built.

use std::net::Ipv4Addr;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    EthernetRepr, Icmpv4Packet, Icmpv4Repr, IpAddress, IpProtocol, Ipv4Packet, Ipv4Repr, UdpPacket,
    UdpRepr,
};

/// Frames one after the other in one buffer that is used again and again.
#[derive(Debug, Default)]
pub(super) struct Frames {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Frames {
    /// Adds a frame of `len` bytes and lets `fill` write it; it is all zero before.
    pub(super) fn push<R>(&mut self, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let start = self.bytes.len();
        self.bytes.resize(start + len, 0);
        self.ends.push(self.bytes.len());
        fill(&mut self.bytes[start..])
    }

    /// The frame at `index`, in the order in which they were added.
    pub(super) fn at(&self, index: usize) -> Option<&[u8]> {
        let end = *self.ends.get(index)?;
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        Some(&self.bytes[start..end])
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }
}

/// From whom to whom a frame goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Route {
    pub(super) from_mac: [u8; 6],
    pub(super) from_ip: Ipv4Addr,
    pub(super) to_mac: [u8; 6],
    pub(super) to_ip: Ipv4Addr,
}

pub(super) const ETHERNET: usize = 14;
const IPV4: usize = 20;
const UDP: usize = 8;

impl Route {
    /// An Ethernet frame with `len` bytes of payload, all zero for `fill` to write.
    pub(super) fn ethernet<R>(
        &self,
        frames: &mut Frames,
        ethertype: EthernetProtocol,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> R,
    ) -> R {
        frames.push(ETHERNET + len, |bytes| {
            let header = EthernetRepr {
                src_addr: EthernetAddress(self.from_mac),
                dst_addr: EthernetAddress(self.to_mac),
                ethertype,
            };
            header.emit(&mut EthernetFrame::new_unchecked(&mut *bytes));
            fill(&mut bytes[ETHERNET..])
        })
    }

    /// An ARP packet of this route's sender.
    pub(super) fn arp(&self, frames: &mut Frames, operation: ArpOperation) {
        let repr = ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr: EthernetAddress(self.from_mac),
            source_protocol_addr: self.from_ip,
            target_hardware_addr: EthernetAddress(self.to_mac),
            target_protocol_addr: self.to_ip,
        };
        self.ethernet(frames, EthernetProtocol::Arp, repr.buffer_len(), |bytes| {
            repr.emit(&mut ArpPacket::new_unchecked(bytes));
        });
    }

    /// A UDP packet with `len` bytes of payload for `fill` to write.
    pub(super) fn udp(
        &self,
        frames: &mut Frames,
        (src_port, dst_port): (u16, u16),
        len: usize,
        fill: impl FnOnce(&mut [u8]),
    ) {
        self.ipv4(frames, IpProtocol::Udp, UDP + len, |bytes| {
            UdpRepr { src_port, dst_port }.emit(
                &mut UdpPacket::new_unchecked(bytes),
                &IpAddress::Ipv4(self.from_ip),
                &IpAddress::Ipv4(self.to_ip),
                len,
                fill,
                &ChecksumCapabilities::default(),
            );
        });
    }

    /// An ICMP echo request or reply.
    pub(super) fn echo(&self, frames: &mut Frames, echo: &Icmpv4Repr<'_>) {
        self.ipv4(frames, IpProtocol::Icmp, echo.buffer_len(), |bytes| {
            let mut packet = Icmpv4Packet::new_unchecked(bytes);
            echo.emit(&mut packet, &ChecksumCapabilities::default());
        });
    }

    /// An IPv4 packet with `payload_len` bytes, all zero for `fill` to write.
    pub(super) fn ipv4(
        &self,
        frames: &mut Frames,
        next_header: IpProtocol,
        payload_len: usize,
        fill: impl FnOnce(&mut [u8]),
    ) {
        let header = Ipv4Repr {
            src_addr: self.from_ip,
            dst_addr: self.to_ip,
            next_header,
            payload_len,
            hop_limit: 64,
        };
        self.ethernet(
            frames,
            EthernetProtocol::Ipv4,
            IPV4 + payload_len,
            |bytes| {
                let checksums = ChecksumCapabilities::default();
                header.emit(&mut Ipv4Packet::new_unchecked(&mut *bytes), &checksums);
                fill(&mut bytes[IPV4..]);
            },
        );
    }
}
