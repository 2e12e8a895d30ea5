//! As much of a received frame's headers as the model looks at: the 802.1Q tag, IP, and where the
//! transport lies.

use crate::checksum;

/// Length of an Ethernet header without a tag.
pub(crate) const ETHERNET_LEN: usize = 14;
/// Length of an 802.1Q tag.
pub(crate) const VLAN_LEN: usize = 4;
/// Where a tag lies: after both addresses.
pub(crate) const VLAN_OFFSET: usize = 12;
/// Ethertype of an 802.1Q tag.
pub(crate) const ETHERTYPE_VLAN: [u8; 2] = [0x81, 0x00];

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const IPV6_LEN: usize = 40;
/// More extension headers than this are not looked through.
const IPV6_EXTENSIONS: usize = 4;

/// What is known of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Packet<'a> {
    pub(crate) ip: Option<Ip<'a>>,
    /// The transport; `None` also for fragments and truncated packets.
    pub(crate) l4: Option<Transport<'a>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ip<'a> {
    /// The IPv4 header with its options; `None` for IPv6.
    pub(crate) v4_header: Option<&'a [u8]>,
    /// Source and destination address, one after the other.
    pub(crate) addresses: &'a [u8],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Transport<'a> {
    pub(crate) protocol: Protocol,
    /// Header and payload, without what pads the frame.
    pub(crate) bytes: &'a [u8],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

/// What became of verifying a checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// There is none to verify.
    Unknown,
    Right,
    Wrong,
}

/// Tag control information of a tagged frame.
pub(crate) fn vlan_tag(frame: &[u8]) -> Option<u16> {
    let tag = frame.get(VLAN_OFFSET..VLAN_OFFSET + VLAN_LEN)?;
    let (tpid, tci) = tag.split_at(2);
    (tpid == ETHERTYPE_VLAN).then(|| u16::from_be_bytes([tci[0], tci[1]]))
}

/// VLAN identifier of a tagged frame.
pub(crate) fn vlan_id(frame: &[u8]) -> Option<u16> {
    vlan_tag(frame).map(|tag| tag & 0xfff)
}

impl<'a> Packet<'a> {
    /// Looks at a frame with at most one tag.
    pub(crate) fn parse(frame: &'a [u8]) -> Self {
        let tag = if vlan_tag(frame).is_some() {
            VLAN_LEN
        } else {
            0
        };
        let l3 = frame.get(ETHERNET_LEN + tag..).unwrap_or_default();
        match be16(frame, VLAN_OFFSET + tag) {
            Some(ETHERTYPE_IPV4) => Self::ipv4(l3),
            Some(ETHERTYPE_IPV6) => Self::ipv6(l3),
            _ => None,
        }
        .unwrap_or_default()
    }

    fn ipv4(l3: &'a [u8]) -> Option<Self> {
        let first = *l3.first()?;
        let header_len = usize::from(first & 0xf) * 4;
        if first >> 4 != 4 || header_len < 20 {
            return None;
        }
        let header = l3.get(..header_len)?;
        let ip = Ip {
            v4_header: Some(header),
            addresses: &header[12..20],
        };
        let total = usize::from(be16(header, 2)?);
        let fragment = be16(header, 6)? & 0x3fff != 0;
        let payload = l3.get(header_len..total).filter(|_| !fragment);
        Some(Self {
            ip: Some(ip),
            l4: payload.and_then(|bytes| Transport::new(header[9], bytes)),
        })
    }

    fn ipv6(l3: &'a [u8]) -> Option<Self> {
        let header = l3.get(..IPV6_LEN).filter(|header| header[0] >> 4 == 6)?;
        let ip = Ip {
            v4_header: None,
            addresses: &header[8..],
        };
        let end = IPV6_LEN + usize::from(be16(header, 4)?);
        let payload = l3.get(IPV6_LEN..end);
        Some(Self {
            ip: Some(ip),
            l4: payload.and_then(|bytes| Transport::after_extensions(header[6], bytes)),
        })
    }

    /// Verifies the IPv4 header's checksum.
    pub(crate) fn ip_verdict(&self) -> Verdict {
        match self.ip.and_then(|ip| ip.v4_header) {
            None => Verdict::Unknown,
            Some(header) => Verdict::of(checksum::checksum(header) == 0),
        }
    }

    /// Verifies the transport's checksum.
    pub(crate) fn l4_verdict(&self) -> Verdict {
        let (Some(ip), Some(l4)) = (self.ip, self.l4) else {
            return Verdict::Unknown;
        };
        let internet = |number| {
            let pseudo = checksum::pseudo_header(ip.addresses, number, l4.bytes.len());
            Verdict::of(checksum::fold(checksum::add(pseudo, l4.bytes)) == 0xffff)
        };
        match l4.protocol {
            Protocol::Tcp => internet(6),
            Protocol::Udp if be16(l4.bytes, 6) == Some(0) => Verdict::Unknown,
            Protocol::Udp => internet(17),
            Protocol::Sctp => {
                let field = l4.bytes.get(8..12).unwrap_or_default();
                Verdict::of(field == checksum::sctp(l4.bytes).to_le_bytes())
            }
        }
    }

    /// A number that is the same for all packets of a flow in one direction.
    pub(crate) fn flow(&self) -> u32 {
        let mut hash = Fnv::default();
        if let Some(ip) = self.ip {
            hash.add(ip.addresses);
        }
        if let Some(l4) = self.l4 {
            hash.add(&l4.bytes[..4]); // Both ports, in all three protocols.
        }
        hash.finish()
    }
}

impl<'a> Transport<'a> {
    fn new(protocol: u8, bytes: &'a [u8]) -> Option<Self> {
        let (protocol, header_len) = match protocol {
            6 => (Protocol::Tcp, 20),
            17 => (Protocol::Udp, 8),
            132 => (Protocol::Sctp, 12),
            _ => return None,
        };
        (bytes.len() >= header_len).then_some(Self { protocol, bytes })
    }

    /// Looks past hop-by-hop and destination options. A routing header would change what the
    /// checksum covers, and a fragment header says that there is no whole packet here.
    fn after_extensions(mut next: u8, mut bytes: &'a [u8]) -> Option<Self> {
        for _ in 0..IPV6_EXTENSIONS {
            if next != 0 && next != 60 {
                break;
            }
            let len = (usize::from(*bytes.get(1)?) + 1) * 8;
            next = *bytes.first()?;
            bytes = bytes.get(len..)?;
        }
        Self::new(next, bytes)
    }
}

impl Verdict {
    fn of(right: bool) -> Self {
        if right { Self::Right } else { Self::Wrong }
    }
}

/// FNV-1a, 32 bits: cheap for the few bytes that make a flow.
struct Fnv(u32);

impl Default for Fnv {
    fn default() -> Self {
        Self(0x811c_9dc5)
    }
}

impl Fnv {
    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
        }
    }

    /// The low bits of FNV see only the low bits of the bytes: mix the high ones in.
    fn finish(self) -> u32 {
        self.0 ^ self.0 >> 16 ^ self.0 >> 8
    }
}

fn be16(bytes: &[u8], offset: usize) -> Option<u16> {
    let field = bytes.get(offset..)?.first_chunk::<2>()?;
    Some(u16::from_be_bytes(*field))
}
