//! The virtual function in PCI configuration space (datasheet chapter 9 and the driver's
//! `ixgbevf_pci_tbl`).

use pci::{Bar, BarKind, Identity, Layout, MsixCapability};

/// Intel.
pub const VENDOR_ID: u16 = 0x8086;
/// 82599 virtual function (`IXGBE_DEV_ID_82599_VF`).
pub const DEVICE_ID: u16 = 0x10ed;
/// Subsystem vendor: Intel.
pub const SUBSYSTEM_VENDOR_ID: u16 = 0x8086;
/// Subsystem as on Intel's own X520 adapters.
pub const SUBSYSTEM_ID: u16 = 0x000c;
/// Stepping B0.
pub const REVISION_ID: u8 = 0x01;
/// Ethernet controller: base class, subclass, programming interface.
pub const CLASS: u32 = 0x02_0000;

/// The BAR with the registers: 64-bit, prefetchable.
pub const REGISTER_BAR: u8 = 0;
/// Its size in bytes.
pub const REGISTER_BAR_SIZE: u64 = 16 << 10;

/// The BAR with the MSI-X table and pending bits: 64-bit, prefetchable.
pub const MSIX_BAR: u8 = 3;
/// Its size in bytes.
pub const MSIX_BAR_SIZE: u64 = 16 << 10;
/// MSI-X vectors: two for queues, one for mailbox and link. There is neither MSI nor INTx.
pub const MSIX_VECTORS: u16 = 3;
/// Where the MSI-X table begins in [`MSIX_BAR`].
pub const MSIX_TABLE_OFFSET: u32 = 0;
/// Where the pending bit array begins in [`MSIX_BAR`].
pub const MSIX_PBA_OFFSET: u32 = 0x2000;

/// Where the MSI-X capability lies in configuration space.
pub const MSIX_CAPABILITY_OFFSET: u8 = 0x70;
/// Where the PCI Express capability lies. It must offer function-level reset: Linux resets a
/// 10ed function that way without asking (`reset_intel_82599_sfp_virtfn`).
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
