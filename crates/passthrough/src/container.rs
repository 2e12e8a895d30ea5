//! Guest memory by the container of a device's group (`include/uapi/linux/vfio.h`, "API for Type1 VFIO
//! IOMMU").
//!
//! `vfio-ioctls` has the container too, but lets the device write all that it maps.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use rustix::io::Errno;
use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE, vfio_iommu_type1_dma_map,
};
use vfio_ioctls::VfioContainer;

use crate::kernel::{Call, Handle, Kernel, Right, call, length_of, plain};

const MAP_DMA: Call = call(VFIO_BASE + 13);

plain!(vfio_iommu_type1_dma_map);

/// The addresses that the devices of a group reach.
pub(crate) struct Container {
    container: Arc<VfioContainer>,
    /// The same.
    file: Handle,
}

impl Container {
    pub(crate) fn new(container: Arc<VfioContainer>, kernel: Arc<dyn Kernel>) -> io::Result<Self> {
        #[expect(
            unsafe_code,
            reason = "the crate lends its descriptor as a number only"
        )]
        // SAFETY: `container` has it open, and outlives this.
        let borrowed = unsafe { BorrowedFd::borrow_raw(container.as_raw_fd()) };
        let file = File::from(borrowed.try_clone_to_owned()?);
        let file = Handle::new(file, kernel);
        Ok(Self { container, file })
    }

    /// The device reaches `len` bytes of this process from `address` on, at `iova`.
    ///
    /// # Safety
    /// They stay there until they are unmapped, and nobody has a reference to them.
    #[expect(unsafe_code, reason = "the IOMMU is given memory by its address")]
    pub(crate) unsafe fn map(
        &self,
        iova: u64,
        len: usize,
        address: *mut u8,
        right: Right,
    ) -> Result<(), Errno> {
        let mut map = request(iova, len, address, right);
        // SAFETY: the argument is the call's own and begins with its length; the rest is the caller's
        // promise.
        unsafe { self.file.call(MAP_DMA, &mut map) }.map(drop)
    }

    pub(crate) fn unmap(&self, iova: u64, len: usize) -> Result<(), String> {
        let unmapped = self.container.vfio_dma_unmap(iova, len);
        unmapped.map_err(|error| error.to_string())
    }
}

fn request(iova: u64, len: usize, address: *mut u8, right: Right) -> vfio_iommu_type1_dma_map {
    vfio_iommu_type1_dma_map {
        argsz: length_of::<vfio_iommu_type1_dma_map>(),
        flags: match right {
            Right::Read => VFIO_DMA_MAP_FLAG_READ,
            Right::Write => VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
        },
        vaddr: address.expose_provenance() as u64,
        iova,
        size: len as u64,
    }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;
    use std::ptr::without_provenance_mut;

    use super::*;

    /// From `include/uapi/linux/vfio.h`.
    #[test]
    fn the_call_and_its_data_are_those_of_the_kernels_header() {
        assert_eq!(MAP_DMA, 0x3b71);
        assert_eq!(size_of::<vfio_iommu_type1_dma_map>(), 32);
        assert_eq!(offset_of!(vfio_iommu_type1_dma_map, vaddr), 8);
        assert_eq!(offset_of!(vfio_iommu_type1_dma_map, iova), 16);
        assert_eq!(offset_of!(vfio_iommu_type1_dma_map, size), 24);
    }

    #[test]
    fn what_may_only_be_read_is_mapped_for_reading_alone() {
        let flags = |right| request(0x1000, 0x2000, without_provenance_mut(0x3000), right).flags;
        assert_eq!([flags(Right::Read), flags(Right::Write)], [1, 3]);
    }
}
