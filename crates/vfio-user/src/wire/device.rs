//! `VFIO_USER_DEVICE_GET_INFO`, `_GET_REGION_INFO`, `_GET_IRQ_INFO` and `_SET_IRQS`.

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// [`Info::flags`]: the device can be reset.
pub const INFO_RESET: u32 = 1 << 0;
/// [`Info::flags`]: it is a PCI device.
pub const INFO_PCI: u32 = 1 << 1;

/// Body of `VFIO_USER_DEVICE_GET_INFO` and of its reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Info {
    /// In the command: room for the reply. In the reply: its size.
    pub argsz: u32,
    /// `INFO_*`.
    pub flags: u32,
    /// Number of regions.
    pub num_regions: u32,
    /// Number of kinds of interrupts.
    pub num_irqs: u32,
}

/// [`RegionInfo::flags`]: the client may read.
pub const REGION_READ: u32 = 1 << 0;
/// [`RegionInfo::flags`]: the client may write.
pub const REGION_WRITE: u32 = 1 << 1;
/// [`RegionInfo::flags`]: the client may map; a file descriptor comes with the reply.
pub const REGION_MMAP: u32 = 1 << 2;
/// [`RegionInfo::flags`]: capabilities follow.
pub const REGION_CAPS: u32 = 1 << 3;

/// Body of `VFIO_USER_DEVICE_GET_REGION_INFO` and of its reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct RegionInfo {
    /// In the command: room for the reply. In the reply: the size of the whole one.
    pub argsz: u32,
    /// `REGION_*`.
    pub flags: u32,
    /// The region.
    pub index: u32,
    /// Where the first capability is, from the start of this structure; 0 for none.
    pub cap_offset: u32,
    /// Bytes.
    pub size: u64,
    /// Where the region is in the file descriptor.
    pub offset: u64,
}

/// `VFIO_REGION_INFO_CAP_SPARSE_MMAP`.
pub const CAP_SPARSE_MMAP: u16 = 1;

/// The capability that says which parts of a region may be mapped; [`SparseArea`]s follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct SparseMmap {
    /// [`CAP_SPARSE_MMAP`].
    pub id: u16,
    /// 1.
    pub version: u16,
    /// Where the next capability is, from the start of [`RegionInfo`]; 0 for none.
    pub next: u32,
    /// How many areas follow.
    pub nr_areas: u32,
    /// 0.
    pub reserved: u32,
}

/// A part of a region that may be mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct SparseArea {
    /// First byte, from the start of the region.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}

/// [`IrqInfo::flags`]: eventfds can be connected.
pub const IRQ_EVENTFD: u32 = 1 << 0;
/// [`IrqInfo::flags`]: the client can mask and unmask.
pub const IRQ_MASKABLE: u32 = 1 << 1;
/// [`IrqInfo::flags`]: masked by being triggered.
pub const IRQ_AUTOMASKED: u32 = 1 << 2;
/// [`IrqInfo::flags`]: set up as a whole.
pub const IRQ_NORESIZE: u32 = 1 << 3;

/// Body of `VFIO_USER_DEVICE_GET_IRQ_INFO` and of its reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct IrqInfo {
    /// In the command: room for the reply. In the reply: its size.
    pub argsz: u32,
    /// `IRQ_*`.
    pub flags: u32,
    /// The kind of interrupt.
    pub index: u32,
    /// How many there are.
    pub count: u32,
}

/// [`IrqSet::flags`]: no data.
pub const SET_DATA_NONE: u32 = 1 << 0;
/// [`IrqSet::flags`]: a byte per interrupt says whether it is meant.
pub const SET_DATA_BOOL: u32 = 1 << 1;
/// [`IrqSet::flags`]: an eventfd per interrupt comes with the message, or none at all.
pub const SET_DATA_EVENTFD: u32 = 1 << 2;
/// [`IrqSet::flags`]: about masking.
pub const SET_ACTION_MASK: u32 = 1 << 3;
/// [`IrqSet::flags`]: about unmasking.
pub const SET_ACTION_UNMASK: u32 = 1 << 4;
/// [`IrqSet::flags`]: about triggering.
pub const SET_ACTION_TRIGGER: u32 = 1 << 5;

/// Body of `VFIO_USER_DEVICE_SET_IRQS`, before the data. The reply has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct IrqSet {
    /// Bytes of this structure and the data.
    pub argsz: u32,
    /// One of `SET_DATA_*` and one of `SET_ACTION_*`.
    pub flags: u32,
    /// The kind of interrupt.
    pub index: u32,
    /// The first one.
    pub start: u32,
    /// How many.
    pub count: u32,
}
