//! `VFIO_DEVICE_FEATURE`: what some devices can and most cannot.

use std::os::fd::{FromRawFd, OwnedFd};

use rustix::io::Errno;
use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT, VFIO_DEVICE_FEATURE_DMA_LOGGING_START,
    VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP, VFIO_DEVICE_FEATURE_GET,
    VFIO_DEVICE_FEATURE_MIG_DATA_SIZE, VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE,
    VFIO_DEVICE_FEATURE_MIGRATION, VFIO_DEVICE_FEATURE_PROBE, VFIO_DEVICE_FEATURE_SET,
    vfio_device_feature_dma_logging_control, vfio_device_feature_dma_logging_range,
    vfio_device_feature_dma_logging_report, vfio_device_feature_mig_data_size,
    vfio_device_feature_mig_state, vfio_device_feature_migration,
};

use crate::kernel::{Call, Handle, Plain, call, length_of, plain};

pub(crate) const FEATURE: Call = call(VFIO_BASE + 17);

/// `struct vfio_device_feature` with its data.
#[repr(C)]
struct Feature<T> {
    argsz: u32,
    flags: u32,
    data: T,
}

#[expect(unsafe_code, reason = "see `Plain`")]
// SAFETY: eight bytes of integers, behind which no `T` needs a gap: none is aligned to more than eight.
unsafe impl<T: Plain> Plain for Feature<T> {}

plain!(
    vfio_device_feature_migration,
    vfio_device_feature_mig_state,
    vfio_device_feature_mig_data_size,
    vfio_device_feature_dma_logging_control,
    vfio_device_feature_dma_logging_report,
);

/// Whether the device logs what it writes by DMA.
pub(crate) fn can_log(device: &Handle) -> bool {
    let has = |feature, way| {
        #[expect(unsafe_code, reason = "see `ask`")]
        // SAFETY: a question without data.
        unsafe { ask(device, feature | way | VFIO_DEVICE_FEATURE_PROBE, ()) }.is_ok()
    };
    has(
        VFIO_DEVICE_FEATURE_DMA_LOGGING_START,
        VFIO_DEVICE_FEATURE_SET,
    ) && has(
        VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT,
        VFIO_DEVICE_FEATURE_GET,
    )
}

/// The device logs what it writes to these ranges from now on, by pages of `page_size` bytes if it can.
/// Returns the size of those that it does log by.
pub(crate) fn start_logging(
    device: &Handle,
    ranges: &[vfio_device_feature_dma_logging_range],
    page_size: u64,
) -> Result<u64, Errno> {
    let control = vfio_device_feature_dma_logging_control {
        page_size,
        num_ranges: u32::try_from(ranges.len()).map_err(|_| Errno::TOOBIG)?,
        ranges: ranges.as_ptr().expose_provenance() as u64,
        ..Default::default()
    };
    let flags = VFIO_DEVICE_FEATURE_DMA_LOGGING_START | VFIO_DEVICE_FEATURE_SET;
    #[expect(unsafe_code, reason = "see `ask`")]
    // SAFETY: `ranges` are as many as it says, and are only read.
    let control = unsafe { ask(device, flags, control) }?;
    Ok(control.page_size)
}

pub(crate) fn stop_logging(device: &Handle) -> Result<(), Errno> {
    let flags = VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP | VFIO_DEVICE_FEATURE_SET;
    #[expect(unsafe_code, reason = "see `ask`")]
    // SAFETY: a request without data.
    unsafe {
        ask(device, flags, ())
    }
}

/// Sets a bit for each page of `page_size` bytes from `iova` on that the device has written since it was
/// asked last. Bits are never cleared.
///
/// # Errors
/// The kernel's; of what was written nothing is known then.
pub(crate) fn report(
    device: &Handle,
    iova: u64,
    length: u64,
    page_size: u64,
    bitmap: &mut [u64],
) -> Result<(), Errno> {
    if !holds(bitmap, length, page_size) {
        return Err(Errno::INVAL);
    }
    let report = vfio_device_feature_dma_logging_report {
        iova,
        length,
        page_size,
        bitmap: bitmap.as_mut_ptr().expose_provenance() as u64,
    };
    let flags = VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT | VFIO_DEVICE_FEATURE_GET;
    #[expect(unsafe_code, reason = "see `ask`")]
    // SAFETY: `bitmap` has a bit for each page, as was just seen, and is borrowed for the call.
    unsafe { ask(device, flags, report) }.map(drop)
}

/// Whether `bitmap` has a bit for each page.
pub(crate) fn holds(bitmap: &[u64], length: u64, page_size: u64) -> bool {
    let pages = length.checked_div(page_size);
    let fit = pages.is_some_and(|pages| pages <= bitmap.len() as u64 * 64);
    fit && length.is_multiple_of(page_size)
}

/// Which states of migration the device has: `VFIO_MIGRATION_*`.
pub(crate) fn migration(device: &Handle) -> Result<u64, Errno> {
    let flags = VFIO_DEVICE_FEATURE_MIGRATION | VFIO_DEVICE_FEATURE_GET;
    #[expect(unsafe_code, reason = "see `ask`")]
    // SAFETY: the data are the feature's own.
    let data = unsafe { ask(device, flags, vfio_device_feature_migration::default()) }?;
    Ok(data.flags)
}

/// The state that the device is in: `VFIO_DEVICE_STATE_*`.
pub(crate) fn state(device: &Handle) -> Result<u32, Errno> {
    let flags = VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE | VFIO_DEVICE_FEATURE_GET;
    #[expect(unsafe_code, reason = "see `ask`")]
    // SAFETY: the data are the feature's own.
    let data = unsafe { ask(device, flags, vfio_device_feature_mig_state::default()) }?;
    Ok(data.device_state)
}

/// Has the device go to this state. Returns where its data come from or go to, if it needs that there.
pub(crate) fn set_state(device: &Handle, state: u32) -> Result<Option<OwnedFd>, Errno> {
    let none = -1;
    let data = vfio_device_feature_mig_state {
        device_state: state,
        data_fd: none,
    };
    let flags = VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE | VFIO_DEVICE_FEATURE_SET;
    #[expect(unsafe_code, reason = "see `ask`")]
    // SAFETY: the data are the feature's own.
    let data = unsafe { ask(device, flags, data) }?;
    #[expect(unsafe_code, reason = "the kernel gives a descriptor as a number")]
    // SAFETY: it has just opened it, for nobody else (`vfio_ioct_mig_return_fd`).
    let open = |fd| unsafe { OwnedFd::from_raw_fd(fd) };
    Ok((data.data_fd >= 0).then_some(data.data_fd).map(open))
}

/// How many bytes of state the device expects to have, which may be less than it has in the end.
pub(crate) fn data_size(device: &Handle) -> Result<u64, Errno> {
    let flags = VFIO_DEVICE_FEATURE_MIG_DATA_SIZE | VFIO_DEVICE_FEATURE_GET;
    #[expect(unsafe_code, reason = "see `ask`")]
    // SAFETY: the data are the feature's own.
    let data = unsafe { ask(device, flags, vfio_device_feature_mig_data_size::default()) }?;
    Ok(data.stop_copy_length)
}

/// # Safety
/// `data` are those of the feature in `flags`, and what is at addresses in them is as it says.
#[expect(unsafe_code, reason = "the kernel's data may hold addresses")]
unsafe fn ask<T: Plain>(device: &Handle, flags: u32, data: T) -> Result<T, Errno> {
    let argsz = length_of::<Feature<T>>();
    let mut feature = Feature { argsz, flags, data };
    // SAFETY: the length is that of the struct; of its data the caller has promised it.
    unsafe { device.call(FEATURE, &mut feature) }?;
    Ok(feature.data)
}

#[cfg(test)]
mod tests {
    use std::mem::{align_of, offset_of};

    use super::*;

    /// From `include/uapi/linux/vfio.h`: where each field is behind the head of eight bytes.
    #[test]
    fn data_lie_where_the_kernels_header_has_them() {
        type Control = Feature<vfio_device_feature_dma_logging_control>;
        type Report = Feature<vfio_device_feature_dma_logging_report>;
        type State = Feature<vfio_device_feature_mig_state>;
        assert_eq!(FEATURE, 0x3b75);
        assert_eq!(size_of::<Feature<()>>(), 8);
        assert_eq!(size_of::<State>(), 16);
        assert_eq!(size_of::<Control>(), 32);
        assert_eq!(size_of::<Report>(), 40);
        assert_eq!(
            size_of::<Feature<vfio_device_feature_migration>>(),
            size_of::<Feature<vfio_device_feature_mig_data_size>>()
        );
        assert_eq!(offset_of!(Control, data.page_size), 8);
        assert_eq!(offset_of!(Control, data.num_ranges), 16);
        assert_eq!(offset_of!(Control, data.ranges), 24);
        assert_eq!(offset_of!(Report, data.iova), 8);
        assert_eq!(offset_of!(Report, data.length), 16);
        assert_eq!(offset_of!(Report, data.page_size), 24);
        assert_eq!(offset_of!(Report, data.bitmap), 32);
        assert_eq!(offset_of!(State, data.device_state), 8);
        assert_eq!(offset_of!(State, data.data_fd), 12);
        assert_eq!(size_of::<vfio_device_feature_dma_logging_range>(), 16);
        // No gap: see `Plain`.
        assert!([align_of::<Control>(), align_of::<Report>()] == [8, 8]);
        assert_eq!(
            [
                VFIO_DEVICE_FEATURE_MIGRATION,
                VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE,
                VFIO_DEVICE_FEATURE_DMA_LOGGING_START,
                VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP,
                VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT,
                VFIO_DEVICE_FEATURE_MIG_DATA_SIZE,
            ],
            [1, 2, 6, 7, 8, 9]
        );
        assert_eq!(
            [
                VFIO_DEVICE_FEATURE_GET,
                VFIO_DEVICE_FEATURE_SET,
                VFIO_DEVICE_FEATURE_PROBE,
            ],
            [1 << 16, 1 << 17, 1 << 18]
        );
    }

    #[test]
    fn a_bitmap_that_is_too_short_is_never_given_to_the_kernel() {
        assert!(holds(&[0], 64 << 12, 1 << 12));
        assert!(!holds(&[0], 65 << 12, 1 << 12));
        assert!(!holds(&[0], 100, 1 << 12));
        assert!(!holds(&[0], 1 << 12, 0));
    }
}
