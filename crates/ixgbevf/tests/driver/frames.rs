//! Frames to and from the guest, built by `etherparse`: a judge that shares no code with the model.

use etherparse::PacketBuilder;

use crate::machine::MAC;

pub(crate) const PEER: [u8; 6] = [0x02, 0xaa, 0xbb, 0xcc, 0xdd, 0x02];

/// A whole UDP frame to the guest.
pub(crate) fn udp_to(destination: [u8; 6], port: u16, payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(PEER, destination)
        .ipv4([10, 9, 0, 1], [10, 9, 0, 2], 64)
        .udp(port, 7);
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).unwrap();
    frame
}

/// A whole UDP frame to the guest's own address.
pub(crate) fn udp(payload: &[u8]) -> Vec<u8> {
    udp_to(MAC, 1, payload)
}

/// `frame` with an 802.1Q tag.
pub(crate) fn tagged(frame: &[u8], tci: u16) -> Vec<u8> {
    let mut tagged = frame[..12].to_vec();
    tagged.extend([0x81, 0x00]);
    tagged.extend(tci.to_be_bytes());
    tagged.extend(&frame[12..]);
    tagged
}

/// Numbers that tell where in a payload they come from.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 256 * 13) as u8).collect()
}

/// The one's complement sum of 16-bit words, folded.
pub(crate) fn ones_sum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(u16::from_be_bytes([
                pair[0],
                pair.get(1).copied().unwrap_or(0),
            ]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
    }
    u16::try_from(sum).unwrap()
}
