//! `cargo xtask bench log`
//!
//! What it costs that a device's DMA is logged: writes of 4 KiB through the gate and the map that
//! devices have ([`BusMaster`]), beside the same way with memory that keeps no log, beside a plain
//! copy of the same bytes. Once over 256 KiB, which stay in the processor's caches and so show the
//! log most, and once over more than they hold. A run is about a millisecond, so that what else the
//! machine does meets either all of a round or few of the rounds: the median of paired ratios is what
//! counts.
//!
//! And what it costs to look for the pages that were written, and to mark them: every second page of
//! a range, so that no word of the log is all ones, beside a plain copy of the pages' log.
//!
//! # What was found
//!
//! The floor of a write that has to be marked is an atomic OR, which on x86 waits until the data before it is
//! visible: it is measured alone, beside the write that is not logged. A write to a page that is marked already
//! does without. That would be wrong if marks were taken while a burst is under way, as a processor may look
//! before its data is visible, and somebody take the mark and read the page; they are taken under the gate's lock
//! (`device`'s `memory::written`). So what a device pays in a migration is one OR for each page and drain, of
//! which there are fifty a second, and in between nothing but looks.
//!
//! Tried and dropped: the look after the data, where vm-memory calls its bitmap. It made a write of 4 KiB in the caches
//! longer than the OR did: the last 12 bits of the mark's address are those of one of the page's stores, and the
//! processor waits for that.
//!
//! # What the numbers leave out
//!
//! QEMU's log, which the sidecar marks, is shared memory that QEMU clears meanwhile; here the pages
//! are marked in one of the same form that nobody else looks at. Where the guest has the memory (the
//! sidecar's layout) is not looked up.

use std::collections::BTreeMap;
use std::fs::File;
use std::hint::black_box;
use std::sync::RwLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use device::{BusMaster, DirtySink, GuestMemory, MapRequest, MemoryId};
use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

use super::{Report, Table, goal, machine, pinned, variants};

const PAGE: usize = 4096;
const SMALL: usize = 256 << 10;
const LARGE: usize = 256 << 20;
const WAYS: [&str; 5] = [
    "DMA, not logged",
    "DMA, logged",
    "DMA, logged, each page for the first time",
    "DMA, not logged, and one atomic OR",
    "plain copy",
];
const MARKS: [&str; 2] = ["copy of the log's words", "found and marked"];

pub(super) fn run(quick: bool) -> Result<Report> {
    let (rounds, writes) = if quick { (11, 8192) } else { (301, 8192) };
    let machine = machine()?;
    pinned::run_on(pinned::two()?[0])?;
    let mut tables = vec![
        Table {
            what: "writes of 4 KiB over 256 KiB, nanoseconds each",
            variants: writes_over(SMALL, rounds, writes)?,
        },
        Table {
            what: "writes of 4 KiB over 256 MiB, nanoseconds each",
            variants: writes_over(LARGE, rounds, writes)?,
        },
    ];
    for (pages, what) in [
        (1000, "1k pages found and marked, microseconds"),
        (10_000, "10k pages found and marked, microseconds"),
        (100_000, "100k pages found and marked, microseconds"),
    ] {
        let variants = marks(pages, rounds)?;
        tables.push(Table { what, variants });
    }
    let in_cache = |which: usize| tables[0].variants[which].paired_ratio;
    let floor = format!(
        "Marks are taken before each run, some dozens of times as often as in a migration. Where every write is \
         the first to its page since then it is {:.3}; the floor of that, an atomic OR that marks nothing, {:.3}. \
         The rest are looks at whether DMA is allowed and where the page is, of which the write that is not \
         logged has the same.",
        in_cache(2),
        in_cache(3)
    );
    let marked = tables[4].variants[1].median / 1e3;
    let goals = vec![
        goal(
            "logged writes of 4 KiB below 1.03, in the caches",
            in_cache(1),
            in_cache(1) < 1.03,
            &floor,
        ),
        goal(
            "100k pages marked within 5 ms",
            marked,
            marked <= 5.0,
            "The log is one that nobody else looks at.",
        ),
    ];
    Ok(Report {
        goals,
        name: "log",
        machine: format!("{machine}, one of them, {writes} writes a run"),
        tables,
        ..Report::default()
    })
}

/// Memory of the same kind, and the same way to it, without a log.
struct Unlogged(RwLock<BTreeMap<u64, MmapRegion<()>>>);

impl Unlogged {
    fn write(&self, iova: u64, data: &[u8]) -> Result<()> {
        let gate = self.0.read().ok().context("a writer panicked")?;
        let (start, region) = gate.range(..=iova).next_back().context("not mapped")?;
        let at = usize::try_from(iova - start)?;
        Ok(region.as_volatile_slice().write_slice(data, at)?)
    }
}

fn writes_over(bytes: usize, rounds: usize, writes: usize) -> Result<Vec<super::Variant>> {
    // The same pages, so that both find them in the same places of the caches.
    let memory = memory(bytes as u64)?;
    let logged = bus(bytes as u64, memory.try_clone()?)?;
    let region = MmapRegion::from_file(FileOffset::new(memory, 0), bytes)?;
    let unlogged = Unlogged(RwLock::new(BTreeMap::from([(0, region)])));
    let mut plain = vec![0_u8; bytes];
    let data = [0x5a; PAGE];
    let pages = bytes / PAGE;
    let mut runs: [Vec<f64>; WAYS.len()] = Default::default();
    let bit = AtomicU64::new(0);
    let mut write = |which: usize, number: usize| -> Result<()> {
        let at = number % pages * PAGE;
        let data = black_box(&data);
        match which {
            0 => unlogged.write(at as u64, data)?,
            1 | 2 => {
                let dma = logged.begin().context("bus mastering is off")?;
                dma.write(at as u64, data)?;
            }
            3 => {
                unlogged.write(at as u64, data)?;
                bit.fetch_or(1 << (number % 64), Ordering::SeqCst);
            }
            _ => plain[at..at + PAGE].copy_from_slice(data),
        }
        Ok(())
    };
    // The first round is for the page faults.
    for round in 0..=rounds {
        let count = if round == 0 { pages } else { writes };
        for turn in 0..WAYS.len() {
            let which = (round + turn) % WAYS.len();
            // After so many, pages are written again.
            let part = if which == 2 { pages.min(count) } else { count };
            let mut took = Duration::ZERO;
            for first in (0..count).step_by(part) {
                logged.discard_dirty();
                let began = Instant::now();
                for number in first..first + part {
                    write(which, round * writes + number)?;
                }
                took += began.elapsed();
            }
            if round > 0 {
                #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
                let nanos = took.as_secs_f64() * 1e9 / count as f64;
                runs[which].push(nanos);
            }
        }
    }
    black_box(&plain);
    Ok(variants(WAYS, runs))
}

/// A log in QEMU's form.
struct Log(Vec<AtomicU64>);

impl DirtySink for Log {
    fn mark_words(&mut self, _: MemoryId, first_page: u64, words: &[u64]) {
        let first = usize::try_from(first_page / 64).unwrap_or(usize::MAX);
        for (chunk, word) in self.0.iter().skip(first).zip(words) {
            if *word != 0 {
                chunk.fetch_or(*word, Ordering::SeqCst);
            }
        }
    }
}

fn marks(count: u64, rounds: usize) -> Result<Vec<super::Variant>> {
    let pages = count * 2;
    let bus = bus(pages * PAGE as u64, memory(pages * PAGE as u64)?)?;
    let words = usize::try_from(pages.div_ceil(64))?;
    let mut log = Log((0..words).map(|_| AtomicU64::new(0)).collect());
    let (from, mut to) = (vec![0x5555_u64; words], vec![0_u64; words]);
    let mut runs: [Vec<f64>; 2] = Default::default();
    for round in 0..=rounds {
        for page in 0..count {
            let dma = bus.begin().context("bus mastering is off")?;
            dma.write(page * 2 * PAGE as u64, &[1])?;
        }
        let began = Instant::now();
        to.copy_from_slice(black_box(&from));
        black_box(&mut to);
        let copied = began.elapsed();
        let began = Instant::now();
        bus.drain_dirty(&mut log);
        let marked = began.elapsed();
        let bits = log.0.iter_mut().map(|chunk| {
            let bits = std::mem::take(chunk.get_mut());
            u64::from(bits.count_ones())
        });
        let found: u64 = bits.sum();
        ensure!(found == count, "{found} of {count} pages were marked");
        if round > 0 {
            runs[0].push(copied.as_secs_f64() * 1e6);
            runs[1].push(marked.as_secs_f64() * 1e6);
        }
    }
    Ok(variants(MARKS, runs))
}

/// The way of a device to this memory.
fn bus(size: u64, memory: File) -> Result<BusMaster> {
    let bus = BusMaster::default();
    let request = MapRequest {
        iova: 0,
        size,
        offset: 0,
        writable: true,
    };
    bus.map(request, Some(memory.into()))?;
    bus.set_enabled(true);
    Ok(bus)
}

fn memory(len: u64) -> Result<File> {
    let memory = File::from(memfd_create("ram", MemfdFlags::CLOEXEC)?);
    memory.set_len(len)?;
    Ok(memory)
}
