//! Digests of guest memory.
//!
//! A page's digest is XXH3-128 of its 4096 bytes; a block's (512 pages, 2 MiB) is XXH3-128 of its
//! pages' digests, so that two sides first compare few blocks and then only the pages of those
//! that differ. Both hash with a secret of the one migration ([`Secret`]): who has a page written to
//! (a guest, a peer on its network) cannot choose one that is taken for another. It is no proof against
//! the other host.
//!
//! At the destination digests are taken inside of the pause, so the memory is mapped and touched
//! beforehand ([`GuestRam::touch`]): what remains is one copy of each page into a buffer that stays
//! in the nearest cache, and the hash of it.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use device::MemoryFile;
use thread_priority::{
    NormalThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy,
    set_thread_priority_and_policy, thread_native_id,
};
use twox_hash::XxHash3_128;
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

use crate::link::DigestKey;

/// Bytes of a page.
pub const PAGE: usize = 4096;
/// Pages of a block.
pub const BLOCK_PAGES: usize = 512;

/// Bytes of a cache line, and of those that are copied at once: few, so that what is fetched meanwhile
/// comes evenly. A processor has room for some dozens of lines on their way, and waits where there are
/// more.
const LINE: usize = 64;
const LINES: usize = 256;
/// How many pages ahead is fetched. While one is hashed nothing more is asked for, and that takes about a third
/// of what a page takes from memory: of the next page alone, the last lines would be waited for.
const AHEAD: usize = 2;

/// One file of guest memory, mapped.
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

    /// The bytes of page `page`; none beyond the end.
    pub fn read_page(&self, page: usize) -> Vec<u8> {
        let mut bytes = vec![0; self.page_len(page)];
        if let Ok(slice) = self
            .mapping
            .get_slice(page.saturating_mul(PAGE), bytes.len())
        {
            slice.copy_to(&mut bytes);
        }
        bytes
    }

    /// Puts `bytes` into page `page`; `false` if they are not as many as the page has.
    pub fn write_page(&self, page: usize, bytes: &[u8]) -> bool {
        if bytes.is_empty() || bytes.len() != self.page_len(page) {
            return false;
        }
        let slice = self.mapping.get_slice(page * PAGE, bytes.len());
        slice.map(|slice| slice.copy_from(bytes)).is_ok()
    }

    /// Bytes of page `page`: the last one may be cut short, and beyond the end there are none.
    pub fn page_len(&self, page: usize) -> usize {
        let at = page.saturating_mul(PAGE);
        self.mapping.size().saturating_sub(at).min(PAGE)
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
    pub fn digest(&self, urgency: Urgency, secret: &Secret) -> io::Result<MemoryDigest> {
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
                self.digest_pages(block * BLOCK_PAGES, digests, secret);
            }
        };
        thread::scope(|scope| {
            for _ in 0..workers {
                let named = thread::Builder::new().name("digest".into());
                named.spawn_scoped(scope, work)?;
            }
            io::Result::Ok(())
        })?;
        let secret = secret.clone();
        Ok(MemoryDigest { pages, secret })
    }

    fn digest_pages(&self, first: usize, digests: &mut [u128], secret: &Secret) {
        let mut buffer = [0; PAGE];
        for (page, digest) in (first..).zip(digests) {
            *digest = if self.page_len(page) == PAGE {
                self.copy_page(page, &mut buffer);
                secret.hash(&buffer)
            } else {
                // A last page that is cut short is hashed as far as it goes.
                secret.hash(&self.read_page(page))
            };
        }
    }

    /// Copies a whole page, and has a later one fetched meanwhile, line by line: it would else
    /// be waited for when its turn comes.
    fn copy_page(&self, page: usize, buffer: &mut [u8; PAGE]) {
        let slice = self.mapping.get_slice(page * PAGE, PAGE);
        let slice = slice.expect("within the mapping");
        for (at, copy) in (0..).step_by(LINES).zip(buffer.chunks_mut(LINES)) {
            for line in (at..at + LINES).step_by(LINE) {
                self.prefetch((page + AHEAD) * PAGE + line);
            }
            let lines = slice.subslice(at, LINES).expect("within the page");
            lines.copy_to(copy);
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[expect(unsafe_code, reason = "there is no safe prefetch")]
    fn prefetch(&self, at: usize) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let address = self.mapping.as_ptr().wrapping_add(at);
        // SAFETY: a hint for the processor, which reads nothing and takes no fault at any address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn prefetch(&self, _: usize) {}

    /// How many blocks it has.
    pub fn blocks(&self) -> usize {
        self.pages().div_ceil(BLOCK_PAGES)
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

/// What both sides of one migration hash with. Nobody else knows it, so nobody can write pages whose
/// digests are the same.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<[u8; 12 * size_of::<u128>()]>);

impl Secret {
    /// That of the migration with this key.
    pub fn of(key: &DigestKey) -> Self {
        let mut secret = [0; _];
        for (number, part) in (0..).zip(secret.as_chunks_mut().0) {
            *part = XxHash3_128::oneshot_with_seed(number, key.bytes()).to_le_bytes();
        }
        Self(Arc::new(secret))
    }

    fn hash(&self, bytes: &[u8]) -> u128 {
        let digest = XxHash3_128::oneshot_with_secret(&*self.0, bytes);
        digest.expect("it is longer than the 136 bytes that are needed")
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// The digests of one memory file at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryDigest {
    pages: Vec<u128>,
    secret: Secret,
}

impl MemoryDigest {
    /// Bytes of the file, in whole pages.
    pub fn file_len(&self) -> u64 {
        (self.pages.len() * PAGE) as u64
    }

    /// Takes the digest of page `page` of `ram`, whose digests these are, once more.
    pub fn renew(&mut self, ram: &GuestRam, page: usize) {
        if let Some(digest) = self.pages.get_mut(page) {
            ram.digest_pages(page, std::slice::from_mut(digest), &self.secret);
        }
    }

    /// The digests of the blocks.
    pub fn blocks(&self) -> Vec<u128> {
        let digest = |pages: &[u128]| self.secret.hash(&to_bytes(pages));
        self.pages.chunks(BLOCK_PAGES).map(digest).collect()
    }

    /// The digests of block `index`'s pages; empty if there is no such block.
    pub fn block_pages(&self, index: usize) -> &[u128] {
        let pages = self.pages.chunks(BLOCK_PAGES).nth(index);
        pages.unwrap_or_default()
    }

    /// The blocks whose digests differ from `others`.
    pub fn differing_blocks(&self, others: &[u128]) -> Vec<usize> {
        differing(&self.blocks(), others).collect()
    }

    /// The pages (by number in the file) of block `index` whose digests differ from `others`.
    pub fn differing_pages(&self, index: usize, others: &[u128]) -> Vec<usize> {
        let pages = differing(self.block_pages(index), others);
        pages.map(|page| index * BLOCK_PAGES + page).collect()
    }
}

/// Digests as they travel: 16 bytes each, little endian.
pub(crate) fn to_bytes(digests: &[u128]) -> Vec<u8> {
    digests.iter().flat_map(|one| one.to_le_bytes()).collect()
}

/// The digests that [`to_bytes`] has made these bytes of.
pub(crate) fn from_bytes(bytes: &[u8]) -> Vec<u128> {
    let (digests, _) = bytes.as_chunks();
    let digests = digests.iter();
    digests.map(|one| u128::from_le_bytes(*one)).collect()
}

fn differing(own: &[u128], others: &[u128]) -> impl Iterator<Item = usize> {
    let own = own.iter().enumerate();
    own.filter_map(|(index, own)| (others.get(index) != Some(own)).then_some(index))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use device::{BusMaster, MapRequest};

    use super::*;

    pub(crate) fn memory(pages: usize) -> File {
        let fd = rustix::fs::memfd_create("ram", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(fd);
        file.set_len((pages * PAGE) as u64).unwrap();
        file
    }

    /// `file` as guest memory from address `iova` on.
    pub(crate) fn ram(file: &File, iova: u64) -> GuestRam {
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
        ram.digest(Urgency::Now, &Secret::of(&DigestKey::of(1)))
            .unwrap()
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
            .flat_map(|i| a.differing_pages(i, b.block_pages(i)))
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
    fn a_page_is_written_whole_and_within_the_memory_only() {
        let memory = memory(2);
        let ram = ram(&memory, 0);
        assert!(ram.write_page(1, &[7; PAGE]));
        assert_eq!(ram.read_page(1), [7; PAGE]);
        assert_eq!(ram.read_page(0), [0; PAGE]);
        for (page, len) in [(1, PAGE - 1), (1, PAGE + 1), (2, PAGE), (2, 0)] {
            assert!(!ram.write_page(page, &vec![9; len]));
        }
        assert!(!ram.write_page(usize::MAX, &[9; PAGE]));
        assert!(ram.read_page(usize::MAX).is_empty());
        assert_eq!(ram.read_page(1), [7; PAGE]);
    }

    #[test]
    fn the_background_comes_to_the_same() {
        let memory = memory(700);
        memory.write_all_at(&[3; 9], 5 * PAGE as u64).unwrap();
        let background = ram(&memory, 0);
        let background = background
            .digest(Urgency::Background, &Secret::of(&DigestKey::of(1)))
            .unwrap();
        assert_eq!(background, digest(&memory));
    }

    #[test]
    fn what_is_not_known_of_the_other_side_differs() {
        let own = digest(&memory(1024));
        let other = digest(&memory(512));
        assert_eq!(own.differing_blocks(&other.blocks()), [1]);
        assert_eq!(own.differing_pages(0, &[]).len(), 512);
        assert!(own.block_pages(99).is_empty());
    }

    #[test]
    fn another_migration_has_other_digests() {
        let ram = ram(&memory(1), 0);
        let of = |key| {
            let secret = Secret::of(&DigestKey::of(key));
            ram.digest(Urgency::Now, &secret).unwrap()
        };
        assert_eq!(of(1), of(1));
        assert_eq!(of(1).differing_pages(0, of(2).block_pages(0)), [0]);
    }
}
