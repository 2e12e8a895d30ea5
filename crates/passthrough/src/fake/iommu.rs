//! `/dev/iommu`, behind `drivers/iommu/iommufd`.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use rustix::io::Errno;

use super::{Argument, Has, set_bits, user_words};
use crate::iommufd::{
    GET_DIRTY_BITMAP, HWPT_ALLOC, IOAS_ALLOC, IOAS_MAP, IOAS_UNMAP, SET_DIRTY_TRACKING,
};
use crate::kernel::Call;

const PAGE: u64 = 4096;

#[derive(Default)]
pub(super) struct Iommu {
    last_id: u32,
    functions: BTreeSet<u32>,
    spaces: BTreeSet<u32>,
    /// Tables with dirty bits.
    tables: BTreeSet<u32>,
    attached: Option<u32>,
    tracking: bool,
    /// Addresses and lengths.
    mapped: BTreeMap<u64, u64>,
    /// Addresses of those that may be read only.
    read_only: BTreeSet<u64>,
    /// Addresses of pages.
    dirty: BTreeSet<u64>,
}

impl Iommu {
    pub(super) fn add_function(&mut self) -> u32 {
        let id = self.id();
        self.functions.insert(id);
        id
    }

    /// `iommufd_device_attach`
    pub(super) fn attach(&mut self, to: u32) -> Result<(), Errno> {
        if !self.spaces.contains(&to) && !self.tables.contains(&to) {
            return Err(Errno::NOENT);
        }
        self.attached = Some(to);
        Ok(())
    }

    pub(super) fn is_tracking(&self) -> bool {
        self.tracking
    }

    pub(super) fn mapped(&self) -> Vec<Range<u64>> {
        let mapped = self.mapped.iter();
        mapped.map(|(iova, len)| *iova..iova + len).collect()
    }

    /// Whether a write to the page gets through.
    pub(super) fn write(&mut self, page: u64) -> bool {
        let at = page * PAGE;
        let mapping = self.mapped.range(..=at).next_back();
        let read_only = mapping.is_some_and(|(iova, _)| self.read_only.contains(iova));
        let reaches = self.attached.is_some() && self.is_mapped(&(at..at + PAGE)) && !read_only;
        // The walker sets its bits only where it was told to.
        let tracks = self.tracking && self.attached.is_some_and(|id| self.tables.contains(&id));
        if reaches && tracks {
            self.dirty.insert(at);
        }
        reaches
    }

    /// `iommufd_fops_ioctl`
    pub(super) fn ioctl(
        &mut self,
        call: Call,
        argument: &mut [u8],
        has: &Has,
    ) -> Result<(), Errno> {
        let mut argument = Argument(argument);
        assert_eq!(argument.u32(0) as usize, argument.0.len(), "size");
        let least = match call {
            IOAS_ALLOC => 12,
            IOAS_MAP | HWPT_ALLOC => 40,
            IOAS_UNMAP => 24,
            SET_DIRTY_TRACKING => 16,
            GET_DIRTY_BITMAP => 48,
            _ => return Err(Errno::NOTTY),
        };
        if argument.0.len() < least {
            return Err(Errno::INVAL);
        }
        // `copy_struct_from_user`, of a kernel that knows no more.
        if argument.0[least..].iter().any(|&byte| byte != 0) {
            return Err(Errno::TOOBIG);
        }
        match call {
            IOAS_ALLOC => {
                unsupported(argument.u32(4) != 0)?;
                let id = self.id();
                self.spaces.insert(id);
                argument.put_u32(8, id);
            }
            HWPT_ALLOC => self.allocate_tables(&mut argument, has)?,
            IOAS_MAP => self.map(&argument)?,
            IOAS_UNMAP => self.unmap(&mut argument)?,
            SET_DIRTY_TRACKING => {
                // `iommufd_hwpt_set_dirty_tracking`
                unsupported(argument.u32(4) & !1 != 0)?;
                self.tables(argument.u32(8))?;
                self.tracking = argument.u32(4) & 1 != 0;
                if self.tracking {
                    self.dirty.clear();
                }
            }
            _ => self.get_dirty_bitmap(&argument)?,
        }
        Ok(())
    }

    /// `iommufd_hwpt_alloc`, `iommufd_hwpt_paging_alloc`
    fn allocate_tables(&mut self, argument: &mut Argument<'_>, has: &Has) -> Result<(), Errno> {
        let flags = argument.u32(4);
        unsupported(flags & !2 != 0 || argument.u32(20) != 0)?;
        let known = self.functions.contains(&argument.u32(8));
        if !known || !self.spaces.contains(&argument.u32(12)) {
            return Err(Errno::NOENT);
        }
        if argument.u32(24) != 0 || argument.u32(28) != 0 {
            return Err(Errno::INVAL);
        }
        unsupported(flags & 2 != 0 && !has.dirty_bits)?;
        let id = self.id();
        self.tables.insert(id);
        argument.put_u32(16, id);
        Ok(())
    }

    /// `iommufd_ioas_map`
    fn map(&mut self, argument: &Argument<'_>) -> Result<(), Errno> {
        unsupported(argument.u32(4) & !7 != 0 || argument.u32(12) != 0)?;
        let [address, length, iova] = [16, 24, 32].map(|at| argument.u64(at));
        if !self.spaces.contains(&argument.u32(8)) {
            return Err(Errno::NOENT);
        }
        let end = iova.checked_add(length).ok_or(Errno::OVERFLOW)?;
        let aligned = [address, length, iova].iter().all(|v| v % PAGE == 0);
        if length == 0 || address == 0 || !aligned {
            return Err(Errno::INVAL);
        }
        let overlaps = |(other, len): (&u64, &u64)| *other < end && iova < other + len;
        if self.mapped.iter().any(overlaps) {
            return Err(Errno::EXIST);
        }
        // Where it is placed is for the kernel to say without this.
        assert_eq!(argument.u32(4) & 5, 5, "fixed, and readable");
        self.mapped.insert(iova, length);
        if argument.u32(4) & 2 == 0 {
            self.read_only.insert(iova);
        }
        Ok(())
    }

    /// `iommufd_ioas_unmap`: whole mappings only.
    fn unmap(&mut self, argument: &mut Argument<'_>) -> Result<(), Errno> {
        let [iova, length] = [8, 16].map(|at| argument.u64(at));
        if self.mapped.get(&iova) != Some(&length) {
            return Err(Errno::NOENT);
        }
        self.mapped.remove(&iova);
        self.read_only.remove(&iova);
        // With the mapping goes what it said.
        self.dirty.retain(|at| !(iova..iova + length).contains(at));
        argument.put_u64(16, length);
        Ok(())
    }

    /// `iommufd_hwpt_get_dirty_bitmap`, `iommufd_check_iova_range`
    fn get_dirty_bitmap(&mut self, argument: &Argument<'_>) -> Result<(), Errno> {
        unsupported(argument.u32(8) & !1 != 0 || argument.u32(12) != 0)?;
        self.tables(argument.u32(4))?;
        let [iova, length, page_size, data] = [16, 24, 32, 40].map(|at| argument.u64(at));
        let end = iova.checked_add(length).ok_or(Errno::OVERFLOW)?;
        if page_size == 0 || iova % page_size != 0 || end % page_size != 0 || length == 0 {
            return Err(Errno::INVAL);
        }
        // `__iommu_read_and_clear_dirty`
        if !self.tracking || !self.is_mapped(&(iova..end)) {
            return Err(Errno::INVAL);
        }
        let bitmap = user_words(data, (length / page_size).div_ceil(64));
        let clears = argument.u32(8) & 1 == 0;
        self.dirty.retain(|&at| {
            let is_asked_for = (iova..end).contains(&at);
            if is_asked_for {
                set_bits(bitmap, iova, page_size, at, PAGE);
            }
            !is_asked_for || !clears
        });
        Ok(())
    }

    fn tables(&self, id: u32) -> Result<(), Errno> {
        self.tables.get(&id).map(|_| ()).ok_or(Errno::NOENT)
    }

    fn is_mapped(&self, range: &Range<u64>) -> bool {
        // One after the other, without a hole.
        let mut at = range.start;
        for (iova, len) in &self.mapped {
            if (*iova..iova + len).contains(&at) {
                at = iova + len;
            }
        }
        at >= range.end
    }

    fn id(&mut self) -> u32 {
        self.last_id += 1;
        self.last_id
    }
}

fn unsupported(is: bool) -> Result<(), Errno> {
    if is { Err(Errno::OPNOTSUPP) } else { Ok(()) }
}
