//! Descriptors in the rings (datasheet sections 7.1.6 receive and 7.2.3 transmit). All are 16
//! bytes, little endian.

/// Length of a descriptor in bytes.
pub const DESCRIPTOR_LEN: u64 = 16;

/// `cmd_type_len`: the third word of a transmit descriptor.
mod command {
    pub(super) const DTALEN: u32 = 0xffff;
    pub(super) const DTYP: u32 = 0x00f0_0000;
    pub(super) const DTYP_CTXT: u32 = 0x0020_0000;
    pub(super) const DTYP_DATA: u32 = 0x0030_0000;
    pub(super) const EOP: u32 = 1 << 24;
    pub(super) const RS: u32 = 1 << 27;
    pub(super) const DEXT: u32 = 1 << 29;
    pub(super) const VLE: u32 = 1 << 30;
    pub(super) const TSE: u32 = 1 << 31;
}

/// `olinfo_status`: the fourth word of a transmit data descriptor.
mod olinfo {
    pub(super) const IDX_SHIFT: u32 = 4;
    pub(super) const IXSM: u32 = 1 << 8;
    pub(super) const TXSM: u32 = 1 << 9;
}

/// `type_tucmd_mlhl`: the third word of a context descriptor.
mod tucmd {
    pub(super) const IPV4: u32 = 1 << 10;
    pub(super) const L4T_SHIFT: u32 = 11;
    pub(super) const L4T: u32 = 3;
}

/// Offload contexts that each transmit queue holds.
pub const TX_CONTEXTS: usize = 2;

/// A transmit descriptor (`union ixgbe_adv_tx_desc`, `struct ixgbe_adv_tx_context_desc`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TxDescriptor {
    /// Sets one of the queue's offload contexts; carries no data.
    Context {
        /// Which one.
        index: usize,
        /// What it is set to.
        context: TxContext,
    },
    /// A part of a frame.
    Data(TxData),
}

/// An offload context as the driver wrote it: words 0, 2 and 3 of its descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TxContext {
    /// `vlan_macip_lens`.
    pub vlan_macip_lens: u32,
    /// `type_tucmd_mlhl`.
    pub type_tucmd: u32,
    /// `mss_l4len_idx`.
    pub mss_l4len_idx: u32,
}

/// The transport that a context is for (`IXGBE_ADVTXD_TUCMD_L4T_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum L4Type {
    /// UDP.
    Udp,
    /// TCP.
    Tcp,
    /// SCTP.
    Sctp,
    /// The value that the datasheet reserves.
    Reserved,
}

impl TxContext {
    /// Length of what precedes the IP header, without a tag that the device inserts. At most 127.
    pub fn mac_len(&self) -> usize {
        (self.vlan_macip_lens >> 9 & 0x7f) as usize
    }

    /// Length of the IP header with its options or extensions. At most 511.
    pub fn ip_len(&self) -> usize {
        (self.vlan_macip_lens & 0x1ff) as usize
    }

    /// Length of the transport header. At most 255.
    pub fn l4_len(&self) -> usize {
        (self.mss_l4len_idx >> 8 & 0xff) as usize
    }

    /// Payload of each segment but the last. At most 65535.
    pub fn mss(&self) -> usize {
        (self.mss_l4len_idx >> 16) as usize
    }

    /// Tag control information of the 802.1Q tag to insert.
    pub fn vlan(&self) -> u16 {
        (self.vlan_macip_lens >> 16) as u16
    }

    /// The packet is IPv4.
    pub fn ipv4(&self) -> bool {
        self.type_tucmd & tucmd::IPV4 != 0
    }

    /// The transport.
    pub fn l4_type(&self) -> L4Type {
        match self.type_tucmd >> tucmd::L4T_SHIFT & tucmd::L4T {
            0 => L4Type::Udp,
            1 => L4Type::Tcp,
            2 => L4Type::Sctp,
            _ => L4Type::Reserved,
        }
    }
}

/// A transmit data descriptor. All fields but `address`, `len`, `end_of_packet` and
/// `report_status` count only in the first one of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "they are the bits of a hardware word"
)]
pub struct TxData {
    /// Where the data is.
    pub address: u64,
    /// How much. At most 65535.
    pub len: usize,
    /// Last descriptor of the frame (EOP).
    pub end_of_packet: bool,
    /// The driver wants to see this descriptor done (RS).
    pub report_status: bool,
    /// Insert the context's 802.1Q tag (VLE).
    pub insert_vlan: bool,
    /// Cut into segments (TSE).
    pub segment: bool,
    /// Insert the IPv4 header checksum (IXSM).
    pub ip_checksum: bool,
    /// Insert the transport checksum (TXSM).
    pub l4_checksum: bool,
    /// The context that the above refers to.
    pub context: usize,
    /// Of a type that the datasheet has: advanced data. Legacy descriptors are not.
    pub advanced: bool,
}

impl TxDescriptor {
    /// Reads the 16 bytes of a descriptor.
    pub fn parse(bytes: &[u8; 16]) -> Self {
        let [vlan_macip_lens, _, cmd, last] = words(bytes);
        let index = |shift: u32| (last >> shift) as usize % TX_CONTEXTS;
        if cmd & command::DEXT != 0 && cmd & command::DTYP == command::DTYP_CTXT {
            let context = TxContext {
                vlan_macip_lens,
                type_tucmd: cmd,
                mss_l4len_idx: last,
            };
            return Self::Context {
                index: index(olinfo::IDX_SHIFT),
                context,
            };
        }
        Self::Data(TxData {
            address: address(bytes),
            len: (cmd & command::DTALEN) as usize,
            end_of_packet: cmd & command::EOP != 0,
            report_status: cmd & command::RS != 0,
            insert_vlan: cmd & command::VLE != 0,
            segment: cmd & command::TSE != 0,
            ip_checksum: last & olinfo::IXSM != 0,
            l4_checksum: last & olinfo::TXSM != 0,
            context: index(olinfo::IDX_SHIFT),
            advanced: cmd & command::DEXT != 0 && cmd & command::DTYP == command::DTYP_DATA,
        })
    }
}

/// Where the status word lies in a transmit descriptor that is done.
pub const TX_STATUS_OFFSET: u64 = 12;
/// That word (`IXGBE_TXD_STAT_DD`).
pub const TX_STATUS_DD: u32 = 1;
/// What that word holds while the descriptor is about to be done: without [`TX_STATUS_DD`], and with the
/// reserved bits of what a driver writes there (`olinfo_status` of section 7.2.3.2.4, bits 3:1).
pub const TX_STATUS_ABOUT: u32 = 0xe;

/// The packet buffer's address in a receive descriptor as the driver wrote it.
pub fn rx_buffer(bytes: &[u8; 16]) -> u64 {
    address(bytes)
}

/// Status bits of a written-back receive descriptor (`IXGBE_RXD_STAT_*`, `IXGBE_RXDADV_ERR_*`).
pub mod rx_status {
    /// Descriptor done.
    pub const DD: u32 = 1 << 0;
    /// Last descriptor of the frame.
    pub const EOP: u32 = 1 << 1;
    /// An 802.1Q tag was taken out.
    pub const VP: u32 = 1 << 3;
    /// The transport checksum was verified.
    pub const L4CS: u32 = 1 << 5;
    /// The IPv4 header checksum was verified.
    pub const IPCS: u32 = 1 << 6;
    /// The transport checksum is wrong.
    pub const ERR_TCPE: u32 = 1 << 30;
    /// The IPv4 header checksum is wrong.
    pub const ERR_IPE: u32 = 1 << 31;
}

/// Packet types of a written-back receive descriptor (`IXGBE_RXDADV_PKTTYPE_*`).
pub mod rx_packet_type {
    /// IPv4.
    pub const IPV4: u32 = 1 << 4;
    /// IPv6.
    pub const IPV6: u32 = 1 << 6;
    /// TCP.
    pub const TCP: u32 = 1 << 8;
    /// UDP.
    pub const UDP: u32 = 1 << 9;
    /// SCTP.
    pub const SCTP: u32 = 1 << 10;
}

/// A receive descriptor as the device writes it back (section 7.1.6.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RxWriteBack {
    /// [`rx_packet_type`], and the RSS type (0, none) in the lowest four bits.
    pub packet_info: u32,
    /// [`rx_status`].
    pub status: u32,
    /// Bytes in this descriptor's buffer.
    pub len: u16,
    /// Tag control information of the tag that was taken out.
    pub vlan: u16,
}

impl RxWriteBack {
    /// The first eight bytes: packet information, and no RSS hash.
    pub fn low(&self) -> u64 {
        u64::from(self.packet_info)
    }

    /// The last eight bytes. The driver takes the descriptor as done as soon as `len` in there is
    /// not 0, so they are stored last and in one piece.
    pub fn high(&self) -> u64 {
        u64::from(self.status) | u64::from(self.len) << 32 | u64::from(self.vlan) << 48
    }

    /// What is there while the descriptor is about to be done: no status and no length, and a tag that is
    /// not [`high`](Self::high)'s. Drivers leave it as it is or write 0, in parts or in all of it, so it
    /// is not there once they have been told.
    pub fn high_before(&self) -> u64 {
        let other = match !self.vlan {
            0 => 1,
            other => other,
        };
        u64::from(other) << 48
    }
}

fn words(bytes: &[u8; 16]) -> [u32; 4] {
    let (words, _) = bytes.as_chunks::<4>();
    [0, 1, 2, 3].map(|i| u32::from_le_bytes(words[i]))
}

fn address(bytes: &[u8; 16]) -> u64 {
    let [low, high, ..] = words(bytes);
    u64::from(high) << 32 | u64::from(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(words: [u32; 4]) -> [u8; 16] {
        let mut bytes = [0; 16];
        for (chunk, word) in bytes.chunks_exact_mut(4).zip(words) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn a_tcp_segmentation_context_of_the_driver_reads_as_it_was_meant() {
        let bytes = descriptor([0x0005_1c14, 0, 0x2020_0c00, 1448 << 16 | 32 << 8 | 16]);
        let TxDescriptor::Context { index, context } = TxDescriptor::parse(&bytes) else {
            panic!("not a context");
        };
        assert_eq!(index, 1);
        assert_eq!(
            (
                context.mac_len(),
                context.ip_len(),
                context.l4_len(),
                context.mss()
            ),
            (14, 20, 32, 1448)
        );
        assert_eq!(context.vlan(), 5);
        assert!(context.ipv4());
        assert_eq!(context.l4_type(), L4Type::Tcp);
    }

    #[test]
    fn a_data_descriptor_of_the_driver_reads_as_it_was_meant() {
        let bytes = descriptor([0x1000, 2, 0xab30_0042, 0x380]);
        let TxDescriptor::Data(data) = TxDescriptor::parse(&bytes) else {
            panic!("not data");
        };
        assert_eq!((data.address, data.len), (0x2_0000_1000, 66));
        assert!(data.advanced && data.end_of_packet && data.report_status && data.segment);
        assert!(data.ip_checksum && data.l4_checksum && !data.insert_vlan);
    }

    #[test]
    fn a_legacy_descriptor_is_not_taken_for_an_advanced_one() {
        let bytes = descriptor([0, 0, 0x0b00_0040, 0]);
        let TxDescriptor::Data(data) = TxDescriptor::parse(&bytes) else {
            panic!("not data");
        };
        assert!(!data.advanced && data.end_of_packet && data.report_status);
    }
}
