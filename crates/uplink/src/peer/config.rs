//! What the peer is told.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use load_format::Numbered;

use crate::UplinkError;

/// Who the peer is, whom it talks to, and how much. A rate of 0 switches that load off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerConfig {
    /// Unix socket at which wires plug in; removed again at the end.
    pub socket: PathBuf,
    /// The peer's own Ethernet address.
    pub mac: [u8; 6],
    /// The peer's own IPv4 address.
    pub ip: Ipv4Addr,
    /// Bits of the network that the peer and the guest share.
    pub prefix: u8,
    /// The guest's IPv4 address.
    pub guest_ip: Ipv4Addr,
    /// UDP port of the peer, where the guest's packets come to.
    pub udp_port: u16,
    /// UDP port of the guest, where the peer's packets go to.
    pub guest_udp_port: u16,
    /// Numbered UDP packets per second to the guest.
    pub udp_per_second: u32,
    /// Length of their payload, in bytes: 40 to 1472.
    pub udp_payload: usize,
    /// ICMP echo requests per second to the guest.
    pub icmp_per_second: u32,
    /// TCP port at which the transfer is served.
    pub tcp_port: u16,
    /// TCP bytes per second to the guest, which sends as many back.
    pub tcp_bytes_per_second: u32,
    /// Bytes of TCP that the peer holds in either direction.
    pub tcp_buffer: usize,
}

/// Load that finds out how much goes, and not whether it is right: instead of what the configuration
/// says. Nothing by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// ICMP echo requests per second to the guest.
    pub icmp_per_second: u32,
    /// TCP bytes per second to the guest, which need not send any back.
    pub tcp_bytes_per_second: u32,
    /// UDP packets to the guest with so many bytes of payload each, at most [`Load::MAX_FLOOD`], as
    /// many as its wire takes. The switch counts them, and nobody else.
    pub flood: Option<usize>,
}

impl Load {
    /// What a frame of 9000 bytes without Ethernet's header holds.
    pub const MAX_FLOOD: usize = 9000 - 20 - 8;
    /// UDP port of the guest where a flood goes (RFC 863).
    pub const FLOOD_PORT: u16 = 9;
}

/// [`PeerConfig::tcp_buffer`] of the lab: 32 ms at 2 MB/s. After a loss smoltcp sends all of it again
/// at once, so more would be a flood for an emulated machine.
const TCP_BUFFER: usize = 64 * 1024;

impl PeerConfig {
    /// The lab's load: 2 000 UDP packets and 1 000 echoes per second, TCP with 2 MB/s each way,
    /// ports 7000 (UDP, both ends) and 7001 (TCP).
    pub fn new(socket: impl Into<PathBuf>, ip: Ipv4Addr, guest_ip: Ipv4Addr) -> Self {
        let [_, b, c, d] = ip.octets();
        Self {
            socket: socket.into(),
            mac: [0x52, 0x56, 0, b, c, d],
            ip,
            prefix: 24,
            guest_ip,
            udp_port: 7000,
            guest_udp_port: 7000,
            udp_per_second: 2000,
            udp_payload: 256,
            icmp_per_second: 1000,
            tcp_port: 7001,
            tcp_bytes_per_second: 2_000_000,
            tcp_buffer: TCP_BUFFER,
        }
    }

    pub(super) fn check(&self) -> Result<(), UplinkError> {
        let shift = 32_u32.checked_sub(u32::from(self.prefix));
        let network = |ip: Ipv4Addr| u64::from(ip.to_bits()) >> shift.unwrap_or(0);
        let reason = if self.ip == self.guest_ip {
            "two hosts need two addresses"
        } else if shift.is_none() {
            "an IPv4 network has at most 32 bits"
        } else if network(self.ip) != network(self.guest_ip) {
            "there is no router: both must be in the same network"
        } else if self.mac[0] & 1 != 0 || self.mac == [0; 6] {
            "the peer's MAC must be one host's: first byte even, not all 0"
        } else if !(Numbered::MIN_LEN..=MAX_UDP_PAYLOAD).contains(&self.udp_payload) {
            "the UDP payload must be 40 to 1472 bytes, to fit the header and one Ethernet frame"
        } else if self.tcp_port == 0 || self.udp_port == 0 || self.guest_udp_port == 0 {
            "port 0 cannot be used"
        } else if self.tcp_buffer == 0 {
            "TCP needs a buffer"
        } else {
            return Ok(());
        };
        Err(UplinkError::PeerConfig {
            ip: self.ip,
            guest_ip: self.guest_ip,
            reason,
        })
    }
}

/// 1500 bytes of Ethernet less IPv4's and UDP's headers.
const MAX_UDP_PAYLOAD: usize = 1500 - 20 - 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contradictions_are_refused_and_the_lab_load_is_not() {
        let good = PeerConfig::new("x", [10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        assert!(good.check().is_ok());
        let bad: [fn(&mut PeerConfig); 7] = [
            |config| config.guest_ip = config.ip,
            |config| config.guest_ip = [10, 0, 1, 2].into(),
            |config| config.prefix = 33,
            |config| config.mac = [1, 0, 0, 0, 0, 0],
            |config| config.udp_payload = 39,
            |config| config.tcp_port = 0,
            |config| config.tcp_buffer = 0,
        ];
        for spoil in bad {
            let mut config = good.clone();
            spoil(&mut config);
            assert!(
                matches!(config.check(), Err(UplinkError::PeerConfig { .. })),
                "{config:?}"
            );
        }
        let anywhere = PeerConfig {
            prefix: 0,
            guest_ip: [9, 9, 9, 9].into(),
            ..good
        };
        assert!(anywhere.check().is_ok());
    }
}
