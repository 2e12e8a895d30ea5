//! The calls of the kernel's interface (`include/uapi/linux/vfio.h`) whose outcome matters here, and which
//! `vfio-ioctls` does not tell, or not all of.

pub(crate) mod feature;

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::io::Errno;
use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_DEVICE_FLAGS_RESET, VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD,
    VFIO_IRQ_SET_DATA_NONE,
};

use crate::kernel::{Call, Handle, call};

pub(crate) const GET_INFO: Call = call(VFIO_BASE + 7);
pub(crate) const SET_IRQS: Call = call(VFIO_BASE + 10);
pub(crate) const RESET: Call = call(VFIO_BASE + 11);

/// Words of `struct vfio_irq_set` before its data.
const HEADER: usize = 5;
/// Words of `struct vfio_device_info`.
const INFO: usize = 6;

/// Whether the function can be reset.
pub(crate) fn can_reset(device: &Handle) -> Result<bool, Errno> {
    let mut info = [0_u32; INFO];
    ioctl(device, GET_INFO, &mut info)?;
    Ok(info[1] & VFIO_DEVICE_FLAGS_RESET != 0)
}

pub(crate) fn reset(device: &Handle) -> Result<(), Errno> {
    ioctl(device, RESET, &mut []).map(drop)
}

/// Interrupts `start..` of kind `index` signal these; `None` signals nobody.
pub(crate) fn connect(
    device: &Handle,
    index: u32,
    start: u32,
    eventfds: &[Option<OwnedFd>],
) -> Result<(), Errno> {
    let nobody: RawFd = -1;
    let fds = eventfds.iter();
    let fds = fds.map(|fd| {
        fd.as_ref()
            .map_or(nobody, AsRawFd::as_raw_fd)
            .cast_unsigned()
    });
    let count = u32::try_from(eventfds.len()).map_err(|_| Errno::INVAL)?;
    let flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
    set_irqs(device, [flags, index, start, count], fds)
}

/// Interrupts of kind `index` are off.
pub(crate) fn disable(device: &Handle, index: u32) -> Result<(), Errno> {
    let flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER;
    set_irqs(device, [flags, index, 0, 0], std::iter::empty())
}

/// As if the function had raised it.
pub(crate) fn trigger(device: &Handle, index: u32, vector: u32) -> Result<(), Errno> {
    let flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER;
    set_irqs(device, [flags, index, vector, 1], std::iter::empty())
}

fn set_irqs(
    device: &Handle,
    what: [u32; HEADER - 1],
    data: impl Iterator<Item = u32>,
) -> Result<(), Errno> {
    let mut words = vec![0];
    words.extend(what);
    words.extend(data);
    match ioctl(device, SET_IRQS, &mut words)? {
        0 => Ok(()),
        // Fewer vectors than were asked for are to be had, and none is on (`vfio_msi_enable`).
        _ => Err(Errno::NOSPC),
    }
}

/// The first word, if there is one, becomes the length (`argsz`).
fn ioctl(device: &Handle, call: Call, words: &mut [u32]) -> Result<i32, Errno> {
    let len = u32::try_from(size_of_val(words)).map_err(|_| Errno::INVAL)?;
    if let Some(argsz) = words.first_mut() {
        *argsz = len;
    }
    #[expect(unsafe_code, reason = "see `Kernel::ioctl`")]
    // SAFETY: each of the calls reads and writes at most as many bytes as its first word says, which
    // is how many there are (set above); the one without an argument looks at none.
    unsafe {
        device.call(call, words)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::kernel::Linux;

    #[test]
    fn calls_have_the_numbers_of_the_kernels_header() {
        assert_eq!([GET_INFO, SET_IRQS, RESET], [0x3b6b, 0x3b6e, 0x3b6f]);
    }

    #[test]
    fn what_is_no_vfio_device_is_refused() {
        let file = Handle::new(tempfile::tempfile().unwrap(), Arc::new(Linux));
        assert_eq!(reset(&file), Err(Errno::NOTTY));
        assert_eq!(can_reset(&file), Err(Errno::NOTTY));
        assert_eq!(connect(&file, 2, 0, &[None]), Err(Errno::NOTTY));
    }
}
