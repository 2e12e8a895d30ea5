//! Files and block devices of the host.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use device::Claim;
use rustix::fs::{Access, Advice, FallocateFlags, access, fadvise, fallocate};
use rustix::io::Errno;

use super::kept::{Keep, Left, Part, has_failed, open_witness};
use super::lease::{HoldError, Holder, Lease, system};
use super::lock;
use super::{Backing, OpenFile};

/// What a lease's name has beyond its image's.
const LEASE_SUFFIX: &str = ".vferry-lease";
/// How long a lock may be in the way of a VM that is on its way.
const PATIENCE: Duration = Duration::from_secs(1);
/// When to look whether it still is.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// A file or a block device, which only one host may use at a time.
///
/// Before [`acquire`](Backing::acquire) it is a name and a length: what is behind it may still be
/// written by another host. From then on until [`release`](Backing::release), it is open and
/// locked, and its lease says that it is held here.
#[derive(Debug)]
pub struct FileBacking {
    path: PathBuf,
    lease: Option<PathBuf>,
    /// Whom a lease names.
    holder: Holder,
    len: u64,
    /// Who holds it for another process, if anybody does.
    keep: Option<Box<dyn Keep>>,
    /// Others have it too while an operation is under way.
    held: Option<Arc<Held>>,
}

/// What there is of it while it may be used. The locks outlast every operation on the file.
#[derive(Debug)]
struct Held {
    // In the order in which they go: the last to be locked is the first to be unlocked.
    lease: Option<Lease>,
    image: Image,
    /// If it is to outlive the process.
    witness: Option<File>,
}

/// An image that is open and locked.
#[derive(Debug)]
struct Image(File);

impl AsFd for Held {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.image.0.as_fd()
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        lock::unlock(&self.0);
    }
}

/// Why a file cannot be a backing.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file itself.
    #[error(
        "cannot use {} for a namespace: {source}. It must exist, and be a file or block device \
         that this process may read and write",
        path.display()
    )]
    Image {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Its lease.
    #[error(
        "cannot use {} as the lease of {}: {source}. If it exists, it must be a file that this \
         process may read and write; if it does not, its folder must exist",
        path.display(), image.display()
    )]
    Lease {
        /// The lease.
        path: PathBuf,
        /// The file.
        image: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl FileBacking {
    /// Looks up a file or block device, and its length.
    ///
    /// Its lease is `lease`, which both hosts of a migration must see as one file. Without it, an
    /// image that is a file has its lease beside it, named after it with `.vferry-lease`; a block
    /// device has none, and cannot be [released](Backing::release).
    ///
    /// # Errors
    /// When the system refuses, also what will only be needed later: to read and write it, and its
    /// lease.
    pub fn new(path: &Path, lease: Option<PathBuf>) -> Result<Self, OpenError> {
        let look_up = || {
            // One image has one lease, whatever the links by which it is found.
            let path = path.canonicalize()?;
            let is_file = path.metadata()?.file_type().is_file();
            let len = length(&path)?;
            access(&path, Access::READ_OK | Access::WRITE_OK)?;
            Ok(Self {
                lease: lease.or_else(|| is_file.then(|| beside(&path))),
                path,
                holder: Holder::new()?,
                len,
                keep: None,
                held: None,
            })
        };
        let backing: Self = look_up().map_err(|source| OpenError::Image {
            path: path.into(),
            source,
        })?;
        if let Some(lease) = &backing.lease {
            check_lease(lease).map_err(|source| OpenError::Lease {
                path: lease.clone(),
                image: path.into(),
                source,
            })?;
        }
        Ok(backing)
    }

    /// The same, of which `keep` holds what another process needs to go on with it.
    #[must_use]
    pub fn kept(self, keep: Box<dyn Keep>) -> Self {
        Self {
            keep: Some(keep),
            ..self
        }
    }

    /// The file at `path` as another process has left it, with that lease, and still held by `keep`. What lies at
    /// `path` by now is of no account.
    ///
    /// # Errors
    /// When the system refuses, or its lease is not among what was left, and somebody else has it by now.
    pub fn left(
        path: &Path,
        lease: Option<PathBuf>,
        left: Left,
        keep: Box<dyn Keep>,
    ) -> io::Result<Self> {
        // It may have no name any more.
        let path = path.canonicalize().unwrap_or_else(|_| path.into());
        let image = File::from(left.image);
        // It is, by this very descriptor.
        if !lock::lock(&image).map_err(system("lock", &path))? {
            return Err(HoldError::Locked { path }.into());
        }
        let image = Image(image);
        let is_file = image.0.metadata()?.file_type().is_file();
        let mut backing = Self {
            lease: lease.or_else(|| is_file.then(|| beside(&path))),
            path,
            holder: Holder::new()?,
            len: (&image.0).seek(SeekFrom::End(0))?,
            keep: Some(keep),
            held: None,
        };
        let lease = match (&backing.lease, left.lease) {
            (Some(at), Some(left)) => Some(Lease::left(left.into(), at)?),
            // The keeper had no room for it. Whoever took it since, by its lock, is in the way here.
            (Some(at), None) => {
                let (image, me) = (&backing.path, backing.holder);
                Some(Lease::take(at, image, me, Claim::Start)?)
            }
            (None, _) => None,
        };
        if let Some(holder) = lease.as_ref().and_then(Lease::holder) {
            backing.holder = holder;
        }
        let witness = left.witness.map(File::from);
        let held = Held {
            lease,
            image,
            witness: witness.or_else(|| open_witness(&backing.path).ok()),
        };
        // All, as not all may have been.
        backing.keep(&held)?;
        backing.held = Some(Arc::new(held));
        Ok(backing)
    }

    /// Whether it has a lease, without which it cannot be [released](Backing::release).
    pub fn can_be_handed_over(&self) -> bool {
        self.lease.is_some()
    }

    /// As [`new`](Self::new) without a setting for the lease.
    ///
    /// # Errors
    /// As there.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        Self::new(path, None)
    }

    /// A start tells at once who is in the way. A VM on its way does not fail for somebody who looks
    /// at its image in that moment, as `qemu-img info` does under a lock.
    fn take_soon(&self, claim: Claim<'_>) -> Result<(Held, u64), HoldError> {
        let patience = match claim {
            Claim::Start => Duration::ZERO,
            Claim::Arrive(_) | Claim::TakeBack(_) => PATIENCE,
        };
        let deadline = Instant::now() + patience;
        loop {
            match self.take(claim) {
                Err(HoldError::Locked { .. }) if Instant::now() < deadline => sleep(LOOK_AGAIN),
                result => return result,
            }
        }
    }

    fn take(&self, claim: Claim<'_>) -> Result<(Held, u64), HoldError> {
        let path = &self.path;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(system("open", path))?;
        if !lock::lock(&file).map_err(system("lock", path))? {
            return Err(HoldError::Locked { path: path.clone() });
        }
        // A block device's length is not in its metadata.
        let len = file.seek(SeekFrom::End(0)).map_err(system("open", path))?;
        let mut lease = match (&self.lease, claim) {
            (Some(lease), _) => Some(Lease::take(lease, path, self.holder, claim)?),
            (None, Claim::Start) => None,
            (None, _) => {
                return Err(HoldError::NoLease {
                    image: path.clone(),
                });
            }
        };
        if let (Some(lease), Claim::Arrive(migration) | Claim::TakeBack(migration)) =
            (&mut lease, claim)
            && let Err(error) = forget_cached(&file)
        {
            // If this fails too, the lease says that it is held here, and nobody takes it.
            let _ = lease.hand_over(migration);
            return Err(system("forget what is cached of", path)(error));
        }
        let witness = self.keep.as_ref().map(|_| open_witness(path));
        let held = Held {
            lease,
            image: Image(file),
            witness: witness.transpose().map_err(system("open", path))?,
        };
        self.keep(&held).map_err(system("keep", path))?;
        Ok((held, len))
    }

    /// Has all parts held for another process.
    fn keep(&self, held: &Held) -> io::Result<()> {
        let Some(keep) = &self.keep else {
            return Ok(());
        };
        let parts = [
            (Part::Image, Some(&held.image.0)),
            (Part::Lease, held.lease.as_ref().map(Lease::file)),
            (Part::Witness, held.witness.as_ref()),
        ];
        let mut parts = parts
            .iter()
            .filter_map(|(part, file)| Some((*part, (*file)?)));
        parts.try_for_each(|(part, file)| keep.hold(part, file.as_fd()))
    }

    /// Nobody holds it for another process any more.
    fn let_go(&self) -> io::Result<()> {
        let Some(keep) = &self.keep else {
            return Ok(());
        };
        Part::ALL.iter().try_for_each(|part| keep.let_go(*part))
    }

    fn file(&self) -> io::Result<&File> {
        let closed = || io::Error::new(io::ErrorKind::NotConnected, "the file is not held here");
        Ok(&self.held.as_ref().ok_or_else(closed)?.image.0)
    }
}

/// Where the lease of an image is, unless it is told.
fn beside(image: &Path) -> PathBuf {
    let mut name = image.as_os_str().to_owned();
    name.push(LEASE_SUFFIX);
    name.into()
}

/// Whether a lease could be had here, as far as can be seen without touching it.
fn check_lease(path: &Path) -> io::Result<()> {
    match path.metadata() {
        Ok(found) if !found.is_file() => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is not a regular file",
        )),
        Ok(_) => Ok(access(path, Access::READ_OK | Access::WRITE_OK)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
            let folder = folder.unwrap_or(Path::new(".")).metadata()?;
            if folder.is_dir() {
                Ok(())
            } else {
                Err(io::ErrorKind::NotADirectory.into())
            }
        }
        Err(error) => Err(error),
    }
}

/// Drops what this host has cached of an image: another host has written to it since. A file system
/// that hosts share may see to that by itself; with a block device nobody does. Only once the lease
/// is had is it sure that the other host writes no more, and so that nothing stale comes back.
fn forget_cached(file: &File) -> io::Result<()> {
    // All of it: nothing is dirty, as this host made what it wrote durable before it let go.
    Ok(fadvise(file, 0, None, Advice::DontNeed)?)
}

/// Bytes of a file or block device, without keeping it open.
fn length(path: &Path) -> io::Result<u64> {
    let kind = path.metadata()?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is neither a file nor a block device",
        ));
    }
    File::open(path)?.seek(SeekFrom::End(0))
}

impl Backing for FileBacking {
    fn len(&self) -> u64 {
        self.len
    }

    fn measure(&mut self) -> io::Result<u64> {
        self.len = match &self.held {
            // Reads and writes do not use the file's position.
            Some(held) => (&held.image.0).seek(SeekFrom::End(0)),
            None => length(&self.path),
        }
        .map_err(system("find the length of", &self.path))?;
        Ok(self.len)
    }

    fn acquire(&mut self, claim: Claim<'_>) -> io::Result<()> {
        if self.held.is_none() {
            let (held, len) = self.take_soon(claim)?;
            self.held = Some(Arc::new(held));
            self.len = len;
        }
        Ok(())
    }

    fn release(&mut self, migration: &str) -> io::Result<()> {
        let Some(held) = &mut self.held else {
            return Ok(());
        };
        let path = &self.path;
        let Some(held) = Arc::get_mut(held) else {
            let why = format!("operations on {} are under way", path.display());
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, why));
        };
        let Some(lease) = &mut held.lease else {
            return Err(HoldError::NoLease {
                image: path.clone(),
            }
            .into());
        };
        lease.hand_over(migration)?;
        // With it go the locks, also those of the descriptors that are held for another process.
        self.held = None;
        // A keeper that is gone takes this process along, and the descriptors with it.
        let _ = self.let_go();
        Ok(())
    }

    fn apart(&self) -> Option<File> {
        File::open(&self.path).ok()
    }

    fn is_acquired(&self) -> bool {
        self.held.is_some()
    }

    fn has_failed_unseen(&mut self) -> bool {
        let witness = self.held.as_ref().and_then(|held| held.witness.as_ref());
        witness.is_some_and(has_failed)
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn file(&self) -> Option<OpenFile> {
        Some(self.held.clone()?)
    }

    fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.file()?.read_exact_at(data, offset)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file()?.write_all_at(data, offset)
    }

    fn flush(&self) -> io::Result<()> {
        self.file()?.sync_data()
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
        let file = self.file()?;
        loop {
            match fallocate(file, how | FallocateFlags::KEEP_SIZE, offset, len) {
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
        let mut backing = FileBacking::open(file.path()).unwrap();
        backing.acquire(Claim::Start).unwrap();
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
