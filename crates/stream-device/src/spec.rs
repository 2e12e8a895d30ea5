//! What the device looks like from the outside. Numbers are little endian.

/// The function in PCI configuration space.
pub mod pci {
    use pci::{Bar, BarKind, Identity, Layout, MsixCapability};

    /// Assigned to nobody; used by convention for virtual devices without a vendor.
    pub const VENDOR_ID: u16 = 0x1234;
    /// Ours by the same convention, as the control device's 0x5646 is.
    pub const DEVICE_ID: u16 = 0x5653;
    /// Subsystem vendor.
    pub const SUBSYSTEM_VENDOR_ID: u16 = 0x1234;
    /// Subsystem.
    pub const SUBSYSTEM_ID: u16 = 0x0001;
    /// First.
    pub const REVISION_ID: u8 = 0x01;
    /// Fits no class: base class, subclass, programming interface.
    pub const CLASS: u32 = 0xff_0000;

    /// The BAR with the registers.
    pub const REGISTER_BAR: u8 = 0;
    /// Its size in bytes.
    pub const REGISTER_BAR_SIZE: u64 = 4096;
    /// The BAR with the MSI-X table and pending bits.
    pub const MSIX_BAR: u8 = 2;
    /// Its size in bytes.
    pub const MSIX_BAR_SIZE: u64 = 4096;
    /// One, for all channels.
    pub const MSIX_VECTORS: u16 = 1;
    /// Where the MSI-X table begins in [`MSIX_BAR`].
    pub const MSIX_TABLE_OFFSET: u32 = 0;
    /// Where the pending bit array begins in [`MSIX_BAR`].
    pub const MSIX_PBA_OFFSET: u32 = 0x800;
    /// Where the MSI-X capability lies in configuration space.
    pub const MSIX_CAPABILITY_OFFSET: u8 = 0x70;
    /// Where the PCI Express capability lies.
    pub const PCIE_CAPABILITY_OFFSET: u8 = 0xa0;

    /// All of it.
    pub const LAYOUT: Layout = Layout {
        identity: Identity {
            vendor: VENDOR_ID,
            device: DEVICE_ID,
            revision: REVISION_ID,
            class: CLASS,
            subsystem_vendor: SUBSYSTEM_VENDOR_ID,
            subsystem: SUBSYSTEM_ID,
        },
        bars: &[
            Bar {
                index: REGISTER_BAR,
                size: REGISTER_BAR_SIZE,
                kind: BarKind::Memory64Prefetchable,
            },
            Bar {
                index: MSIX_BAR,
                size: MSIX_BAR_SIZE,
                kind: BarKind::Memory64Prefetchable,
            },
        ],
        power: None,
        msix: (
            MSIX_CAPABILITY_OFFSET,
            MsixCapability {
                vectors: MSIX_VECTORS,
                bar: MSIX_BAR,
                table_offset: MSIX_TABLE_OFFSET,
                pba_bar: MSIX_BAR,
                pba_offset: MSIX_PBA_OFFSET,
            },
        ),
        express: PCIE_CAPABILITY_OFFSET,
    };
}

/// Registers in BAR 0, 32 bits wide, accessed so and aligned. Any other access reads as all ones
/// and writes nothing; what is not listed reads as zero. No read has a side effect.
pub mod registers {
    /// R: [`MAGIC_VALUE`].
    pub const MAGIC: u64 = 0x000;
    /// The bytes `STRM`.
    pub const MAGIC_VALUE: u32 = u32::from_le_bytes(*b"STRM");
    /// R: major version in 31:16, minor in 15:0.
    pub const VERSION: u64 = 0x004;
    /// Version 1.0.
    pub const VERSION_VALUE: u32 = 0x0001_0000;
    /// R: how many channels there are.
    pub const CHANNELS: u64 = 0x008;
    /// RW: pages per second that all channels together may write; 0 is none. What is higher than
    /// [`MAX_RATE`] is taken as that.
    pub const RATE: u64 = 0x00c;
    /// After a reset.
    pub const DEFAULT_RATE: u32 = 1_000;
    /// 4 GB/s.
    pub const MAX_RATE: u32 = 1_000_000;

    /// Where channel 0's registers are.
    pub const CHANNEL_BASE: u64 = 0x100;
    /// From one channel's registers to the next one's.
    pub const CHANNEL_STRIDE: u64 = 0x40;
    /// Channels that there are.
    pub const CHANNEL_COUNT: usize = 8;

    /// RW, as all that follow by its offset in a channel: [`RUN`] and [`CYCLIC`]. Switching `RUN` on
    /// begins at entry 0 of both rings, with tail, head and fault cleared. Once a write that
    /// switches it off is done, the channel writes nothing more. While it is on, the channel's
    /// other registers but the tail cannot be written.
    pub const CONTROL: u64 = 0x00;
    /// Bit 0 of `CONTROL`: work on descriptors. Off after a fault.
    pub const RUN: u32 = 1 << 0;
    /// Bit 1 of `CONTROL`: all descriptors of the ring are there from the start, and are worked on
    /// one after the other for ever, without completions.
    pub const CYCLIC: u32 = 1 << 1;
    /// R: [`FAULT`].
    pub const STATUS: u64 = 0x04;
    /// Bit 0 of `STATUS`: the channel could not go on and has stopped. The number of entries is
    /// none, a ring is not in memory, or a cyclic one has a descriptor that cannot be carried out.
    pub const FAULT: u32 = 1 << 0;
    /// RW: address of the descriptor ring, a multiple of 16; bits 31:0.
    pub const RING_LOW: u64 = 0x08;
    /// Bits 63:32.
    pub const RING_HIGH: u64 = 0x0c;
    /// RW: address of the completion ring, a multiple of 16, which has as many entries; bits 31:0.
    pub const DONE_LOW: u64 = 0x10;
    /// Bits 63:32.
    pub const DONE_HIGH: u64 = 0x14;
    /// RW: entries of the ring, a power of two up to [`MAX_ENTRIES`](super::MAX_ENTRIES).
    pub const ENTRIES: u64 = 0x18;
    /// RW: how many descriptors the driver has put into the ring since `RUN`, modulo 2^32. At most
    /// as many as the ring has entries are waiting: a tail that says otherwise is dropped, as one
    /// while `RUN` is off.
    pub const TAIL: u64 = 0x1c;
    /// R: how many of them are done.
    pub const HEAD: u64 = 0x20;
    /// RW: the number that the next descriptor's writes have, one higher with each; bits 31:0.
    pub const SEQUENCE_LOW: u64 = 0x28;
    /// Bits 63:32.
    pub const SEQUENCE_HIGH: u64 = 0x2c;
}

/// Bytes of a descriptor, and of a completion.
pub const ENTRY_LEN: u64 = 16;
/// Most entries of a ring.
pub const MAX_ENTRIES: u32 = 1024;
/// Most bytes that one descriptor can ask for.
pub const MAX_LEN: u32 = 16 << 10;

/// What the driver asks for: 64 bits of address, 32 bits of length in bytes, 32 bits of nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    /// A multiple of 8.
    pub address: u64,
    /// A multiple of 8, at most [`MAX_LEN`], not 0.
    pub len: u32,
}

impl Descriptor {
    /// As it lies in memory.
    pub fn to_bytes(self) -> [u8; 16] {
        (u128::from(self.len) << 64 | u128::from(self.address)).to_le_bytes()
    }

    /// From what lies in memory.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        let [low, high] = halves(bytes);
        let [l0, l1, l2, l3, ..] = high.to_le_bytes();
        Self {
            address: low,
            len: u32::from_le_bytes([l0, l1, l2, l3]),
        }
    }

    /// Whether it can be carried out, if its memory is there.
    pub fn is_sound(self) -> bool {
        let aligned = self.address.is_multiple_of(8) && self.len.is_multiple_of(8);
        let end = self.address.checked_add(u64::from(self.len));
        aligned && end.is_some() && (1..=MAX_LEN).contains(&self.len)
    }
}

/// What the device says of a descriptor. Its second half is written in one piece, after all else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// First half: the number of its writes, see [`word`].
    pub sequence: u64,
    /// Second half, 31:0: how many completions there were since `RUN` with this one, modulo 2^32.
    pub count: u32,
    /// Second half, 63:32: what became of it.
    pub status: u32,
}

/// [`Completion::status`]: all was written.
pub const WRITTEN: u32 = 0;
/// [`Completion::status`]: the descriptor is none; nothing was written.
pub const BAD_DESCRIPTOR: u32 = 1;
/// [`Completion::status`]: not all of the memory is there; some of it may have been written.
pub const BAD_ADDRESS: u32 = 2;

impl Completion {
    /// The second half.
    pub fn tag(self) -> u64 {
        u64::from(self.status) << 32 | u64::from(self.count)
    }

    /// From what lies in memory.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        let [sequence, tag] = halves(bytes);
        let [c0, c1, c2, c3, s0, s1, s2, s3] = tag.to_le_bytes();
        Self {
            sequence,
            count: u32::from_le_bytes([c0, c1, c2, c3]),
            status: u32::from_le_bytes([s0, s1, s2, s3]),
        }
    }
}

/// The 64-bit word that write number `sequence` leaves at `address`, a multiple of 8. The factors
/// are odd, so at one address all numbers differ, and with one number all addresses do.
pub fn word(sequence: u64, address: u64) -> u64 {
    (sequence.wrapping_mul(SEQUENCE_FACTOR)).wrapping_add(address.wrapping_mul(ADDRESS_FACTOR))
}

const SEQUENCE_FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
const ADDRESS_FACTOR: u64 = 0xbf58_476d_1ce4_e5b9;

fn halves(bytes: [u8; 16]) -> [u64; 2] {
    let both = u128::from_le_bytes(bytes);
    let mask = u128::from(u64::MAX);
    [both & mask, both >> 64].map(|half| u64::try_from(half).expect("64 bits are left"))
}
