//! Which received frames are the guest's (datasheet section 7.10.3, receive packet switching, as
//! the PF sets it up for a function: `ixgbe_sriov.c`).

use crate::packet::vlan_id;
use crate::spec::mailbox::{MULTICAST_ENTRIES, XcastMode, multicast_hash};
use crate::state::{BitTable, Filter, MACVLANS};

const BROADCAST: [u8; 6] = [0xff; 6];

impl Filter {
    /// Whether a frame to a function with address `mac` is taken. Frames shorter than an address
    /// are not.
    pub(crate) fn accepts(&self, mac: [u8; 6], frame: &[u8]) -> bool {
        let Some(destination) = frame.first_chunk::<6>() else {
            return false;
        };
        self.address(mac, *destination) && self.vlan(vlan_id(frame))
    }

    /// Replaces the multicast addresses.
    pub(crate) fn set_multicast(&mut self, hashes: &[u16; MULTICAST_ENTRIES], count: usize) {
        self.multicast = BitTable::default();
        for hash in hashes.iter().take(count) {
            self.multicast.insert(*hash);
        }
    }

    /// Adds a unicast address; `false` when there is no room or it is none.
    pub(crate) fn add_macvlan(&mut self, mac: [u8; 6]) -> bool {
        let count = usize::from(self.macvlan_count);
        if !is_unicast(mac) || count >= MACVLANS {
            return false;
        }
        self.macvlans[count] = mac;
        self.macvlan_count += 1;
        true
    }

    /// Forgets them. Nothing is left of them in the state, of which only those that count are saved.
    pub(crate) fn clear_macvlans(&mut self) {
        self.macvlans = [[0; 6]; MACVLANS];
        self.macvlan_count = 0;
    }

    /// The unicast addresses beside the function's own.
    pub(crate) fn macvlans(&self) -> &[[u8; 6]] {
        &self.macvlans[..usize::from(self.macvlan_count).min(MACVLANS)]
    }

    fn address(&self, mac: [u8; 6], destination: [u8; 6]) -> bool {
        if destination == mac || destination == BROADCAST || self.mode == XcastMode::Promiscuous {
            return true;
        }
        if is_unicast(destination) {
            return self.macvlans().contains(&destination);
        }
        match self.mode {
            XcastMode::None => false,
            XcastMode::Multi => self.multicast.contains(multicast_hash(destination)),
            XcastMode::AllMulti | XcastMode::Promiscuous => true,
        }
    }

    /// Untagged frames and those with only a priority (VLAN 0) belong to everyone.
    fn vlan(&self, vid: Option<u16>) -> bool {
        match vid {
            None | Some(0) => true,
            Some(vid) => self.mode == XcastMode::Promiscuous || self.vlans.contains(vid),
        }
    }
}

/// Whether `mac` is an address that one station can have (`is_valid_ether_addr`).
pub(crate) fn is_unicast(mac: [u8; 6]) -> bool {
    mac[0] & 1 == 0 && mac != [0; 6]
}
