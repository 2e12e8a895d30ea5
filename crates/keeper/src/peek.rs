//! `SO_PEEK_OFF` (socket(7)): how much of what a socket holds has been looked at. The kernel adds what a
//! peek shows and takes away what is read.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _};

/// How much that is.
#[expect(unsafe_code, reason = "SO_PEEK_OFF has no safe wrapper")]
pub(crate) fn of(socket: impl AsFd) -> io::Result<u64> {
    let mut value: libc::c_int = 0;
    let mut len = LEN;
    // SAFETY: `value` is an int with room for the `len` bytes that the option has, and both live for
    // the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEEK_OFF,
            (&raw mut value).cast(),
            &raw mut len,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // -1, if it was never set.
    Ok(u64::try_from(value).unwrap_or(0))
}

/// The next peek begins there.
#[expect(unsafe_code, reason = "SO_PEEK_OFF has no safe wrapper")]
pub(crate) fn set(socket: impl AsFd, offset: u64) -> io::Result<()> {
    let value = libc::c_int::try_from(offset).map_err(io::Error::other)?;
    // SAFETY: `value` is an int, which is what the option takes, and lives for the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEEK_OFF,
            (&raw const value).cast(),
            LEN,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Of an int.
const LEN: libc::socklen_t = 4;
