//! A disk's image, which stays locked from one process to the next.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use keeper::{Held, Worker};
use nvme::FileBacking;
use nvme::backing::{Keep, Left, Part};

use crate::config::Disk;
use crate::daemon::Survival;

/// The image of the disk of this name: as another process has left it, if one has.
pub(super) fn open(
    name: &str,
    disk: &Disk,
    survival: Option<&Survival>,
) -> anyhow::Result<FileBacking> {
    let (file, lease) = (&disk.file, disk.lease.clone());
    let Some(survival) = survival else {
        return Ok(FileBacking::new(file, lease)?);
    };
    let keep = InKeeper {
        worker: Arc::clone(survival.worker()),
        prefix: endpoint::kept::prefix(name),
    };
    if let Some(left) = keep.left(&mut survival.held())? {
        return Ok(FileBacking::left(file, lease, left, Box::new(keep))?);
    }
    Ok(FileBacking::new(file, lease)?.kept(Box::new(keep)))
}

/// The keeper, as a disk knows it.
#[derive(Debug)]
struct InKeeper {
    worker: Arc<Worker>,
    prefix: String,
}

impl InKeeper {
    fn name(&self, part: Part) -> String {
        format!("{}/{}", self.prefix, part.name())
    }

    /// What another process has left; without the image it is nothing.
    fn left(&self, held: &mut Held) -> anyhow::Result<Option<Left>> {
        let mut take = |part| held.remove(&self.name(part));
        let (image, lease, witness) = (take(Part::Image), take(Part::Lease), take(Part::Witness));
        if image.is_none() && (lease.is_some() || witness.is_some()) {
            // There was no room for the image. Its lease is locked as long as anybody has it.
            drop((lease, witness));
            for part in Part::ALL {
                self.let_go(part)?;
            }
            self.worker.barrier()?;
            return Ok(None);
        }
        Ok(image.map(|image: OwnedFd| Left {
            image,
            lease,
            witness,
        }))
    }
}

impl Keep for InKeeper {
    fn hold(&self, part: Part, fd: BorrowedFd<'_>) -> io::Result<()> {
        let held = self.worker.hold(&self.name(part), fd);
        held.map_err(io::Error::other)
    }

    fn let_go(&self, part: Part) -> io::Result<()> {
        let told = self.worker.let_go(&self.name(part));
        told.map_err(io::Error::other)
    }
}
