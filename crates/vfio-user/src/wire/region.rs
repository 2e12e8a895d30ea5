//! `VFIO_USER_REGION_READ`, `_WRITE` and `_WRITE_MULTI`.

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Body of `VFIO_USER_REGION_READ` and `_WRITE` and of their replies, before the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Access {
    /// First byte, from the start of the region.
    pub offset: u64,
    /// The region.
    pub region: u32,
    /// Bytes of data.
    pub count: u32,
}

/// Body of `VFIO_USER_REGION_WRITE_MULTI`, before the [`MultiWrite`]s, and of its reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Multi {
    /// How many writes. QEMU sends room for 200 of them, however many there are.
    pub count: u64,
}

/// One write of a `VFIO_USER_REGION_WRITE_MULTI`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct MultiWrite {
    /// Where, and how many bytes: at most 8.
    pub access: Access,
    /// The bytes, from the first on.
    pub data: [u8; 8],
}
