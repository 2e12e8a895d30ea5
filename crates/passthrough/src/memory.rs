//! Guest memory, as the IOMMU has it.
//!
//! Each file is mapped once and whole, however many ranges show parts of it: a guest with a virtual IOMMU
//! maps thousands of single pages, more than a process may have files.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

use ::device::{MapError, MapRequest, MemoryId};
use libc::{MAP_SHARED, PROT_READ, PROT_WRITE};
use vm_memory::{FileOffset, MmapRegion};

use crate::container::Container;
use crate::iommufd::Ioas;
use crate::kernel::Right;

/// What is mapped, by first address. The device reaches these and nothing else.
pub(crate) struct Memory {
    iommu: Iommu,
    ranges: BTreeMap<u64, Range>,
    /// Of which something is mapped.
    files: BTreeMap<MemoryId, Weak<MmapRegion>>,
    /// How many bytes the files may have together: each may be pinned whole, and is the host's then.
    most: u64,
}

/// How the IOMMU is reached.
pub(crate) enum Iommu {
    /// By the device's group.
    Container(Container),
    /// By `/dev/iommu`.
    Ioas(Ioas),
}

struct Range {
    size: u64,
    right: Right,
    /// The file, all of it. `None` where the device reaches nothing: what has no file (other devices'
    /// BARs).
    mapping: Option<Arc<MmapRegion>>,
}

impl Range {
    fn is_written(&self) -> bool {
        self.right == Right::Write && self.mapping.is_some()
    }
}

impl Memory {
    pub(crate) fn new(iommu: Iommu) -> Self {
        Self {
            iommu,
            ranges: BTreeMap::new(),
            files: BTreeMap::new(),
            most: u64::MAX,
        }
    }

    pub(crate) fn limit(&mut self, most: u64) {
        self.most = most;
    }

    /// The addresses that the device may write, each range as it was mapped.
    pub(crate) fn written(&self) -> impl Iterator<Item = std::ops::Range<u64>> + '_ {
        let written = self.ranges.iter().filter(|(_, range)| range.is_written());
        written.map(|(&iova, range)| iova..iova.saturating_add(range.size))
    }

    /// Whether a range begins at `iova` that the device may write.
    pub(crate) fn is_written(&self, iova: u64) -> bool {
        self.ranges.get(&iova).is_some_and(Range::is_written)
    }

    /// The device's addresses, if the IOMMU can tell which of them it has written.
    pub(crate) fn tracked(&self) -> Option<&Ioas> {
        match &self.iommu {
            Iommu::Ioas(ioas) => Some(ioas).filter(|ioas| ioas.can_track()),
            Iommu::Container(_) => None,
        }
    }

    pub(crate) fn map(
        &mut self,
        request: MapRequest,
        file: Option<OwnedFd>,
    ) -> Result<(), MapError> {
        let MapRequest { iova, size, .. } = request;
        if self.overlaps(iova, size) {
            return Err(MapError::Overlap(request));
        }
        // What a guest behind a virtual IOMMU sends is mapped for reading alone.
        let right = if request.writable {
            Right::Write
        } else {
            Right::Read
        };
        let mapping = file.map(|file| self.pin(request, right, file));
        let mapping = mapping.transpose()?;
        let range = Range {
            size,
            right,
            mapping,
        };
        self.ranges.insert(iova, range);
        Ok(())
    }

    fn pin(
        &mut self,
        request: MapRequest,
        right: Right,
        file: OwnedFd,
    ) -> Result<Arc<MmapRegion>, MapError> {
        let MapRequest { iova, size, .. } = request;
        let window = self.window(request, right, File::from(file))?;
        let place = |bytes: u64| usize::try_from(bytes).map_err(|error| system(&error));
        let (offset, len) = (place(request.offset)?, place(size)?);
        // `window` has looked that both are in it.
        let address = window.as_ptr().wrapping_add(offset);
        #[expect(unsafe_code, reason = "the IOMMU is given memory by its address")]
        // SAFETY: `Range` keeps the mapping until the IOMMU has let go of it, and of its bytes no
        // reference is ever made: nobody but the guest and its devices touches them.
        let mapped = unsafe { self.iommu.map(iova, len, address, right) };
        mapped.map_err(|error| {
            let of = size >> 10;
            MapError::System(format!(
                "the IOMMU does not take {of} KiB at {iova:#x}: {error}. If it is memory that \
                 cannot be locked, the limit is too small: see `ulimit -l`, or LimitMEMLOCK of a unit"
            ))
        })?;
        Ok(window)
    }

    /// All of `file`, which has what is asked for.
    fn window(
        &mut self,
        request: MapRequest,
        right: Right,
        file: File,
    ) -> Result<Arc<MmapRegion>, MapError> {
        let metadata = file.metadata().map_err(|error| system(&error))?;
        let file_len = metadata.len();
        let end = request.offset.checked_add(request.size);
        let end = end.filter(|end| *end <= file_len);
        let end = end.ok_or(MapError::PastEnd { request, file_len })?;
        let id = MemoryId::of(&metadata);
        let known = self.files.get(&id).and_then(Weak::upgrade);
        // One that was shorter when it was mapped, or could only be read, is mapped again.
        let will_do = |known: &Arc<MmapRegion>| {
            known.size() as u64 >= end && (right == Right::Read || known.prot() & PROT_WRITE != 0)
        };
        if let Some(known) = known.filter(will_do) {
            return Ok(known);
        }
        self.files.retain(|_, window| window.strong_count() > 0);
        let others = self.files.iter().filter(|(other, _)| **other != id);
        let others = others.filter_map(|(_, window)| Some(window.upgrade()?.size() as u64));
        let all = others.fold(file_len, u64::saturating_add);
        if all > self.most {
            return Err(MapError::System(format!(
                "{} MiB of memory in files are more than the {} MiB that a VM of this size may have pinned",
                all >> 20,
                self.most >> 20
            )));
        }
        let len = usize::try_from(file_len).map_err(|error| system(&error))?;
        let file = FileOffset::new(file, 0);
        let map = |prot| MmapRegion::build(Some(file.clone()), len, prot, MAP_SHARED);
        let window = match (map(PROT_READ | PROT_WRITE), right) {
            // Firmware, or a disk image that a VM has as memory.
            (Err(_), Right::Read) => map(PROT_READ),
            (window, _) => window,
        };
        let window = Arc::new(window.map_err(|error| system(&error))?);
        self.files.insert(id, Arc::downgrade(&window));
        Ok(window)
    }

    pub(crate) fn unmap(&mut self, iova: u64, size: u64) -> Result<(), MapError> {
        let range = self.ranges.get(&iova);
        let range = range.filter(|range| range.size == size);
        let range = range.ok_or(MapError::NotMapped { iova, size })?;
        if range.mapping.is_some() {
            let len = usize::try_from(size).map_err(|error| system(&error))?;
            self.iommu.unmap(iova, len).map_err(MapError::System)?;
        }
        self.ranges.remove(&iova);
        Ok(())
    }

    pub(crate) fn unmap_all(&mut self) {
        for (iova, range) in std::mem::take(&mut self.ranges) {
            let Some(mapping) = range.mapping else {
                continue;
            };
            let len = usize::try_from(range.size).unwrap_or(usize::MAX);
            if let Err(error) = self.iommu.unmap(iova, len) {
                tracing::error!(%error, iova, "the IOMMU keeps guest memory");
                // The device may write there: nobody else shall have that place.
                std::mem::forget(mapping);
            }
        }
    }

    fn overlaps(&self, iova: u64, size: u64) -> bool {
        let before = self.ranges.range(..iova).next_back();
        let ends = |(start, range): (&u64, &Range)| start.saturating_add(range.size);
        before.map(ends).is_some_and(|end| end > iova)
            || self
                .ranges
                .range(iova..iova.saturating_add(size))
                .next()
                .is_some()
    }
}

fn system(error: &dyn std::fmt::Display) -> MapError {
    MapError::System(error.to_string())
}

impl Iommu {
    /// # Safety
    /// The memory stays until it is unmapped, and nobody has a reference to it.
    #[expect(unsafe_code, reason = "the IOMMU is given memory by its address")]
    unsafe fn map(
        &self,
        iova: u64,
        len: usize,
        address: *mut u8,
        right: Right,
    ) -> Result<(), String> {
        let mapped = match self {
            // SAFETY: the caller's promise.
            Self::Container(container) => unsafe { container.map(iova, len, address, right) },
            // SAFETY: the caller's promise.
            Self::Ioas(ioas) => unsafe { ioas.map(iova, len, address, right) },
        };
        mapped.map_err(|errno| errno.to_string())
    }

    fn unmap(&self, iova: u64, len: usize) -> Result<(), String> {
        match self {
            Self::Container(container) => container.unmap(iova, len),
            Self::Ioas(ioas) => ioas.unmap(iova, len).map_err(|errno| errno.to_string()),
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.unmap_all();
    }
}
