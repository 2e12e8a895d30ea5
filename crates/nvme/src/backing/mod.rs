//! What a namespace's blocks are kept in.

mod file;
mod kept;
mod lease;
mod lock;

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use device::Claim;

pub use file::{FileBacking, OpenError};
pub use kept::{Keep, Left, Part};
pub use lease::{HoldError, MAX_NAME};

/// A file that stays open, and locked, as long as anybody has this.
pub type OpenFile = Arc<dyn AsFd + Send + Sync>;

/// What a namespace's blocks are kept in.
///
/// All offsets and lengths are in bytes, within [`len`](Self::len). A call may wait for the disk,
/// not for the guest. One that only a single host may use at a time is read and written only after
/// [`acquire`](Self::acquire).
pub trait Backing: Send {
    /// Bytes that it holds, as far as is known.
    fn len(&self) -> u64;

    /// Whether it holds nothing.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Finds out how many bytes it holds by now.
    ///
    /// # Errors
    /// When that cannot be found out.
    fn measure(&mut self) -> io::Result<u64> {
        Ok(self.len())
    }

    /// Takes it for this host; nothing to do if it is taken. See [`device::Model::acquire`].
    ///
    /// # Errors
    /// When somebody else has it, or may come to have it.
    fn acquire(&mut self, claim: Claim<'_>) -> io::Result<()> {
        let _ = claim;
        Ok(())
    }

    /// Lets go of it, after it was [flushed](Self::flush): who asks for both can tell which of them
    /// failed. Nothing to do if it is not taken. By the name of the migration by which it came it
    /// goes back, as if it had never been taken here: the VM must not have run. See
    /// [`device::Model::release`].
    ///
    /// # Errors
    /// When that is not possible: it is taken still.
    fn release(&mut self, migration: &str) -> io::Result<()> {
        let _ = migration;
        Ok(())
    }

    /// The file that it is, if it is one, opened once more for reading. See [`device::Model::files`].
    fn apart(&self) -> Option<File> {
        None
    }

    /// Whether it is taken, by this process or by one before it that has left it to this one.
    fn is_acquired(&self) -> bool {
        true
    }

    /// Whether something that was written has not reached the disk, of which the system may have told only the
    /// process before this one: it tells each file once. Asked once, of a backing that was left to this process.
    fn has_failed_unseen(&mut self) -> bool {
        false
    }

    /// What operators know it by.
    fn name(&self) -> String {
        "a disk in memory".into()
    }

    /// The file that it is, if it is one and taken: what is done with its bytes there is done here.
    fn file(&self) -> Option<OpenFile> {
        None
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
