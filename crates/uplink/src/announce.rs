//! How the network learns where a MAC address is now.

/// Length of an Ethernet frame without FCS that needs no padding (IEEE 802.3, 64 with FCS).
const FRAME: usize = 60;

/// A RARP request (RFC 903) in which `mac` asks for its own address, broadcast: no host answers,
/// but each switch on its way learns `mac` at the port it came from. This is what QEMU sends after
/// a migration (`net/announce.c`, `announce_self_create`); it needs no IP address, unlike
/// gratuitous ARP.
pub fn rarp(mac: [u8; 6]) -> [u8; FRAME] {
    const BROADCAST: [u8; 6] = [0xff; 6];
    const RARP: [u8; 2] = 0x8035_u16.to_be_bytes();
    /// Hardware: Ethernet; protocol: IPv4; lengths 6 and 4; operation 3: request reverse.
    const REQUEST_REVERSE: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 3];
    const NO_IP: [u8; 4] = [0; 4];

    let mut frame = [0; FRAME];
    let fields: [&[u8]; 8] = [
        &BROADCAST,
        &mac,
        &RARP,
        &REQUEST_REVERSE,
        &mac,
        &NO_IP,
        &mac,
        &NO_IP,
    ];
    let mut at = 0;
    for field in fields {
        frame[at..at + field.len()].copy_from_slice(field);
        at += field.len();
    }
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frame_is_the_one_rfc_903_describes() {
        let frame = rarp([2, 0, 0, 0, 0, 7]);
        assert_eq!(frame[..6], [0xff; 6]);
        assert_eq!(frame[6..12], [2, 0, 0, 0, 0, 7]);
        assert_eq!(frame[12..22], [0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
        assert_eq!(frame[22..28], [2, 0, 0, 0, 0, 7]);
        assert_eq!(frame[28..32], [0; 4]);
        assert_eq!(frame[32..38], [2, 0, 0, 0, 0, 7]);
        assert_eq!(frame[38..], [0; 22]);
    }
}
