//! Guest memory mapped from the file descriptors that the VMM hands over.

use std::collections::BTreeMap;
use std::fs::File;
use std::num::NonZeroUsize;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vm_memory::bitmap::AtomicBitmap;
use vm_memory::mmap::{GuestRegionMmap, MmapRegionBuilder};
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionCollection,
    MemoryRegionAddress,
};

use super::{DirtySink, DmaError, PAGE_SIZE};

const PROT_READ: i32 = rustix::mm::ProtFlags::READ.bits().cast_signed();
const PROT_WRITE: i32 = rustix::mm::ProtFlags::WRITE.bits().cast_signed();
/// `MAP_SHARED | MAP_NORESERVE`: what the device writes is the guest's memory itself.
const SHARED: i32 = rustix::mm::MapFlags::SHARED
    .union(rustix::mm::MapFlags::NORESERVE)
    .bits()
    .cast_signed();

const PAGE: NonZeroUsize =
    NonZeroUsize::new(1 << PAGE_SIZE.trailing_zeros()).expect("a page has bytes");

type Region = GuestRegionMmap<AtomicBitmap>;

/// No range is larger: 16 TiB, whose dirty bits take 512 MiB.
const MAX_SIZE: u64 = 1 << 44;

/// A range to be mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapRequest {
    /// First address on the device's bus, page aligned.
    pub iova: u64,
    /// Bytes, a multiple of the page size.
    pub size: u64,
    /// Where the range starts in the file, page aligned.
    pub offset: u64,
    /// The device may write here.
    pub writable: bool,
}

/// Why a range could not be mapped or unmapped.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// Address, size or offset is not a multiple of the page size, or the range wraps, or it is
    /// larger than 16 TiB.
    #[error("DMA range {0:#x?} is not made of whole pages, or too large")]
    Unaligned(MapRequest),
    /// A part of the range is mapped already.
    #[error("DMA range {0:#x?} overlaps one that is mapped")]
    Overlap(MapRequest),
    /// The file is shorter than the range: touching it would be fatal.
    #[error("DMA range {request:#x?} ends past the end of its file ({file_len:#x} bytes)")]
    PastEnd {
        /// What was asked for.
        request: MapRequest,
        /// Length of the file in bytes.
        file_len: u64,
    },
    /// No mapping has this address and size.
    #[error("no DMA mapping of {size:#x} bytes at {iova:#x}")]
    NotMapped {
        /// First address.
        iova: u64,
        /// Bytes.
        size: u64,
    },
    /// The system refused the mapping.
    #[error("mapping guest memory: {0}")]
    System(String),
}

/// A file that holds guest memory.
#[derive(Debug)]
pub struct MemoryFile {
    /// The file.
    pub file: File,
    /// Offset in the file, address on the bus, and bytes of each mapped range.
    parts: Vec<(u64, u64, u64)>,
}

impl MemoryFile {
    /// The address under which a function reaches the byte at `offset`, if it does.
    pub fn address_of(&self, offset: u64) -> Option<u64> {
        let within = |(start, address, len): &(u64, u64, u64)| {
            offset
                .checked_sub(*start)
                .filter(|by| by < len)
                .map(|by| address + by)
        };
        self.parts.iter().find_map(within)
    }
}

/// The ranges that a function can reach, each with a dirty bit per page.
#[derive(Debug, Default)]
pub(crate) struct MemoryMap {
    regions: GuestRegionCollection<Region>,
    /// Ranges announced without a file (ROMs): known, so that they can be unmapped, but out of
    /// reach for DMA by mapping.
    unbacked: BTreeMap<u64, u64>,
    /// Dirty bits of ranges that are no longer mapped, by the page of the word's first bit.
    /// Firmware remaps low memory many times; what was written before must not be forgotten.
    unmapped_dirty: BTreeMap<u64, u64>,
}

impl MemoryMap {
    pub(crate) fn insert(
        &mut self,
        request: MapRequest,
        file: Option<File>,
    ) -> Result<(), MapError> {
        let MapRequest {
            iova,
            size,
            offset,
            writable,
        } = request;
        let aligned = [iova, size, offset]
            .iter()
            .all(|v| v.is_multiple_of(PAGE_SIZE));
        let end = iova
            .checked_add(size)
            .filter(|_| aligned && size > 0 && size <= MAX_SIZE);
        let end = end.ok_or(MapError::Unaligned(request))?;
        if self.overlaps(iova, end) {
            return Err(MapError::Overlap(request));
        }
        let Some(file) = file else {
            self.unbacked.insert(iova, size);
            return Ok(());
        };
        let system = |why: &dyn std::fmt::Display| MapError::System(why.to_string());
        let file_len = file.metadata().map_err(|e| system(&e))?.len();
        if offset.checked_add(size).is_none_or(|end| end > file_len) {
            return Err(MapError::PastEnd { request, file_len });
        }
        let len = usize::try_from(size).map_err(|e| system(&e))?;
        let mapping = MmapRegionBuilder::new_with_bitmap(len, AtomicBitmap::new(len, PAGE))
            .with_mmap_prot(if writable {
                PROT_READ | PROT_WRITE
            } else {
                PROT_READ
            })
            .with_mmap_flags(SHARED)
            .with_file_offset(FileOffset::new(file, offset))
            .build()
            .map_err(|e| system(&e))?;
        let region =
            Region::new(mapping, GuestAddress(iova)).ok_or(MapError::Unaligned(request))?;
        self.regions = self
            .regions
            .insert_region(Arc::new(region))
            .map_err(|e| system(&e))?;
        Ok(())
    }

    pub(crate) fn remove(&mut self, iova: u64, size: u64) -> Result<(), MapError> {
        if self.unbacked.get(&iova) == Some(&size) {
            self.unbacked.remove(&iova);
            return Ok(());
        }
        let (rest, region) = self
            .regions
            .remove_region(GuestAddress(iova), size)
            .map_err(|_| MapError::NotMapped { iova, size })?;
        self.regions = rest;
        self.keep_dirty(&region);
        Ok(())
    }

    pub(crate) fn clear(&mut self) {
        let gone = std::mem::take(&mut self.regions);
        gone.iter().for_each(|region| self.keep_dirty(region));
        self.unbacked.clear();
    }

    pub(crate) fn take_unmapped_dirty(&mut self) -> BTreeMap<u64, u64> {
        std::mem::take(&mut self.unmapped_dirty)
    }

    pub(crate) fn drain_dirty(&self, sink: &mut dyn DirtySink) {
        for region in self.regions.iter() {
            let words = region.get_mmap().bitmap().get_and_reset();
            sink.mark_words(region.start_addr().0 / PAGE_SIZE, &words);
        }
    }

    pub(crate) fn files(&self) -> Vec<MemoryFile> {
        let mut files: Vec<(_, MemoryFile)> = Vec::new();
        for region in self.regions.iter() {
            let mapping = region.get_mmap();
            let Some(offset) = mapping.file_offset() else {
                continue;
            };
            let Ok(metadata) = offset.file().metadata() else {
                continue;
            };
            let id = (metadata.dev(), metadata.ino());
            let part = (offset.start(), region.start_addr().0, region.len());
            if let Some((_, known)) = files.iter_mut().find(|(known, _)| *known == id) {
                known.parts.push(part);
            } else if let Ok(file) = offset.file().try_clone() {
                files.push((
                    id,
                    MemoryFile {
                        file,
                        parts: vec![part],
                    },
                ));
            }
        }
        files.into_iter().map(|(_, file)| file).collect()
    }

    pub(crate) fn end(&self) -> u64 {
        let end = |region: &Region| region.start_addr().0.saturating_add(region.len());
        self.regions.iter().map(end).max().unwrap_or(0)
    }

    pub(crate) fn read(&self, iova: u64, buf: &mut [u8]) -> Result<(), DmaError> {
        let error = DmaError {
            iova,
            len: buf.len(),
        };
        let mut at = iova;
        let mut rest = buf;
        while !rest.is_empty() {
            let (region, offset, len) = self.piece(at, rest.len(), PROT_READ).ok_or(error)?;
            let (now, later) = rest.split_at_mut(len);
            region.read_slice(now, offset).map_err(|_| error)?;
            rest = later;
            at = at.wrapping_add(len as u64);
        }
        Ok(())
    }

    /// Data first, then the bit: vm-memory marks the pages of a slice after it has copied to it,
    /// with a sequentially consistent OR.
    pub(crate) fn write(&self, iova: u64, data: &[u8]) -> Result<(), DmaError> {
        let error = DmaError {
            iova,
            len: data.len(),
        };
        let mut at = iova;
        let mut rest = data;
        while !rest.is_empty() {
            let (region, offset, len) = self.piece(at, rest.len(), PROT_WRITE).ok_or(error)?;
            let (now, later) = rest.split_at(len);
            region.write_slice(now, offset).map_err(|_| error)?;
            rest = later;
            at = at.wrapping_add(len as u64);
        }
        Ok(())
    }

    pub(crate) fn store_u64(&self, iova: u64, value: u64) -> Result<(), DmaError> {
        let error = DmaError { iova, len: 8 };
        let (region, offset, len) = self.piece(iova, 8, PROT_WRITE).ok_or(error)?;
        if len != 8 || !iova.is_multiple_of(8) {
            return Err(error);
        }
        region
            .store(value.to_le(), offset, Ordering::Release)
            .map_err(|_| error)
    }

    pub(crate) fn store_u32(&self, iova: u64, value: u32) -> Result<(), DmaError> {
        let error = DmaError { iova, len: 4 };
        let (region, offset, len) = self.piece(iova, 4, PROT_WRITE).ok_or(error)?;
        if len != 4 || !iova.is_multiple_of(4) {
            return Err(error);
        }
        region
            .store(value.to_le(), offset, Ordering::Release)
            .map_err(|_| error)
    }

    /// The part of `iova..iova + len` that lies in the region of `iova`.
    fn piece(
        &self,
        iova: u64,
        len: usize,
        prot: i32,
    ) -> Option<(&Region, MemoryRegionAddress, usize)> {
        let region = self.regions.find_region(GuestAddress(iova))?;
        if region.prot() & prot == 0 {
            return None;
        }
        let offset = iova - region.start_addr().0;
        let room = usize::try_from(region.len() - offset).unwrap_or(usize::MAX);
        Some((region, MemoryRegionAddress(offset), len.min(room)))
    }

    fn overlaps(&self, start: u64, end: u64) -> bool {
        let backed = self.regions.iter().map(|r| (r.start_addr().0, r.len()));
        let unbacked = self.unbacked.iter().map(|(&iova, &size)| (iova, size));
        backed
            .chain(unbacked)
            .any(|(s, len)| s < end && start < s + len)
    }

    fn keep_dirty(&mut self, region: &Region) {
        let first_page = region.start_addr().0 / PAGE_SIZE;
        for (index, word) in (0u64..).zip(region.get_mmap().bitmap().get_and_reset()) {
            if word != 0 {
                *self
                    .unmapped_dirty
                    .entry(first_page + index * 64)
                    .or_default() |= word;
            }
        }
    }
}
