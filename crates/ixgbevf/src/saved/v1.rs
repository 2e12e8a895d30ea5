//! Version 1.
//!
//! Registers are kept as the guest reads them, with the bits that exist; a record with others was
//! not made by a function. What the guest may set to anything, such as an index outside of its
//! ring, is no damage.

use serde::{Deserialize, Serialize};

use crate::filter::is_unicast;
use crate::spec::descriptors::{TX_CONTEXTS, TxContext};
use crate::spec::mailbox::{Api, XcastMode};
use crate::spec::registers::{
    IVARS, MAILBOX_WORDS, OCTETS_MASK, QUEUES, RING_ADDRESS_MASK, RING_LENGTH_MASK, VECTOR_MASK,
    VECTORS, ivar, txdctl, vfmailbox, vteitr,
};
use crate::state::{
    Admin, BitTable, Filter, InterruptState, MACVLANS, Mailbox, Ring, RxQueue, Statistics, TxQueue,
    VfState,
};
use crate::vf::QUEUE_PAIRS;

/// A function's state, version 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    missing_docs,
    reason = "the names are those of `VfState` and of the registers"
)]
pub struct Vf {
    pub mac: [u8; 6],
    pub queue_pairs: u8,
    pub mailbox: SavedMailbox,
    pub interrupts: SavedInterrupts,
    pub filter: SavedFilter,
    pub vfpsrtype: u32,
    pub rx: [SavedRxQueue; QUEUES],
    pub tx: [SavedTxQueue; QUEUES],
    pub statistics: SavedStatistics,
    pub link_up: bool,
}

/// The mailbox.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    missing_docs,
    clippy::struct_excessive_bools,
    reason = "the names and facts are those of `Mailbox`"
)]
pub struct SavedMailbox {
    pub memory: [u32; MAILBOX_WORDS],
    pub events: u32,
    pub owned_by_vf: bool,
    pub unread: bool,
    pub clear_to_send: bool,
    /// As in the message that negotiates it.
    pub api: u32,
    pub link_change_due: bool,
}

/// Interrupts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    missing_docs,
    reason = "the names are those of the registers and of `InterruptState`"
)]
pub struct SavedInterrupts {
    pub vteicr: u32,
    pub vteims: u32,
    pub vteiac: u32,
    pub vteiam: u32,
    pub vtivar: [u32; IVARS],
    pub vtivar_misc: u32,
    pub vteitr: [u32; VECTORS],
    pub unsent: u32,
    pub awaiting_rearm: u32,
}

/// Reception.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the names are those of `Filter`")]
pub struct SavedFilter {
    /// As in the message that sets it.
    pub mode: u32,
    pub macvlans: Vec<[u8; 6]>,
    /// Ascending.
    pub multicast: Vec<u16>,
    /// Ascending.
    pub vlans: Vec<u16>,
    pub max_frame: u32,
}

/// What rings of both ways share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the names are those of `Ring`")]
pub struct SavedRing {
    pub base: u64,
    pub len: u32,
    pub head: u16,
    pub tail: u16,
    pub control: u32,
    pub dca: u32,
}

/// A receive queue.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the names are those of `RxQueue`")]
pub struct SavedRxQueue {
    pub ring: SavedRing,
    pub srrctl: u32,
}

/// A transmit queue.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the names are those of `TxQueue`")]
pub struct SavedTxQueue {
    pub ring: SavedRing,
    pub head_write_back: u64,
    /// Words 0, 2 and 3 of each context's descriptor.
    pub contexts: [[u32; 3]; TX_CONTEXTS],
    pub segments_sent: u32,
    pub discarding: bool,
}

/// Counters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the names are those of the registers")]
pub struct SavedStatistics {
    pub vfgprc: u32,
    pub vfgorc: u64,
    pub vfmprc: u32,
    pub vfgptc: u32,
    pub vfgotc: u64,
}

impl device::State for Vf {
    const NAME: &'static str = "ixgbevf";
    const VERSION: u32 = 1;
}

/// Why a record cannot be a function's state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// A number is not one that the field can have.
    #[error("{field} is {value:#x}, which it cannot be")]
    Value {
        /// The field.
        field: &'static str,
        /// What it holds.
        value: u64,
    },
    /// An address is not that of one station.
    #[error("{field} holds an address that is no unicast address")]
    Address {
        /// The field.
        field: &'static str,
    },
    /// A list is too long, or its numbers are not ascending and below 4096.
    #[error("{field} is too long, or not ascending below 4096")]
    List {
        /// The field.
        field: &'static str,
    },
}

impl From<&VfState> for Vf {
    fn from(state: &VfState) -> Self {
        let VfState {
            admin: Admin { mac, queue_pairs },
            mailbox,
            interrupts,
            filter,
            psrtype,
            rx,
            tx,
            statistics,
            link_up,
        } = state;
        Self {
            mac: *mac,
            queue_pairs: *queue_pairs,
            mailbox: mailbox.into(),
            interrupts: interrupts.into(),
            filter: filter.into(),
            vfpsrtype: *psrtype,
            rx: rx.each_ref().map(SavedRxQueue::from),
            tx: tx.each_ref().map(SavedTxQueue::from),
            statistics: statistics.into(),
            link_up: *link_up,
        }
    }
}

impl TryFrom<&Vf> for VfState {
    type Error = Invalid;

    fn try_from(saved: &Vf) -> Result<Self, Invalid> {
        let mut rx = [RxQueue::default(); QUEUES];
        for (queue, saved) in rx.iter_mut().zip(&saved.rx) {
            *queue = saved.try_into()?;
        }
        let mut tx = [TxQueue::default(); QUEUES];
        for (queue, saved) in tx.iter_mut().zip(&saved.tx) {
            *queue = saved.try_into()?;
        }
        check(
            "queue_pairs",
            saved.queue_pairs,
            QUEUE_PAIRS.contains(&saved.queue_pairs),
        )?;
        Ok(Self {
            admin: Admin {
                mac: unicast("mac", saved.mac)?,
                queue_pairs: saved.queue_pairs,
            },
            mailbox: (&saved.mailbox).try_into()?,
            interrupts: (&saved.interrupts).try_into()?,
            filter: (&saved.filter).try_into()?,
            psrtype: saved.vfpsrtype,
            rx,
            tx,
            statistics: (&saved.statistics).try_into()?,
            link_up: saved.link_up,
        })
    }
}

impl From<&Mailbox> for SavedMailbox {
    fn from(mailbox: &Mailbox) -> Self {
        Self {
            memory: mailbox.memory,
            events: mailbox.events,
            owned_by_vf: mailbox.owned_by_vf,
            unread: mailbox.unread,
            clear_to_send: mailbox.clear_to_send,
            api: mailbox.api.word(),
            link_change_due: mailbox.link_change_due,
        }
    }
}

impl TryFrom<&SavedMailbox> for Mailbox {
    type Error = Invalid;

    fn try_from(saved: &SavedMailbox) -> Result<Self, Invalid> {
        Ok(Self {
            memory: saved.memory,
            events: bits(
                "mailbox.events",
                saved.events,
                vfmailbox::CLEARED_BY_READING,
            )?,
            owned_by_vf: saved.owned_by_vf,
            unread: saved.unread,
            clear_to_send: saved.clear_to_send,
            api: known("mailbox.api", saved.api, Api::from_word(saved.api))?,
            link_change_due: saved.link_change_due,
        })
    }
}

impl From<&InterruptState> for SavedInterrupts {
    fn from(state: &InterruptState) -> Self {
        Self {
            vteicr: state.causes,
            vteims: state.enabled,
            vteiac: state.auto_clear,
            vteiam: state.auto_mask,
            vtivar: state.ivar,
            vtivar_misc: state.ivar_misc,
            vteitr: state.throttle,
            unsent: state.unsent,
            awaiting_rearm: state.awaiting_rearm,
        }
    }
}

impl TryFrom<&SavedInterrupts> for InterruptState {
    type Error = Invalid;

    fn try_from(saved: &SavedInterrupts) -> Result<Self, Invalid> {
        for value in saved.vtivar {
            bits("vtivar", value, ivar::MASK)?;
        }
        for value in saved.vteitr {
            bits("vteitr", value, vteitr::INTERVAL)?;
        }
        Ok(Self {
            causes: bits("vteicr", saved.vteicr, VECTOR_MASK)?,
            enabled: bits("vteims", saved.vteims, VECTOR_MASK)?,
            auto_clear: bits("vteiac", saved.vteiac, VECTOR_MASK)?,
            auto_mask: bits("vteiam", saved.vteiam, VECTOR_MASK)?,
            ivar: saved.vtivar,
            ivar_misc: bits("vtivar_misc", saved.vtivar_misc, ivar::BYTE.into())?,
            throttle: saved.vteitr,
            unsent: bits("interrupts.unsent", saved.unsent, saved.vteicr)?,
            awaiting_rearm: bits(
                "interrupts.awaiting_rearm",
                saved.awaiting_rearm,
                VECTOR_MASK & !saved.vteims,
            )?,
        })
    }
}

impl From<&Filter> for SavedFilter {
    fn from(filter: &Filter) -> Self {
        Self {
            mode: filter.mode.word(),
            macvlans: filter.macvlans().to_vec(),
            multicast: filter.multicast.iter().collect(),
            vlans: filter.vlans.iter().collect(),
            max_frame: filter.max_frame,
        }
    }
}

impl TryFrom<&SavedFilter> for Filter {
    type Error = Invalid;

    fn try_from(saved: &SavedFilter) -> Result<Self, Invalid> {
        let mut macvlans = [[0; 6]; MACVLANS];
        for (index, mac) in saved.macvlans.iter().enumerate() {
            let slot = macvlans
                .get_mut(index)
                .ok_or(Invalid::List { field: "macvlans" })?;
            *slot = unicast("macvlans", *mac)?;
        }
        let len = saved.max_frame;
        check("max_frame", len, crate::mailbox::MAX_FRAME.contains(&len))?;
        Ok(Self {
            mode: known("filter.mode", saved.mode, XcastMode::from_word(saved.mode))?,
            macvlans,
            macvlan_count: u8::try_from(saved.macvlans.len()).unwrap_or(0),
            multicast: table("multicast", &saved.multicast)?,
            vlans: table("vlans", &saved.vlans)?,
            max_frame: len,
        })
    }
}

impl From<&Ring> for SavedRing {
    fn from(ring: &Ring) -> Self {
        Self {
            base: ring.base,
            len: ring.len,
            head: ring.head,
            tail: ring.tail,
            control: ring.control,
            dca: ring.dca,
        }
    }
}

impl TryFrom<&SavedRing> for Ring {
    type Error = Invalid;

    fn try_from(saved: &SavedRing) -> Result<Self, Invalid> {
        let unaligned = saved.base & u64::from(!RING_ADDRESS_MASK);
        check("ring.base", saved.base, unaligned == 0)?;
        Ok(Self {
            base: saved.base,
            len: bits("ring.len", saved.len, RING_LENGTH_MASK)?,
            head: saved.head,
            tail: saved.tail,
            control: saved.control,
            dca: saved.dca,
        })
    }
}

impl From<&RxQueue> for SavedRxQueue {
    fn from(queue: &RxQueue) -> Self {
        Self {
            ring: (&queue.ring).into(),
            srrctl: queue.srrctl,
        }
    }
}

impl TryFrom<&SavedRxQueue> for RxQueue {
    type Error = Invalid;

    fn try_from(saved: &SavedRxQueue) -> Result<Self, Invalid> {
        Ok(Self {
            ring: (&saved.ring).try_into()?,
            srrctl: saved.srrctl,
        })
    }
}

impl From<&TxQueue> for SavedTxQueue {
    fn from(queue: &TxQueue) -> Self {
        let words = |c: TxContext| [c.vlan_macip_lens, c.type_tucmd, c.mss_l4len_idx];
        Self {
            ring: (&queue.ring).into(),
            head_write_back: queue.head_write_back,
            contexts: queue.contexts.map(words),
            segments_sent: queue.segments_sent,
            discarding: queue.discarding,
        }
    }
}

impl TryFrom<&SavedTxQueue> for TxQueue {
    type Error = Invalid;

    fn try_from(saved: &SavedTxQueue) -> Result<Self, Invalid> {
        let ring = Ring::try_from(&saved.ring)?;
        bits("tx.control", ring.control, !txdctl::SWFLSH)?;
        Ok(Self {
            ring,
            head_write_back: saved.head_write_back,
            contexts: saved.contexts.map(|words| TxContext {
                vlan_macip_lens: words[0],
                type_tucmd: words[1],
                mss_l4len_idx: words[2],
            }),
            segments_sent: saved.segments_sent,
            discarding: saved.discarding,
        })
    }
}

impl From<&Statistics> for SavedStatistics {
    fn from(statistics: &Statistics) -> Self {
        Self {
            vfgprc: statistics.rx_frames,
            vfgorc: statistics.rx_bytes,
            vfmprc: statistics.rx_multicast,
            vfgptc: statistics.tx_frames,
            vfgotc: statistics.tx_bytes,
        }
    }
}

impl TryFrom<&SavedStatistics> for Statistics {
    type Error = Invalid;

    fn try_from(saved: &SavedStatistics) -> Result<Self, Invalid> {
        check("vfgorc", saved.vfgorc, saved.vfgorc <= OCTETS_MASK)?;
        check("vfgotc", saved.vfgotc, saved.vfgotc <= OCTETS_MASK)?;
        Ok(Self {
            rx_frames: saved.vfgprc,
            rx_bytes: saved.vfgorc,
            rx_multicast: saved.vfmprc,
            tx_frames: saved.vfgptc,
            tx_bytes: saved.vfgotc,
        })
    }
}

fn check(field: &'static str, value: impl Into<u64>, valid: bool) -> Result<(), Invalid> {
    let value = value.into();
    valid.then_some(()).ok_or(Invalid::Value { field, value })
}

fn bits(field: &'static str, value: u32, allowed: u32) -> Result<u32, Invalid> {
    check(field, value, value & !allowed == 0).map(|()| value)
}

fn known<T>(field: &'static str, word: u32, meaning: Option<T>) -> Result<T, Invalid> {
    let value = word.into();
    meaning.ok_or(Invalid::Value { field, value })
}

fn unicast(field: &'static str, mac: [u8; 6]) -> Result<[u8; 6], Invalid> {
    is_unicast(mac)
        .then_some(mac)
        .ok_or(Invalid::Address { field })
}

fn table(field: &'static str, numbers: &[u16]) -> Result<BitTable, Invalid> {
    let ascending = numbers.is_sorted_by(|a, b| a < b);
    if !ascending || numbers.last().is_some_and(|last| *last >= 4096) {
        return Err(Invalid::List { field });
    }
    let mut table = BitTable::default();
    for number in numbers {
        table.insert(*number);
    }
    Ok(table)
}
