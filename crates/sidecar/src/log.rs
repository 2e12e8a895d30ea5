//! QEMU's dirty log: a bitmap in shared memory, one bit for each 4 KiB page of the guest, which
//! QEMU clears by exchanging whole 64-bit chunks whenever it looks for pages to send again
//! (vhost-user specification, "Migration"; `vhost_dev_sync_region` in QEMU).

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

use crate::layout::{FileId, Layout, Part};

/// log2 of the page size of the log, whatever the page size of host and guest.
pub(crate) const PAGE_SHIFT: u32 = 12;

/// No log is larger: 1 GiB of bitmap stands for 32 TiB of guest memory.
const MAX_LOG_BYTES: u64 = 1 << 30;

const CHUNK_BYTES: u64 = 8;
const CHUNK_PAGES: u64 = 64;

/// What became of the pages given to a [`Marker`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Pages whose bit was clear and is set now. A page that QEMU fetched in between counts again.
    pub newly_marked: u64,
    /// Pages outside of the log, or of a file that the guest does not have. QEMU will not send them: each of them is stale on the
    /// destination, so [`Hooks::save`](crate::Hooks::save) is not even asked when there are any.
    pub missed: u64,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.newly_marked = self.newly_marked.saturating_add(other.newly_marked);
        self.missed = self.missed.saturating_add(other.missed);
    }
}

/// Sets bits in the log that is active while this value lives.
///
/// Order is the caller's duty: first the data is in the page, then the page is marked. A bit set
/// before its data may be fetched before it, and the data is lost.
#[derive(Debug)]
pub struct Marker<'a> {
    log: &'a DirtyLog,
    layout: &'a Layout,
    totals: &'a Totals,
    tally: Tally,
}

impl Marker<'_> {
    /// Marks the page that holds guest physical address `gpa`.
    pub fn mark_page(&mut self, gpa: u64) {
        let page = gpa >> PAGE_SHIFT;
        self.or_chunk(page / CHUNK_PAGES, 1 << (page % CHUNK_PAGES));
    }

    /// Marks every page that `len` bytes from guest physical address `gpa` on touch. What lies
    /// past the end of the address space is ignored.
    pub fn mark_range(&mut self, gpa: u64, len: u64) {
        let Some(span) = len.checked_sub(1) else {
            return;
        };
        let last = gpa.saturating_add(span) >> PAGE_SHIFT;
        let mut page = gpa >> PAGE_SHIFT;
        // Outside of the log the count is all there is to do, however long the range is.
        let end = last.min(self.log.pages().saturating_sub(1));
        while page <= end {
            let first = page % CHUNK_PAGES;
            let count = (CHUNK_PAGES - first).min(end - page + 1);
            let bits = (u64::MAX >> (CHUNK_PAGES - count)) << first;
            self.or_chunk(page / CHUNK_PAGES, bits);
            page += count;
        }
        if last >= page {
            self.record(Tally {
                missed: (last - page).saturating_add(1),
                ..Tally::default()
            });
        }
    }

    /// Marks page `first_page + n` (a page number, address >> 12) for every set bit `n` of
    /// `words`, counted from bit 0 of `words[0]`.
    pub fn mark_words(&mut self, first_page: u64, words: &[u64]) {
        let shift = first_page % CHUNK_PAGES;
        let mut chunk = first_page / CHUNK_PAGES;
        for &word in words {
            self.or_chunk(chunk, word << shift);
            // `checked_shr` is `None` for the aligned case, where nothing spills over.
            let spill = u32::try_from(CHUNK_PAGES - shift)
                .ok()
                .and_then(|by| word.checked_shr(by));
            chunk = chunk.saturating_add(1);
            self.or_chunk(chunk, spill.unwrap_or(0));
        }
    }

    /// Marks page `first_page + n` of the file `file`, wherever the guest has it, for every set bit
    /// `n` of `words`.
    pub fn mark_file_words(&mut self, file: FileId, first_page: u64, words: &[u64]) {
        let layout = self.layout;
        for (index, &word) in (0u64..).zip(words).filter(|(_, word)| **word != 0) {
            let page = first_page.saturating_add(index.saturating_mul(CHUNK_PAGES));
            let missed = layout.locate(file, page, word, |guest_page, bits| {
                self.mark_words(guest_page, &[bits]);
            });
            self.record(Tally {
                missed,
                ..Tally::default()
            });
        }
    }

    /// What this marker has done so far.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    fn or_chunk(&mut self, chunk: u64, bits: u64) {
        if bits == 0 {
            return;
        }
        let tally = match self.log.or_chunk(chunk, bits) {
            Some(before) => Tally {
                newly_marked: u64::from((bits & !before).count_ones()),
                missed: 0,
            },
            None => Tally {
                newly_marked: 0,
                missed: u64::from(bits.count_ones()),
            },
        };
        self.record(tally);
    }

    fn record(&mut self, tally: Tally) {
        self.tally.add(tally);
        self.totals
            .newly_marked
            .fetch_add(tally.newly_marked, Ordering::Relaxed);
        self.totals
            .missed
            .fetch_add(tally.missed, Ordering::Relaxed);
    }
}

/// The way to the dirty log for other threads, such as the one that drains the devices' dirty
/// bits every few milliseconds. Valid for the life of the process, whatever becomes of the
/// [`Sidecar`](crate::Sidecar).
#[derive(Debug, Clone)]
pub struct LogHandle(Arc<LogSlot>);

impl LogHandle {
    pub(crate) fn new(slot: Arc<LogSlot>) -> Self {
        Self(slot)
    }

    /// Runs `f` with a marker, and returns `true`, if QEMU has a log open.
    ///
    /// Returns `false` without running `f` if not. Then nothing that devices write is sent again:
    /// either no migration is under way, or the stop hook is over, in which case a page that still
    /// waits to be marked is stale.
    ///
    /// The log cannot change or go away while `f` runs. The price is that QEMU waits for `f`
    /// when it wants to change the log, so `f` must neither be long nor wait for a [`Hooks`] call.
    /// Calls from several threads, also from within the stop hook, run side by side.
    ///
    /// [`Hooks`]: crate::Hooks
    pub fn with(&self, f: impl FnOnce(&mut Marker<'_>)) -> bool {
        self.0.lock().marker().map(|mut m| f(&mut m)).is_some()
    }

    /// Whether QEMU has the device started, without which it opens no log.
    pub fn is_started(&self) -> bool {
        self.0.started.load(Ordering::Acquire)
    }

    /// The files that hold the guest's memory, in the order of their guest-physical addresses, as
    /// QEMU has told it when the device was last started or memory was plugged in since. None before.
    pub fn memory(&self) -> Vec<Part> {
        self.0.lock().active.layout.0.clone()
    }

    /// Sum over all markers since the log was opened for the current migration, or the last one.
    pub fn totals(&self) -> Tally {
        self.0.totals()
    }
}

/// The place of the one log that is active, if any, and of what is needed to mark in it.
#[derive(Debug, Default)]
pub(crate) struct LogSlot {
    // Marking takes the lock for reading: bits are set by atomic operations, side by side. The
    // message loop takes it for writing to change the log, and so waits for those that mark.
    active: RwLock<Active>,
    totals: Totals,
    started: AtomicBool,
}

#[derive(Debug, Default)]
struct Active {
    log: Option<DirtyLog>,
    layout: Layout,
}

#[derive(Debug, Default)]
struct Totals {
    newly_marked: AtomicU64,
    missed: AtomicU64,
}

impl LogSlot {
    /// Makes `log` the active one. Returns whether there was one before.
    pub(crate) fn put(&self, log: DirtyLog) -> bool {
        self.write().log.replace(log).is_some()
    }

    /// Unmaps the active log. Returns whether there was one.
    pub(crate) fn clear(&self) -> bool {
        self.write().log.take().is_some()
    }

    /// The guest's memory is laid out so from now on.
    pub(crate) fn set_layout(&self, layout: Layout) {
        self.write().layout = layout;
    }

    pub(crate) fn set_started(&self, started: bool) {
        self.started.store(started, Ordering::Release);
    }

    pub(crate) fn lock(&self) -> ActiveLog<'_> {
        ActiveLog {
            active: self.active.read().unwrap_or_else(PoisonError::into_inner),
            totals: &self.totals,
        }
    }

    pub(crate) fn totals(&self) -> Tally {
        Tally {
            newly_marked: self.totals.newly_marked.load(Ordering::Relaxed),
            missed: self.totals.missed.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn reset_totals(&self) {
        self.totals.newly_marked.store(0, Ordering::Relaxed);
        self.totals.missed.store(0, Ordering::Relaxed);
    }

    fn write(&self) -> RwLockWriteGuard<'_, Active> {
        self.active.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The active log, kept from changing.
pub(crate) struct ActiveLog<'a> {
    active: RwLockReadGuard<'a, Active>,
    totals: &'a Totals,
}

impl ActiveLog<'_> {
    pub(crate) fn marker(&self) -> Option<Marker<'_>> {
        let Active { log, layout } = &*self.active;
        log.as_ref().map(|log| Marker {
            log,
            layout,
            totals: self.totals,
            tally: Tally::default(),
        })
    }
}

/// QEMU's log, mapped.
#[derive(Debug)]
pub(crate) struct DirtyLog {
    map: MmapRegion<()>,
    chunks: u64,
}

impl DirtyLog {
    /// Maps `size` bytes from `offset` of `file`.
    pub(crate) fn map(file: File, size: u64, offset: u64) -> Result<Self, LogError> {
        if size == 0 || size > MAX_LOG_BYTES || !size.is_multiple_of(CHUNK_BYTES) {
            return Err(LogError::Size(size));
        }
        let stat = rustix::fs::fstat(file.as_fd()).map_err(|e| LogError::Map(e.to_string()))?;
        let held = u64::try_from(stat.st_size).unwrap_or(0);
        if offset.checked_add(size).is_none_or(|end| end > held) {
            return Err(LogError::BeyondFile { size, offset, held });
        }
        let len = usize::try_from(size).map_err(|_| LogError::Size(size))?;
        let map = MmapRegion::from_file(FileOffset::new(file, offset), len)
            .map_err(|e| LogError::Map(e.to_string()))?;
        Ok(Self {
            map,
            chunks: size / CHUNK_BYTES,
        })
    }

    fn pages(&self) -> u64 {
        self.chunks * CHUNK_PAGES
    }

    /// Sets `bits` of `chunk` and returns what was there, or `None` outside of the log.
    fn or_chunk(&self, chunk: u64, bits: u64) -> Option<u64> {
        if chunk >= self.chunks {
            return None;
        }
        let at = usize::try_from(chunk * CHUNK_BYTES).ok()?;
        let chunk = self.map.get_atomic_ref::<AtomicU64>(at).ok()?;
        // Never "skip if already set": a plain load may pass the store of the page's data, and
        // QEMU may clear the bit and fetch the page between the two. The read-modify-write
        // orders the data before the bit.
        Some(u64::from_le(chunk.fetch_or(bits.to_le(), Ordering::SeqCst)))
    }
}

/// Why a log that QEMU offers cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    #[error(
        "QEMU offers a dirty log of {0} bytes: it must be a multiple of 8, neither empty nor above 1 GiB"
    )]
    Size(u64),
    #[error("QEMU offers a dirty log of {size} bytes at offset {offset} of a file of {held} bytes")]
    BeyondFile { size: u64, offset: u64, held: u64 },
    #[error("QEMU's dirty log cannot be mapped: {0}")]
    Map(String),
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::testing::memfd;

    fn slot(bytes: u64, offset: u64) -> (LogSlot, File) {
        let file = memfd(bytes + offset);
        let slot = LogSlot::default();
        let log = DirtyLog::map(file.try_clone().expect("a descriptor"), bytes, offset);
        assert!(!slot.put(log.expect("a good log")));
        (slot, file)
    }

    fn chunk(file: &File, at: u64) -> u64 {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at).expect("inside the file");
        u64::from_le_bytes(bytes)
    }

    #[test]
    fn a_page_is_the_bit_of_its_number() {
        let (slot, file) = slot(16, 4096);
        let log = slot.lock();
        let mut marker = log.marker().expect("active");
        marker.mark_page(0x3fff);
        marker.mark_page(0x3000);
        marker.mark_page(65 << 12);
        assert_eq!(chunk(&file, 4096), 1 << 3);
        assert_eq!(chunk(&file, 4104), 1 << 1);
        let expected = Tally {
            newly_marked: 2,
            missed: 0,
        };
        assert_eq!(marker.tally(), expected);
        assert_eq!(slot.totals(), expected);
    }

    #[test]
    fn pages_outside_are_counted_and_nothing_is_written() {
        let (slot, file) = slot(8, 0);
        let log = slot.lock();
        let mut marker = log.marker().expect("active");
        marker.mark_page(64 << 12);
        marker.mark_page(u64::MAX);
        marker.mark_words(u64::MAX, &[u64::MAX, 1]);
        marker.mark_range(63 << 12, 3 << 12);
        marker.mark_range(u64::MAX - 4095, u64::MAX);
        assert_eq!(chunk(&file, 0), 1 << 63);
        assert_eq!(
            marker.tally(),
            Tally {
                newly_marked: 1,
                missed: 2 + 65 + 2 + 1
            }
        );
    }

    #[test]
    fn words_land_where_their_pages_are() {
        let (slot, file) = slot(32, 0);
        let log = slot.lock();
        let mut marker = log.marker().expect("active");
        marker.mark_words(64, &[0b101]);
        assert_eq!(chunk(&file, 8), 0b101);
        marker.mark_words(124, &[0b1_1111, 0, 0b1_0001]);
        assert_eq!(chunk(&file, 8), 0xf << 60 | 0b101);
        assert_eq!(chunk(&file, 16), 1);
        assert_eq!(chunk(&file, 24), 1 << 60);
        assert_eq!(
            marker.tally(),
            Tally {
                newly_marked: 8,
                missed: 1
            }
        );
    }

    #[test]
    fn pages_of_a_file_are_marked_where_the_guest_has_them() {
        let (slot, file) = slot(24, 0);
        let memory = memfd(8 << 12);
        let id = FileId::of(&memory.metadata().expect("a file"));
        slot.set_layout(Layout(vec![Part {
            file: Arc::new(memory),
            id,
            offset: 2 << 12,
            gpa: 63 << 12,
            len: 3 << 12,
        }]));
        let log = slot.lock();
        let mut marker = log.marker().expect("active");
        marker.mark_file_words(id, 0, &[0b1_1100, 0]);
        assert_eq!(chunk(&file, 0), 1 << 63);
        assert_eq!(chunk(&file, 8), 0b11);
        assert_eq!(marker.tally().missed, 0);
        marker.mark_file_words(id, 1, &[0b1_0001]);
        assert_eq!(marker.tally().missed, 2, "the guest does not have them");
        assert_eq!(marker.tally().newly_marked, 3);
    }

    #[test]
    fn a_range_marks_every_page_it_touches() {
        let (slot, file) = slot(24, 0);
        let log = slot.lock();
        let mut marker = log.marker().expect("active");
        marker.mark_range(0x3e_fff, (66 << 12) + 2);
        assert_eq!(chunk(&file, 0), 0b11 << 62);
        assert_eq!(chunk(&file, 8), u64::MAX);
        assert_eq!(chunk(&file, 16), 0b11);
        marker.mark_range(0, 0);
        assert_eq!(marker.tally().newly_marked, 68);
    }

    #[test]
    fn a_log_beyond_its_file_is_refused() {
        let map = |size, offset| DirtyLog::map(memfd(8192), size, offset).map(drop);
        assert!(map(4096, 4096).is_ok());
        assert!(matches!(map(4104, 4096), Err(LogError::BeyondFile { .. })));
        assert!(matches!(
            map(8, u64::MAX - 4),
            Err(LogError::BeyondFile { .. })
        ));
        assert!(matches!(map(0, 0), Err(LogError::Size(0))));
        assert!(matches!(map(12, 0), Err(LogError::Size(12))));
        assert!(matches!(map(u64::MAX - 7, 0), Err(LogError::Size(_))));
        assert!(matches!(map(8, 8), Err(LogError::Map(_))));
    }

    #[test]
    fn a_handle_works_only_while_a_log_is_active() {
        let (slot, file) = slot(8, 0);
        let slot = Arc::new(slot);
        let handle = LogHandle::new(Arc::clone(&slot));
        assert!(handle.with(|m| m.mark_page(0)));
        assert!(slot.clear());
        assert!(!handle.with(|m| m.mark_page(1 << 12)));
        assert_eq!(chunk(&file, 0), 1);
    }

    #[test]
    fn changing_the_log_waits_for_those_who_mark() {
        use std::sync::atomic::AtomicBool;

        let (slot, _file) = slot(8, 0);
        let slot = Arc::new(slot);
        let handle = LogHandle::new(Arc::clone(&slot));
        let (started, wait) = std::sync::mpsc::channel();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                handle.with(|m| {
                    started.send(()).expect("the test waits");
                    for _ in 0..100_000 {
                        m.mark_page(0);
                    }
                    done.store(true, Ordering::SeqCst);
                })
            });
            wait.recv().expect("the thread marks");
            slot.clear();
            assert!(done.load(Ordering::SeqCst));
        });
    }
}
