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

#[cfg(test)]
mod tests {
    use device::Claim;
    use keeper::KeeperHere;
    use nvme::Backing as _;

    use super::*;

    /// A disk in a folder, and the keeper of its processes.
    struct Rig {
        folder: tempfile::TempDir,
        keeper: KeeperHere,
        worker: Arc<Worker>,
    }

    impl Rig {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("disk"), [0; 4096]).unwrap();
            let keeper = KeeperHere::new();
            let worker = Arc::new(keeper.worker().unwrap());
            Self {
                folder,
                keeper,
                worker,
            }
        }

        /// One process had it, and is gone.
        fn of_one_that_died() -> Self {
            let rig = Self::new();
            let mut first = rig.fresh();
            first.acquire(Claim::Start).unwrap();
            die(first);
            rig
        }

        fn keep(&self) -> InKeeper {
            InKeeper {
                worker: Arc::clone(&self.worker),
                prefix: "device/disk0".into(),
            }
        }

        fn fresh(&self) -> FileBacking {
            let image = self.folder.path().join("disk");
            FileBacking::new(&image, None)
                .unwrap()
                .kept(Box::new(self.keep()))
        }

        fn held(&self) -> Held {
            self.keeper.held(&self.worker).unwrap()
        }

        /// What a successor finds.
        fn left(&self, held: &mut Held) -> Option<FileBacking> {
            let image = self.folder.path().join("disk");
            let left = self.keep().left(held).unwrap()?;
            Some(FileBacking::left(&image, None, left, Box::new(self.keep())).unwrap())
        }

        fn is_locked(&self) -> bool {
            let image = self.folder.path().join("disk");
            let mut other = FileBacking::new(&image, None).unwrap();
            other.acquire(Claim::Start).is_err()
        }
    }

    /// As a process ends that is killed, but that its descriptors are not closed.
    fn die(backing: FileBacking) {
        std::mem::forget(backing);
    }

    #[test]
    fn what_one_process_leaves_another_goes_on_with_hands_over_and_takes_back() {
        let rig = Rig::new();
        let mut first = rig.fresh();
        assert!(rig.left(&mut rig.held()).is_none(), "nobody has it yet");
        first.acquire(Claim::Start).unwrap();
        first.write(0, b"abc").unwrap();
        die(first);
        let mut held = rig.held();
        assert_eq!(held.len(), 3);
        let mut second = rig.left(&mut held).unwrap();
        assert!(second.is_acquired() && !second.has_failed_unseen());
        assert!(rig.is_locked());
        let mut data = [0; 3];
        second.read(0, &mut data).unwrap();
        assert_eq!(&data, b"abc");
        second.release("m1").unwrap();
        assert!(!second.is_acquired() && rig.held().is_empty());
        second.acquire(Claim::TakeBack("m1")).unwrap();
        die(second);
        let mut third = rig.left(&mut rig.held()).unwrap();
        third.release("m2").unwrap();
        // No lock is left, whoever has a descriptor: the other host takes it.
        let mut elsewhere = rig.fresh();
        elsewhere.acquire(Claim::Arrive("m2")).unwrap();
    }

    #[test]
    fn an_image_whose_name_is_gone_is_gone_on_with() {
        let rig = Rig::of_one_that_died();
        std::fs::remove_file(rig.folder.path().join("disk")).unwrap();
        let second = rig.left(&mut rig.held()).unwrap();
        second.write(0, b"abc").unwrap();
    }

    #[test]
    fn what_there_was_no_room_for_is_had_anew() {
        let rig = Rig::new();
        let mut first = rig.fresh();
        first.acquire(Claim::Start).unwrap();
        // That unlocks it: of the lease's descriptor, too, there is none but the keeper's.
        drop(first);
        for part in [Part::Lease, Part::Witness] {
            rig.keep().let_go(part).unwrap();
        }
        let second = rig.left(&mut rig.held()).unwrap();
        assert_eq!(rig.held().len(), 3);
        drop(second);
        // A lease without its image is nothing.
        rig.keep().let_go(Part::Image).unwrap();
        assert!(rig.left(&mut rig.held()).is_none());
        assert!(rig.held().is_empty());
        rig.fresh().acquire(Claim::Start).unwrap();
    }

    #[test]
    fn a_damaged_lease_is_in_the_way_of_a_migration_and_of_nothing_else() {
        let rig = Rig::of_one_that_died();
        let lease = rig.folder.path().join("disk.vferry-lease");
        std::fs::write(lease, [b'x'; 512]).unwrap();
        let mut second = rig.left(&mut rig.held()).unwrap();
        second.write(0, b"abc").unwrap();
        let refused = second.release("m1").unwrap_err().to_string();
        assert!(refused.contains("was changed"), "{refused}");
        assert!(second.is_acquired());
    }
}
