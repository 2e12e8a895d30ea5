//! Devices by files of their own, and their memory by `/dev/iommu` (`include/uapi/linux/iommufd.h`,
//! `Documentation/driver-api/vfio.rst`, "VFIO Device cdev"), where the kernel has both.

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;

use iommufd_bindings::{
    IOMMUFD_CMD_HWPT_ALLOC, IOMMUFD_CMD_HWPT_GET_DIRTY_BITMAP, IOMMUFD_CMD_HWPT_SET_DIRTY_TRACKING,
    IOMMUFD_CMD_IOAS_ALLOC, IOMMUFD_CMD_IOAS_MAP, IOMMUFD_CMD_IOAS_UNMAP, iommu_hwpt_alloc,
    iommu_hwpt_get_dirty_bitmap, iommu_hwpt_set_dirty_tracking, iommu_ioas_alloc, iommu_ioas_map,
    iommu_ioas_unmap, iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_DIRTY_TRACKING,
    iommufd_hwpt_set_dirty_tracking_flags_IOMMU_HWPT_DIRTY_TRACKING_ENABLE,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE,
};
use rustix::io::Errno;
use vfio_bindings::bindings::vfio::{
    VFIO_BASE, vfio_device_attach_iommufd_pt, vfio_device_bind_iommufd,
};

use crate::kernel::{Call, Handle, Kernel, Right, call, length_of, plain};
use crate::vfio::feature::holds;

pub(crate) const IOMMU: &str = "/dev/iommu";

pub(crate) const BIND: Call = call(VFIO_BASE + 18);
pub(crate) const ATTACH: Call = call(VFIO_BASE + 19);
pub(crate) const IOAS_ALLOC: Call = call(IOMMUFD_CMD_IOAS_ALLOC);
pub(crate) const IOAS_MAP: Call = call(IOMMUFD_CMD_IOAS_MAP);
pub(crate) const IOAS_UNMAP: Call = call(IOMMUFD_CMD_IOAS_UNMAP);
pub(crate) const HWPT_ALLOC: Call = call(IOMMUFD_CMD_HWPT_ALLOC);
pub(crate) const SET_DIRTY_TRACKING: Call = call(IOMMUFD_CMD_HWPT_SET_DIRTY_TRACKING);
pub(crate) const GET_DIRTY_BITMAP: Call = call(IOMMUFD_CMD_HWPT_GET_DIRTY_BITMAP);

plain!(
    vfio_device_bind_iommufd,
    vfio_device_attach_iommufd_pt,
    iommu_ioas_alloc,
    iommu_ioas_map,
    iommu_ioas_unmap,
    iommu_hwpt_alloc,
    iommu_hwpt_set_dirty_tracking,
    iommu_hwpt_get_dirty_bitmap,
);

/// The addresses that a device reaches.
pub(crate) struct Ioas {
    iommu: Handle,
    id: u32,
    /// The tables that the IOMMU walks, if it sets a bit in them for what the device has written.
    tracking: Option<u32>,
}

/// Opens the device whose file is `path`. It reaches no memory yet.
pub(crate) fn open(kernel: &Arc<dyn Kernel>, path: &Path) -> io::Result<(Handle, Ioas)> {
    let iommu = Handle::new(kernel.open(Path::new(IOMMU))?, Arc::clone(kernel));
    let device = Handle::new(kernel.open(path)?, Arc::clone(kernel));
    let device_id = bind(&device, &iommu)?;
    let mut alloc = iommu_ioas_alloc {
        size: length_of::<iommu_ioas_alloc>(),
        ..Default::default()
    };
    ask(&iommu, IOAS_ALLOC, &mut alloc)?;
    let id = alloc.out_ioas_id;
    let tracking = match allocate_tracking(&iommu, device_id, id) {
        Ok(tables) => attach(&device, tables).map(|()| tables),
        Err(errno) => Err(errno),
    };
    if let Err(errno) = tracking {
        tracing::debug!(%errno, ?path, "the IOMMU sets no dirty bits");
        attach(&device, id)?;
    }
    let tracking = tracking.ok();
    Ok((
        device,
        Ioas {
            iommu,
            id,
            tracking,
        },
    ))
}

impl Ioas {
    /// Whether the IOMMU sets a bit for each page that the device writes.
    pub(crate) fn can_track(&self) -> bool {
        self.tracking.is_some()
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
        let write = match right {
            Right::Read => 0,
            Right::Write => iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE,
        };
        let mut map = iommu_ioas_map {
            size: length_of::<iommu_ioas_map>(),
            flags: iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA
                | iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE
                | write,
            ioas_id: self.id,
            user_va: address.expose_provenance() as u64,
            length: len as u64,
            iova,
            ..Default::default()
        };
        ask(&self.iommu, IOAS_MAP, &mut map)
    }

    pub(crate) fn unmap(&self, iova: u64, len: usize) -> Result<(), Errno> {
        let length = len as u64;
        let mut unmap = iommu_ioas_unmap {
            size: length_of::<iommu_ioas_unmap>(),
            ioas_id: self.id,
            iova,
            length,
        };
        ask(&self.iommu, IOAS_UNMAP, &mut unmap)?;
        // Part of it would leave the device where it must not be any more.
        if unmap.length == length {
            Ok(())
        } else {
            Err(Errno::IO)
        }
    }

    /// Bits that are set already are cleared when it begins (`iopt_set_dirty_tracking`).
    pub(crate) fn track(&self, on: bool) -> Result<(), Errno> {
        let mut set = iommu_hwpt_set_dirty_tracking {
            size: length_of::<iommu_hwpt_set_dirty_tracking>(),
            flags: if on {
                iommufd_hwpt_set_dirty_tracking_flags_IOMMU_HWPT_DIRTY_TRACKING_ENABLE
            } else {
                0
            },
            hwpt_id: self.tracking.ok_or(Errno::OPNOTSUPP)?,
            ..Default::default()
        };
        ask(&self.iommu, SET_DIRTY_TRACKING, &mut set)
    }

    /// Sets a bit for each page of `page_size` bytes that the device has written since it was asked last,
    /// in memory that is mapped as a whole.
    pub(crate) fn report(
        &self,
        iova: u64,
        length: u64,
        page_size: u64,
        bitmap: &mut [u64],
    ) -> Result<(), Errno> {
        if !holds(bitmap, length, page_size) {
            return Err(Errno::INVAL);
        }
        let mut get = iommu_hwpt_get_dirty_bitmap {
            size: length_of::<iommu_hwpt_get_dirty_bitmap>(),
            hwpt_id: self.tracking.ok_or(Errno::OPNOTSUPP)?,
            iova,
            length,
            page_size,
            data: bitmap.as_mut_ptr().expose_provenance() as u64,
            ..Default::default()
        };
        ask(&self.iommu, GET_DIRTY_BITMAP, &mut get)
    }
}

fn bind(device: &Handle, iommu: &Handle) -> Result<u32, Errno> {
    let mut bind = vfio_device_bind_iommufd {
        argsz: length_of::<vfio_device_bind_iommufd>(),
        iommufd: iommu.as_raw_fd(),
        ..Default::default()
    };
    ask(device, BIND, &mut bind)?;
    Ok(bind.out_devid)
}

fn allocate_tracking(iommu: &Handle, device: u32, ioas: u32) -> Result<u32, Errno> {
    let mut alloc = iommu_hwpt_alloc {
        size: length_of::<iommu_hwpt_alloc>(),
        flags: iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_DIRTY_TRACKING,
        dev_id: device,
        pt_id: ioas,
        ..Default::default()
    };
    ask(iommu, HWPT_ALLOC, &mut alloc)?;
    Ok(alloc.out_hwpt_id)
}

fn attach(device: &Handle, tables: u32) -> Result<(), Errno> {
    let mut attach = vfio_device_attach_iommufd_pt {
        argsz: length_of::<vfio_device_attach_iommufd_pt>(),
        pt_id: tables,
        ..Default::default()
    };
    ask(device, ATTACH, &mut attach)
}

fn ask<T: crate::kernel::Plain>(file: &Handle, call: Call, argument: &mut T) -> Result<(), Errno> {
    #[expect(unsafe_code, reason = "see `Kernel::ioctl`")]
    // SAFETY: the argument is the call's own and begins with its length. Of addresses in them it has been
    // seen to: `Ioas::map`'s caller has promised it, and `Ioas::report` has the bitmap.
    unsafe { file.call(call, argument) }.map(drop)
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    /// From `include/uapi/linux/iommufd.h` and `vfio.h`.
    #[test]
    fn calls_and_their_data_are_those_of_the_kernels_header() {
        assert_eq!([BIND, ATTACH], [0x3b76, 0x3b77]);
        assert_eq!([IOAS_ALLOC, IOAS_MAP, IOAS_UNMAP], [0x3b81, 0x3b85, 0x3b86]);
        assert_eq!(
            [HWPT_ALLOC, SET_DIRTY_TRACKING, GET_DIRTY_BITMAP],
            [0x3b89, 0x3b8b, 0x3b8c]
        );
        assert_eq!(size_of::<vfio_device_bind_iommufd>(), 24);
        assert_eq!(offset_of!(vfio_device_bind_iommufd, out_devid), 12);
        assert_eq!(size_of::<vfio_device_attach_iommufd_pt>(), 16);
        assert_eq!(offset_of!(vfio_device_attach_iommufd_pt, pt_id), 8);
        assert_eq!(size_of::<iommu_ioas_alloc>(), 12);
        assert_eq!(offset_of!(iommu_ioas_alloc, out_ioas_id), 8);
        assert_eq!(size_of::<iommu_ioas_map>(), 40);
        assert_eq!(offset_of!(iommu_ioas_map, user_va), 16);
        assert_eq!(offset_of!(iommu_ioas_map, iova), 32);
        assert_eq!(size_of::<iommu_ioas_unmap>(), 24);
        // 40 before Linux 6.11; what is longer is taken as long as it is zero (`copy_struct_from_user`).
        assert_eq!(size_of::<iommu_hwpt_alloc>(), 48);
        assert_eq!(offset_of!(iommu_hwpt_alloc, out_hwpt_id), 16);
        assert_eq!(size_of::<iommu_hwpt_set_dirty_tracking>(), 16);
        assert_eq!(size_of::<iommu_hwpt_get_dirty_bitmap>(), 48);
        assert_eq!(offset_of!(iommu_hwpt_get_dirty_bitmap, iova), 16);
        assert_eq!(offset_of!(iommu_hwpt_get_dirty_bitmap, data), 40);
        assert_eq!(
            [
                iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA,
                iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE,
                iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE,
                iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_DIRTY_TRACKING,
                iommufd_hwpt_set_dirty_tracking_flags_IOMMU_HWPT_DIRTY_TRACKING_ENABLE,
            ],
            [1, 2, 4, 2, 1]
        );
    }
}
