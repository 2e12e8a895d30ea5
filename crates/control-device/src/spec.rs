//! What the control device looks like from the outside: the numbers of `docs/guest-protocol.md`,
//! under its names and in its order, and types that are one word of it each.

/// The function in PCI configuration space (section "The PCI function").
pub mod pci {
    use pci::{Bar, BarKind, Identity, Layout, MsixCapability};

    /// Assigned to nobody; used by convention for virtual devices without a vendor.
    pub const VENDOR_ID: u16 = 0x1234;
    /// Ours by the same convention.
    pub const DEVICE_ID: u16 = 0x5646;
    /// Subsystem vendor.
    pub const SUBSYSTEM_VENDOR_ID: u16 = 0x1234;
    /// Subsystem.
    pub const SUBSYSTEM_ID: u16 = 0x0001;
    /// The protocol's major version.
    pub const REVISION_ID: u8 = 0x01;
    /// Fits no class: base class, subclass, programming interface.
    pub const CLASS: u32 = 0xff_0000;

    /// The BAR with the registers: 64-bit, prefetchable.
    pub const REGISTER_BAR: u8 = 0;
    /// Its size in bytes.
    pub const REGISTER_BAR_SIZE: u64 = 4096;
    /// The BAR with the MSI-X table and pending bits: 64-bit, prefetchable.
    pub const MSIX_BAR: u8 = 2;
    /// Its size in bytes.
    pub const MSIX_BAR_SIZE: u64 = 4096;
    /// The doorbell is the only one.
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

/// Offsets of the registers in BAR 0 (section "Registers").
pub mod registers {
    /// [`MAGIC_VALUE`](super::MAGIC_VALUE).
    pub const MAGIC: u64 = 0x000;
    /// [`VERSION_VALUE`](super::VERSION_VALUE).
    pub const VERSION: u64 = 0x004;
    /// What the host offers.
    pub const FEATURES: u64 = 0x008;
    /// What the driver takes, and that it is there.
    pub const DRIVER: u64 = 0x00c;
    /// A [`Request`](super::Request).
    pub const REQUEST: u64 = 0x010;
    /// Milliseconds for an answer.
    pub const DEADLINE: u64 = 0x014;
    /// Number of devices.
    pub const DEVICES: u64 = 0x018;
    /// The directory's address, bits 31:0.
    pub const TABLE_LOW: u64 = 0x020;
    /// The directory's address, bits 63:32.
    pub const TABLE_HIGH: u64 = 0x024;
    /// Entries of the directory.
    pub const TABLE_CHUNKS: u64 = 0x028;
    /// Where the registers of device 0 begin.
    pub const DEVICE_BASE: u64 = 0x100;
    /// Bytes from one device's registers to the next one's.
    pub const DEVICE_STRIDE: u64 = 0x20;
    /// In a device's registers: a [`Location`](super::Location).
    pub const FUNCTION: u64 = 0x00;
    /// In a device's registers: device ID and vendor ID.
    pub const IDENTITY: u64 = 0x04;
    /// In a device's registers: the guest's answer.
    pub const ACK: u64 = 0x08;
    /// In a device's registers: why it failed.
    pub const DETAIL: u64 = 0x0c;
    /// In a device's registers: how long it took.
    pub const MICROS: u64 = 0x10;
}

/// `VFRY`.
pub const MAGIC_VALUE: u32 = u32::from_le_bytes(*b"VFRY");
/// 1.0.
pub const VERSION_VALUE: u32 = 1 << 16;
/// The doorbell's vector.
pub const DOORBELL: u16 = 0;
/// No VM has more devices in the list.
pub const MAX_DEVICES: usize = 32;
/// In `DRIVER`: the driver is there.
pub const READY: u32 = 1 << 31;
/// `FUNCTION` of a device whose place is not known.
pub const NOWHERE: u32 = u32::MAX;

/// Bits of `FEATURES` and `DRIVER`.
pub mod features {
    /// The DMA table.
    pub const TABLE: u32 = 1 << 0;
    /// Dummy writes.
    pub const TOUCH: u32 = 1 << 1;
    /// Devices can be stopped and restarted.
    pub const QUIESCE: u32 = 1 << 2;
    /// All that version 1.0 has.
    pub const ALL: u32 = TABLE | TOUCH | QUIESCE;
}

/// The DMA table (section of this name).
pub mod table {
    /// Bytes of a chunk.
    pub const CHUNK_BYTES: u64 = 4096;
    /// Pages for which a chunk has bits.
    pub const CHUNK_PAGES: u64 = CHUNK_BYTES * 8;
    /// Guest memory for which a chunk has bits: 128 MiB.
    pub const CHUNK_SPAN: u64 = CHUNK_PAGES * device::PAGE_SIZE;
    /// Bytes of an entry of the directory.
    pub const ENTRY_BYTES: u64 = 8;
}

/// What the host asks for (section "Commands").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Nothing was ever asked for.
    Idle,
    /// Let the host know which pages devices write.
    Track,
    /// Stop the devices.
    Quiesce,
    /// Restart what was stopped, track no more.
    End,
}

impl Command {
    const ALL: [Self; 4] = [Self::Idle, Self::Track, Self::Quiesce, Self::End];

    fn code(self) -> u32 {
        match self {
            Self::Idle => 0,
            Self::Track => 1,
            Self::Quiesce => 2,
            Self::End => 3,
        }
    }
}

/// `REQUEST`: a command and its epoch in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request(u32);

impl Request {
    /// After power-on.
    pub const NONE: Self = Self(0);
    const EPOCH_SHIFT: u32 = 8;
    const COMMAND_SHIFT: u32 = 4;
    const COMMAND_MASK: u32 = 0xf;
    const RESULT_MASK: u32 = 0xf;
    const LAST_EPOCH: u32 = (1 << 24) - 1;

    /// The request in `word`; `None` if no host writes such a one.
    pub fn from_word(word: u32) -> Option<Self> {
        let request = Self(word);
        let known = Command::ALL
            .iter()
            .any(|command| command.code() == request.code());
        let idle = request.code() == Command::Idle.code();
        (known && word & Self::RESULT_MASK == 0 && idle == (request.epoch() == 0))
            .then_some(request)
    }

    /// As the guest reads it.
    pub const fn word(self) -> u32 {
        self.0
    }

    /// What is asked for.
    pub fn command(self) -> Command {
        let known = Command::ALL
            .iter()
            .find(|command| command.code() == self.code());
        known.copied().unwrap_or(Command::Idle)
    }

    /// 24 bits; 0 only before the first command.
    pub const fn epoch(self) -> u32 {
        self.0 >> Self::EPOCH_SHIFT
    }

    /// The next request.
    #[must_use]
    pub fn next(self, command: Command) -> Self {
        let epoch = if self.epoch() >= Self::LAST_EPOCH {
            1
        } else {
            self.epoch() + 1
        };
        Self(epoch << Self::EPOCH_SHIFT | command.code() << Self::COMMAND_SHIFT)
    }

    /// The word that answers this request with `result`.
    pub const fn answer(self, result: Answer) -> u32 {
        self.0 | result.code()
    }

    /// The result in `ack`, if it answers this request.
    pub fn answered_by(self, ack: u32) -> Option<Answer> {
        if ack & !Self::RESULT_MASK != self.0 {
            return None;
        }
        let code = ack & Self::RESULT_MASK;
        let known: &[Answer] = match self.command() {
            Command::Idle => &[],
            Command::Track => &Answer::TO_TRACK,
            Command::Quiesce | Command::End => &Answer::TO_OTHERS,
        };
        known.iter().find(|answer| answer.code() == code).copied()
    }

    const fn code(self) -> u32 {
        self.0 >> Self::COMMAND_SHIFT & Self::COMMAND_MASK
    }
}

/// A result in `ACK` (section "Commands").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// To `TRACK`.
    Promised(Promise),
    /// To `QUIESCE` and `END`.
    Done,
    /// Tried; the device works as before.
    Failed,
    /// Not this device, ever.
    Declined,
}

impl Answer {
    const TO_TRACK: [Self; 5] = [
        Self::Promised(Promise::Table),
        Self::Promised(Promise::TableAfterQuiesce),
        Self::Promised(Promise::TouchAfterQuiesce),
        Self::Failed,
        Self::Declined,
    ];
    const TO_OTHERS: [Self; 3] = [Self::Done, Self::Failed, Self::Declined];

    const fn code(self) -> u32 {
        match self {
            Self::Promised(Promise::Table) | Self::Done => 1,
            Self::Promised(Promise::TableAfterQuiesce) => 2,
            Self::Promised(Promise::TouchAfterQuiesce) => 3,
            Self::Failed => 14,
            Self::Declined => 15,
        }
    }
}

/// What a guest promises in answer to `TRACK` (section "Which pages devices write").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promise {
    /// The table is right at every moment from the answer on.
    Table,
    /// The table is right once the device has been stopped.
    TableAfterQuiesce,
    /// The guest has touched what the device wrote once the device has been stopped.
    TouchAfterQuiesce,
}

impl Promise {
    /// The feature without which it cannot be made.
    pub const fn feature(self) -> u32 {
        match self {
            Self::Table | Self::TableAfterQuiesce => features::TABLE,
            Self::TouchAfterQuiesce => features::TOUCH,
        }
    }
}

/// Where a function is, as the guest's configuration accesses address it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location {
    /// Segment (PCI domain).
    pub segment: u16,
    /// Bus.
    pub bus: u8,
    /// Device, 0 to 31.
    pub device: u8,
    /// Function, 0 to 7.
    pub function: u8,
}

impl Location {
    /// As in `FUNCTION`. Bits of device and function that do not exist are dropped.
    pub fn word(self) -> u32 {
        let device = u32::from(self.device & 0x1f);
        let function = u32::from(self.function & 7);
        u32::from(self.segment) << 16 | u32::from(self.bus) << 8 | device << 3 | function
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_document() {
        assert_eq!(MAGIC_VALUE, 0x5952_4656);
        assert_eq!(table::CHUNK_SPAN, 128 << 20);
        let track = Request::NONE.next(Command::Track);
        assert_eq!(track.word(), 0x110);
        assert_eq!(track.next(Command::Quiesce).word(), 0x220);
        assert_eq!(
            track.answer(Answer::Promised(Promise::TouchAfterQuiesce)),
            0x113
        );
        let place = Location {
            segment: 1,
            bus: 2,
            device: 3,
            function: 4,
        };
        assert_eq!(place.word(), 0x0001_021c);
    }

    #[test]
    fn epochs_never_are_zero_again() {
        let last = Request(0x00ff_ffff << 8 | 0x30);
        assert_eq!(last.epoch(), 0x00ff_ffff);
        assert_eq!(last.next(Command::Track).epoch(), 1);
    }

    #[test]
    fn an_answer_is_one_only_to_its_own_request() {
        let track = Request::NONE.next(Command::Track);
        let quiesce = track.next(Command::Quiesce);
        let done = quiesce.answer(Answer::Done);
        assert_eq!(quiesce.answered_by(done), Some(Answer::Done));
        assert_eq!(quiesce.next(Command::Quiesce).answered_by(done), None);
        assert_eq!(track.answered_by(done), None);
        for result in [0, 2, 3, 4, 13] {
            assert_eq!(quiesce.answered_by(quiesce.word() | result), None);
        }
        assert_eq!(Request::NONE.answered_by(1), None);
    }

    #[test]
    fn only_words_that_a_host_writes_are_requests() {
        for word in [0x010, 0x100, 0x111, 0x140, 0x1f0] {
            assert_eq!(Request::from_word(word), None, "{word:#x}");
        }
        for word in [0, 0x110, 0xffff_ff30] {
            assert_eq!(Request::from_word(word).unwrap().word(), word);
        }
    }
}
