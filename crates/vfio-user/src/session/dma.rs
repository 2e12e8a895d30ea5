//! `VFIO_USER_DMA_MAP` and `_UNMAP`.

use rustix::io::Errno;

use super::{Session, all_fds, room};
use crate::MAX_DMA_MAPS;
use crate::backend::{Backend, DmaMap, DmaUnmap};
use crate::frame::Frame;
use crate::wire::{self, dma};

/// A flag that is not known may change what the rest means, so it is refused.
const MAP_FLAGS: u32 = dma::MAP_READ | dma::MAP_WRITE | dma::MAP_MMAP | dma::MAP_FILE_IO;

impl Session {
    pub(super) fn dma_map(
        &mut self,
        frame: Frame<'_>,
        backend: &mut dyn Backend,
    ) -> Result<(), Errno> {
        let (map, _) = wire::take::<dma::Map>(frame.body)?;
        room(map.argsz, size_of::<dma::Map>())?;
        let mut fds = all_fds(frame)?;
        // What cannot be mapped is as good as nothing: there are messages.
        let mappable = map.flags & (dma::MAP_MMAP | dma::MAP_FILE_IO) != dma::MAP_FILE_IO;
        let fd = fds.pop().filter(|_| mappable);
        let known = map.flags & !MAP_FLAGS == 0;
        let fits = map.iova.checked_add(map.size).is_some();
        let fits = fits && map.offset.checked_add(map.size).is_some();
        if !known || !fits || map.size == 0 || !fds.is_empty() {
            return Err(Errno::INVAL);
        }
        if self.dma_maps >= MAX_DMA_MAPS {
            return Err(Errno::NOSPC);
        }
        let map = DmaMap {
            iova: map.iova,
            size: map.size,
            offset: map.offset,
            readable: map.flags & dma::MAP_READ != 0,
            writable: map.flags & dma::MAP_WRITE != 0,
        };
        backend.dma_map(map, fd)?;
        self.dma_maps += 1;
        Ok(())
    }

    pub(super) fn dma_unmap(
        &mut self,
        body: &[u8],
        backend: &mut dyn Backend,
    ) -> Result<(), Errno> {
        let (unmap, _) = wire::take::<dma::Unmap>(body)?;
        let argsz = room(unmap.argsz, size_of::<dma::Unmap>())?;
        let dma::Unmap { iova, size, .. } = unmap;
        match unmap.flags {
            0 => {
                backend.dma_unmap(DmaUnmap::Range { iova, size })?;
                // A connection that was taken over has mappings that were not counted here.
                self.dma_maps = self.dma_maps.saturating_sub(1);
            }
            dma::UNMAP_ALL if (iova, size) == (0, 0) => {
                backend.dma_unmap(DmaUnmap::All)?;
                self.dma_maps = 0;
            }
            flags if flags & dma::UNMAP_ALL != 0 => return Err(Errno::INVAL),
            _ => return Err(Errno::NOTSUP),
        }
        self.append(&dma::Unmap { argsz, ..unmap });
        Ok(())
    }
}
