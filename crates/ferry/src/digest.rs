//! Digests of guest memory.
//!
//! A page's digest is XXH3-128 of its 4096 bytes; a block's (512 pages, 2 MiB) is XXH3-128 of its
//! pages' digests, so that two sides first compare few blocks and then only the pages of those
//! that differ. The hash finds what was lost by mistake; it is no defence against an adversary.
//!
//! At the destination digests are taken inside of the pause, so the memory is mapped and touched
//! beforehand ([`GuestRam::touch`]): what remains is one copy of each page into a buffer that stays
//! in the nearest cache, and the hash of it.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::thread;

use device::MemoryFile;
use serde::{Deserialize, Serialize};
use thread_priority::{
    NormalThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy,
    set_thread_priority_and_policy, thread_native_id,
};
use twox_hash::XxHash3_128;
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

/// Bytes of a page.
pub const PAGE: usize = 4096;
/// Pages of a block.
pub const BLOCK_PAGES: usize = 512;

/// One file of guest memory, mapped for reading.
#[derive(Debug)]
pub struct GuestRam {
    mapping: MmapRegion,
    of: MemoryFile,
}

/// How much of the machine may be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// All processors: somebody waits.
    Now,
    /// What nobody else wants.
    Background,
}

impl GuestRam {
    /// Maps all of the file.
    ///
    /// # Errors
    /// When it cannot be mapped.
    pub fn map(of: MemoryFile) -> io::Result<Self> {
        let file = of.file.try_clone()?;
        let len = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        let mapping = MmapRegion::from_file(FileOffset::new(file, 0), len);
        Ok(Self {
            mapping: mapping.map_err(io::Error::other)?,
            of,
        })
    }

    /// The guest-physical address of page `page` of the file; its offset where devices cannot
    /// reach it.
    pub fn address_of(&self, page: usize) -> u64 {
        let offset = (page * PAGE) as u64;
        self.of.address_of(offset).unwrap_or(offset)
    }

    /// Looks at every page once, so that a later digest takes no page fault. Makes pages of holes;
    /// a VMM that receives memory does the same.
    pub fn touch(&self) {
        for page in 0..self.pages() {
            let mut byte = [0_u8];
            if let Ok(slice) = self.mapping.get_slice(page * PAGE, 1) {
                slice.copy_to(&mut byte);
            }
            std::hint::black_box(byte);
        }
    }

    /// Digests all of it.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn digest(&self, urgency: Urgency) -> io::Result<MemoryDigest> {
        let mut pages = vec![0; self.pages()];
        let workers = match urgency {
            Urgency::Now => thread::available_parallelism().map_or(1, usize::from),
            Urgency::Background => 1,
        };
        // A worker takes the next block when it has done one: a processor that has other work as
        // well does less, and nobody waits for it.
        let blocks = Mutex::new(pages.chunks_mut(BLOCK_PAGES).enumerate());
        let next = || blocks.lock().unwrap_or_else(PoisonError::into_inner).next();
        let work = || {
            if urgency == Urgency::Background {
                step_back();
            }
            while let Some((block, digests)) = next() {
                self.digest_block(block, digests);
            }
        };
        thread::scope(|scope| {
            for _ in 0..workers {
                let named = thread::Builder::new().name("digest".into());
                named.spawn_scoped(scope, work)?;
            }
            io::Result::Ok(())
        })?;
        Ok(MemoryDigest { pages })
    }

    fn digest_block(&self, block: usize, digests: &mut [u128]) {
        let mut buffer = [0; PAGE];
        for (page, digest) in (block * BLOCK_PAGES..).zip(digests) {
            // A last page that is cut short is hashed as far as it goes.
            let at = page * PAGE;
            let len = PAGE.min(self.mapping.size() - at);
            let slice = self.mapping.get_slice(at, len).expect("within the mapping");
            slice.copy_to(&mut buffer[..len]);
            *digest = XxHash3_128::oneshot(&buffer[..len]);
        }
    }

    fn pages(&self) -> usize {
        self.mapping.size().div_ceil(PAGE)
    }
}

/// Gives way to every other thread: `SCHED_IDLE` (sched(7)). A low nice value is not enough, the
/// scheduler leaves a thread with it a processor of its own for a while where others share one. A
/// refusal costs the others some time, no more.
fn step_back() {
    let idle = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
    let _ = set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, idle);
}

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
    /// The digests of the blocks.
    pub fn blocks(&self) -> BlockDigests {
        let digest = |pages: &[u128]| {
            let bytes: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
            hex(XxHash3_128::oneshot(&bytes))
        };
        BlockDigests {
            len: (self.pages.len() * PAGE) as u64,
            blocks: self.pages.chunks(BLOCK_PAGES).map(digest).collect(),
        }
    }

    /// The digests of block `index`'s pages; empty if there is no such block.
    pub fn block_pages(&self, index: usize) -> Vec<String> {
        let pages = self
            .pages
            .chunks(BLOCK_PAGES)
            .nth(index)
            .unwrap_or_default();
        pages.iter().map(|page| hex(*page)).collect()
    }

    /// The blocks that differ from `other`'s. All, if the lengths differ.
    pub fn differing_blocks(&self, other: &BlockDigests) -> Vec<usize> {
        let own = self.blocks();
        let same_len = own.len == other.len && own.blocks.len() == other.blocks.len();
        (0..own.blocks.len())
            .filter(|&i| !same_len || own.blocks[i] != other.blocks[i])
            .collect()
    }

    /// The pages (by number in the file) of block `index` that differ from `other`'s.
    pub fn differing_pages(&self, index: usize, other: &[String]) -> Vec<usize> {
        let own = self.block_pages(index);
        let differs = |i: &usize| other.get(*i) != Some(&own[*i]);
        (0..own.len())
            .filter(differs)
            .map(|i| index * BLOCK_PAGES + i)
            .collect()
    }
}

fn hex(digest: u128) -> String {
    format!("{digest:032x}")
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use device::{BusMaster, MapRequest};

    use super::*;

    fn memory(pages: usize) -> File {
        let fd = rustix::fs::memfd_create("ram", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(fd);
        file.set_len((pages * PAGE) as u64).unwrap();
        file
    }

    /// `file` as guest memory from address `iova` on.
    fn ram(file: &File, iova: u64) -> GuestRam {
        let size = file.metadata().unwrap().len();
        let request = MapRequest {
            iova,
            size,
            offset: 0,
            writable: true,
        };
        let bus = BusMaster::default();
        bus.map(request, Some(file.try_clone().unwrap().into()))
            .unwrap();
        GuestRam::map(bus.memory_files().remove(0)).unwrap()
    }

    fn digest(file: &File) -> MemoryDigest {
        let ram = ram(file, 0);
        ram.touch();
        ram.digest(Urgency::Now).unwrap()
    }

    #[test]
    fn a_page_has_the_address_that_devices_reach_it_by() {
        let ram = ram(&memory(4), 1 << 32);
        assert_eq!(ram.address_of(3), (1 << 32) + 3 * PAGE as u64);
        assert_eq!(ram.address_of(4), 4 * PAGE as u64, "not reached");
    }

    fn differences(a: &File, b: &File) -> Vec<usize> {
        let (a, b) = (digest(a), digest(b));
        let blocks = a.differing_blocks(&b.blocks());
        blocks
            .into_iter()
            .flat_map(|i| a.differing_pages(i, &b.block_pages(i)))
            .collect()
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

    /// Bytes of the mapping that are in this process' page table, as proc(5) tells in `smaps`.
    fn mapped(ram: &GuestRam) -> usize {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let start = format!("{:x}-", ram.mapping.as_ptr() as usize);
        let mut of_ram = smaps.lines().skip_while(|line| !line.starts_with(&start));
        let rss = of_ram.find_map(|line| line.strip_prefix("Rss:"));
        let kib = rss.unwrap().trim().strip_suffix(" kB").unwrap();
        kib.parse::<usize>().unwrap() * 1024
    }

    #[test]
    fn once_touched_all_of_it_is_mapped() {
        let ram = ram(&memory(1024), 0);
        assert_eq!(mapped(&ram), 0);
        ram.touch();
        assert_eq!(mapped(&ram), 1024 * PAGE);
    }

    #[test]
    fn a_hole_is_the_same_as_zeroes() {
        let (a, b) = (memory(1024), memory(1024));
        b.write_all_at(&[0; PAGE], 700 * PAGE as u64).unwrap();
        assert_eq!(differences(&a, &b), [0usize; 0]);
    }

    #[test]
    fn the_background_comes_to_the_same() {
        let memory = memory(700);
        memory.write_all_at(&[3; 9], 5 * PAGE as u64).unwrap();
        let background = ram(&memory, 0).digest(Urgency::Background).unwrap();
        assert_eq!(background, digest(&memory));
    }

    #[test]
    fn another_length_differs_everywhere() {
        let own = digest(&memory(1024));
        let other = digest(&memory(512));
        assert_eq!(own.differing_blocks(&other.blocks()), [0, 1]);
        assert_eq!(own.differing_pages(0, &[]).len(), 512);
        assert!(own.block_pages(99).is_empty());
    }
}
