//! Guest memory as a device sees it: addresses on its bus, and errors instead of faults.

mod file;
mod map;
mod pages;
mod written;

pub use file::{MemoryFile, MemoryId};
pub(crate) use map::MemoryMap;
pub use map::{MapError, MapRequest};
pub(crate) use pages::PageSet;

/// Reads and writes of guest memory by DMA.
///
/// An access that is not wholly inside mapped memory fails and may have moved a part of it.
/// Every write is recorded in the dirty log after its data is in place.
pub trait GuestMemory {
    /// Fills `buf` from `iova` on.
    ///
    /// # Errors
    /// [`DmaError`] when a byte of the range is not mapped for reading.
    fn read(&self, iova: u64, buf: &mut [u8]) -> Result<(), DmaError>;

    /// Writes `data` at `iova`.
    ///
    /// # Errors
    /// [`DmaError`] when a byte of the range is not mapped for writing.
    fn write(&self, iova: u64, data: &[u8]) -> Result<(), DmaError>;

    /// Writes the naturally aligned little-endian `value` in one piece, after all earlier writes
    /// are visible (release): for the word of a descriptor that tells the driver it is done.
    ///
    /// # Errors
    /// [`DmaError`] when the word is not aligned or not mapped for writing.
    fn store_u64(&self, iova: u64, value: u64) -> Result<(), DmaError>;

    /// As [`store_u64`](Self::store_u64), four bytes.
    ///
    /// # Errors
    /// [`DmaError`] when the word is not aligned or not mapped for writing.
    fn store_u32(&self, iova: u64, value: u32) -> Result<(), DmaError>;
}

/// A DMA access that the bus would not have completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("DMA of {len} bytes at {iova:#x} is outside of the memory mapped for it")]
pub struct DmaError {
    /// First address of the access.
    pub iova: u64,
    /// Its length in bytes.
    pub len: usize,
}

/// Plain memory from address `base` on, for tests, fuzzers and in-process drivers.
#[derive(Debug)]
pub struct FlatMemory {
    base: u64,
    bytes: std::sync::Mutex<Vec<u8>>,
}

impl FlatMemory {
    /// `len` zero bytes at `base`.
    pub fn new(base: u64, len: usize) -> Self {
        Self {
            base,
            bytes: std::sync::Mutex::new(vec![0; len]),
        }
    }

    fn with<R>(
        &self,
        iova: u64,
        len: usize,
        f: impl FnOnce(&mut [u8]) -> R,
    ) -> Result<R, DmaError> {
        let error = DmaError { iova, len };
        let mut bytes = self.bytes.lock().expect("no access panics");
        let start = iova
            .checked_sub(self.base)
            .and_then(|o| usize::try_from(o).ok())
            .ok_or(error)?;
        let end = start.checked_add(len).ok_or(error)?;
        bytes.get_mut(start..end).map(f).ok_or(error)
    }
}

impl GuestMemory for FlatMemory {
    fn read(&self, iova: u64, buf: &mut [u8]) -> Result<(), DmaError> {
        self.with(iova, buf.len(), |m| buf.copy_from_slice(m))
    }

    fn write(&self, iova: u64, data: &[u8]) -> Result<(), DmaError> {
        self.with(iova, data.len(), |m| m.copy_from_slice(data))
    }

    fn store_u64(&self, iova: u64, value: u64) -> Result<(), DmaError> {
        if !iova.is_multiple_of(8) {
            return Err(DmaError { iova, len: 8 });
        }
        self.write(iova, &value.to_le_bytes())
    }

    fn store_u32(&self, iova: u64, value: u32) -> Result<(), DmaError> {
        if !iova.is_multiple_of(4) {
            return Err(DmaError { iova, len: 4 });
        }
        self.write(iova, &value.to_le_bytes())
    }
}

/// Bytes of a page, the unit of dirty tracking.
pub const PAGE_SIZE: u64 = 4096;

/// Where the pages that devices wrote are reported to, by the file that holds them: addresses on a
/// device's bus are the guest's to choose, where it has an IOMMU.
pub trait DirtySink {
    /// Bit `n` of `words[i]` stands for page `first_page + 64 * i + n` of `file`.
    fn mark_words(&mut self, file: MemoryId, first_page: u64, words: &[u64]);
}

/// A closure that takes one page of a file at a time.
impl<F: FnMut(MemoryId, u64)> DirtySink for F {
    fn mark_words(&mut self, file: MemoryId, first_page: u64, words: &[u64]) {
        each(first_page, words, |page| self(file, page));
    }
}

/// Where pages are reported to that somebody knows by their guest-physical address.
pub trait GuestPageSink {
    /// Bit `n` of `words[i]` stands for guest page `first_page + 64 * i + n`.
    fn mark_words(&mut self, first_page: u64, words: &[u64]);
}

/// A closure that takes one page number at a time.
impl<F: FnMut(u64)> GuestPageSink for F {
    fn mark_words(&mut self, first_page: u64, words: &[u64]) {
        each(first_page, words, self);
    }
}

fn each(first_page: u64, words: &[u64], mut f: impl FnMut(u64)) {
    for (index, &word) in (0u64..).zip(words) {
        let mut bits = word;
        while bits != 0 {
            f(first_page + index * 64 + u64::from(bits.trailing_zeros()));
            bits &= bits - 1;
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
