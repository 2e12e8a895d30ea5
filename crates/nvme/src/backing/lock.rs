//! Locks on files that end with the process: open file description locks (fcntl(2)). QEMU takes
//! the same kind on images, so its programs refuse one that is locked here, and the other way
//! round. A file system that several hosts share carries them from host to host, if at all any.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Locks all of a file, open for writing, for this descriptor alone; does not wait. `false` if
/// somebody else has a lock on any part.
pub(super) fn lock(file: &File) -> io::Result<bool> {
    match set(file, libc::F_WRLCK) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Ends the lock before the descriptor ends: a process being started may have a copy for a moment.
pub(super) fn unlock(file: &File) {
    // What can go wrong ends with the descriptor.
    let _ = set(file, libc::F_UNLCK);
}

#[expect(unsafe_code, reason = "F_OFD_SETLK has no safe wrapper")]
fn set(file: &File, kind: libc::c_int) -> io::Result<()> {
    let kind = libc::c_short::try_from(kind).map_err(io::Error::other)?;
    let whole = libc::flock {
        l_type: kind,
        l_whence: 0,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    loop {
        // SAFETY: F_OFD_SETLK reads one `struct flock`, which lives until the call has returned,
        // from an open descriptor.
        let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const whole) };
        if result == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
