//! The controller in PCI configuration space (section 2).

use pci::{Bar, BarKind, Identity, Layout, MsixCapability};

use super::registers::{DOORBELL_STRIDE, DOORBELLS};

/// Of nobody: the identity that SPDK's vfio-user controllers have. Drivers bind by class; a
/// borrowed identity would bring quirks (Linux's `nvme_id_table` has some for QEMU's and Intel's).
pub const VENDOR_ID: u16 = 0x4e58;
/// See [`VENDOR_ID`].
pub const DEVICE_ID: u16 = 0x0001;
/// As the vendor.
pub const SUBSYSTEM_VENDOR_ID: u16 = VENDOR_ID;
/// As the device.
pub const SUBSYSTEM_ID: u16 = DEVICE_ID;
/// First stepping.
pub const REVISION_ID: u8 = 0x01;
/// Mass storage, non-volatile memory, NVM Express (2.1.5).
pub const CLASS: u32 = 0x01_0802;

/// The BAR with registers and doorbells (2.1.10): not prefetchable.
pub const REGISTER_BAR: u8 = 0;
/// Its size in bytes; Linux maps 8 KiB of it at first.
pub const REGISTER_BAR_SIZE: u64 = 8 << 10;

/// The BAR with the MSI-X table and pending bits; the specification allows 0, 4 and 5 (2.4.3).
pub const MSIX_BAR: u8 = 4;
/// Its size in bytes.
pub const MSIX_BAR_SIZE: u64 = 4 << 10;
/// MSI-X vectors: one for each queue pair, the admin queues among them. No MSI, no INTx.
pub const MSIX_VECTORS: u16 = 17;
/// Where the MSI-X table begins in [`MSIX_BAR`].
pub const MSIX_TABLE_OFFSET: u32 = 0;
/// Where the pending bit array begins in [`MSIX_BAR`].
pub const MSIX_PBA_OFFSET: u32 = 0x800;

/// Where the power management capability lies in configuration space.
pub const POWER_CAPABILITY_OFFSET: u8 = 0x40;
/// Where the MSI-X capability lies.
pub const MSIX_CAPABILITY_OFFSET: u8 = 0x50;
/// Where the PCI Express capability lies.
pub const PCIE_CAPABILITY_OFFSET: u8 = 0x70;

const _: () = assert!(
    DOORBELLS + 2 * DOORBELL_STRIDE * MSIX_VECTORS as u64 <= REGISTER_BAR_SIZE,
    "the doorbells of all queues lie in the BAR"
);

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
            kind: BarKind::Memory32,
        },
        Bar {
            index: MSIX_BAR,
            size: MSIX_BAR_SIZE,
            kind: BarKind::Memory32,
        },
    ],
    power: Some(POWER_CAPABILITY_OFFSET),
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
