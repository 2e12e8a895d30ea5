//! Somebody else who wants a disk's image, as a second VM with it would, all the time.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Result, anyhow};
use device::Claim;
use nvme::{Backing as _, FileBacking};

/// A process takes longer to be replaced.
const OFTEN: Duration = Duration::from_millis(2);

/// The rival; stops when dropped.
pub(crate) struct Rival {
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Tries>>>,
}

/// What came of it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tries {
    /// How often it tried.
    pub(crate) tries: u64,
    /// How often it had the image.
    pub(crate) had: u64,
}

impl Rival {
    /// One that wants `image`.
    pub(crate) fn begin(image: &Path) -> Self {
        let stopping = Arc::<AtomicBool>::default();
        let (stop, image) = (Arc::clone(&stopping), image.to_owned());
        Self {
            stopping,
            thread: Some(thread::spawn(move || want(&image, &stop))),
        }
    }

    /// Has it give up.
    pub(crate) fn end(mut self) -> Result<Tries> {
        self.stopping.store(true, Ordering::Relaxed);
        let thread = self.thread.take().ok_or_else(|| anyhow!("it has ended"))?;
        thread.join().map_err(|_| anyhow!("it panicked"))?
    }
}

impl Drop for Rival {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
    }
}

fn want(image: &Path, stopping: &AtomicBool) -> Result<Tries> {
    // Its own: that of the guest's disk is nothing to look at for a lock.
    let lease = PathBuf::from(format!("{}.rival-lease", image.display()));
    let mut tries = Tries::default();
    while !stopping.load(Ordering::Relaxed) {
        let mut backing = FileBacking::new(image, Some(lease.clone()))?;
        tries.tries += 1;
        tries.had += u64::from(backing.acquire(Claim::Start).is_ok());
        drop(backing);
        thread::sleep(OFTEN);
    }
    Ok(tries)
}
