//! A file system of a host's own, which is full at a word.
//!
//! It takes root: a `tmpfs` is mounted. That may be made smaller while it is in use, down to what is in it:
//! not a byte more can be written then, and neither a file nor a socket be made.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::fs::statvfs;

/// How long others may write so much that it does not become full.
const PATIENCE: Duration = Duration::from_secs(5);
/// What fits otherwise.
const ROOM: &str = "size=256m,nr_inodes=1k";

/// Unmounted with its owner.
#[derive(Debug)]
pub(crate) struct SmallDisk(PathBuf);

impl SmallDisk {
    /// What is written to folder `at` goes there from now on.
    pub(crate) fn mount(at: &Path) -> Result<Self> {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", ROOM, "vferry-testbed"]);
        said(mount.arg(at)).context("a small file system is mounted, which takes root")?;
        Ok(Self(at.into()))
    }

    /// There is no more room.
    pub(crate) fn fill(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = statvfs(&self.0)?;
            if now.f_bfree == 0 && now.f_ffree == 0 {
                return Ok(());
            }
            // Others write and remove meanwhile: it may be too small by then, or not small enough.
            ensure!(Instant::now() < deadline, "there is still room");
            let bytes = (now.f_blocks - now.f_bfree) * now.f_frsize;
            let files = now.f_files - now.f_ffree;
            let _ = self.resize(&format!("size={bytes},nr_inodes={files}"));
        }
    }

    /// There is room again.
    pub(crate) fn clear(&self) -> Result<()> {
        self.resize(ROOM)
    }

    fn resize(&self, room: &str) -> Result<()> {
        let mut mount = Command::new("mount");
        said(mount.arg("-o").arg(format!("remount,{room}")).arg(&self.0))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Also where something is still open there. What fails is seen as a folder that is left.
        let _ = said(Command::new("umount").arg("--lazy").arg(&self.0));
    }
}

fn said(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {said}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::ErrorKind;

    use super::*;

    #[test]
    fn it_is_full_until_there_is_room_again() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("not tried: it takes root");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let disk = SmallDisk::mount(folder.path()).unwrap();
        fs::write(at("before"), [1; 5000]).unwrap();
        disk.fill().unwrap();
        let refused = fs::write(at("another"), "").unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::StorageFull);
        let refused = fs::write(at("before"), vec![2; 50_000]).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::StorageFull);
        disk.clear().unwrap();
        fs::write(at("another"), vec![3; 50_000]).unwrap();
        drop(disk);
        assert!(!at("before").exists());
    }
}
