//! The virtio-net header before each frame of a TAP opened with `IFF_VNET_HDR`.

use device::TxOffload;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `struct virtio_net_hdr` (`linux/virtio_net.h`), ten bytes in this host's byte order
/// (`TUNSETVNETLE` is not asked for).
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct Header {
    flags: u8,
    gso_type: u8,
    hdr_len: [u8; 2],
    gso_size: [u8; 2],
    csum_start: [u8; 2],
    csum_offset: [u8; 2],
}

/// The checksum at `csum_start + csum_offset` is to be completed.
const NEEDS_CSUM: u8 = 1;
/// The checksum was checked.
const DATA_VALID: u8 = 2;

const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;

/// Where a TCP header has its checksum (RFC 9293, section 3.1).
const TCP_CHECKSUM: u16 = 16;

impl Header {
    pub(super) const LEN: usize = size_of::<Self>();

    /// The header that asks the kernel for `offload`.
    pub(super) fn for_sending(offload: TxOffload) -> Self {
        match offload {
            TxOffload::None => Self::default(),
            TxOffload::Checksum { start, offset } => Self {
                flags: NEEDS_CSUM,
                csum_start: start.to_ne_bytes(),
                csum_offset: offset.to_ne_bytes(),
                ..Self::default()
            },
            TxOffload::TcpSegments {
                ipv6,
                header_len,
                mss,
                start,
            } => Self {
                flags: NEEDS_CSUM,
                gso_type: if ipv6 { GSO_TCPV6 } else { GSO_TCPV4 },
                hdr_len: header_len.to_ne_bytes(),
                gso_size: mss.to_ne_bytes(),
                csum_start: start.to_ne_bytes(),
                csum_offset: TCP_CHECKSUM.to_ne_bytes(),
            },
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.as_bytes()
    }

    /// Completes the checksum of a received `frame` if its header asks for it, and tells whether
    /// the checksums can be trusted.
    pub(super) fn finish(header: &[u8], frame: &mut [u8]) -> bool {
        let Ok(header) = Self::ref_from_bytes(header) else {
            return false;
        };
        if header.flags & NEEDS_CSUM == 0 {
            return header.flags & DATA_VALID != 0;
        }
        let start = usize::from(u16::from_ne_bytes(header.csum_start));
        let field = start + usize::from(u16::from_ne_bytes(header.csum_offset));
        let Some(covered) = frame.get(start..) else {
            return false;
        };
        let sum = checksum(covered);
        let Some(place) = frame.get_mut(field..field + 2) else {
            return false;
        };
        place.copy_from_slice(&sum.to_be_bytes());
        true
    }
}

/// The Internet checksum (RFC 1071); 0 becomes `0xffff`, since UDP's 0 means "none" (RFC 768) and
/// the two are equal otherwise.
fn checksum(bytes: &[u8]) -> u16 {
    let (pairs, odd) = bytes.as_chunks::<2>();
    let last = odd.first().map_or(0, |byte| u64::from(*byte) << 8);
    let mut sum = pairs
        .iter()
        .map(|pair| u64::from(u16::from_be_bytes(*pair)))
        .sum::<u64>()
        + last;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let folded = u16::try_from(sum).expect("folded to 16 bits above");
    if folded == 0xffff { 0xffff } else { !folded }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_one_of_rfc_1071() {
        // The example of RFC 1071, section 3.
        assert_eq!(
            checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]),
            !0xddf2
        );
        assert_eq!(checksum(&[0x01]), !0x0100);
        assert_eq!(checksum(&[0xff, 0xff]), 0xffff);
    }

    #[test]
    fn a_partial_checksum_is_completed() {
        let header = Header::for_sending(TxOffload::Checksum {
            start: 2,
            offset: 2,
        });
        let mut frame = [9, 9, 0x12, 0x34, 0x00, 0x05, 0xab];
        assert!(Header::finish(header.bytes(), &mut frame));
        let pseudo_header_sum = 0x0005;
        assert_eq!(
            checksum(&frame[2..]),
            pseudo_header_sum,
            "the receiver adds it and gets 0"
        );
    }

    #[test]
    fn a_header_that_points_outside_the_frame_is_not_trusted() {
        for (start, offset) in [(100, 0), (0, 9), (u16::MAX, u16::MAX)] {
            let header = Header::for_sending(TxOffload::Checksum { start, offset });
            assert!(!Header::finish(header.bytes(), &mut [0; 10]));
        }
        assert!(!Header::finish(&[], &mut [0; 10]));
    }
}
