//! `VFIO_USER_DMA_MAP`, `_UNMAP`, `_READ` and `_WRITE`.

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The device may read the range.
pub const MAP_READ: u32 = 1 << 0;
/// The device may write the range.
pub const MAP_WRITE: u32 = 1 << 1;
/// The file descriptor can be mapped, as it can where neither this nor [`MAP_FILE_IO`] is set.
/// Not in the specification; libvfio-user has it since June 2026.
pub const MAP_MMAP: u32 = 1 << 2;
/// The file descriptor can be read and written. As [`MAP_MMAP`], from libvfio-user.
pub const MAP_FILE_IO: u32 = 1 << 3;

/// A report of written pages is asked for with the unmap: version 1 of migration.
pub const UNMAP_GET_DIRTY_BITMAP: u32 = 1 << 0;
/// Everything is to be unmapped; address and size are 0.
pub const UNMAP_ALL: u32 = 1 << 1;

/// Body of `VFIO_USER_DMA_MAP`. The reply has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Map {
    /// Size of this structure.
    pub argsz: u32,
    /// `MAP_*`.
    pub flags: u32,
    /// Where the range starts in the file descriptor sent along.
    pub offset: u64,
    /// First address.
    pub iova: u64,
    /// Bytes.
    pub size: u64,
}

/// Body of `VFIO_USER_DMA_UNMAP` and of its reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Unmap {
    /// In the command: room for the reply. In the reply: its size.
    pub argsz: u32,
    /// `UNMAP_*`.
    pub flags: u32,
    /// First address.
    pub iova: u64,
    /// Bytes.
    pub size: u64,
}

/// Body of `VFIO_USER_DMA_READ` and `_WRITE`, before the data.
///
/// QEMU up to 10.2 had a 32-bit count and the data four bytes earlier; the specification,
/// libvfio-user and QEMU 11.1 agree on this. The table of the specification shows a 32-bit count
/// in the reply to a write, which nobody sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Access {
    /// First address.
    pub iova: u64,
    /// Bytes of data.
    pub count: u64,
}
