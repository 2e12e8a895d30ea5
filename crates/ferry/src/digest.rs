//! Digests of guest memory.
//!
//! A page's digest is XXH3-128 of its 4096 bytes; a block's (512 pages, 2 MiB) is XXH3-128 of its
//! pages' digests, so that two sides first compare few blocks and then only the pages of those
//! that differ. The hash finds what was lost by mistake; it is no defence against an adversary.
//!
//! Memory is read through its file, not through a mapping: holes are skipped without a page being
//! made, and no page fault is taken for the rest. Cost: one copy into a buffer that stays in cache.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::thread;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

/// Bytes of a page.
pub const PAGE: usize = 4096;
/// Pages of a block.
pub const BLOCK_PAGES: usize = 512;
const BLOCK: usize = PAGE * BLOCK_PAGES;

/// The digests of one memory file at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryDigest {
    pages: Vec<u128>,
}

/// What a side tells the other first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockDigests {
    /// Bytes of the file.
    pub len: u64,
    /// One digest per block, as 32 hexadecimal digits.
    pub blocks: Vec<String>,
}

impl MemoryDigest {
    /// Reads and digests all of `file`, on as many threads as the machine has processors.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn of(file: &File) -> io::Result<Self> {
        let len = file.metadata()?.len();
        let len = usize::try_from(len).map_err(io::Error::other)?;
        let mut pages = vec![zero_page(); len.div_ceil(PAGE)];
        let workers = thread::available_parallelism().map_or(1, usize::from);
        let blocks = pages.len().div_ceil(BLOCK_PAGES);
        let share = blocks.div_ceil(workers).max(1) * BLOCK_PAGES;
        thread::scope(|scope| {
            let parts: Vec<_> = pages
                .chunks_mut(share)
                .enumerate()
                .map(|(i, part)| scope.spawn(move || digest_part(file, i * share * PAGE, len, part)))
                .collect();
            parts.into_iter().try_for_each(|part| {
                part.join().unwrap_or_else(|_| Err(io::Error::other("a digest thread panicked")))
            })
        })?;
        Ok(Self { pages })
    }

    /// The digests of the blocks.
    pub fn blocks(&self) -> BlockDigests {
        let digest = |pages: &[u128]| {
            let bytes: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
            hex(xxh3_128(&bytes))
        };
        BlockDigests {
            len: (self.pages.len() * PAGE) as u64,
            blocks: self.pages.chunks(BLOCK_PAGES).map(digest).collect(),
        }
    }

    /// The digests of block `index`'s pages; empty if there is no such block.
    pub fn block_pages(&self, index: usize) -> Vec<String> {
        let pages = self.pages.chunks(BLOCK_PAGES).nth(index).unwrap_or_default();
        pages.iter().map(|page| hex(*page)).collect()
    }

    /// The blocks that differ from `other`'s. All, if the lengths differ.
    pub fn differing_blocks(&self, other: &BlockDigests) -> Vec<usize> {
        let own = self.blocks();
        let same_len = own.len == other.len && own.blocks.len() == other.blocks.len();
        (0..own.blocks.len()).filter(|&i| !same_len || own.blocks[i] != other.blocks[i]).collect()
    }

    /// The pages (by number in the file) of block `index` that differ from `other`'s.
    pub fn differing_pages(&self, index: usize, other: &[String]) -> Vec<usize> {
        let own = self.block_pages(index);
        let differs = |i: &usize| other.get(*i) != Some(&own[*i]);
        (0..own.len()).filter(differs).map(|i| index * BLOCK_PAGES + i).collect()
    }
}

fn zero_page() -> u128 {
    xxh3_128(&[0; PAGE])
}

fn hex(digest: u128) -> String {
    format!("{digest:032x}")
}

/// Digests the pages from `start` on into `pages`, which hold the zero page's digest.
fn digest_part(file: &File, start: usize, len: usize, pages: &mut [u128]) -> io::Result<()> {
    let end = len.min(start + pages.len() * PAGE);
    let mut buffer = vec![0; BLOCK];
    let mut at = start;
    while let Some(data) = next_data(file, at, end)? {
        at = data - data % PAGE;
        let hole = next_hole(file, data, end)?;
        while at < hole {
            let count = BLOCK.min(end - at).min((hole - at).next_multiple_of(PAGE));
            let chunk = &mut buffer[..count];
            file.read_exact_at(chunk, at as u64)?;
            for page in chunk.chunks(PAGE) {
                pages[(at - start) / PAGE] = xxh3_128(page);
                at += PAGE;
            }
        }
    }
    Ok(())
}

fn next_data(file: &File, at: usize, end: usize) -> io::Result<Option<usize>> {
    if at >= end {
        return Ok(None);
    }
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(at as u64)) {
        Ok(data) => Ok(usize::try_from(data).ok().filter(|data| *data < end)),
        // No data behind `at`.
        Err(rustix::io::Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn next_hole(file: &File, at: usize, end: usize) -> io::Result<usize> {
    let hole = rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(at as u64))?;
    Ok(usize::try_from(hole).unwrap_or(end).min(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(pages: usize) -> File {
        let fd = rustix::fs::memfd_create("ram", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(fd);
        file.set_len((pages * PAGE) as u64).unwrap();
        file
    }

    fn differences(a: &File, b: &File) -> Vec<usize> {
        let (a, b) = (MemoryDigest::of(a).unwrap(), MemoryDigest::of(b).unwrap());
        let blocks = a.differing_blocks(&b.blocks());
        blocks.into_iter().flat_map(|i| a.differing_pages(i, &b.block_pages(i))).collect()
    }

    #[test]
    fn every_differing_page_is_found_and_no_other() {
        let (a, b) = (memory(3000), memory(3000));
        for page in [0, 1, 511, 512, 1700, 2999] {
            a.write_all_at(&[1; PAGE], page * PAGE as u64).unwrap();
            b.write_all_at(&[1; PAGE], page * PAGE as u64).unwrap();
        }
        assert_eq!(differences(&a, &b), [0usize; 0]);
        a.write_all_at(&[2], 1700 * PAGE as u64 + 4095).unwrap();
        b.write_all_at(&[2], 2000 * PAGE as u64).unwrap();
        a.write_all_at(&[2], 2999 * PAGE as u64).unwrap();
        assert_eq!(differences(&a, &b), [1700, 2000, 2999]);
    }

    #[test]
    fn a_hole_is_the_same_as_zeroes() {
        let (a, b) = (memory(1024), memory(1024));
        b.write_all_at(&[0; PAGE], 700 * PAGE as u64).unwrap();
        assert_eq!(differences(&a, &b), [0usize; 0]);
        let holes = rustix::fs::seek(&a, rustix::fs::SeekFrom::Data(0));
        assert_eq!(holes, Err(rustix::io::Errno::NXIO), "reading made no page");
    }

    #[test]
    fn another_length_differs_everywhere() {
        let digest = MemoryDigest::of(&memory(1024)).unwrap();
        let other = MemoryDigest::of(&memory(512)).unwrap();
        assert_eq!(digest.differing_blocks(&other.blocks()), [0, 1]);
        assert_eq!(digest.differing_pages(0, &[]).len(), 512);
        assert!(digest.block_pages(99).is_empty());
    }
}
