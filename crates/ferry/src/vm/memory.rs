//! Guest memory as a whole, for digests.

use std::fs::File;
use std::sync::Arc;

use device::MemoryFile;
use sidecar::{FileId, LogHandle};

use super::Vm;
use crate::digest::{GuestRam, MemoryDigest, Urgency};

impl Vm {
    /// Digests of all guest memory as it is now, without haste. Meaningful only while nothing
    /// writes it.
    pub(crate) fn digest_memory(&self) -> std::io::Result<Vec<(GuestRam, MemoryDigest)>> {
        let secret = self.lock().secret.clone().ok_or_else(no_secret)?;
        let digest = |ram: GuestRam| {
            let digest = ram.digest(Urgency::Background, &secret)?;
            Ok((ram, digest))
        };
        self.guest_ram()?.into_iter().map(digest).collect()
    }

    /// Guest memory, file by file.
    pub(super) fn guest_ram(&self) -> std::io::Result<Vec<GuestRam>> {
        let mut files = memory_files(&self.0.log)?;
        // Where QEMU has not told it yet, as it waits for a VM, no virtual IOMMU is at work either.
        if files.is_empty()
            && let Some(endpoint) = self.0.endpoints.0.first()
        {
            files = endpoint.bus().memory_files();
        }
        files.into_iter().map(GuestRam::map).collect()
    }
}

/// The files that hold the guest's memory, as the sidecar knows them.
fn memory_files(log: &LogHandle) -> std::io::Result<Vec<MemoryFile>> {
    let mut files: Vec<(FileId, File, Vec<_>)> = Vec::new();
    for part in log.memory() {
        let at = (part.offset, part.gpa, part.len);
        match files.iter_mut().find(|(id, ..)| *id == part.id) {
            Some((.., parts)) => parts.push(at),
            None => files.push((part.id, part.file.try_clone()?, vec![at])),
        }
    }
    let file = |(_, file, parts)| MemoryFile::new(file, parts);
    Ok(files.into_iter().map(file).collect())
}

/// Maps all of it in the background.
pub(super) fn touch(ram: Arc<Vec<GuestRam>>) -> std::io::Result<()> {
    let touch = move || ram.iter().for_each(GuestRam::touch);
    let named = std::thread::Builder::new().name("touch".into());
    named.spawn(touch).map(drop)
}

pub(super) fn no_secret() -> std::io::Error {
    std::io::Error::other("no migration was begun")
}
