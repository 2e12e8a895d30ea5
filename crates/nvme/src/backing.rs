//! What a namespace's blocks are kept in.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

/// What a namespace's blocks are kept in.
///
/// All offsets and lengths are in bytes, within [`len`](Self::len). A call may wait for the disk,
/// not for the guest.
pub trait Backing: Send {
    /// Bytes that it holds.
    fn len(&self) -> u64;

    /// Whether it holds nothing.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `data` from `offset` on.
    ///
    /// # Errors
    /// When not all of it could be read.
    fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<()>;

    /// Writes `data` at `offset`. It need not be durable before the next [`flush`](Self::flush).
    ///
    /// # Errors
    /// When not all of it could be written; a part may have been.
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Makes everything durable that was written before the call.
    ///
    /// # Errors
    /// When that cannot be promised.
    fn flush(&self) -> io::Result<()>;

    /// Makes a range read as zeros, giving back its room if `deallocate` and if possible.
    /// `false` if there is no way but to write zeros; nothing was done then.
    ///
    /// # Errors
    /// When the disk fails.
    fn zero(&self, offset: u64, len: u64, deallocate: bool) -> io::Result<bool>;
}

/// A file or a block device.
#[derive(Debug)]
pub struct FileBacking {
    file: File,
    len: u64,
}

/// Why a file cannot be a backing.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot use {} for a namespace: {source}. It must exist, and be a file or block device that \
     this process may read and write",
    path.display()
)]
pub struct OpenError {
    /// The file.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

impl FileBacking {
    /// Opens a file or block device for reading and writing. Its length is that of this moment.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let open = || {
            let mut file = OpenOptions::new().read(true).write(true).open(path)?;
            // A block device's length is not in its metadata.
            let len = file.seek(SeekFrom::End(0))?;
            Ok(Self { file, len })
        };
        open().map_err(|source| OpenError {
            path: path.into(),
            source,
        })
    }
}

impl Backing for FileBacking {
    fn len(&self) -> u64 {
        self.len
    }

    fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(data, offset)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn zero(&self, offset: u64, len: u64, deallocate: bool) -> io::Result<bool> {
        if len == 0 {
            return Ok(true);
        }
        let how = if deallocate {
            FallocateFlags::PUNCH_HOLE
        } else {
            FallocateFlags::ZERO_RANGE
        };
        loop {
            match fallocate(&self.file, how | FallocateFlags::KEEP_SIZE, offset, len) {
                Ok(()) => return Ok(true),
                Err(Errno::INTR) => {}
                // Not every file system can; INVAL is a block device's word for an odd range.
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(len: usize) -> (tempfile::NamedTempFile, FileBacking) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![0x5a; len]).unwrap();
        let backing = FileBacking::open(file.path()).unwrap();
        (file, backing)
    }

    #[test]
    fn what_is_written_is_read() {
        let (_file, backing) = file(8192);
        assert_eq!(backing.len(), 8192);
        backing.write(4095, b"abc").unwrap();
        backing.flush().unwrap();
        let mut data = [0; 5];
        backing.read(4094, &mut data).unwrap();
        assert_eq!(&data, b"ZabcZ");
    }

    #[test]
    fn a_zeroed_range_reads_as_zeros_and_its_neighbours_do_not() {
        for deallocate in [false, true] {
            let (_file, backing) = file(16384);
            if backing.zero(512, 8192, deallocate).unwrap() {
                let mut data = vec![0; 16384];
                backing.read(0, &mut data).unwrap();
                assert!(data[512..512 + 8192].iter().all(|b| *b == 0));
                assert!(data[..512].iter().all(|b| *b == 0x5a));
                assert!(data[512 + 8192..].iter().all(|b| *b == 0x5a));
            }
            assert_eq!(backing.len(), 16384);
        }
    }

    #[test]
    fn a_file_that_was_cut_short_is_an_error_not_zeros() {
        let (file, backing) = file(8192);
        file.as_file().set_len(4096).unwrap();
        assert!(backing.read(4096, &mut [0; 512]).is_err());
    }

    #[test]
    fn a_file_that_is_not_there_is_told_with_its_name() {
        let error = FileBacking::open(Path::new("/nowhere/disk.img")).unwrap_err();
        assert!(error.to_string().contains("/nowhere/disk.img"), "{error}");
    }
}
