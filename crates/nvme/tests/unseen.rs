//! A disk fails, and only the process that has died since was told.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use device::Claim;
use nvme::backing::{Keep, Left, Part};
use nvme::{Backing, FileBacking};

const LEN: u64 = 8 << 20;

/// A block device with less room behind it than it says, as thin ones have: what does not fit is an error when it is
/// written back, which is after the write that it was in has succeeded.
struct Thin {
    folder: tempfile::TempDir,
    device: PathBuf,
}

impl Thin {
    /// `None` without the right to make one.
    fn new() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let room = folder.path().join("room");
        std::fs::create_dir(&room).unwrap();
        run("mount", &["-t", "tmpfs", "-o", "size=1m", "none"], &room)?;
        let image = room.join("image");
        std::fs::File::create(&image).unwrap().set_len(LEN).unwrap();
        let device = run("losetup", &["--find", "--show"], &image).unwrap_or_default();
        let device = PathBuf::from(device.trim());
        // Also without a device: what is mounted goes.
        let thin = Self { folder, device };
        (!thin.device.as_os_str().is_empty()).then_some(thin)
    }
}

impl Drop for Thin {
    fn drop(&mut self) {
        let _ = run("losetup", &["--detach"], &self.device);
        let _ = run("umount", &["--lazy"], &self.folder.path().join("room"));
    }
}

/// What it says; `None` if it fails.
fn run(program: &str, options: &[&str], path: &Path) -> Option<String> {
    let output = Command::new(program)
        .args(options)
        .arg(path)
        .output()
        .ok()?;
    let said = String::from_utf8(output.stdout).ok()?;
    output.status.success().then_some(said)
}

/// Who outlives the process.
#[derive(Debug, Clone, Default)]
struct Keeper(Arc<Mutex<BTreeMap<&'static str, OwnedFd>>>);

impl Keeper {
    fn take(&self, part: Part) -> Option<OwnedFd> {
        self.0.lock().unwrap().remove(part.name())
    }
}

impl Keep for Keeper {
    fn hold(&self, part: Part, fd: BorrowedFd<'_>) -> io::Result<()> {
        let fd = fd.try_clone_to_owned()?;
        self.0.lock().unwrap().insert(part.name(), fd);
        Ok(())
    }

    fn let_go(&self, part: Part) -> io::Result<()> {
        self.take(part);
        Ok(())
    }
}

#[test]
fn an_error_of_which_only_a_dead_process_was_told_is_found_once() {
    let Some(thin) = Thin::new() else {
        eprintln!("not tested: it takes the right to mount, and a loop device");
        return;
    };
    let lease = Some(thin.folder.path().join("lease"));
    let keeper = Keeper::default();
    let first = FileBacking::new(&thin.device, lease.clone()).unwrap();
    let mut first = first.kept(Box::new(keeper.clone()));
    first.acquire(Claim::Start).unwrap();
    assert!(!first.has_failed_unseen());
    let data = vec![0x5a; 4 << 20];
    first.write(0, &data).unwrap();
    first.flush().unwrap_err();
    // That it was told is lost with it.
    std::mem::forget(first);
    let left = Left {
        image: keeper.take(Part::Image).unwrap(),
        lease: keeper.take(Part::Lease),
        witness: keeper.take(Part::Witness),
    };
    let second = FileBacking::left(&thin.device, lease, left, Box::new(keeper));
    let mut second = second.unwrap();
    second
        .flush()
        .expect("the system has told of it, and says no more");
    assert!(second.has_failed_unseen());
    assert!(!second.has_failed_unseen(), "once");
}
