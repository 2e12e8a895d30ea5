//! What of an image outlives the process that has it: the descriptors by which it is held.
//!
//! The locks are those of the open file descriptions, so whoever has a descriptor of one has the lock: nobody gets an
//! image between two processes.
//!
//! The **witness** is the image, opened once more and never made durable. The system tells each open file once of
//! what did not reach the disk (`errseq_t`, Linux), at its next `fdatasync`; a process that dies amid that takes the
//! answer along, and the next `fdatasync` of the same file succeeds. The witness has not been told, so a successor asks
//! it. An error that the guest knows of it tells as well, once: a guest that is told twice loses nothing.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;

/// One of the descriptors by which an image is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The image, locked.
    Image,
    /// Its lease, locked; not of an image without one.
    Lease,
    /// The image, to be asked for errors.
    Witness,
}

impl Part {
    /// All.
    pub const ALL: [Self; 3] = [Self::Image, Self::Lease, Self::Witness];

    /// Its name: a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Lease => "lease",
            Self::Witness => "witness",
        }
    }
}

/// Who holds an image's descriptors for another process.
pub trait Keep: std::fmt::Debug + Send + Sync {
    /// Holds a part, for whoever comes after this process.
    ///
    /// # Errors
    /// When it cannot be told to.
    fn hold(&self, part: Part, fd: BorrowedFd<'_>) -> io::Result<()>;

    /// Lets go of a part.
    ///
    /// # Errors
    /// When it cannot be told to.
    fn let_go(&self, part: Part) -> io::Result<()>;
}

/// An image that another process has left, locked.
#[derive(Debug)]
pub struct Left {
    /// See [`Part::Image`].
    pub image: OwnedFd,
    /// See [`Part::Lease`]. There may have been no room for it, as for the witness.
    pub lease: Option<OwnedFd>,
    /// See [`Part::Witness`].
    pub witness: Option<OwnedFd>,
}

/// The witness, from before anything was written.
pub(super) fn open_witness(image: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).open(image)
}

/// Whether the system has an error for the witness, which is told with this.
pub(super) fn has_failed(witness: &File) -> bool {
    /// Where no file has a page that could be waited for.
    const BEYOND: libc::off64_t = i64::MAX - 4095;
    #[expect(unsafe_code, reason = "sync_file_range has no safe wrapper")]
    // SAFETY: it is given numbers, one of them of a descriptor that is open for the call.
    let told = unsafe {
        libc::sync_file_range(
            witness.as_raw_fd(),
            BEYOND,
            1,
            libc::SYNC_FILE_RANGE_WAIT_BEFORE,
        )
    };
    let error = io::Error::last_os_error();
    let is_lost = [Errno::IO, Errno::NOSPC, Errno::DQUOT]
        .iter()
        .any(|lost| error.raw_os_error() == Some(lost.raw_os_error()));
    told != 0 && is_lost
}
