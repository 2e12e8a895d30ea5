//! Messages between the virtual function's driver and the physical function's (section 7.10;
//! Linux's `ixgbevf/mbx.h`, and `ixgbe_sriov.c` for the answers).
//!
//! A message is up to 16 words in VFMBMEM. The low half of the first word is the type; the answer
//! is the same message with a verdict in the first word and the answer's data after it.

use super::registers::MAILBOX_WORDS;

/// The words of a message.
pub type Message = [u32; MAILBOX_WORDS];

/// The request is granted (`IXGBE_VT_MSGTYPE_SUCCESS`, once `_ACK`).
pub const SUCCESS: u32 = 1 << 31;
/// The request is refused (`IXGBE_VT_MSGTYPE_FAILURE`, once `_NACK`).
pub const FAILURE: u32 = 1 << 30;
/// The physical function listens (`IXGBE_VT_MSGTYPE_CTS`, clear to send).
pub const CTS: u32 = 1 << 29;
/// From the PF: something changed, look at the link (`IXGBE_PF_CONTROL_MSG`).
pub const PF_CONTROL: u32 = 0x0100;
/// The type of a message.
pub const TYPE: u32 = 0xffff;
/// Bits 23:16 of the first word, whose meaning depends on the type (`IXGBE_VT_MSGINFO_MASK`).
pub const INFO_SHIFT: u32 = 16;

/// `IXGBE_VF_*`: the type in the first word of a request.
mod message_type {
    pub(super) const RESET: u32 = 0x01;
    pub(super) const SET_MAC_ADDR: u32 = 0x02;
    pub(super) const SET_MULTICAST: u32 = 0x03;
    pub(super) const SET_VLAN: u32 = 0x04;
    pub(super) const SET_LPE: u32 = 0x05;
    pub(super) const SET_MACVLAN: u32 = 0x06;
    pub(super) const API_NEGOTIATE: u32 = 0x08;
    pub(super) const GET_QUEUES: u32 = 0x09;
    pub(super) const UPDATE_XCAST_MODE: u32 = 0x0c;
    pub(super) const GET_LINK_STATE: u32 = 0x10;
    pub(super) const GET_PF_LINK_STATE: u32 = 0x11;
    pub(super) const FEATURES_NEGOTIATE: u32 = 0x12;
}

/// Words of the answer to [`Request::GetQueues`].
pub mod queues {
    /// Transmit queues (`IXGBE_VF_TX_QUEUES`).
    pub const TX: usize = 1;
    /// Receive queues (`IXGBE_VF_RX_QUEUES`).
    pub const RX: usize = 2;
    /// Traffic classes, or 1 when a VLAN is inserted behind the driver's back
    /// (`IXGBE_VF_TRANS_VLAN`).
    pub const TRANS_VLAN: usize = 3;
    /// The default queue (`IXGBE_VF_DEF_QUEUE`).
    pub const DEFAULT: usize = 4;
}

/// 10 Gb/s in the answer to [`Request::PfLinkState`] (`IXGBE_LINK_SPEED_10GB_FULL`).
pub const LINK_SPEED_10G: u32 = 0x80;
/// Multicast addresses of one message (`IXGBE_MAX_VF_MC_ENTRIES`).
pub const MULTICAST_ENTRIES: usize = 30;

/// `enum ixgbe_pfvf_api_rev`: how an API version is written in a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Api {
    /// The one every driver begins with.
    #[default]
    V1_0,
    /// Adds queues.
    V1_1,
    /// Adds reception modes and link state.
    V1_2,
    /// Adds promiscuous mode.
    V1_3,
    /// Adds `IPsec`.
    V1_4,
    /// Adds the PF's link state.
    V1_6,
    /// Adds feature negotiation.
    V1_7,
}

impl Api {
    /// From the word of a message. `None` for versions that the PF does not speak: 2.0, which was
    /// never used, and 1.5, whose mailbox protocol is `VMware`'s.
    pub fn from_word(word: u32) -> Option<Self> {
        Some(match word {
            0 => Self::V1_0,
            2 => Self::V1_1,
            3 => Self::V1_2,
            4 => Self::V1_3,
            5 => Self::V1_4,
            7 => Self::V1_6,
            8 => Self::V1_7,
            _ => return None,
        })
    }

    /// As the word of a message.
    pub fn word(self) -> u32 {
        match self {
            Self::V1_0 => 0,
            Self::V1_1 => 2,
            Self::V1_2 => 3,
            Self::V1_3 => 4,
            Self::V1_4 => 5,
            Self::V1_6 => 7,
            Self::V1_7 => 8,
        }
    }
}

/// `enum ixgbevf_xcast_modes`: what is received beyond the own addresses and broadcast.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum XcastMode {
    /// Nothing.
    None,
    /// Multicast addresses that were asked for.
    Multi,
    /// All multicast.
    AllMulti,
    /// Everything, on all VLANs.
    Promiscuous,
}

impl XcastMode {
    /// From the word of a message.
    pub fn from_word(word: u32) -> Option<Self> {
        Some(match word {
            0 => Self::None,
            1 => Self::Multi,
            2 => Self::AllMulti,
            3 => Self::Promiscuous,
            _ => return None,
        })
    }

    /// As the word of a message.
    pub fn word(self) -> u32 {
        self as u32
    }
}

/// A request of the virtual function's driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Forget all that was set up, and tell the MAC address.
    Reset,
    /// Use this MAC address.
    SetMac([u8; 6]),
    /// Receive the multicast addresses with these hashes instead of those before.
    SetMulticast {
        /// The hashes, 12 bits each.
        hashes: [u16; MULTICAST_ENTRIES],
        /// How many of them count.
        count: usize,
    },
    /// Join or leave a VLAN.
    SetVlan {
        /// VLAN identifier; may be out of range.
        vid: u32,
        /// Join.
        add: bool,
    },
    /// Longest frame to receive, in bytes with FCS.
    SetMaxFrame(u32),
    /// Receive a further unicast address; index 0 drops all of them, index 1 drops them first.
    SetMacvlan {
        /// Position in the driver's list, from 1 on.
        index: u8,
        /// The address.
        mac: [u8; 6],
    },
    /// Use this version of the API; `None` is a version that the PF does not speak.
    Negotiate(Option<Api>),
    /// How many queues are there?
    GetQueues,
    /// Receive mode; `None` is one that does not exist.
    SetXcastMode(Option<XcastMode>),
    /// Is the link administratively enabled?
    LinkState,
    /// Speed and state of the physical link.
    PfLinkState,
    /// Which of these features are there?
    Features,
}

impl Request {
    /// Reads a message. `None` for requests that the PF does not know, and those it always
    /// refuses: RSS tables (0a, 0b) and `IPsec` (0d, 0e).
    pub fn parse(words: &Message) -> Option<Self> {
        // Linux compares the whole word with the type of a reset and masks it for all others.
        if words[0] == message_type::RESET {
            return Some(Self::Reset);
        }
        let info = (words[0] >> INFO_SHIFT & 0xff) as u8;
        Some(match words[0] & TYPE {
            message_type::SET_MAC_ADDR => Self::SetMac(mac_from_words(words[1], words[2])),
            message_type::SET_MULTICAST => Self::SetMulticast {
                hashes: hashes(words),
                count: usize::from(info).min(MULTICAST_ENTRIES),
            },
            message_type::SET_VLAN => Self::SetVlan {
                vid: words[1],
                add: info != 0,
            },
            message_type::SET_LPE => Self::SetMaxFrame(words[1]),
            message_type::SET_MACVLAN => Self::SetMacvlan {
                index: info,
                mac: mac_from_words(words[1], words[2]),
            },
            message_type::API_NEGOTIATE => Self::Negotiate(Api::from_word(words[1])),
            message_type::GET_QUEUES => Self::GetQueues,
            message_type::UPDATE_XCAST_MODE => Self::SetXcastMode(XcastMode::from_word(words[1])),
            message_type::GET_LINK_STATE => Self::LinkState,
            message_type::GET_PF_LINK_STATE => Self::PfLinkState,
            message_type::FEATURES_NEGOTIATE => Self::Features,
            _ => return None,
        })
    }
}

/// A MAC address as two words of a message.
pub fn mac_to_words(mac: [u8; 6]) -> [u32; 2] {
    let mut bytes = [0; 8];
    bytes[..6].copy_from_slice(&mac);
    let (words, _) = bytes.as_chunks::<4>();
    [u32::from_le_bytes(words[0]), u32::from_le_bytes(words[1])]
}

/// The hash by which the driver names a multicast address (`ixgbevf_mta_vector`, filter type 0):
/// its highest 12 bits.
pub fn multicast_hash(mac: [u8; 6]) -> u16 {
    u16::from(mac[4]) >> 4 | u16::from(mac[5]) << 4
}

fn mac_from_words(low: u32, high: u32) -> [u8; 6] {
    let mut mac = [0; 6];
    mac[..4].copy_from_slice(&low.to_le_bytes());
    mac[4..].copy_from_slice(&high.to_le_bytes()[..2]);
    mac
}

fn hashes(words: &Message) -> [u16; MULTICAST_ENTRIES] {
    let mut hashes = [0; MULTICAST_ENTRIES];
    for (pair, word) in hashes.chunks_exact_mut(2).zip(&words[1..]) {
        pair[0] = (word & 0xfff) as u16;
        pair[1] = (word >> 16 & 0xfff) as u16;
    }
    hashes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn api_versions_and_modes_come_back_from_their_words() {
        for word in 0..64 {
            assert_eq!(Api::from_word(word).map_or(word, Api::word), word);
            assert_eq!(
                XcastMode::from_word(word).map_or(word, XcastMode::word),
                word
            );
        }
        assert_eq!(Api::from_word(6), None, "1.5 is VMware's");
        assert!(Api::V1_7 > Api::V1_6);
    }

    #[test]
    fn the_drivers_hash_of_a_multicast_address_is_its_upper_twelve_bits() {
        // From the trace: the all-hosts groups 224.0.0.1 and ff02::1.
        assert_eq!(multicast_hash([0x01, 0x00, 0x5e, 0, 0, 1]), 0x010);
        assert_eq!(multicast_hash([0x33, 0x33, 0xff, 0, 0xdd, 0x01]), 0x01d);
    }

    #[test]
    fn a_count_beyond_the_message_is_cut() {
        let mut words = [u32::MAX; MAILBOX_WORDS];
        words[0] = 0x00ff_0003;
        let Some(Request::SetMulticast { count, hashes }) = Request::parse(&words) else {
            panic!("not a multicast request");
        };
        assert_eq!(count, MULTICAST_ENTRIES);
        assert!(hashes.iter().all(|h| *h == 0xfff));
    }
}
