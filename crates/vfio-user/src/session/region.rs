//! `VFIO_USER_REGION_READ`, `_WRITE` and `_WRITE_MULTI`: every access of a guest to a register.

use rustix::io::Errno;

use super::Session;
use crate::backend::Backend;
use crate::version::Negotiated;
use crate::wire::{self, region};

/// What the backend has said of its regions, asked for once.
#[derive(Debug, Default)]
pub(super) struct Regions(Vec<Option<Bounds>>);

#[derive(Debug, Clone, Copy)]
struct Bounds {
    size: u64,
    readable: bool,
    writable: bool,
}

impl Regions {
    fn bounds(&mut self, index: u32, backend: &dyn Backend) -> Result<Bounds, Errno> {
        let at = index as usize;
        if let Some(Some(bounds)) = self.0.get(at) {
            return Ok(*bounds);
        }
        if index >= backend.device_info().regions {
            return Err(Errno::INVAL);
        }
        let region = backend.region_info(index).unwrap_or_default();
        let bounds = Bounds {
            size: region.size,
            readable: region.readable,
            writable: region.writable,
        };
        self.0.resize(self.0.len().max(at + 1), None);
        self.0[at] = Some(bounds);
        Ok(bounds)
    }

    /// Whether `access` is within its region, and within what one message may carry.
    fn check(
        &mut self,
        access: &region::Access,
        max_count: u32,
        backend: &dyn Backend,
    ) -> Result<Bounds, Errno> {
        let bounds = self.bounds(access.region, backend)?;
        let end = access.offset.checked_add(u64::from(access.count));
        if access.count > max_count || end.is_none_or(|end| end > bounds.size) {
            return Err(Errno::INVAL);
        }
        Ok(bounds)
    }

    fn check_write(
        &mut self,
        access: &region::Access,
        max_count: u32,
        backend: &dyn Backend,
    ) -> Result<(), Errno> {
        if !self.check(access, max_count, backend)?.writable {
            return Err(Errno::INVAL);
        }
        Ok(())
    }
}

impl Session {
    pub(super) fn region_read(
        &mut self,
        body: &[u8],
        negotiated: &Negotiated,
        backend: &mut dyn Backend,
    ) -> Result<(), Errno> {
        let (access, _) = wire::take::<region::Access>(body)?;
        let max_count = negotiated.max_data_xfer_size;
        if !self.regions.check(&access, max_count, backend)?.readable {
            return Err(Errno::INVAL);
        }
        self.append(&access);
        let data = self.reply.len();
        self.reply.resize(data + access.count as usize, 0);
        match &mut self.reply[data..] {
            [] => Ok(()),
            data => backend.region_read(access.region, access.offset, data),
        }
    }

    pub(super) fn region_write(
        &mut self,
        body: &[u8],
        negotiated: &Negotiated,
        backend: &mut dyn Backend,
    ) -> Result<(), Errno> {
        let (access, data) = wire::take::<region::Access>(body)?;
        let max_count = negotiated.max_data_xfer_size;
        self.regions.check_write(&access, max_count, backend)?;
        if data.len() != access.count as usize {
            return Err(Errno::INVAL);
        }
        if !data.is_empty() {
            backend.region_write(access.region, access.offset, data)?;
        }
        self.append(&access);
        Ok(())
    }

    /// Several writes, as if each had come by itself: one that fails does not keep the others from
    /// being done. A message that makes no sense does nothing at all.
    pub(super) fn region_write_multi(
        &mut self,
        body: &[u8],
        negotiated: &Negotiated,
        backend: &mut dyn Backend,
    ) -> Result<(), Errno> {
        if !negotiated.write_multiple {
            return Err(Errno::NOTSUP);
        }
        let (multi, writes) = wire::take::<region::Multi>(body)?;
        let len = usize::try_from(multi.count).ok();
        let len = len.and_then(|n| n.checked_mul(size_of::<region::MultiWrite>()));
        let writes = len.and_then(|len| writes.get(..len)).ok_or(Errno::INVAL)?;
        for write in multi_writes(writes) {
            let max_count = 8.min(negotiated.max_data_xfer_size);
            self.regions
                .check_write(&write.access, max_count, backend)?;
        }
        let mut failed = None;
        for write in multi_writes(writes) {
            let region::Access { region, offset, .. } = write.access;
            let data = &write.data[..write.access.count as usize];
            if !data.is_empty()
                && let Err(errno) = backend.region_write(region, offset, data)
            {
                failed.get_or_insert(errno);
            }
        }
        if let Some(errno) = failed {
            return Err(errno);
        }
        self.append(&multi);
        Ok(())
    }
}

fn multi_writes(bytes: &[u8]) -> impl Iterator<Item = region::MultiWrite> {
    let whole = bytes.chunks_exact(size_of::<region::MultiWrite>());
    whole.filter_map(|bytes| wire::take(bytes).ok().map(|(write, _)| write))
}
