//! Guest memory as QEMU's memory table describes it.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use crate::layout::{FileId, Layout, Part};

/// What `mmap` wants of an offset, and pages are marked by.
const PAGE: u64 = 4096;
/// Memory regions that QEMU may add, boot memory and hot-plugged together.
pub(crate) const MAX_REGIONS: usize = 256;

/// One region of the memory table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RegionInfo {
    pub(crate) gpa: u64,
    pub(crate) len: u64,
    /// Where the region lies in QEMU's own address space: ring addresses come in these terms.
    pub(crate) user_addr: u64,
    /// Where the region starts in its file.
    pub(crate) offset: u64,
}

/// The memory table. It is mapped when a request has to be answered, and not before: seldom, and a process that
/// cannot map it (any more) still marks what devices write.
#[derive(Debug, Default)]
pub(crate) struct MemoryMap {
    // Sorted by guest physical address.
    regions: Vec<(RegionInfo, Arc<File>)>,
    mapped: Option<GuestMemoryMmap<()>>,
}

impl MemoryMap {
    /// Replaces the whole table.
    pub(crate) fn set(
        &mut self,
        regions: impl IntoIterator<Item = (RegionInfo, File)>,
    ) -> Result<(), MemoryError> {
        let mut new = Self::default();
        for (info, file) in regions {
            new.add(info, file)?;
        }
        *self = new;
        Ok(())
    }

    /// Adds one region.
    pub(crate) fn add(&mut self, info: RegionInfo, file: File) -> Result<(), MemoryError> {
        if self.regions.len() >= MAX_REGIONS {
            return Err(MemoryError::TooMany);
        }
        let at = self.regions.partition_point(|(r, _)| r.gpa < info.gpa);
        let mut regions = self.regions.clone();
        regions.insert(at, (info, Arc::new(file)));
        fits(info, &regions[at].1)?;
        let (before, from) = regions.split_at(at);
        let ends = |(r, _): &(RegionInfo, _)| r.gpa.saturating_add(r.len);
        let after = from.get(1).map_or(u64::MAX, |(r, _)| r.gpa);
        if before.last().map_or(0, ends) > info.gpa || ends(&from[0]) > after {
            return Err(MemoryError::Overlap(info.gpa));
        }
        self.replace(regions);
        Ok(())
    }

    /// Removes one region.
    pub(crate) fn remove(&mut self, info: RegionInfo) -> Result<(), MemoryError> {
        let mut regions = self.regions.clone();
        // The offset is not part of a region's identity (specification, VHOST_USER_REM_MEM_REG).
        regions
            .retain(|(r, _)| (r.gpa, r.len, r.user_addr) != (info.gpa, info.len, info.user_addr));
        if regions.len() == self.regions.len() {
            return Err(MemoryError::Unknown(info.gpa));
        }
        self.replace(regions);
        Ok(())
    }

    /// The guest physical address of `user_addr`, an address of QEMU's.
    pub(crate) fn gpa_of(&self, user_addr: u64) -> Option<GuestAddress> {
        self.regions.iter().find_map(|(r, _)| {
            let into = user_addr.checked_sub(r.user_addr)?;
            (into < r.len).then(|| GuestAddress(r.gpa.saturating_add(into)))
        })
    }

    /// Which part of which file is where.
    pub(crate) fn layout(&self) -> Layout {
        let part = |(info, file): &(RegionInfo, Arc<File>)| {
            Some(Part {
                id: FileId::of(&file.metadata().ok()?),
                file: Arc::clone(file),
                offset: info.offset,
                gpa: info.gpa,
                len: info.len,
            })
        };
        Layout(self.regions.iter().filter_map(part).collect())
    }

    /// All of it, mapped.
    pub(crate) fn mapped(&mut self) -> Result<&GuestMemoryMmap<()>, MemoryError> {
        let mapped = match self.mapped.take() {
            Some(mapped) => mapped,
            None if self.regions.is_empty() => GuestMemoryMmap::default(),
            None => {
                let regions = self.regions.iter().map(|(info, file)| map(*info, file));
                let regions = regions.collect::<Result<Vec<_>, _>>()?;
                GuestMemoryMmap::from_regions(regions)
                    .map_err(|e| MemoryError::Layout(e.to_string()))?
            }
        };
        Ok(self.mapped.insert(mapped))
    }

    fn replace(&mut self, regions: Vec<(RegionInfo, Arc<File>)>) {
        self.regions = regions;
        self.mapped = None;
    }
}

/// Whether the file has all of the region, and the guest has addresses for it.
fn fits(info: RegionInfo, file: &File) -> Result<(), MemoryError> {
    let failed = |why: String| MemoryError::Map { gpa: info.gpa, why };
    let end = info.offset.checked_add(info.len);
    let stat = rustix::fs::fstat(file.as_fd()).map_err(|e| failed(e.to_string()))?;
    // A character device (device DAX) has no size to compare with.
    if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() {
        let held = u64::try_from(stat.st_size).unwrap_or(0);
        if end.is_none_or(|end| end > held) {
            return Err(failed(format!("its file ends at {held:#x}")));
        }
    }
    match (info.len, info.gpa.checked_add(info.len)) {
        (0, _) => Err(failed("it is empty".into())),
        _ if !info.offset.is_multiple_of(PAGE) => Err(failed("its offset is within a page".into())),
        (_, None) => Err(failed("it ends past the address space".into())),
        _ => Ok(()),
    }
}

fn map(info: RegionInfo, file: &Arc<File>) -> Result<GuestRegionMmap<()>, MemoryError> {
    let failed = |why: String| MemoryError::Map { gpa: info.gpa, why };
    let len = usize::try_from(info.len).map_err(|e| failed(e.to_string()))?;
    let of = FileOffset::from_arc(Arc::clone(file), info.offset);
    let region = MmapRegion::from_file(of, len).map_err(|e| failed(e.to_string()))?;
    GuestRegionMmap::new(region, GuestAddress(info.gpa))
        .ok_or_else(|| failed("it ends past the address space".into()))
}

/// Why a change of the memory table is refused, or the table not mapped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryError {
    #[error("QEMU sent more than {MAX_REGIONS} memory regions")]
    TooMany,
    #[error("QEMU removed the memory region at {0:#x}, which it never added")]
    Unknown(u64),
    #[error("the memory region at {gpa:#x} cannot be mapped: {why}")]
    Map { gpa: u64, why: String },
    #[error("the memory region at {0:#x} overlaps another")]
    Overlap(u64),
    #[error("the memory regions do not go together: {0}")]
    Layout(String),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::memfd;

    fn info(gpa: u64, user_addr: u64) -> RegionInfo {
        RegionInfo {
            gpa,
            len: 2 * PAGE,
            user_addr,
            offset: PAGE,
        }
    }

    #[test]
    fn addresses_of_qemu_translate_region_by_region() {
        let mut map = MemoryMap::default();
        map.add(info(0x10_0000, 0x7000_0000), memfd(3 * PAGE))
            .expect("a good region");
        map.add(info(0, 0x9000_0000), memfd(3 * PAGE))
            .expect("below the first");
        assert_eq!(map.gpa_of(0x7000_0010), Some(GuestAddress(0x10_0010)));
        assert_eq!(map.gpa_of(0x9000_1fff), Some(GuestAddress(0x1fff)));
        assert_eq!(map.gpa_of(0x9000_2000), None);
        map.remove(info(0, 0x9000_0000)).expect("it is there");
        assert_eq!(map.gpa_of(0x9000_0000), None);
        assert!(matches!(
            map.remove(info(0, 0x9000_0000)),
            Err(MemoryError::Unknown(0))
        ));
        map.remove(info(0x10_0000, 0x7000_0000))
            .expect("the last one goes too");
    }

    #[test]
    fn a_bad_region_leaves_the_table_as_it_was() {
        let mut map = MemoryMap::default();
        map.add(info(0, 0x7000_0000), memfd(3 * PAGE))
            .expect("a good region");
        let short = map.add(info(0x10_0000, 0x8000_0000), memfd(2 * PAGE));
        assert!(matches!(short, Err(MemoryError::Map { .. })));
        let overlap = map.add(info(PAGE, 0x8000_0000), memfd(3 * PAGE));
        assert!(matches!(overlap, Err(MemoryError::Overlap(PAGE))));
        let from_below = map.add(info(0, 0x8000_0000), memfd(3 * PAGE));
        assert!(matches!(from_below, Err(MemoryError::Overlap(0))));
        let within = RegionInfo {
            offset: 1,
            ..info(0x10_0000, 0x8000_0000)
        };
        let within = map.add(within, memfd(3 * PAGE));
        assert!(matches!(within, Err(MemoryError::Map { .. })));
        let beyond = map.add(info(u64::MAX - PAGE, 0x8000_0000), memfd(3 * PAGE));
        assert!(matches!(beyond, Err(MemoryError::Map { .. })));
        let whole = map.set([(info(0x10_0000, 0x8000_0000), memfd(PAGE))]);
        assert!(whole.is_err());
        assert_eq!(map.gpa_of(0x7000_0000), Some(GuestAddress(0)));
        assert_eq!(map.gpa_of(0x8000_0000), None);
    }
}
