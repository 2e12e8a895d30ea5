//! What the unit tests share.

use std::fs::File;

/// A file of `len` zero bytes in memory.
pub(crate) fn memfd(len: u64) -> File {
    let fd = rustix::fs::memfd_create("sidecar-test", rustix::fs::MemfdFlags::CLOEXEC)
        .expect("memfd_create works");
    let file = File::from(fd);
    file.set_len(len).expect("the size is small");
    file
}
