//! What the device does to a frame on its way out: 802.1Q tag, checksums and segmentation
//! (datasheet sections 7.2.4 segmentation, 7.2.5 checksums).
//!
//! Checksum fields take part in their own sum with what the driver put there. For the transport it
//! is the pseudo header's sum, for IPv4 it is zero or, where the "header" of the context spans a
//! tunnel (`NETIF_F_GSO_PARTIAL`), what cancels the rest out.

use device::{Offloads, TxOffload};

use crate::checksum;
use crate::packet::{ETHERTYPE_VLAN, VLAN_LEN, VLAN_OFFSET};
use crate::spec::descriptors::{L4Type, TxContext, TxData};

const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;
/// A segment is never longer than a frame that the device can send.
pub(crate) const MAX_FRAME: usize = 15_872;

/// Descriptors ask for what cannot be done to their frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

/// What remains to be done with a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// Send it; the link finishes it.
    Whole(TxOffload),
    /// Cut it; the link finishes each piece, or nothing remains to be done.
    Cut(Segments),
}

/// Puts an 802.1Q tag into a frame that lies [`VLAN_LEN`] bytes behind the start of `buffer`. The
/// frame then begins at the start.
pub(crate) fn insert_tag(buffer: &mut [u8], tag: u16) {
    buffer.copy_within(VLAN_LEN..VLAN_LEN + VLAN_OFFSET, 0);
    buffer[VLAN_OFFSET..VLAN_OFFSET + 2].copy_from_slice(&ETHERTYPE_VLAN);
    put16(buffer, VLAN_OFFSET + 2, tag);
}

/// Does to a whole frame what `data` asks for and says what remains. `may_hand_over` is false when
/// a part of the frame was sent already.
pub(crate) fn prepare(
    frame: &mut [u8],
    data: &TxData,
    context: &TxContext,
    link: Offloads,
    may_hand_over: bool,
) -> Result<Work, Malformed> {
    let headers = Headers::new(data, context);
    if data.segment {
        let segments = Segments::new(frame, headers, data, context)?;
        if may_hand_over && link.tcp_segments && segments.is_plain_tcp(frame) {
            return Ok(Work::Whole(segments.hand_over(frame)));
        }
        return Ok(Work::Cut(segments));
    }
    if data.ip_checksum {
        headers.insert_ip_checksum(frame, context.ip_len())?;
    }
    let left = if data.l4_checksum {
        headers.insert_l4_checksum(frame, link)?
    } else {
        TxOffload::None
    };
    Ok(Work::Whole(left))
}

/// Where the headers of a frame lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Headers {
    l3: usize,
    l4: usize,
    l4_type: L4Type,
}

impl Headers {
    fn new(data: &TxData, context: &TxContext) -> Self {
        let tag = if data.insert_vlan { VLAN_LEN } else { 0 };
        let l3 = context.mac_len() + tag;
        Self {
            l3,
            l4: l3 + context.ip_len(),
            l4_type: context.l4_type(),
        }
    }

    fn insert_ip_checksum(&self, frame: &mut [u8], ip_len: usize) -> Result<(), Malformed> {
        if ip_len < IPV4_LEN {
            return Err(Malformed);
        }
        let header = frame.get_mut(self.l3..self.l4).ok_or(Malformed)?;
        let checksum = checksum::checksum(header);
        put16(header, 10, checksum);
        Ok(())
    }

    fn insert_l4_checksum(&self, frame: &mut [u8], link: Offloads) -> Result<TxOffload, Malformed> {
        let packet = frame.get_mut(self.l4..).ok_or(Malformed)?;
        let (field, header_len) = match self.l4_type {
            L4Type::Udp => (6, 8),
            L4Type::Tcp => (16, 20),
            L4Type::Sctp => (8, 12),
            L4Type::Reserved => return Err(Malformed),
        };
        if packet.len() < header_len {
            return Err(Malformed);
        }
        if self.l4_type == L4Type::Sctp {
            let crc = checksum::sctp(packet).to_le_bytes();
            packet[field..field + 4].copy_from_slice(&crc);
            return Ok(TxOffload::None);
        }
        if link.checksum {
            return Ok(TxOffload::Checksum {
                start: to16(self.l4),
                offset: to16(field),
            });
        }
        self.put_l4_checksum(packet, field, 0);
        Ok(TxOffload::None)
    }

    /// `more` is what the field's content lacks of the pseudo header's sum.
    fn put_l4_checksum(&self, packet: &mut [u8], field: usize, more: u64) {
        let checksum = match !checksum::fold(checksum::add(more, packet)) {
            // In UDP, 0 says that there is no checksum (RFC 768).
            0 if self.l4_type == L4Type::Udp => 0xffff,
            checksum => checksum,
        };
        put16(packet, field, checksum);
    }
}

/// A frame that is cut into several with the same headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segments {
    headers: Headers,
    header_len: usize,
    payload_len: usize,
    mss: usize,
    ipv4: bool,
    ip_checksum: bool,
    l4_checksum: bool,
}

/// TCP's flags as the device leaves them in all segments but the first (`DTXTCPFLGL`, section
/// 8.2.3): CWR belongs to the first only, FIN and PSH to the last.
mod tcp_flags {
    pub(super) const FIN_PSH: u8 = 0x09;
    pub(super) const CWR: u8 = 0x80;
    pub(super) const OFFSET: usize = 13;
}

impl Segments {
    fn new(
        frame: &[u8],
        headers: Headers,
        data: &TxData,
        context: &TxContext,
    ) -> Result<Self, Malformed> {
        let header_len = headers.l4 + context.l4_len();
        let shortest_ip = if context.ipv4() { IPV4_LEN } else { IPV6_LEN };
        let shortest_l4 = match headers.l4_type {
            L4Type::Tcp => 20,
            L4Type::Udp => 8,
            L4Type::Sctp | L4Type::Reserved => return Err(Malformed),
        };
        let payload_len = frame.len().checked_sub(header_len).ok_or(Malformed)?;
        let mss = context.mss();
        let sensible = context.ip_len() >= shortest_ip
            && context.l4_len() >= shortest_l4
            && (1..=MAX_FRAME - header_len).contains(&mss);
        let segments = Self {
            headers,
            header_len,
            payload_len,
            mss,
            ipv4: context.ipv4(),
            ip_checksum: data.ip_checksum,
            l4_checksum: data.l4_checksum,
        };
        sensible.then_some(segments).ok_or(Malformed)
    }

    /// How many there are, at least 1.
    pub(crate) fn count(&self) -> u32 {
        u32::try_from(self.payload_len.div_ceil(self.mss).max(1)).unwrap_or(u32::MAX)
    }

    /// Makes segment `index`, which is below [`count`](Self::count), in `out`.
    pub(crate) fn build(&self, frame: &[u8], index: u32, out: &mut Vec<u8>) {
        let Headers { l3, l4, l4_type } = self.headers;
        let offset = index as usize * self.mss;
        let (header, payload) = frame.split_at(self.header_len);
        let last = payload.len() - offset <= self.mss;
        let end = if last {
            payload.len()
        } else {
            offset + self.mss
        };
        out.clear();
        out.extend_from_slice(header);
        out.extend_from_slice(&payload[offset..end]);

        self.finish_ip(&mut out[l3..], index);
        let packet = &mut out[l4..];
        let len = packet.len();
        let field = if l4_type == L4Type::Udp {
            put16(packet, 4, to16(len));
            6
        } else {
            let sequence = get32(packet, 4).wrapping_add(u32::try_from(offset).unwrap_or(0));
            packet[4..8].copy_from_slice(&sequence.to_be_bytes());
            if !last {
                packet[tcp_flags::OFFSET] &= !tcp_flags::FIN_PSH;
            }
            if index > 0 {
                packet[tcp_flags::OFFSET] &= !tcp_flags::CWR;
            }
            16
        };
        if self.l4_checksum {
            self.headers.put_l4_checksum(packet, field, len as u64);
        }
    }

    /// Fills in the IP header of a packet: length, identification, checksum.
    fn finish_ip(&self, packet: &mut [u8], index: u32) {
        let len = packet.len();
        if !self.ipv4 {
            put16(packet, 4, to16(len - IPV6_LEN));
            return;
        }
        put16(packet, 2, to16(len));
        let id = get16(packet, 4).wrapping_add((index & 0xffff) as u16);
        put16(packet, 4, id);
        if self.ip_checksum {
            let header = &mut packet[..self.headers.l4 - self.headers.l3];
            let checksum = checksum::checksum(header);
            put16(header, 10, checksum);
        }
    }

    /// Whether a link that knows TCP over IP can do it: no tunnel, no extension headers, all
    /// checksums wanted, and not longer than IP can say.
    fn is_plain_tcp(&self, frame: &[u8]) -> bool {
        let Headers { l3, l4, l4_type } = self.headers;
        let ip = &frame[l3..];
        let plain_ip = if self.ipv4 {
            ip[0] >> 4 == 4 && usize::from(ip[0] & 0xf) * 4 == l4 - l3 && ip[9] == 6
        } else {
            ip[0] >> 4 == 6 && l4 - l3 == IPV6_LEN && ip[6] == 6
        };
        plain_ip
            && l4_type == L4Type::Tcp
            && self.l4_checksum
            && (self.ip_checksum || !self.ipv4)
            && u16::try_from(ip.len()).is_ok()
    }

    /// Makes the frame what a link expects: one packet, too long but otherwise right, whose
    /// transport checksum field holds the sum of the whole pseudo header.
    fn hand_over(&self, frame: &mut [u8]) -> TxOffload {
        let Headers { l3, l4, .. } = self.headers;
        self.finish_ip(&mut frame[l3..], 0);
        let packet = &mut frame[l4..];
        let seed = u64::from(get16(packet, 16)) + packet.len() as u64;
        put16(packet, 16, checksum::fold(seed));
        TxOffload::TcpSegments {
            ipv6: !self.ipv4,
            header_len: to16(self.header_len),
            mss: to16(self.mss),
            start: to16(l4),
        }
    }
}

fn get16(bytes: &[u8], offset: usize) -> u16 {
    u16::from_be_bytes([bytes[offset], bytes[offset + 1]])
}

fn get32(bytes: &[u8], offset: usize) -> u32 {
    u32::from(get16(bytes, offset)) << 16 | u32::from(get16(bytes, offset + 2))
}

fn put16(bytes: &mut [u8], offset: usize, value: u16) {
    bytes[offset..offset + 2].copy_from_slice(&value.to_be_bytes());
}

/// For offsets and lengths within headers and frames that fit.
fn to16(value: usize) -> u16 {
    u16::try_from(value).unwrap_or(u16::MAX)
}
