//! A block device, or a file in place of one, past the page cache.

use std::fs::{File, OpenOptions};
use std::io::{IoSlice, IoSliceMut, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use rustix::fs::{FallocateFlags, OFlags, fallocate, fdatasync, ioctl_blksszget};
use rustix::io::{Errno, ReadWriteFlags, preadv2, pwritev2, retry_on_intr};

/// An open device.
#[derive(Debug)]
pub(crate) struct Direct {
    file: File,
    path: PathBuf,
    len: u64,
    unit: u64,
    is_device: bool,
    /// Whoever discards opens the device for itself alone (`O_EXCL`): one at a time.
    discarding: Mutex<()>,
}

/// Memory that a device can transfer from and to: it begins at a page.
#[derive(Debug)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

const PAGE: usize = 4096;

/// What a file is read and written by: more than any disk below it asks for.
const FILE_UNIT: u64 = 4096;

impl Direct {
    /// Opens `path` for reading and writing.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let open = |flags: OFlags| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(flags.bits().cast_signed())
                .open(path)
        };
        let file = match open(OFlags::DIRECT) {
            // Some file systems have no such thing; every block device has.
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                open(OFlags::empty())
            }
            other => other,
        };
        let mut file = file.with_context(|| format!("cannot open {}", path.display()))?;
        let is_device = file.metadata()?.file_type().is_block_device();
        let unit = if is_device {
            ioctl_blksszget(&file)
                .with_context(|| format!("{} does not tell its block size", path.display()))?
                .into()
        } else {
            FILE_UNIT
        };
        let len = file
            .seek(SeekFrom::End(0))
            .with_context(|| format!("{} does not tell its size", path.display()))?;
        Ok(Self {
            file,
            path: path.to_owned(),
            len,
            unit,
            is_device,
            discarding: Mutex::new(()),
        })
    }

    /// Size in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// What every offset and length has to be a multiple of, in bytes.
    pub(crate) fn unit(&self) -> u64 {
        self.unit
    }

    pub(crate) fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), Errno> {
        let len = bytes.len();
        let mut pieces = [IoSliceMut::new(bytes)];
        let count =
            retry_on_intr(|| preadv2(&self.file, &mut pieces, offset, ReadWriteFlags::empty()))?;
        whole(count, len)
    }

    /// Writes; with `durable` it is on the disk when this returns.
    pub(crate) fn write(&self, offset: u64, bytes: &[u8], durable: bool) -> Result<(), Errno> {
        let flags = if durable {
            ReadWriteFlags::DSYNC
        } else {
            ReadWriteFlags::empty()
        };
        let pieces = [IoSlice::new(bytes)];
        let count = retry_on_intr(|| pwritev2(&self.file, &pieces, offset, flags))?;
        whole(count, bytes.len())
    }

    pub(crate) fn flush(&self) -> Result<(), Errno> {
        retry_on_intr(|| fdatasync(&self.file))
    }

    /// Makes zeroes of a range. On a device it is Linux's `REQ_OP_WRITE_ZEROES`, and with `unmap`
    /// the device may keep them by forgetting what was there (kernel: `blkdev_fallocate`).
    pub(crate) fn zero(&self, offset: u64, len: u64, unmap: bool) -> Result<(), Errno> {
        let how = if unmap {
            FallocateFlags::PUNCH_HOLE
        } else {
            FallocateFlags::ZERO_RANGE
        };
        retry_on_intr(|| fallocate(&self.file, how | FallocateFlags::KEEP_SIZE, offset, len))
    }

    /// Discards a range. Linux has an ioctl for it, which cannot be called without `unsafe`: busybox
    /// calls it, if there is one with `blkdiscard`.
    pub(crate) fn discard(&self, offset: u64, len: u64) -> Result<(), Errno> {
        if !self.is_device {
            return Err(Errno::OPNOTSUPP);
        }
        let _alone = self
            .discarding
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for mut command in [busybox("blkdiscard"), Command::new("blkdiscard")] {
            let output = command
                .args(["-o", &offset.to_string(), "-l", &len.to_string()])
                .arg(&self.path)
                .output();
            if let Ok(output) = output {
                if output.status.success() {
                    return Ok(());
                }
                if let Some(errno) = refusal(&String::from_utf8_lossy(&output.stderr)) {
                    return Err(errno);
                }
            }
        }
        Err(Errno::OPNOTSUPP)
    }
}

/// Why `blkdiscard` failed; none if there is no such program.
fn refusal(reason: &str) -> Option<Errno> {
    if reason.contains("applet not found") {
        return None;
    }
    Some(if reason.contains("not supported") {
        Errno::OPNOTSUPP
    } else if reason.contains("busy") {
        Errno::BUSY
    } else {
        Errno::IO
    })
}

fn busybox(applet: &str) -> Command {
    let mut command = Command::new("busybox");
    command.arg(applet);
    command
}

/// A transfer that ends short within a device has failed on the way.
fn whole(count: usize, len: usize) -> Result<(), Errno> {
    if count == len { Ok(()) } else { Err(Errno::IO) }
}

impl Buffer {
    /// Zeroes of `len` bytes.
    pub(crate) fn new(len: usize) -> Self {
        let bytes = vec![0; len + PAGE];
        // It is never enlarged, so it stays where it is.
        let start = bytes.as_ptr().align_offset(PAGE).min(PAGE);
        Self { bytes, start, len }
    }

    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..][..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_begins_at_a_page_and_has_its_length() {
        for len in [0, 512, 1 << 20] {
            let mut buffer = Buffer::new(len);
            let bytes = buffer.bytes();
            assert_eq!((bytes.len(), bytes.as_ptr().align_offset(PAGE)), (len, 0));
        }
    }

    #[test]
    fn a_discard_that_is_not_supported_is_told_from_one_that_failed() {
        let why = |reason| refusal(reason);
        assert_eq!(why("blkdiscard: applet not found\n"), None);
        let unknown = "blkdiscard: /dev/vda: BLKDISCARD failed: Operation not supported\n";
        assert_eq!(why(unknown), Some(Errno::OPNOTSUPP));
        let busy = "blkdiscard: can't open '/dev/vda': Device or resource busy\n";
        assert_eq!(why(busy), Some(Errno::BUSY));
        assert_eq!(why("blkdiscard: Input/output error\n"), Some(Errno::IO));
    }

    #[test]
    fn a_file_stands_in_for_a_device() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        file.as_file().set_len(1 << 20).expect("room");
        let device = Direct::open(file.path()).expect("our own");
        assert_eq!((device.len(), device.unit()), (1 << 20, FILE_UNIT));
        let mut buffer = Buffer::new(8192);
        buffer.bytes().fill(7);
        device.write(4096, buffer.bytes(), true).expect("room");
        device.flush().expect("a file");
        buffer.bytes().fill(0);
        device.read(4096, buffer.bytes()).expect("written");
        assert!(buffer.bytes().iter().all(|byte| *byte == 7));
        let beyond = device.read(device.len() - 4096, buffer.bytes());
        assert_eq!(beyond, Err(Errno::IO));
        assert_eq!(device.discard(0, 4096), Err(Errno::OPNOTSUPP));
    }
}
