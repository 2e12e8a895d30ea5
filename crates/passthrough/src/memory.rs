//! Guest memory, as the IOMMU has it.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use ::device::{MapError, MapRequest};
use vfio_ioctls::VfioContainer;
use vm_memory::{FileOffset, MmapRegion};

use crate::iommufd::Ioas;

/// What is mapped, by first address. The device reaches these and nothing else.
pub(crate) struct Memory {
    iommu: Iommu,
    ranges: BTreeMap<u64, Range>,
}

/// How the IOMMU is reached.
pub(crate) enum Iommu {
    /// By the device's group.
    Container(Arc<VfioContainer>),
    /// By `/dev/iommu`.
    Ioas(Ioas),
}

struct Range {
    size: u64,
    /// `None` where the device reaches nothing: what has no file (other devices' BARs), and what it
    /// may not write, which the container would let it.
    mapping: Option<MmapRegion>,
}

impl Memory {
    pub(crate) fn new(iommu: Iommu) -> Self {
        let ranges = BTreeMap::new();
        Self { iommu, ranges }
    }

    /// The addresses that the device reaches, each range as it was mapped.
    pub(crate) fn reached(&self) -> impl Iterator<Item = std::ops::Range<u64>> + '_ {
        let reached = self.ranges.iter();
        let reached = reached.filter(|(_, range)| range.mapping.is_some());
        reached.map(|(&iova, range)| iova..iova.saturating_add(range.size))
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
        let MapRequest {
            iova,
            size,
            offset,
            writable,
        } = request;
        if self.overlaps(iova, size) {
            return Err(MapError::Overlap(request));
        }
        let mapping = match file {
            Some(file) if writable => Some(self.pin(iova, size, offset, file)?),
            _ => None,
        };
        self.ranges.insert(iova, Range { size, mapping });
        Ok(())
    }

    fn pin(
        &self,
        iova: u64,
        size: u64,
        offset: u64,
        file: OwnedFd,
    ) -> Result<MmapRegion, MapError> {
        let system = |error: &dyn std::fmt::Display| MapError::System(error.to_string());
        let len = usize::try_from(size).map_err(|error| system(&error))?;
        let file = FileOffset::new(File::from(file), offset);
        let mapping = MmapRegion::from_file(file, len).map_err(|error| system(&error))?;
        #[expect(unsafe_code, reason = "the IOMMU is given memory by its address")]
        // SAFETY: `Range` keeps the mapping until the IOMMU has let go of it, and of its bytes no
        // reference is ever made: nobody but the guest and its devices touches them.
        let mapped = unsafe { self.iommu.map(iova, len, mapping.as_ptr()) };
        mapped.map_err(|error| {
            let of = size >> 10;
            MapError::System(format!(
                "the IOMMU does not take {of} KiB at {iova:#x}: {error}. If it is memory that \
                 cannot be locked, the limit is too small: see `ulimit -l`, or LimitMEMLOCK of a unit"
            ))
        })?;
        Ok(mapping)
    }

    pub(crate) fn unmap(&mut self, iova: u64, size: u64) -> Result<(), MapError> {
        let range = self.ranges.get(&iova);
        let range = range.filter(|range| range.size == size);
        let range = range.ok_or(MapError::NotMapped { iova, size })?;
        if let Some(mapping) = &range.mapping {
            let unmapped = self.iommu.unmap(iova, mapping.size());
            unmapped.map_err(MapError::System)?;
        }
        self.ranges.remove(&iova);
        Ok(())
    }

    pub(crate) fn unmap_all(&mut self) {
        for (iova, range) in std::mem::take(&mut self.ranges) {
            let Some(mapping) = range.mapping else {
                continue;
            };
            if let Err(error) = self.iommu.unmap(iova, mapping.size()) {
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

impl Iommu {
    /// # Safety
    /// The memory stays until it is unmapped, and nobody has a reference to it.
    #[expect(unsafe_code, reason = "the IOMMU is given memory by its address")]
    unsafe fn map(&self, iova: u64, len: usize, address: *mut u8) -> Result<(), String> {
        match self {
            Self::Container(container) => {
                // SAFETY: the caller's promise.
                let mapped = unsafe { container.vfio_dma_map(iova, len, address) };
                mapped.map_err(|error| error.to_string())
            }
            Self::Ioas(ioas) => {
                // SAFETY: the caller's promise.
                let mapped = unsafe { ioas.map(iova, len, address) };
                mapped.map_err(|errno| errno.to_string())
            }
        }
    }

    fn unmap(&self, iova: u64, len: usize) -> Result<(), String> {
        match self {
            Self::Container(container) => {
                let unmapped = container.vfio_dma_unmap(iova, len);
                unmapped.map_err(|error| error.to_string())
            }
            Self::Ioas(ioas) => ioas.unmap(iova, len).map_err(|errno| errno.to_string()),
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.unmap_all();
    }
}
