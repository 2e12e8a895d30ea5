//! The live state of a virtual function: everything that the guest can see or has set, and nothing
//! else.
//!
//! It is plain data of a fixed size, without pointers, apart from the code that works on it
//! ([`Vf`](crate::Vf)), so that it can be kept outside of the process that runs the engine. The
//! form in which it travels to another host is its own: see [`saved`](crate::saved).

use crate::spec::descriptors::{TX_CONTEXTS, TxContext};
use crate::spec::mailbox::{Api, Message, XcastMode};
use crate::spec::registers::{IVARS, MAILBOX_WORDS, QUEUES, VECTORS};

/// Unicast addresses that a driver can add to its own with `SET_MACVLAN`.
pub const MACVLANS: usize = 16;
/// Words of a bit table with one bit for each of 4096 VLANs or multicast hashes.
pub const FILTER_WORDS: usize = 4096 / 32;
/// Longest frame, in bytes with FCS, until the driver asks for another.
pub const DEFAULT_MAX_FRAME: u32 = 1518;

/// A virtual function.
#[derive(Clone, Debug, PartialEq)]
pub struct VfState {
    /// What the PF's administrator gave it.
    pub admin: Admin,
    /// The mailbox.
    pub mailbox: Mailbox,
    /// Interrupt causes, masks and vectors.
    pub interrupts: InterruptState,
    /// What is received.
    pub filter: Filter,
    /// VFPSRTYPE.
    pub psrtype: u32,
    /// Receive queues.
    pub rx: [RxQueue; QUEUES],
    /// Transmit queues.
    pub tx: [TxQueue; QUEUES],
    /// The counters that the guest can read.
    pub statistics: Statistics,
    /// The link, as the guest was last told.
    pub link_up: bool,
}

/// What survives every reset of the function, as the PF of a real card keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admin {
    /// The address in the answer to a mailbox reset: the configured one until the driver sets
    /// another.
    pub mac: [u8; 6],
    /// Queues each way that work and are offered.
    pub queue_pairs: u8,
}

/// The mailbox.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a separate fact of the protocol"
)]
pub struct Mailbox {
    /// VFMBMEM.
    pub memory: Message,
    /// The bits of VFMAILBOX that reading clears.
    pub events: u32,
    /// The driver owns the mailbox (VFU).
    pub owned_by_vf: bool,
    /// A message of the PF lies in the mailbox and the driver has not acknowledged it.
    pub unread: bool,
    /// The driver has reset itself through the mailbox, so the PF answers (CTS).
    pub clear_to_send: bool,
    /// The negotiated version.
    pub api: Api,
    /// The driver is to be told of a change of the link as soon as the mailbox is free.
    pub link_change_due: bool,
}

/// Interrupt causes, masks and vectors. Bit `v` of a mask stands for vector `v`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct InterruptState {
    /// VTEICR: causes.
    pub causes: u32,
    /// VTEIMS: enabled.
    pub enabled: u32,
    /// VTEIAC: causes cleared by sending.
    pub auto_clear: u32,
    /// VTEIAM: masked by sending.
    pub auto_mask: u32,
    /// VTIVAR.
    pub ivar: [u32; IVARS],
    /// `VTIVAR_MISC`.
    pub ivar_misc: u32,
    /// VTEITR.
    pub throttle: [u32; VECTORS],
    /// Causes that have not led to a message yet.
    pub unsent: u32,
    /// Masked by sending a message, and not enabled again by the driver since.
    pub awaiting_rearm: u32,
}

/// What is received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Beyond the own addresses and broadcast.
    pub mode: XcastMode,
    /// Further unicast addresses, the first `macvlan_count` of them.
    pub macvlans: [[u8; 6]; MACVLANS],
    /// See `macvlans`.
    pub macvlan_count: u8,
    /// Multicast hashes.
    pub multicast: BitTable,
    /// VLANs.
    pub vlans: BitTable,
    /// Longest frame, in bytes with FCS and without a tag.
    pub max_frame: u32,
}

/// A set of numbers below 4096.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitTable(pub [u32; FILTER_WORDS]);

/// The registers that rings of both ways share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Ring {
    /// Its address.
    pub base: u64,
    /// Its length in bytes, a multiple of 128 below 1 MiB.
    pub len: u32,
    /// The next descriptor of the device; may lie outside of the ring.
    pub head: u16,
    /// The first descriptor that is not the device's; may lie outside of the ring.
    pub tail: u16,
    /// RXDCTL or TXDCTL.
    pub control: u32,
    /// DCA control.
    pub dca: u32,
}

/// A receive queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct RxQueue {
    /// Its ring.
    pub ring: Ring,
    /// SRRCTL.
    pub srrctl: u32,
}

/// A transmit queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct TxQueue {
    /// Its ring.
    pub ring: Ring,
    /// TDWBAL and TDWBAH.
    pub head_write_back: u64,
    /// Offload contexts.
    pub contexts: [TxContext; TX_CONTEXTS],
    /// Segments of the frame at the head that the link has already.
    pub segments_sent: u32,
    /// The descriptors up to the next end of a frame belong to one that was given up.
    pub discarding: bool,
}

/// The counters that the guest can read. Bytes count from the destination address to the FCS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Statistics {
    /// VFGPRC.
    pub rx_frames: u32,
    /// VFGORC, 36 bits.
    pub rx_bytes: u64,
    /// VFMPRC.
    pub rx_multicast: u32,
    /// VFGPTC.
    pub tx_frames: u32,
    /// VFGOTC, 36 bits.
    pub tx_bytes: u64,
}

impl VfState {
    /// As after power-on.
    pub fn new(admin: Admin, link_up: bool) -> Self {
        Self {
            admin,
            mailbox: Mailbox::default(),
            interrupts: InterruptState::default(),
            filter: Filter::default(),
            psrtype: 0,
            rx: [RxQueue::default(); QUEUES],
            tx: [TxQueue::default(); QUEUES],
            statistics: Statistics::default(),
            link_up,
        }
    }
}

impl Default for Mailbox {
    fn default() -> Self {
        Self {
            memory: [0; MAILBOX_WORDS],
            events: crate::spec::registers::vfmailbox::RSTD,
            owned_by_vf: false,
            unread: false,
            clear_to_send: false,
            api: Api::V1_0,
            link_change_due: false,
        }
    }
}

impl Default for Filter {
    fn default() -> Self {
        Self {
            mode: XcastMode::Multi,
            macvlans: [[0; 6]; MACVLANS],
            macvlan_count: 0,
            multicast: BitTable::default(),
            vlans: BitTable::default(),
            max_frame: DEFAULT_MAX_FRAME,
        }
    }
}

impl Default for BitTable {
    fn default() -> Self {
        Self([0; FILTER_WORDS])
    }
}

impl BitTable {
    /// Whether `number` is in the set.
    pub fn contains(&self, number: u16) -> bool {
        let (word, bit) = Self::place(number);
        self.0[word] & bit != 0
    }

    /// Puts `number` (modulo 4096) in.
    pub fn insert(&mut self, number: u16) {
        let (word, bit) = Self::place(number);
        self.0[word] |= bit;
    }

    /// Takes `number` (modulo 4096) out.
    pub fn remove(&mut self, number: u16) {
        let (word, bit) = Self::place(number);
        self.0[word] &= !bit;
    }

    /// All numbers in the set, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u16> {
        (0..4096).filter(|number| self.contains(*number))
    }

    fn place(number: u16) -> (usize, u32) {
        let number = number % 4096;
        (usize::from(number / 32), 1 << (number % 32))
    }
}
