//! The registers in BAR 0 (datasheet section 8.3).

use super::pci::MSIX_VECTORS;

/// Queues for which there are registers, each way (`IXGBE_VF_MAX_RX_QUEUES`).
pub const QUEUES: usize = 8;
/// Interrupt vectors, as an array length.
pub const VECTORS: usize = MSIX_VECTORS as usize;
/// One bit for each vector, as in VTEICR and its siblings (`IXGBE_VF_IRQ_CLEAR_MASK`).
pub const VECTOR_MASK: u32 = (1 << VECTORS) - 1;
/// 32-bit words of the mailbox (`IXGBE_VFMAILBOX_SIZE`).
pub const MAILBOX_WORDS: usize = 16;
/// VTIVAR registers: one for two queues.
pub const IVARS: usize = QUEUES / 2;

/// A 32-bit register, by its name instead of its offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Register {
    /// Control: only [`vfctrl::RST`].
    Vfctrl,
    /// Status. Never reads as all ones, by which the driver tells a removed device.
    Vfstatus,
    /// Link status.
    Vflinks,
    /// Interrupt causes, one bit for each vector; cleared by reading, or by writing ones.
    Vteicr,
    /// Sets causes; reads as VTEICR without clearing it.
    Vteics,
    /// Sets bits of the interrupt mask (1 = enabled).
    Vteims,
    /// Clears bits of the interrupt mask.
    Vteimc,
    /// Causes that are cleared when their message is sent.
    Vteiac,
    /// Vectors that are masked when their message is sent.
    Vteiam,
    /// Which vectors serve queues `2n` and `2n + 1`; see [`ivar`].
    Vtivar(usize),
    /// Which vector serves mailbox and link.
    VtivarMisc,
    /// Shortest time between two interrupts of a vector; see [`vteitr`].
    Vteitr(usize),
    /// A word of the mailbox.
    Vfmbmem(usize),
    /// Mailbox control; see [`vfmailbox`].
    Vfmailbox,
    /// Header split and number of receive queues; see [`vfpsrtype`].
    Vfpsrtype,
    /// A register of a receive queue.
    Rx(usize, RxRegister),
    /// A register of a transmit queue.
    Tx(usize, TxRegister),
    /// A statistics counter.
    Statistic(Statistic),
}

/// The registers of one receive queue, at `0x1000 + 0x40 * queue`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RxRegister {
    /// Ring address, low half.
    Rdbal,
    /// Ring address, high half.
    Rdbah,
    /// Ring length in bytes.
    Rdlen,
    /// Direct cache access; kept, without effect.
    DcaRxctrl,
    /// Head: the next descriptor that the device fills.
    Rdh,
    /// Buffer size and descriptor type; see [`srrctl`].
    Srrctl,
    /// Tail: the first descriptor that the device may not fill.
    Rdt,
    /// Control; see [`rxdctl`].
    Rxdctl,
}

/// The registers of one transmit queue, at `0x2000 + 0x40 * queue`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TxRegister {
    /// Ring address, low half.
    Tdbal,
    /// Ring address, high half.
    Tdbah,
    /// Ring length in bytes.
    Tdlen,
    /// Direct cache access; kept, without effect.
    DcaTxctrl,
    /// Head: the next descriptor that the device sends.
    Tdh,
    /// Tail: the first descriptor that the device may not send.
    Tdt,
    /// Control; see [`txdctl`].
    Txdctl,
    /// Address of the head write-back, low half; see [`tdwbal`].
    Tdwbal,
    /// Address of the head write-back, high half.
    Tdwbah,
}

/// Counters that wrap and are not cleared by reading (`ixgbevf_update_stats`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Statistic {
    /// Frames received, 32 bits.
    Vfgprc,
    /// Bytes received, low word of 36 bits.
    VfgorcLsb,
    /// Bytes received, high four bits.
    VfgorcMsb,
    /// Multicast frames received, 32 bits.
    Vfmprc,
    /// Frames sent, 32 bits.
    Vfgptc,
    /// Bytes sent, low word of 36 bits.
    VfgotcLsb,
    /// Bytes sent, high four bits.
    VfgotcMsb,
}

impl Register {
    /// The register at `offset` of BAR 0; `None` where there is none or the offset is not a
    /// multiple of 4.
    pub fn at(offset: u64) -> Option<Self> {
        let offset = u32::try_from(offset).ok()?;
        if !offset.is_multiple_of(4) {
            return None;
        }
        Some(match offset {
            0x0000 => Self::Vfctrl,
            0x0008 => Self::Vfstatus,
            0x0010 => Self::Vflinks,
            0x0100 => Self::Vteicr,
            0x0104 => Self::Vteics,
            0x0108 => Self::Vteims,
            0x010c => Self::Vteimc,
            0x0110 => Self::Vteiac,
            0x0114 => Self::Vteiam,
            0x0120..0x0130 => Self::Vtivar(index(offset, 0x0120)),
            0x0140 => Self::VtivarMisc,
            0x0200..0x0240 => Self::Vfmbmem(index(offset, 0x0200)),
            0x02fc => Self::Vfmailbox,
            0x0300 => Self::Vfpsrtype,
            0x0820..0x082c => Self::Vteitr(index(offset, 0x0820)),
            0x101c => Self::Statistic(Statistic::Vfgprc),
            0x1020 => Self::Statistic(Statistic::VfgorcLsb),
            0x1024 => Self::Statistic(Statistic::VfgorcMsb),
            0x1034 => Self::Statistic(Statistic::Vfmprc),
            0x201c => Self::Statistic(Statistic::Vfgptc),
            0x2020 => Self::Statistic(Statistic::VfgotcLsb),
            0x2024 => Self::Statistic(Statistic::VfgotcMsb),
            0x1000..0x1200 => {
                let (queue, within) = queue_and_offset(offset, 0x1000);
                Self::Rx(queue, RxRegister::at(within)?)
            }
            0x2000..0x2200 => {
                let (queue, within) = queue_and_offset(offset, 0x2000);
                Self::Tx(queue, TxRegister::at(within)?)
            }
            _ => return None,
        })
    }
}

impl RxRegister {
    fn at(offset: u32) -> Option<Self> {
        Some(match offset {
            0x00 => Self::Rdbal,
            0x04 => Self::Rdbah,
            0x08 => Self::Rdlen,
            0x0c => Self::DcaRxctrl,
            0x10 => Self::Rdh,
            0x14 => Self::Srrctl,
            0x18 => Self::Rdt,
            0x28 => Self::Rxdctl,
            _ => return None,
        })
    }
}

impl TxRegister {
    fn at(offset: u32) -> Option<Self> {
        Some(match offset {
            0x00 => Self::Tdbal,
            0x04 => Self::Tdbah,
            0x08 => Self::Tdlen,
            0x0c => Self::DcaTxctrl,
            0x10 => Self::Tdh,
            0x18 => Self::Tdt,
            0x28 => Self::Txdctl,
            0x38 => Self::Tdwbal,
            0x3c => Self::Tdwbah,
            _ => return None,
        })
    }
}

const fn index(offset: u32, first: u32) -> usize {
    ((offset - first) / 4) as usize
}

const fn queue_and_offset(offset: u32, first: u32) -> (usize, u32) {
    (((offset - first) / 0x40) as usize, (offset - first) % 0x40)
}

/// VFCTRL.
pub mod vfctrl {
    /// Resets the function's queues and interrupts (`IXGBE_CTRL_RST`).
    pub const RST: u32 = 1 << 26;
}

/// VFLINKS.
pub mod vflinks {
    /// The link is up (`IXGBE_LINKS_UP`).
    pub const UP: u32 = 1 << 30;
    /// 10 Gb/s (`IXGBE_LINKS_SPEED_10G_82599`).
    pub const SPEED_10G: u32 = 3 << 28;
}

/// VTIVAR and `VTIVAR_MISC`: one byte for each cause. In VTIVAR, from the lowest byte: receive
/// queue `2n`, transmit queue `2n`, receive queue `2n + 1`, transmit queue `2n + 1`.
pub mod ivar {
    /// The byte is valid (`IXGBE_IVAR_ALLOC_VAL`).
    pub const VALID: u8 = 0x80;
    /// The vector.
    pub const VECTOR: u8 = 0x1f;
    /// The bits that a byte holds.
    pub const BYTE: u8 = VALID | VECTOR;
    /// The bits that VTIVAR holds.
    pub const MASK: u32 = u32::from_le_bytes([BYTE; 4]);
}

/// VTEITR (section 7.3.2, interrupt moderation).
pub mod vteitr {
    /// The interval (`IXGBE_MAX_EITR`), in units of 2 µs after shifting by [`INTERVAL_SHIFT`].
    pub const INTERVAL: u32 = 0xff8;
    /// See [`INTERVAL`].
    pub const INTERVAL_SHIFT: u32 = 3;
    /// Nanoseconds of one unit of the interval.
    pub const UNIT_NANOS: u64 = 2_000;
    /// On a write: leaves the running interval alone (`IXGBE_EITR_CNT_WDIS`).
    pub const CNT_WDIS: u32 = 1 << 31;
}

/// VFMAILBOX (section 7.10, hardware-software mailbox; `IXGBE_VFMAILBOX_*`).
pub mod vfmailbox {
    /// Written by the VF: a request is in the mailbox.
    pub const REQ: u32 = 1 << 0;
    /// Written by the VF: the PF's message was taken.
    pub const ACK: u32 = 1 << 1;
    /// The VF owns the mailbox.
    pub const VFU: u32 = 1 << 2;
    /// The PF owns the mailbox.
    pub const PFU: u32 = 1 << 3;
    /// The PF wrote a message; cleared by reading.
    pub const PFSTS: u32 = 1 << 4;
    /// The PF took the VF's message; cleared by reading.
    pub const PFACK: u32 = 1 << 5;
    /// The PF is being reset; cleared by reading.
    pub const RSTI: u32 = 1 << 6;
    /// The PF has seen the VF's reset; cleared by reading.
    pub const RSTD: u32 = 1 << 7;
    /// All that are cleared by reading.
    pub const CLEARED_BY_READING: u32 = PFSTS | PFACK | RSTI | RSTD;
}

/// VFPSRTYPE.
pub mod vfpsrtype {
    /// How many receive queues frames are spread over, as a power of two (RQPL), after shifting.
    pub const RQPL_SHIFT: u32 = 29;
}

/// SRRCTL.
pub mod srrctl {
    /// Size of the packet buffers in KiB (BSIZEPACKET).
    pub const BSIZEPACKET: u32 = 0x1f;
    /// Descriptor type (`IXGBE_SRRCTL_DESCTYPE_MASK`).
    pub const DESCTYPE: u32 = 7 << 25;
    /// Advanced descriptors with one buffer (`IXGBE_SRRCTL_DESCTYPE_ADV_ONEBUF`).
    pub const DESCTYPE_ADV_ONEBUF: u32 = 1 << 25;
}

/// RXDCTL.
pub mod rxdctl {
    /// The queue runs.
    pub const ENABLE: u32 = 1 << 25;
    /// 802.1Q tags are taken out of received frames.
    pub const VME: u32 = 1 << 30;
}

/// TXDCTL.
pub mod txdctl {
    /// The queue runs.
    pub const ENABLE: u32 = 1 << 25;
    /// Flushes pending write-backs; clears itself.
    pub const SWFLSH: u32 = 1 << 26;
}

/// TDWBAL (section 7.2.3, head write-back).
pub mod tdwbal {
    /// The head is written to memory instead of a status into descriptors.
    pub const HEAD_WB_EN: u32 = 1 << 0;
}

/// The bits of RDBAL and TDBAL: rings are aligned to 128 bytes.
pub const RING_ADDRESS_MASK: u32 = !0x7f;
/// The bits of RDLEN and TDLEN: a multiple of 128 bytes below 1 MiB.
pub const RING_LENGTH_MASK: u32 = 0x000f_ff80;
/// The bits of RDH, RDT, TDH and TDT.
pub const RING_INDEX_MASK: u32 = 0xffff;
/// The bits of the byte counters.
pub const OCTETS_MASK: u64 = (1 << 36) - 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_win_over_the_first_queue_they_collide_with() {
        assert_eq!(
            Register::at(0x101c),
            Some(Register::Statistic(Statistic::Vfgprc))
        );
        assert_eq!(Register::at(0x1018), Some(Register::Rx(0, RxRegister::Rdt)));
        assert_eq!(
            Register::at(0x2068),
            Some(Register::Tx(1, TxRegister::Txdctl))
        );
        assert_eq!(Register::at(0x1060), None);
    }

    #[test]
    fn every_offset_of_the_bar_and_beyond_is_answered() {
        for offset in (0..0x1_0000).chain([u64::MAX, 1 << 32, (1 << 32) + 8]) {
            if let Some(Register::Rx(queue, _) | Register::Tx(queue, _)) = Register::at(offset) {
                assert!(queue < QUEUES);
            }
        }
        assert_eq!(Register::at(2), None);
        assert_eq!(Register::at((1 << 32) + 8), None);
    }
}
