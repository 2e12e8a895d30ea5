//! What a worker needs of a device.

use std::fmt::Debug;

use rustix::io::Errno;

use crate::direct::Direct;

/// A device. Offsets and lengths are in bytes, and multiples of its block size.
pub(crate) trait Disk: Debug + Send + Sync {
    /// Fills all of `bytes`.
    fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), Errno>;
    /// Writes all of `bytes`; with `durable` they outlast a power cut when this returns.
    fn write(&self, offset: u64, bytes: &[u8], durable: bool) -> Result<(), Errno>;
    /// Makes everything durable that was written before.
    fn flush(&self) -> Result<(), Errno>;
    /// Makes zeroes of a range, with `unmap` in any way it likes.
    fn zero(&self, offset: u64, len: u64, unmap: bool) -> Result<(), Errno>;
    /// Says that nobody needs what is in a range.
    fn discard(&self, offset: u64, len: u64) -> Result<(), Errno>;
}

impl Disk for Direct {
    fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), Errno> {
        Self::read(self, offset, bytes)
    }

    fn write(&self, offset: u64, bytes: &[u8], durable: bool) -> Result<(), Errno> {
        Self::write(self, offset, bytes, durable)
    }

    fn flush(&self) -> Result<(), Errno> {
        Self::flush(self)
    }

    fn zero(&self, offset: u64, len: u64, unmap: bool) -> Result<(), Errno> {
        Self::zero(self, offset, len, unmap)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), Errno> {
        Self::discard(self, offset, len)
    }
}
