//! The registers in BAR 0 (section 3.1).

use super::pci::MSIX_VECTORS;

/// Queue pairs, the admin queues among them.
pub const QUEUES: usize = MSIX_VECTORS as usize;
/// I/O queue pairs.
pub const IO_QUEUES: u16 = MSIX_VECTORS - 1;
/// Most entries of an I/O queue (CAP.MQES is one less).
pub const MAX_ENTRIES: u32 = 1024;
/// Bytes of a memory page: the only size there is (CAP.MPSMIN, CAP.MPSMAX).
pub const PAGE: u64 = 4096;
/// Where the doorbells begin (3.1.24).
pub const DOORBELLS: u64 = 0x1000;
/// Bytes from one doorbell to the next (CAP.DSTRD = 0).
pub const DOORBELL_STRIDE: u64 = 4;

/// A 32-bit register, or half of a longer one, by its name instead of its offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Register {
    /// Controller capabilities, low half; see [`cap`].
    CapLow,
    /// Controller capabilities, high half.
    CapHigh,
    /// Version; see [`VS`].
    Vs,
    /// Interrupt mask set. Not for MSI-X (3.1.3).
    Intms,
    /// Interrupt mask clear. Not for MSI-X (3.1.4).
    Intmc,
    /// Controller configuration; see [`cc`].
    Cc,
    /// Controller status; see [`csts`].
    Csts,
    /// Admin queue attributes; see [`aqa`].
    Aqa,
    /// Admin submission queue base address, low half.
    AsqLow,
    /// Admin submission queue base address, high half.
    AsqHigh,
    /// Admin completion queue base address, low half.
    AcqLow,
    /// Admin completion queue base address, high half.
    AcqHigh,
    /// Submission queue tail doorbell of this queue, which may not exist (3.1.24).
    SubmissionTail(u16),
    /// Completion queue head doorbell of this queue, which may not exist (3.1.25).
    CompletionHead(u16),
}

impl Register {
    /// The register at byte `offset`, if there is one.
    pub fn at(offset: u64) -> Option<Self> {
        Some(match offset {
            0x00 => Self::CapLow,
            0x04 => Self::CapHigh,
            0x08 => Self::Vs,
            0x0c => Self::Intms,
            0x10 => Self::Intmc,
            0x14 => Self::Cc,
            0x1c => Self::Csts,
            0x24 => Self::Aqa,
            0x28 => Self::AsqLow,
            0x2c => Self::AsqHigh,
            0x30 => Self::AcqLow,
            0x34 => Self::AcqHigh,
            _ => return Self::doorbell(offset),
        })
    }

    fn doorbell(offset: u64) -> Option<Self> {
        let beyond = offset.checked_sub(DOORBELLS)?;
        if !beyond.is_multiple_of(DOORBELL_STRIDE) {
            return None;
        }
        let index = beyond / DOORBELL_STRIDE;
        let queue = u16::try_from(index / 2).ok()?;
        Some(if index.is_multiple_of(2) {
            Self::SubmissionTail(queue)
        } else {
            Self::CompletionHead(queue)
        })
    }
}

/// Controller capabilities (3.1.1).
pub mod cap {
    /// MQES: entries of an I/O queue, less one.
    pub const MQES: u64 = super::MAX_ENTRIES as u64 - 1;
    /// CQR: queues must be contiguous.
    pub const CQR: u64 = 1 << 16;
    /// TO: the longest time to become ready or not, in units of 500 ms. Disabling may wait for the
    /// backing.
    pub const TO: u64 = 30 << 24;
    /// CSS: the NVM command set.
    pub const CSS_NVM: u64 = 1 << 37;
    /// All of it. Pages of 4 KiB, round robin, doorbells side by side.
    pub const VALUE: u64 = MQES | CQR | TO | CSS_NVM;
}

/// Version (3.1.2): 1.4.0.
pub const VS: u32 = 0x0001_0400;

/// Controller configuration (3.1.5).
pub mod cc {
    /// EN: enable.
    pub const EN: u32 = 1;
    /// CSS: command set; 0 is NVM.
    pub const CSS: u32 = 7 << 4;
    /// MPS: page size; 0 is 4 KiB.
    pub const MPS: u32 = 0xf << 7;
    /// AMS: arbitration; 0 is round robin.
    pub const AMS: u32 = 7 << 11;
    /// SHN: shutdown notification; 0 is none.
    pub const SHN: u32 = 3 << 14;
    /// IOSQES: binary logarithm of the size of a submission entry.
    pub const IOSQES: u32 = 0xf << 16;
    /// IOSQES of 64 bytes.
    pub const IOSQES_64: u32 = 6 << 16;
    /// IOCQES: binary logarithm of the size of a completion entry.
    pub const IOCQES: u32 = 0xf << 20;
    /// IOCQES of 16 bytes.
    pub const IOCQES_16: u32 = 4 << 20;
    /// All bits that can be written.
    pub const MASK: u32 = EN | CSS | MPS | AMS | SHN | IOSQES | IOCQES;
}

/// Controller status (3.1.6).
pub mod csts {
    /// RDY: ready.
    pub const RDY: u32 = 1;
    /// CFS: controller fatal status; only a reset ends it.
    pub const CFS: u32 = 1 << 1;
    /// SHST: shutdown is occurring.
    pub const SHST_OCCURRING: u32 = 1 << 2;
    /// SHST: shutdown is complete.
    pub const SHST_COMPLETE: u32 = 2 << 2;
}

/// Admin queue attributes (3.1.8): sizes, less one.
pub mod aqa {
    /// ASQS.
    pub const ASQS: u32 = 0xfff;
    /// Where ACQS begins.
    pub const ACQS_SHIFT: u32 = 16;
    /// All bits that can be written.
    pub const MASK: u32 = ASQS | ASQS << ACQS_SHIFT;
}

/// The bits of ASQ and ACQ that can be written: both are page aligned (3.1.9, 3.1.10).
pub const ADMIN_ADDRESS_MASK: u64 = !(PAGE - 1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doorbells_alternate_and_others_have_no_register() {
        assert_eq!(Register::at(0x1000), Some(Register::SubmissionTail(0)));
        assert_eq!(Register::at(0x1004), Some(Register::CompletionHead(0)));
        assert_eq!(Register::at(0x1018), Some(Register::SubmissionTail(3)));
        assert_eq!(Register::at(0x1ffc), Some(Register::CompletionHead(511)));
        assert_eq!(Register::at(0x1002), None);
        assert_eq!(Register::at(0x20), None);
        assert_eq!(Register::at(u64::MAX), None);
    }

    #[test]
    fn capabilities_are_what_a_stock_driver_asks_for() {
        assert_eq!(cap::VALUE & 0xffff, 1023);
        assert_eq!(cap::VALUE >> 37 & 1, 1);
        assert_eq!(cap::VALUE >> 48 & 0xff, 0, "pages of 4 KiB");
        assert_eq!(cap::VALUE >> 32 & 0xf, 0, "doorbells side by side");
    }
}
