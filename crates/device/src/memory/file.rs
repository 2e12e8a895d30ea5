//! The files that hold guest memory.

use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;

/// Which file it is, whatever descriptor it came by: none other has the same while it is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemoryId {
    /// Number of the device that it is on (`st_dev`).
    pub device: u64,
    /// Its number there (`st_ino`).
    pub inode: u64,
}

impl MemoryId {
    /// Of the file with this metadata.
    pub fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        }
    }
}

/// A file that holds guest memory.
#[derive(Debug)]
pub struct MemoryFile {
    /// The file.
    pub file: File,
    /// Offset in the file, address, and bytes of each part that has an address.
    parts: Vec<(u64, u64, u64)>,
}

impl MemoryFile {
    /// A file with the offset in it, the address, and the bytes of each part that has an address.
    pub fn new(file: File, parts: Vec<(u64, u64, u64)>) -> Self {
        Self { file, parts }
    }

    /// The address of the byte at `offset`, if it has one: as the function sees it of which the file
    /// was asked for, or as the guest does.
    pub fn address_of(&self, offset: u64) -> Option<u64> {
        let within = |(start, address, len): &(u64, u64, u64)| {
            let by = offset.checked_sub(*start).filter(|by| by < len)?;
            address.checked_add(by)
        };
        self.parts.iter().find_map(within)
    }

    pub(crate) fn add(&mut self, part: (u64, u64, u64)) {
        self.parts.push(part);
    }
}
