//! The kernel's end of the calls: the real one, or in tests one that keeps its rules (`fake`). Both
//! are asked by the same numbers and the same bytes.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::slice;
use std::sync::Arc;

use rustix::io::Errno;
use vfio_bindings::bindings::vfio::VFIO_TYPE;

/// The number of a call.
pub(crate) type Call = libc::Ioctl;

/// `_IO(VFIO_TYPE, number)`. The calls of VFIO and of iommufd have the same type, and their numbers say
/// nothing of what they take.
pub(crate) const fn call(number: u32) -> Call {
    ((VFIO_TYPE as Call) << 8) | number as Call
}

/// What a device may do with memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Right {
    /// Read it.
    Read,
    /// Read and write it.
    Write,
}

/// Who answers.
pub(crate) trait Kernel: Send + Sync {
    /// `ioctl(2)`, with the bytes that `call` takes and may change.
    ///
    /// # Errors
    /// The kernel's.
    ///
    /// # Safety
    /// `argument` is no shorter than `call`, or a length in it, says. Where it holds addresses, what
    /// `call` reads and writes there is there, and nobody else's.
    #[expect(unsafe_code, reason = "the kernel goes by the bytes alone")]
    unsafe fn ioctl(&self, file: &File, call: Call, argument: &mut [u8]) -> Result<i32, Errno>;

    /// Opens a device's file.
    ///
    /// # Errors
    /// The kernel's.
    fn open(&self, path: &Path) -> io::Result<File>;
}

/// The one that runs here.
pub(crate) struct Linux;

impl Kernel for Linux {
    #[expect(
        unsafe_code,
        reason = "these calls have no safe wrapper that tells their outcome"
    )]
    unsafe fn ioctl(&self, file: &File, call: Call, argument: &mut [u8]) -> Result<i32, Errno> {
        // SAFETY: the caller's promise.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), call, argument.as_mut_ptr()) };
        if result < 0 {
            let error = io::Error::last_os_error();
            return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO));
        }
        Ok(result)
    }

    fn open(&self, path: &Path) -> io::Result<File> {
        File::options().read(true).write(true).open(path)
    }
}

/// An open file of the kernel's, and who answers for it.
#[derive(Clone)]
pub(crate) struct Handle {
    file: Arc<File>,
    kernel: Arc<dyn Kernel>,
}

impl Handle {
    pub(crate) fn new(file: File, kernel: Arc<dyn Kernel>) -> Self {
        let file = Arc::new(file);
        Self { file, kernel }
    }

    /// As [`Kernel::ioctl`]; what a signal has cut short is asked again.
    #[expect(unsafe_code, reason = "as unsafe as what it calls")]
    pub(crate) unsafe fn call<T: Plain + ?Sized>(
        &self,
        call: Call,
        argument: &mut T,
    ) -> Result<i32, Errno> {
        loop {
            // SAFETY: the caller's promise.
            match unsafe { self.kernel.ioctl(&self.file, call, bytes_of(argument)) } {
                Err(Errno::INTR) => {}
                result => return result,
            }
        }
    }
}

impl Deref for Handle {
    type Target = File;

    fn deref(&self) -> &File {
        &self.file
    }
}

/// What a call takes.
///
/// # Safety
/// It is made of integers without gaps, so that all of its bytes have a value, and any value will do.
#[expect(unsafe_code, reason = "only a type's author knows")]
pub(crate) unsafe trait Plain {}

#[expect(unsafe_code, reason = "see `Plain`")]
// SAFETY: integers.
unsafe impl Plain for [u32] {}

#[expect(unsafe_code, reason = "see `Plain`")]
// SAFETY: nothing at all.
unsafe impl Plain for () {}

/// Says of structs of the kernel's interface that they are [`Plain`]: it leaves no gaps in them, so that
/// nothing of the kernel's leaks.
macro_rules! plain {
    ($($name:ty),+ $(,)?) => {
        $(
            #[expect(unsafe_code, reason = "see `Plain`")]
            // SAFETY: the kernel's header has it so; the bindings check its size and offsets.
            unsafe impl $crate::kernel::Plain for $name {}
        )+
    };
}
pub(crate) use plain;

fn bytes_of<T: Plain + ?Sized>(value: &mut T) -> &mut [u8] {
    let len = size_of_val(value);
    #[expect(unsafe_code, reason = "the kernel takes bytes")]
    // SAFETY: these are the value's bytes, all of which have a value and may have any (`Plain`).
    unsafe {
        slice::from_raw_parts_mut(std::ptr::from_mut(value).cast(), len)
    }
}

/// The length of what a call takes, for its first field (`argsz`, `size`).
pub(crate) fn length_of<T>() -> u32 {
    u32::try_from(size_of::<T>()).unwrap_or(u32::MAX)
}
