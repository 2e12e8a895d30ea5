//! `VFIO_USER_DEVICE_GET_INFO`, `_GET_REGION_INFO` and `_GET_IRQ_INFO`.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::{Session, room};
use crate::backend::{Backend, RegionMapping};
use crate::version::Negotiated;
use crate::wire::{self, device};

impl Session {
    pub(super) fn device_info(
        &mut self,
        body: &[u8],
        backend: &mut dyn Backend,
    ) -> Result<(), Errno> {
        let (asked, _) = wire::take::<device::Info>(body)?;
        let argsz = room(asked.argsz, size_of::<device::Info>())?;
        let info = backend.device_info();
        let reset = if info.resettable {
            device::INFO_RESET
        } else {
            0
        };
        self.append(&device::Info {
            argsz,
            flags: device::INFO_PCI | reset,
            num_regions: info.regions,
            num_irqs: info.irqs,
        });
        Ok(())
    }

    /// Tells about a region, and hands over what can be mapped of it.
    ///
    /// QEMU asks with room for the fixed part first, throws away what comes with that reply, and
    /// asks again with the room it was told of: so the descriptor goes with every reply that says
    /// that there is something to map, and the capabilities only where they fit.
    pub(super) fn region_info(
        &mut self,
        body: &[u8],
        negotiated: &Negotiated,
        backend: &mut dyn Backend,
    ) -> Result<Option<Arc<OwnedFd>>, Errno> {
        let (asked, _) = wire::take::<device::RegionInfo>(body)?;
        let fixed = room(asked.argsz, size_of::<device::RegionInfo>())?;
        if asked.index >= backend.device_info().regions {
            return Err(Errno::INVAL);
        }
        let region = backend.region_info(asked.index).unwrap_or_default();
        let mapping = region.mapping.filter(|_| negotiated.client_max_msg_fds > 0);
        let caps = mapping.as_ref().map(sparse_mmap).unwrap_or_default();
        let argsz = fixed + u32::try_from(caps.len()).map_err(|_| Errno::INVAL)?;
        let with_caps = !caps.is_empty() && asked.argsz >= argsz;
        let flag = |set: bool, bit| if set { bit } else { 0 };
        self.append(&device::RegionInfo {
            argsz,
            flags: flag(region.readable, device::REGION_READ)
                | flag(region.writable, device::REGION_WRITE)
                | flag(mapping.is_some(), device::REGION_MMAP)
                | flag(with_caps, device::REGION_CAPS),
            index: asked.index,
            cap_offset: flag(with_caps, fixed),
            size: region.size,
            offset: mapping.as_ref().map_or(0, |m| m.offset),
        });
        if with_caps {
            self.reply.extend_from_slice(&caps);
        }
        Ok(mapping.map(|m| m.fd))
    }

    pub(super) fn irq_info(&mut self, body: &[u8], backend: &mut dyn Backend) -> Result<(), Errno> {
        let (asked, _) = wire::take::<device::IrqInfo>(body)?;
        let argsz = room(asked.argsz, size_of::<device::IrqInfo>())?;
        if asked.index >= backend.device_info().irqs {
            return Err(Errno::INVAL);
        }
        let info = backend.irq_info(asked.index);
        let flag = |set: bool, bit| if set { bit } else { 0 };
        self.append(&device::IrqInfo {
            argsz,
            flags: flag(info.count > 0, device::IRQ_EVENTFD)
                | flag(info.maskable, device::IRQ_MASKABLE)
                | flag(info.automasked, device::IRQ_AUTOMASKED)
                | flag(info.noresize, device::IRQ_NORESIZE),
            index: asked.index,
            count: info.count,
        });
        Ok(())
    }
}

/// The capability that names the parts that can be mapped; empty where all can.
fn sparse_mmap(mapping: &RegionMapping) -> Vec<u8> {
    let Ok(nr_areas @ 1..) = u32::try_from(mapping.areas.len()) else {
        return Vec::new();
    };
    let cap = device::SparseMmap {
        id: device::CAP_SPARSE_MMAP,
        version: 1,
        next: 0,
        nr_areas,
        reserved: 0,
    };
    let mut caps = cap.as_bytes().to_vec();
    for area in &mapping.areas {
        let area = device::SparseArea {
            offset: area.offset,
            size: area.size,
        };
        caps.extend_from_slice(area.as_bytes());
    }
    caps
}
