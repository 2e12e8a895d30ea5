//! Where the function's BARs and its configuration space are in its file.

use rustix::io::Errno;
use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_PCI_CONFIG_REGION_INDEX, VFIO_REGION_INFO_CAP_SPARSE_MMAP,
    VFIO_REGION_INFO_FLAG_CAPS, VFIO_REGION_INFO_FLAG_MMAP, vfio_region_info,
};
use vfio_ioctls::{VfioDevice, VfioRegionInfoCap};

use crate::kernel::{Call, Handle, call};

pub(crate) const GET_REGION_INFO: Call = call(VFIO_BASE + 8);

const HEAD: usize = size_of::<vfio_region_info>();
/// No answer is longer: it has room for some 4000 parts of a BAR.
const MAX_LEN: usize = 64 << 10;

/// BARs and configuration space by their index.
pub(crate) struct Regions([Region; COUNT]);

const COUNT: usize = VFIO_PCI_CONFIG_REGION_INDEX as usize + 1;

/// One of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Region {
    pub(crate) offset: u64,
    pub(crate) size: u64,
    pub(crate) is_mappable: bool,
    /// Offset and length of each part that is mappable; none for all of it.
    pub(crate) areas: Vec<(u64, u64)>,
}

impl Regions {
    /// As `vfio-ioctls` has read them.
    pub(crate) fn of(device: &VfioDevice) -> Self {
        let region = |index| {
            let areas = device.get_region_caps(index).into_iter();
            let areas = areas.filter_map(|capability| match capability {
                VfioRegionInfoCap::SparseMmap(sparse) => Some(sparse.areas),
                _ => None,
            });
            Region {
                offset: device.get_region_offset(index),
                size: device.get_region_size(index),
                is_mappable: device.get_region_flags(index) & VFIO_REGION_INFO_FLAG_MMAP != 0,
                areas: areas
                    .flatten()
                    .map(|area| (area.offset, area.size))
                    .collect(),
            }
        };
        Self([0, 1, 2, 3, 4, 5, 6, 7].map(region))
    }

    /// As the kernel has them of a device that was opened by its own file.
    pub(crate) fn read(device: &Handle) -> Result<Self, Errno> {
        let mut regions = [const { None }; COUNT];
        for (index, region) in (0..).zip(&mut regions) {
            *region = Some(match ask(device, index) {
                // The kernel has none of this kind.
                Err(Errno::INVAL) => Region::default(),
                region => region?,
            });
        }
        Ok(Self(regions.map(Option::unwrap_or_default)))
    }

    pub(crate) fn bar(&self, bar: u8) -> Option<&Region> {
        self.0[..6].get(usize::from(bar))
    }

    pub(crate) fn config(&self) -> &Region {
        &self.0[COUNT - 1]
    }
}

/// `VFIO_DEVICE_GET_REGION_INFO`, with as much room as the kernel says that it needs.
fn ask(device: &Handle, index: u32) -> Result<Region, Errno> {
    let mut len = HEAD;
    loop {
        let mut words = vec![0_u32; len / 4];
        words[0] = u32::try_from(len).map_err(|_| Errno::INVAL)?;
        words[2] = index;
        #[expect(unsafe_code, reason = "see `Kernel::ioctl`")]
        // SAFETY: the first word is the length, in bytes, of all there are.
        unsafe { device.call(GET_REGION_INFO, &mut words[..]) }?;
        let needed = usize::try_from(words[0]).map_err(|_| Errno::INVAL)?;
        if needed > len && needed <= MAX_LEN {
            len = needed.next_multiple_of(4);
        } else {
            return region(&words).ok_or(Errno::INVAL);
        }
    }
}

/// `None` if a capability is not where there are any.
fn region(words: &[u32]) -> Option<Region> {
    let long = |at: usize| {
        Some(u64::from(*words.get(at)?) | u64::from(*words.get(at.checked_add(1)?)?) << 32)
    };
    let (flags, capabilities) = (words[1], words[3]);
    let mut region = Region {
        size: long(4)?,
        offset: long(6)?,
        is_mappable: flags & VFIO_REGION_INFO_FLAG_MMAP != 0,
        areas: Vec::new(),
    };
    let mut next = if flags & VFIO_REGION_INFO_FLAG_CAPS == 0 {
        0
    } else {
        capabilities
    };
    let mut last = 0;
    while next != 0 {
        // `vfio_info_cap_add` appends: a chain that leads back has no end.
        if next <= last {
            return None;
        }
        last = next;
        let at = usize::try_from(next / 4).ok()?;
        next = *words.get(at.checked_add(1)?)?;
        if *words.get(at)? & 0xffff != VFIO_REGION_INFO_CAP_SPARSE_MMAP {
            continue;
        }
        let areas = usize::try_from(*words.get(at + 2)?).ok()?;
        for area in 0..areas {
            let at = at + 4 + area * 4;
            region.areas.push((long(at)?, long(at + 2)?));
        }
    }
    Some(region)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A region of 0x4000 bytes at 4 GiB with these words behind its head.
    fn answer(more: &[u32]) -> Vec<u32> {
        let flags = VFIO_REGION_INFO_FLAG_CAPS | VFIO_REGION_INFO_FLAG_MMAP;
        let mut words = vec![0, flags, 3, 32, 0x4000, 0, 0, 1];
        words.extend(more);
        words
    }

    #[test]
    fn parts_that_can_be_mapped_are_found_in_the_chain() {
        assert_eq!((GET_REGION_INFO, HEAD), (0x3b6c, 32));
        let msix = [3, 40];
        let sparse = [1 | 1 << 16, 0, 2, 0, 0, 0, 0x1000, 0, 0x2000, 0, 0x2000, 0];
        let region = region(&answer(&[&msix[..], &sparse].concat())).unwrap();
        assert_eq!((region.size, region.offset), (0x4000, 1 << 32));
        assert_eq!(region.areas, [(0, 0x1000), (0x2000, 0x2000)]);
    }

    #[test]
    fn a_chain_that_does_not_hold_together_is_refused() {
        for more in [
            &[3, 32][..],
            &[3, 16],
            &[3],
            &[3, 4000],
            &[1, 0, 2, 0, 0, 0, 0x1000, 0],
            &[1, 0, u32::MAX, 0],
            &[3, u32::MAX],
        ] {
            assert_eq!(region(&answer(more)), None, "{more:?}");
        }
    }
}
