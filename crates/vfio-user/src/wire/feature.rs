//! `VFIO_USER_DEVICE_FEATURE`, `VFIO_USER_MIG_DATA_READ` and `_WRITE`.

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// [`Feature::flags`]: the bits that hold the feature.
pub const FEATURE_MASK: u32 = 0xffff;
/// [`Feature::flags`]: tell the feature's data.
pub const GET: u32 = 1 << 16;
/// [`Feature::flags`]: take the feature's data.
pub const SET: u32 = 1 << 17;
/// [`Feature::flags`]: only say whether the rest of the flags would do.
pub const PROBE: u32 = 1 << 18;

/// Feature: migration is possible.
pub const MIGRATION: u32 = 1;
/// Feature: the migration state.
pub const MIG_DEVICE_STATE: u32 = 2;
/// Feature: begin to log DMA writes.
pub const DMA_LOGGING_START: u32 = 6;
/// Feature: end logging.
pub const DMA_LOGGING_STOP: u32 = 7;
/// Feature: what was logged.
pub const DMA_LOGGING_REPORT: u32 = 8;

/// Body of `VFIO_USER_DEVICE_FEATURE` and of its reply, before the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Feature {
    /// In the command: room for the reply. In the reply: its size.
    pub argsz: u32,
    /// [`GET`], [`SET`], [`PROBE`] and the feature.
    pub flags: u32,
}

/// [`MigrationFlags::flags`]: the state can be saved once stopped. Always set.
pub const MIGRATION_STOP_COPY: u64 = 1 << 0;
/// [`MigrationFlags::flags`]: the state can be saved while running.
pub const MIGRATION_PRE_COPY: u64 = 1 << 2;

/// Data of [`MIGRATION`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct MigrationFlags {
    /// `MIGRATION_*`.
    pub flags: u64,
}

/// Data of [`MIG_DEVICE_STATE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct DeviceState {
    /// A [`State`](crate::migration::State).
    pub state: u32,
    /// Unused here.
    pub data_fd: u32,
}

/// Data of [`DMA_LOGGING_START`], before the [`LoggingRange`]s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct LoggingStart {
    /// In the command: as the client would like it. In the reply: as it is.
    pub page_size: u64,
    /// How many ranges follow; 0 for all memory.
    pub num_ranges: u32,
    /// 0.
    pub reserved: u32,
}

/// A range to be logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct LoggingRange {
    /// First address.
    pub iova: u64,
    /// Bytes.
    pub length: u64,
}

/// Data of [`DMA_LOGGING_REPORT`]; in the reply, a bitmap of `u64` follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct LoggingReport {
    /// First address.
    pub iova: u64,
    /// Bytes.
    pub length: u64,
    /// Bytes that a bit of the bitmap stands for.
    pub page_size: u64,
}

/// Body of `VFIO_USER_MIG_DATA_READ`, and of its reply and `VFIO_USER_MIG_DATA_WRITE` before the
/// data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct MigData {
    /// In a command: room for the reply. In a reply: its size.
    pub argsz: u32,
    /// Bytes of data.
    pub size: u32,
}
