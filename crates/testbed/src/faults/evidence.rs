//! What is left of a guest that is not well, in a folder: what has to be known to understand it.
//!
//! | file | what |
//! |---|---|
//! | `host-N/` | that host's configuration, and what its vferry, its QEMU and the guest's console said |
//! | `host-N/memory.digests` | guest-physical address and XXH3-128 of each page, with the VM stopped |
//! | `memory.differs` | where those of both hosts differ, if both have memory: address and bytes of each run |
//! | `guest.json`, `guest.log` | what the guest counted, and what its kernel and its load said |
//! | `peer.json` | what the peer counted |
//!
//! The host that the VM has left, or that has run on, may have gone on since they were the same: what
//! was stale at that moment is in the verdict.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use twox_hash::XxHash3_128;

use super::aftermath;
use super::bench::Guest;
use crate::Host;

/// Longer files are no logs.
const LARGEST: u64 = 64 << 20;
const PAGE: usize = 4096;
/// For a guest that may not be well.
const PATIENCE: Duration = Duration::from_secs(20);
/// What QEMU's memory is called in `/proc/PID/fd` (`memory-backend-memfd`).
const MEMORY: &str = "/memfd:memory-backend-memfd";

/// Puts into `folder` what is left of `guest`. Goes on where one part cannot be had, and tells the
/// first such in the end.
pub(super) fn keep(folder: &Path, guest: &Guest) -> Result<()> {
    fs::create_dir_all(folder)?;
    // First of all: the guest answers only as long as it runs.
    let told = told(folder, guest);
    let hosts = [Some(&guest.testbed.host), guest.other.as_ref()];
    let mut memories = Vec::new();
    let mut first = told;
    for host in hosts.into_iter().flatten() {
        let own = aftermath::folder(host).and_then(|of| {
            let own = folder.join(format!("host-{}", name(&of)));
            copy(&of, &own)?;
            Ok(own)
        });
        let kept = own.and_then(|own| {
            if let Some(memory) = memory(host)? {
                fs::write(own.join("memory.digests"), text(&memory))?;
                memories.push(memory);
            }
            Ok(())
        });
        first = first.and(kept);
    }
    if let [one, other] = &memories[..] {
        first = first.and(
            fs::write(folder.join("memory.differs"), differences(one, other)).map_err(Into::into),
        );
    }
    first
}

/// What peer and guest tell.
fn told(folder: &Path, guest: &Guest) -> Result<()> {
    let peer = serde_json::to_vec_pretty(&guest.testbed.peer.report())?;
    fs::write(folder.join("peer.json"), peer)?;
    let hosts = [Some(&guest.testbed.host), guest.other.as_ref()];
    let mut hosts = hosts.into_iter().flatten();
    // A guest that runs nowhere tells nothing.
    let Some(host) = hosts.find(|host| aftermath::runs(host)) else {
        return Ok(());
    };
    for (file, command) in [
        ("guest.json", "lab-guest report"),
        (
            "guest.log",
            "ip addr; ip route; cat /proc/interrupts /tmp/load.log; dmesg",
        ),
    ] {
        let told = host.vm.shell(command, PATIENCE)?;
        fs::write(folder.join(file), told.stdout)?;
    }
    Ok(())
}

fn name(folder: &Path) -> String {
    let name = folder.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// Plain files of a host's folder.
fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let what = entry.metadata()?;
        if what.is_file() && what.len() <= LARGEST {
            let to = to.join(entry.file_name());
            fs::copy(entry.path(), &to)
                .with_context(|| format!("cannot write {}", to.display()))?;
        }
    }
    Ok(())
}

/// The digests of all pages, with the VM stopped; `None` if its QEMU has ended.
fn memory(host: &Host) -> Result<Option<Vec<u128>>> {
    if host.vm.exit_status().is_some() {
        return Ok(None);
    }
    // One that hangs writes nothing either.
    let _ = host.vm.qmp().stop();
    let fds = format!("/proc/{}/fd", host.vm.pid());
    for entry in fs::read_dir(&fds)? {
        let path = entry?.path();
        let is_memory = |link: &Path| link.to_string_lossy().starts_with(MEMORY);
        if fs::read_link(&path).is_ok_and(|link| is_memory(&link)) {
            return digests(&File::open(&path)?).map(Some);
        }
    }
    anyhow::bail!("no guest memory is in {fds}")
}

fn digests(memory: &File) -> Result<Vec<u128>> {
    let len = usize::try_from(memory.metadata()?.len())?;
    let mut page = [0; PAGE];
    let mut all = Vec::with_capacity(len / PAGE);
    for at in (0..len).step_by(PAGE) {
        memory.read_exact_at(&mut page, at as u64)?;
        all.push(XxHash3_128::oneshot(&page));
    }
    Ok(all)
}

fn text(digests: &[u128]) -> String {
    let mut text = String::new();
    for (number, digest) in digests.iter().enumerate() {
        let _ = writeln!(text, "{:#011x} {digest:032x}", number * PAGE);
    }
    text
}

/// Runs of pages that differ.
fn differences(one: &[u128], other: &[u128]) -> String {
    let mut text = String::new();
    let mut from = None;
    // One more than there are, which ends the last run.
    for number in 0..=one.len().max(other.len()) {
        let differs = one.get(number) != other.get(number);
        match (differs, from) {
            (true, None) => from = Some(number),
            (false, Some(first)) => {
                let bytes = (number - first) * PAGE;
                let _ = writeln!(text, "{:#011x} {bytes}", first * PAGE);
                from = None;
            }
            _ => {}
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn pages_that_differ_are_told_in_runs() {
        assert_eq!(differences(&[1, 2, 3], &[1, 2, 3]), "");
        assert_eq!(
            differences(&[1, 2, 3, 4], &[9, 9, 3]),
            "0x000000000 8192\n0x000003000 4096\n"
        );
    }

    #[test]
    fn every_page_has_its_digest() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 2 * PAGE]).unwrap();
        file.write_all(&[0; PAGE]).unwrap();
        let digests = digests(&file).unwrap();
        assert!(digests.len() == 3 && digests[0] == digests[1] && digests[1] != digests[2]);
        assert!(text(&digests).contains("0x000002000 "));
    }
}
