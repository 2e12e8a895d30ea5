//! Guest memory mapped from the file descriptors that the VMM hands over.
//!
//! Each file is mapped once and whole, and a range of the bus is a window into it: a guest with a
//! virtual IOMMU maps and unmaps single pages all the time. What was written is therefore known by
//! the file's pages, of which a range may show any at any address.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory, VolatileSlice};

use super::pages::PageSet;
use super::written::Written;
use super::{DirtySink, DmaError, MemoryFile, MemoryId, PAGE_SIZE};

const PROT_READ: i32 = rustix::mm::ProtFlags::READ.bits().cast_signed();
const PROT_WRITE: i32 = rustix::mm::ProtFlags::WRITE.bits().cast_signed();
/// `MAP_SHARED | MAP_NORESERVE`: what the device writes is the guest's memory itself.
const SHARED: i32 = rustix::mm::MapFlags::SHARED
    .union(rustix::mm::MapFlags::NORESERVE)
    .bits()
    .cast_signed();

/// A whole file, and which of its pages were written.
#[derive(Debug)]
struct Window {
    region: MmapRegion,
    written: Written,
}

/// No range, and no file, is larger: 16 TiB, whose dirty bits take 512 MiB.
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

/// The ranges that a function can reach, and which pages it wrote or may have written.
#[derive(Debug, Default)]
pub(crate) struct MemoryMap {
    ranges: BTreeMap<u64, Range>,
    files: BTreeMap<MemoryId, Mapped>,
    /// Pages written while they were mapped, of files of which nothing is mapped any more. Firmware
    /// remaps low memory many times; what was written before must not be forgotten.
    written: BTreeMap<MemoryId, PageSet>,
    /// Pages that could be written and are no longer mapped so.
    released: BTreeMap<MemoryId, PageSet>,
}

#[derive(Debug)]
struct Range {
    size: u64,
    writable: bool,
    /// `None` of ranges announced without a file (ROMs): known, so that they can be unmapped, but
    /// out of reach for DMA by mapping.
    shows: Option<Shown>,
}

#[derive(Debug)]
struct Shown {
    file: MemoryId,
    window: Arc<Window>,
    offset: u64,
}

/// A file of which something is mapped.
#[derive(Debug)]
struct Mapped {
    window: Arc<Window>,
    ranges: usize,
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
        let shows = file.map(|file| self.show(request, file)).transpose()?;
        let range = Range {
            size,
            writable,
            shows,
        };
        self.ranges.insert(iova, range);
        Ok(())
    }

    fn show(&mut self, request: MapRequest, file: File) -> Result<Shown, MapError> {
        let system = |why: &dyn std::fmt::Display| MapError::System(why.to_string());
        let metadata = file.metadata().map_err(|e| system(&e))?;
        let id = MemoryId::of(&metadata);
        let past_end = |file_len| MapError::PastEnd { request, file_len };
        let end = request.offset.checked_add(request.size);
        let ends_within = |len| end.is_some_and(|end| end <= len);
        if !ends_within(metadata.len()) {
            return Err(past_end(metadata.len()));
        }
        let window = match self.files.get(&id) {
            Some(mapped) => Arc::clone(&mapped.window),
            None => Arc::new(map(file, metadata.len(), request.writable)?),
        };
        // A file may have grown since.
        if !ends_within(window.region.size() as u64) {
            return Err(past_end(window.region.size() as u64));
        }
        if request.writable && window.region.prot() & PROT_WRITE == 0 {
            return Err(system(&"its file was first given for reading only"));
        }
        let mapped = self.files.entry(id).or_insert_with(|| Mapped {
            window: Arc::clone(&window),
            ranges: 0,
        });
        mapped.ranges += 1;
        Ok(Shown {
            file: id,
            window,
            offset: request.offset,
        })
    }

    pub(crate) fn remove(&mut self, iova: u64, size: u64) -> Result<(), MapError> {
        let not_mapped = MapError::NotMapped { iova, size };
        let found = self.ranges.get(&iova).filter(|range| range.size == size);
        found.ok_or(not_mapped)?;
        if let Some(range) = self.ranges.remove(&iova) {
            self.release(&range);
        }
        Ok(())
    }

    pub(crate) fn clear(&mut self) {
        for range in std::mem::take(&mut self.ranges).values() {
            self.release(range);
        }
    }

    /// A range is gone. What it showed could be written until now.
    fn release(&mut self, range: &Range) {
        let Some(Shown { file, offset, .. }) = &range.shows else {
            return;
        };
        if range.writable {
            let released = self.released.entry(*file).or_default();
            released.add(offset / PAGE_SIZE, range.size / PAGE_SIZE);
        }
        let Some(mapped) = self.files.get_mut(file) else {
            return;
        };
        mapped.ranges -= 1;
        if mapped.ranges == 0 {
            let words = mapped.window.written.take();
            self.written.entry(*file).or_default().add_words(&words);
            self.files.remove(file);
        }
    }

    /// Reports pages by the file that is mapped where they are.
    pub(crate) fn report_at(&self, first_page: u64, words: &[u64], sink: &mut dyn DirtySink) {
        for (index, word) in (0..).zip(words) {
            let Some(first) = first_page.checked_add(64 * index) else {
                return;
            };
            if *word == 0 {
                continue;
            }
            // All 64 at once, where they lie in one range.
            match (
                self.place_of(first),
                self.place_of(first.saturating_add(63)),
            ) {
                (Some((file, page)), Some((last, end))) if file == last && end == page + 63 => {
                    sink.mark_words(file, page, &[*word]);
                }
                _ => super::each(0, &[*word], |bit| {
                    let page = first.checked_add(bit);
                    if let Some((file, page)) = page.and_then(|page| self.place_of(page)) {
                        sink.mark_words(file, page, &[1]);
                    }
                }),
            }
        }
    }

    /// The file that is mapped at this page of the bus, and its page there.
    fn place_of(&self, page: u64) -> Option<(MemoryId, u64)> {
        let iova = page.checked_mul(PAGE_SIZE)?;
        let (start, range) = self.ranges.range(..=iova).next_back()?;
        let by = (iova - start < range.size).then_some(iova - start)?;
        let shown = range.shows.as_ref()?;
        Some((shown.file, (shown.offset + by) / PAGE_SIZE))
    }

    /// What was written since the last call, also in files that are no longer mapped.
    ///
    /// By exclusive reference: nobody writes meanwhile.
    pub(crate) fn take_written(&mut self) -> BTreeMap<MemoryId, PageSet> {
        let mut written = std::mem::take(&mut self.written);
        for (file, mapped) in &self.files {
            let words = mapped.window.written.take();
            written.entry(*file).or_default().add_words(&words);
        }
        written
    }

    /// What could be written and is no longer mapped.
    pub(crate) fn take_released(&mut self) -> BTreeMap<MemoryId, PageSet> {
        std::mem::take(&mut self.released)
    }

    /// What can be written now.
    pub(crate) fn writable(&self) -> BTreeMap<MemoryId, PageSet> {
        let mut pages = BTreeMap::<_, PageSet>::new();
        for range in self.ranges.values().filter(|range| range.writable) {
            if let Some(shown) = &range.shows {
                let first = shown.offset / PAGE_SIZE;
                let set = pages.entry(shown.file).or_default();
                set.add(first, range.size / PAGE_SIZE);
            }
        }
        pages
    }

    /// Pages of all files of which something is mapped.
    pub(crate) fn file_pages(&self) -> u64 {
        let pages = |mapped: &Mapped| mapped.window.region.size() as u64 / PAGE_SIZE;
        self.files.values().map(pages).sum()
    }

    pub(crate) fn files(&self) -> Vec<MemoryFile> {
        let mut files: Vec<(MemoryId, MemoryFile)> = Vec::new();
        for (iova, range) in &self.ranges {
            let Some(shown) = &range.shows else { continue };
            let part = (shown.offset, *iova, range.size);
            if let Some((_, known)) = files.iter_mut().find(|(id, _)| *id == shown.file) {
                known.add(part);
                continue;
            }
            let file = shown
                .window
                .region
                .file_offset()
                .map(|at| at.file().try_clone());
            if let Some(Ok(file)) = file {
                files.push((shown.file, MemoryFile::new(file, vec![part])));
            }
        }
        files.into_iter().map(|(_, file)| file).collect()
    }

    pub(crate) fn end(&self) -> u64 {
        let mut backed = self.ranges.iter().filter(|(_, r)| r.shows.is_some());
        let last = backed.next_back();
        last.map_or(0, |(iova, range)| iova.saturating_add(range.size))
    }

    #[inline]
    pub(crate) fn read(&self, iova: u64, buf: &mut [u8]) -> Result<(), DmaError> {
        let error = DmaError {
            iova,
            len: buf.len(),
        };
        let mut at = iova;
        let mut rest = buf;
        while !rest.is_empty() {
            let piece = self.piece(at, rest.len(), Direction::Read).ok_or(error)?;
            let (now, later) = rest.split_at_mut(piece.bytes.len());
            piece.bytes.copy_to(now);
            at = at.wrapping_add(now.len() as u64);
            rest = later;
        }
        Ok(())
    }

    #[inline]
    pub(crate) fn write(&self, iova: u64, data: &[u8]) -> Result<(), DmaError> {
        let error = DmaError {
            iova,
            len: data.len(),
        };
        let mut at = iova;
        let mut rest = data;
        while !rest.is_empty() {
            let piece = self.piece(at, rest.len(), Direction::Write).ok_or(error)?;
            let (now, later) = rest.split_at(piece.bytes.len());
            piece.marked(|bytes| bytes.copy_from(now));
            at = at.wrapping_add(now.len() as u64);
            rest = later;
        }
        Ok(())
    }

    #[inline]
    pub(crate) fn store_u64(&self, iova: u64, value: u64) -> Result<(), DmaError> {
        let word = self.word(iova, 8)?;
        word.marked(|bytes| bytes.store(value.to_le(), 0, Ordering::Release))
            .map_err(|_| DmaError { iova, len: 8 })
    }

    #[inline]
    pub(crate) fn store_u32(&self, iova: u64, value: u32) -> Result<(), DmaError> {
        let word = self.word(iova, 4)?;
        word.marked(|bytes| bytes.store(value.to_le(), 0, Ordering::Release))
            .map_err(|_| DmaError { iova, len: 4 })
    }

    #[inline]
    fn word(&self, iova: u64, len: usize) -> Result<Piece<'_>, DmaError> {
        let piece = self
            .piece(iova, len, Direction::Write)
            .filter(|piece| piece.bytes.len() == len && iova.is_multiple_of(len as u64));
        piece.ok_or(DmaError { iova, len })
    }

    /// The part of `iova..iova + len` that lies in the range of `iova`.
    #[inline]
    fn piece(&self, iova: u64, len: usize, direction: Direction) -> Option<Piece<'_>> {
        let (start, range) = self.ranges.range(..=iova).next_back()?;
        let into = Some(iova - start).filter(|into| *into < range.size)?;
        if direction == Direction::Write && !range.writable {
            return None;
        }
        let Shown { window, offset, .. } = range.shows.as_ref()?;
        let room = usize::try_from(range.size - into).unwrap_or(usize::MAX);
        let at = usize::try_from(offset + into).ok()?;
        let bytes = window.region.get_slice(at, len.min(room)).ok()?;
        Some(Piece { bytes, window, at })
    }

    fn overlaps(&self, start: u64, end: u64) -> bool {
        let before = self.ranges.range(..end).next_back();
        before.is_some_and(|(s, range)| start < s.saturating_add(range.size))
    }
}

/// Bytes of a file that lie in one range.
#[derive(Debug)]
struct Piece<'a> {
    bytes: VolatileSlice<'a>,
    window: &'a Window,
    /// Where they are in the file.
    at: usize,
}

impl Piece<'_> {
    /// Has them written, and their pages marked: data first, then the bits.
    #[inline]
    fn marked<T>(&self, write: impl FnOnce(&VolatileSlice<'_>) -> T) -> T {
        let Self { bytes, window, at } = self;
        let known = window.written.are_marked(*at, bytes.len());
        let done = write(bytes);
        if !known {
            window.written.mark(*at, bytes.len());
        }
        done
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Read,
    Write,
}

/// All of `file`, for writing too if it can be, or must.
fn map(file: File, len: u64, writable: bool) -> Result<Window, MapError> {
    let system = |why: &dyn std::fmt::Display| MapError::System(why.to_string());
    let len = Some(len).filter(|len| *len <= MAX_SIZE);
    let len = len.and_then(|len| usize::try_from(len).ok());
    let len = len.ok_or_else(|| system(&"a file of more than 16 TiB"))?;
    let file = FileOffset::new(file, 0);
    let with = |prot| {
        MmapRegionBuilder::new(len)
            .with_mmap_prot(prot)
            .with_mmap_flags(SHARED)
            .with_file_offset(file.clone())
            .build()
    };
    let region = with(PROT_READ | PROT_WRITE);
    let region = region.or_else(|e| if writable { Err(e) } else { with(PROT_READ) });
    Ok(Window {
        region: region.map_err(|e| system(&e))?,
        written: Written::new(len),
    })
}
