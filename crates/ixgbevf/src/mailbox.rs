//! The physical function's side of the mailbox: it answers at once, in the write that asks.
//!
//! The rules are those of Linux's PF driver (`ixgbe_sriov.c`) with a trusted function, except that
//! long frames need no agreement with other functions: there are none.

use crate::filter::is_unicast;
use crate::spec::mailbox::{
    Api, CTS, FAILURE, LINK_SPEED_10G, PF_CONTROL, Request, SUCCESS, XcastMode, mac_to_words,
    queues,
};
use crate::spec::registers::vfmailbox;
use crate::state::{Admin, Filter, Mailbox, VfState};

/// Frame lengths that can be asked for, in bytes with FCS (`IXGBE_MAX_JUMBO_FRAME_SIZE`).
pub(crate) const MAX_FRAME: std::ops::RangeInclusive<u32> = 64..=9728;

impl Mailbox {
    /// Reads VFMAILBOX.
    pub(crate) fn read_control(&mut self) -> u32 {
        let owned = if self.owned_by_vf { vfmailbox::VFU } else { 0 };
        std::mem::take(&mut self.events) | owned
    }

    /// The function was reset by its driver: the PF notices and waits for a mailbox reset. What
    /// lies in the mailbox stays.
    pub(crate) fn function_reset(&mut self) {
        *self = Self {
            memory: self.memory,
            ..Self::default()
        };
    }

    /// Tells the driver of a change of the link, when it listens and the mailbox is free.
    fn post_link_change(&mut self) -> bool {
        if !self.link_change_due || self.owned_by_vf || self.unread {
            return false;
        }
        self.link_change_due = false;
        self.memory[0] = PF_CONTROL | CTS;
        self.posted();
        true
    }

    fn posted(&mut self) {
        self.events |= vfmailbox::PFSTS;
        self.unread = true;
    }
}

impl VfState {
    /// Writes VFMAILBOX.
    pub(crate) fn write_mailbox_control(&mut self, value: u32) {
        self.mailbox.owned_by_vf = value & vfmailbox::VFU != 0;
        if value & vfmailbox::ACK != 0 {
            self.mailbox.unread = false;
        }
        if value & vfmailbox::REQ != 0 {
            self.mailbox.events |= vfmailbox::PFACK;
            self.answer();
            self.mailbox.posted();
            self.interrupts.misc_cause();
        }
        self.post_link_change();
    }

    /// Takes note of the link's state and tells the driver of a change.
    pub(crate) fn set_link(&mut self, up: bool) {
        if self.link_up != up {
            self.link_up = up;
            // A driver that has not introduced itself looks at the link when it does.
            self.mailbox.link_change_due = self.mailbox.clear_to_send;
        }
        self.post_link_change();
    }

    fn post_link_change(&mut self) {
        if self.mailbox.post_link_change() {
            self.interrupts.misc_cause();
        }
    }

    fn answer(&mut self) {
        let request = Request::parse(&self.mailbox.memory);
        if request == Some(Request::Reset) {
            self.mailbox_reset();
            return;
        }
        if !self.mailbox.clear_to_send {
            self.mailbox.memory[0] |= FAILURE;
            return;
        }
        let granted = request.is_some_and(|request| self.grant(request));
        self.mailbox.memory[0] |= CTS | if granted { SUCCESS } else { FAILURE };
    }

    fn mailbox_reset(&mut self) {
        self.filter = Filter::default();
        self.mailbox.api = Api::V1_0;
        self.mailbox.clear_to_send = true;
        // What the driver will now read is the link's present state.
        self.mailbox.link_change_due = false;
        let [low, high] = mac_to_words(self.admin.mac);
        self.mailbox.memory[0] |= SUCCESS;
        self.mailbox.memory[1] = low;
        self.mailbox.memory[2] = high;
        self.mailbox.memory[3] = 0; // Multicast filter type: the addresses' upper 12 bits.
    }

    /// Carries out a request and fills in the answer's data; `false` refuses it.
    fn grant(&mut self, request: Request) -> bool {
        let words = &mut self.mailbox.memory;
        let api = self.mailbox.api;
        match request {
            Request::SetMac(mac) => {
                let valid = is_unicast(mac);
                if valid {
                    self.admin.mac = mac;
                }
                valid
            }
            Request::SetMulticast { hashes, count } => {
                self.filter.set_multicast(&hashes, count);
                true
            }
            Request::SetVlan { vid, add } => self.filter.set_vlan(vid, add),
            Request::SetMaxFrame(len) => {
                let valid = MAX_FRAME.contains(&len);
                if valid {
                    self.filter.max_frame = len;
                }
                valid
            }
            Request::SetMacvlan { index, mac } => {
                if index <= 1 {
                    self.filter.clear_macvlans();
                }
                index == 0 || self.filter.add_macvlan(mac)
            }
            Request::Negotiate(version) => {
                if let Some(version) = version {
                    self.mailbox.api = version;
                }
                version.is_some()
            }
            Request::GetQueues if api >= Api::V1_1 => {
                let Admin { queue_pairs, .. } = self.admin;
                words[queues::TX] = queue_pairs.into();
                words[queues::RX] = queue_pairs.into();
                words[queues::TRANS_VLAN] = 0;
                words[queues::DEFAULT] = 0;
                true
            }
            Request::SetXcastMode(Some(mode)) if api >= Api::V1_2 => {
                let allowed = mode != XcastMode::Promiscuous || api >= Api::V1_3;
                if allowed {
                    self.filter.mode = mode;
                }
                allowed
            }
            Request::LinkState if api >= Api::V1_2 => {
                words[1] = 1; // Administratively enabled, whether the cable is in or not.
                true
            }
            Request::PfLinkState if api >= Api::V1_6 => {
                words[1] = LINK_SPEED_10G;
                words[2] = self.link_up.into();
                true
            }
            Request::Features if api >= Api::V1_7 => {
                words[1] = 0; // Neither IPsec nor VMware's mailbox protocol.
                true
            }
            // Not in the negotiated version, or handled before.
            Request::Reset
            | Request::GetQueues
            | Request::SetXcastMode(_)
            | Request::LinkState
            | Request::PfLinkState
            | Request::Features => false,
        }
    }
}

impl Filter {
    fn set_vlan(&mut self, vid: u32, add: bool) -> bool {
        match u16::try_from(vid) {
            Ok(vid @ 0..4096) if add => self.vlans.insert(vid),
            Ok(vid @ 0..4096) => self.vlans.remove(vid),
            _ => return false,
        }
        true
    }
}
