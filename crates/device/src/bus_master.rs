//! The gate through which all of a function's DMA goes.
//!
//! A burst of DMA runs under a [`Dma`] permit. [`BusMaster::halt`] waits for the permits that are
//! out, closes the gate and only then returns: from that moment no byte of guest memory changes by
//! this function's hand until [`BusMaster::unhalt`]. Nothing is inferred from elapsed time.
//!
//! Memory maps change only under the same lock, so an unmap that has returned is final too.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::memory::{
    DirtySink, DmaError, GuestMemory, MapError, MapRequest, MemoryFile, MemoryId, MemoryMap,
    PageSet,
};

/// One function's access to guest memory.
#[derive(Debug, Default)]
pub struct BusMaster {
    gate: RwLock<Gate>,
}

#[derive(Debug, Default)]
struct Gate {
    map: MemoryMap,
    /// Bus Master Enable of the Command register (PCI Local Bus 3.0, 6.2.2).
    enabled: bool,
    /// How often it was switched on.
    starts: u64,
    halted: bool,
}

impl BusMaster {
    /// Asks for a burst of DMA. `None` while the guest has bus mastering off or after a halt.
    ///
    /// The burst ends when the permit is dropped; it must be short, as `halt` waits for it.
    #[inline]
    pub fn begin(&self) -> Option<Dma<'_>> {
        let gate = self.read();
        (gate.enabled && !gate.halted).then_some(Dma { gate })
    }

    /// Reads guest memory for the host's own ends, also while bus mastering is off and after a halt:
    /// what only reads breaks no promise of [`halt`](Self::halt).
    ///
    /// Maps do not change while the value lives; it must be short-lived, as a [`Dma`] permit.
    pub fn look(&self) -> Look<'_> {
        let gate = self.read();
        Look { gate }
    }

    /// The guest switched bus mastering on or off. Off means off: waits for bursts under way.
    pub fn set_enabled(&self, enabled: bool) {
        let mut gate = self.close();
        let started = enabled && !gate.enabled;
        gate.starts = gate.starts.wrapping_add(u64::from(started));
        gate.enabled = enabled;
    }

    /// Whether the guest has bus mastering on, and how often it was switched on: what is the same
    /// as before, and off, has written nothing meanwhile.
    pub fn enabled(&self) -> (bool, u64) {
        let gate = self.read();
        (gate.enabled, gate.starts)
    }

    /// Stops all DMA: waits for bursts under way, refuses new ones.
    pub fn halt(&self) {
        self.close().halted = true;
    }

    /// Lets DMA go on after a halt (a migration that was given up, or has arrived).
    pub fn unhalt(&self) {
        self.close().halted = false;
    }

    /// Maps `request`'s range, from `fd` if there is one.
    ///
    /// # Errors
    /// See [`MapError`]; nothing changed then.
    pub fn map(&self, request: MapRequest, fd: Option<OwnedFd>) -> Result<(), MapError> {
        self.close().map.insert(request, fd.map(File::from))
    }

    /// Unmaps exactly one mapped range.
    ///
    /// # Errors
    /// [`MapError::NotMapped`] when no mapping has this address and size.
    pub fn unmap(&self, iova: u64, size: u64) -> Result<(), MapError> {
        self.close().map.remove(iova, size)
    }

    /// Unmaps everything.
    pub fn unmap_all(&self) {
        self.close().map.clear();
    }

    /// Moves the dirty bits gathered since the last call to `sink`. Devices may go on while `sink` is
    /// told; what they write then is in the next drain.
    pub fn drain_dirty(&self, sink: &mut dyn DirtySink) {
        // Exclusive: all bursts that have set a bit, or found it set, are over.
        let written = self.close().map.take_written();
        report(&written, sink);
    }

    /// Moves to `sink` the pages that the function could write and that were unmapped since the last
    /// call. Together with those that it [can write](Self::mark_writable) after a halt they are all
    /// that it can have written, whoever moved the data.
    pub fn drain_released(&self, sink: &mut dyn DirtySink) {
        let released = self.close().map.take_released();
        report(&released, sink);
    }

    /// Reports all pages that the function can write now. Says what it wrote only after a
    /// [`halt`](Self::halt).
    pub fn mark_writable(&self, sink: &mut dyn DirtySink) {
        report(&self.read().map.writable(), sink);
    }

    /// Whether the function can write more than half of the memory of which it can reach anything,
    /// as without an IOMMU between them.
    pub fn can_write_most(&self) -> bool {
        let gate = self.read();
        let pages: u64 = gate.map.writable().values().map(PageSet::len).sum();
        pages > gate.map.file_pages() / 2
    }

    /// Reports pages that somebody else knows to be written, by their numbers on the function's bus: bit
    /// `n` of `words[i]` stands for page `first_page + 64 * i + n`. Nothing where nothing is mapped.
    pub fn mark_at(&self, first_page: u64, words: &[u64], sink: &mut dyn DirtySink) {
        self.read().map.report_at(first_page, words, sink);
    }

    /// Forgets what was gathered so far: a full copy of memory starts after this call.
    pub fn discard_dirty(&self) {
        let mut nowhere = |_: MemoryId, _: u64| {};
        self.drain_dirty(&mut nowhere);
        self.drain_released(&mut nowhere);
    }

    /// The distinct files behind the mapped memory, in the order of their lowest address: guest
    /// RAM as the VMM holds it, for digests.
    pub fn memory_files(&self) -> Vec<MemoryFile> {
        self.read().map.files()
    }

    #[inline]
    fn read(&self) -> RwLockReadGuard<'_, Gate> {
        self.gate.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) -> RwLockWriteGuard<'_, Gate> {
        self.gate.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn report(pages: &BTreeMap<MemoryId, PageSet>, sink: &mut dyn DirtySink) {
    for (file, pages) in pages {
        sink.mark_words(*file, 0, pages.words());
    }
}

/// Permission for one burst of DMA.
#[derive(Debug)]
#[must_use]
pub struct Dma<'a> {
    gate: RwLockReadGuard<'a, Gate>,
}

impl GuestMemory for Dma<'_> {
    #[inline]
    fn read(&self, iova: u64, buf: &mut [u8]) -> Result<(), DmaError> {
        self.gate.map.read(iova, buf)
    }

    #[inline]
    fn write(&self, iova: u64, data: &[u8]) -> Result<(), DmaError> {
        self.gate.map.write(iova, data)
    }

    #[inline]
    fn store_u64(&self, iova: u64, value: u64) -> Result<(), DmaError> {
        self.gate.map.store_u64(iova, value)
    }

    #[inline]
    fn store_u32(&self, iova: u64, value: u32) -> Result<(), DmaError> {
        self.gate.map.store_u32(iova, value)
    }
}

/// Guest memory to look at. Every write fails.
#[derive(Debug)]
#[must_use]
pub struct Look<'a> {
    gate: RwLockReadGuard<'a, Gate>,
}

impl Look<'_> {
    /// The end of the highest memory that is mapped, in bytes; 0 if none is.
    pub fn end(&self) -> u64 {
        self.gate.map.end()
    }
}

impl GuestMemory for Look<'_> {
    fn read(&self, iova: u64, buf: &mut [u8]) -> Result<(), DmaError> {
        self.gate.map.read(iova, buf)
    }

    fn write(&self, iova: u64, data: &[u8]) -> Result<(), DmaError> {
        let len = data.len();
        Err(DmaError { iova, len })
    }

    fn store_u64(&self, iova: u64, _: u64) -> Result<(), DmaError> {
        Err(DmaError { iova, len: 8 })
    }

    fn store_u32(&self, iova: u64, _: u32) -> Result<(), DmaError> {
        Err(DmaError { iova, len: 4 })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::memory::tests::{memfd, request};

    fn bus(pages: u64) -> (BusMaster, File) {
        let file = memfd(pages);
        let bus = BusMaster::default();
        bus.set_enabled(true);
        bus.map(request(0, pages), Some(file.try_clone().unwrap().into()))
            .unwrap();
        (bus, file)
    }

    #[test]
    fn no_burst_without_bus_master_enable() {
        let (bus, _file) = bus(1);
        bus.set_enabled(false);
        assert!(bus.begin().is_none());
        bus.set_enabled(true);
        assert!(bus.begin().is_some());
    }

    #[test]
    fn each_switching_on_is_counted_once() {
        let (bus, _file) = bus(1);
        let (_, before) = bus.enabled();
        bus.set_enabled(true);
        assert_eq!(bus.enabled(), (true, before));
        bus.set_enabled(false);
        assert_eq!(bus.enabled(), (false, before));
        bus.set_enabled(true);
        bus.set_enabled(false);
        assert_eq!(bus.enabled(), (false, before + 1));
    }

    #[test]
    fn halt_outlasts_bus_master_enable_and_ends_with_unhalt() {
        let (bus, _file) = bus(1);
        bus.halt();
        bus.set_enabled(true);
        assert!(bus.begin().is_none());
        bus.unhalt();
        assert!(bus.begin().is_some());
    }

    #[test]
    fn memory_ends_where_the_highest_range_does() {
        let (bus, file) = bus(2);
        let rom = |page| request(page, 1);
        bus.map(rom(100), None).unwrap();
        assert_eq!(bus.look().end(), 0x2000, "a range without memory counts");
        bus.map(request(10, 2), Some(file.into())).unwrap();
        assert_eq!(bus.look().end(), 0xc000);
        bus.unmap_all();
        assert_eq!(bus.look().end(), 0);
    }

    #[test]
    fn memory_can_be_looked_at_after_a_halt_but_not_written() {
        let (bus, _file) = bus(1);
        bus.begin().unwrap().write(8, &[7]).unwrap();
        bus.discard_dirty();
        bus.set_enabled(false);
        bus.halt();
        let look = bus.look();
        assert_eq!(look.end(), 0x1000);
        let mut byte = [0];
        look.read(8, &mut byte).unwrap();
        assert_eq!(byte, [7]);
        assert!(look.read(0x1000, &mut byte).is_err(), "not mapped");
        assert!(look.write(8, &[1]).is_err());
        assert!(look.store_u32(8, 1).is_err());
        assert!(look.store_u64(8, 1).is_err());
        look.read(8, &mut byte).unwrap();
        assert_eq!(byte, [7]);
        drop(look);
        bus.drain_dirty(&mut |_, page| panic!("page {page} is dirty"));
    }

    /// The promise of `halt`: a burst that has begun is over, with all its writes, when it returns.
    #[test]
    fn halt_returns_only_after_the_burst_under_way() {
        let (bus, file) = bus(1);
        let bus = Arc::new(bus);
        let halted = Arc::new(AtomicBool::new(false));
        let dma = bus.begin().unwrap();
        let other = std::thread::spawn({
            let (bus, halted) = (Arc::clone(&bus), Arc::clone(&halted));
            move || {
                bus.halt();
                halted.store(true, Ordering::SeqCst);
                let mut word = [0; 8];
                std::os::unix::fs::FileExt::read_exact_at(&file, &mut word, 0).unwrap();
                u64::from_le_bytes(word)
            }
        });
        for value in 1..=100_000 {
            dma.store_u64(0, value).unwrap();
            assert!(!halted.load(Ordering::SeqCst), "halted during a burst");
        }
        drop(dma);
        assert_eq!(other.join().unwrap(), 100_000);
        assert!(bus.begin().is_none());
    }

    /// Who takes a page's bit and then reads the page has what was written before, or the next bit.
    #[test]
    fn no_write_is_lost_between_a_bit_and_the_look_at_it() {
        let (bus, file) = bus(1);
        let done = AtomicBool::new(false);
        let value = || {
            let mut word = [0; 8];
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut word, 0).unwrap();
            u64::from_le_bytes(word)
        };
        let mut copy = 0;
        let mut carry = || {
            let mut dirty = false;
            bus.drain_dirty(&mut |_, _| dirty = true);
            if dirty {
                copy = value();
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for value in 1_u64..=20_000 {
                    bus.begin().unwrap().write(0, &value.to_le_bytes()).unwrap();
                    // The last of a row is what would be missed.
                    if value.is_multiple_of(10) {
                        std::thread::yield_now();
                    }
                }
                done.store(true, Ordering::SeqCst);
            });
            while !done.load(Ordering::SeqCst) {
                carry();
            }
        });
        carry();
        assert_eq!(copy, 20_000);
    }

    #[test]
    fn dirty_bits_survive_the_unmapping_of_their_range() {
        let (bus, _file) = bus(4);
        bus.begin().unwrap().write(0x1fff, &[1, 2]).unwrap();
        bus.unmap(0, 0x4000).unwrap();
        let mut seen = Vec::new();
        bus.drain_dirty(&mut |_, page| seen.push(page));
        assert_eq!(seen, [1, 2]);
        seen.clear();
        bus.drain_dirty(&mut |_, page| seen.push(page));
        assert!(seen.is_empty(), "drained twice");
    }

    fn pages(drain: impl FnOnce(&mut dyn DirtySink)) -> Vec<u64> {
        let mut pages = Vec::new();
        drain(&mut |_, page| pages.push(page));
        pages
    }

    /// Nobody has logged a write.
    #[test]
    fn what_could_be_written_is_known_while_it_is_mapped_and_once_after() {
        let (bus, file) = bus(2);
        let map = |request| {
            let file = file.try_clone().unwrap();
            bus.map(request, Some(file.into())).unwrap();
        };
        file.set_len(9 * 4096).unwrap();
        bus.unmap_all();
        bus.discard_dirty();
        let at = |page: u64, offset: u64| MapRequest {
            offset: offset * 4096,
            ..request(page, 1)
        };
        map(at(100, 7));
        map(at(200, 3));
        // The same page at two addresses, and one that cannot be written.
        map(at(201, 3));
        map(MapRequest {
            writable: false,
            ..at(202, 5)
        });
        assert_eq!(pages(|sink| bus.mark_writable(sink)), [3, 7]);
        assert!(!bus.can_write_most());
        map(MapRequest {
            size: 3 * 4096,
            ..at(0, 0)
        });
        assert!(bus.can_write_most(), "5 of 9");
        bus.unmap(0, 3 * 4096).unwrap();
        bus.drain_released(&mut |_, _| {});
        assert_eq!(pages(|sink| bus.drain_released(sink)), [0; 0]);
        bus.unmap(100 * 4096, 4096).unwrap();
        bus.unmap(202 * 4096, 4096).unwrap();
        assert_eq!(pages(|sink| bus.mark_writable(sink)), [3]);
        bus.unmap_all();
        assert_eq!(pages(|sink| bus.mark_writable(sink)), [0; 0]);
        assert_eq!(pages(|sink| bus.drain_released(sink)), [3, 7]);
        assert_eq!(pages(|sink| bus.drain_released(sink)), [0; 0]);
        assert_eq!(pages(|sink| bus.drain_dirty(sink)), [0; 0]);
    }
}
