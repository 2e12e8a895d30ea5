//! `cargo xtask bench log`
//!
//! What it costs that a device's DMA is logged: writes of 4 KiB through the gate and the map that
//! devices have ([`BusMaster`]), beside the same way with memory that keeps no log, beside a plain
//! copy of the same bytes. Once over a MiB, which stays in the processor's caches and so shows the
//! log most, and once over more than they hold. A run is about a millisecond, so that what else the
//! machine does meets either all of a round or few of the rounds: the median of paired ratios is what
//! counts.
//!
//! And what it costs to look for the pages that were written, and to mark them: every second page of
//! a range, so that no word of the log is all ones, beside a plain copy of the pages' log.
//!
//! # What was found
//!
//! The floor of a logged write is an atomic OR, which on x86 waits until the data before it is
//! visible: it is measured alone, beside the write that is not logged. A look whether the page is
//! marked already, and no OR then, would be cheaper and wrong: a processor may look before its data
//! is visible, while somebody takes the mark and reads the page. The data would be lost.
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
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use device::{BusMaster, DirtySink, GuestMemory, MapRequest, MemoryId};
use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

use super::digest::one_processor;
use super::{Report, Table, goal, machine, variants};

const PAGE: usize = 4096;
const SMALL: usize = 1 << 20;
const LARGE: usize = 256 << 20;
const WAYS: [&str; 4] = [
    "DMA, not logged",
    "DMA, logged",
    "DMA, not logged, and one atomic OR",
    "plain copy",
];
const MARKS: [&str; 2] = ["copy of the log's words", "found and marked"];

pub(super) fn run(quick: bool) -> Result<Report> {
    let (rounds, writes) = if quick { (11, 8192) } else { (301, 8192) };
    let machine = machine()?;
    one_processor()?;
    let mut tables = vec![
        Table {
            what: "writes of 4 KiB over 1 MiB, nanoseconds each",
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
        "The floor, with an atomic OR that marks nothing, is {:.3}; the rest has not been taken apart.",
        in_cache(2)
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
    let logged = bus(bytes as u64)?;
    let region = MmapRegion::from_file(FileOffset::new(memory(bytes as u64)?, 0), bytes)?;
    let unlogged = Unlogged(RwLock::new(BTreeMap::from([(0, region)])));
    let mut plain = vec![0_u8; bytes];
    let data = [0x5a; PAGE];
    let pages = bytes / PAGE;
    let mut runs: [Vec<f64>; 4] = Default::default();
    let bit = AtomicU64::new(0);
    // The first round is for the page faults.
    for round in 0..=rounds {
        let count = if round == 0 { pages } else { writes };
        for turn in 0..WAYS.len() {
            let which = (round + turn) % WAYS.len();
            let began = Instant::now();
            for write in 0..count {
                let at = (round * writes + write) % pages * PAGE;
                let data = black_box(&data);
                match which {
                    0 => unlogged.write(at as u64, data)?,
                    1 => {
                        let dma = logged.begin().context("bus mastering is off")?;
                        dma.write(at as u64, data)?;
                    }
                    2 => {
                        unlogged.write(at as u64, data)?;
                        bit.fetch_or(1 << (write % 64), Ordering::SeqCst);
                    }
                    _ => plain[at..at + PAGE].copy_from_slice(data),
                }
            }
            black_box(&plain);
            if round > 0 {
                #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
                let nanos = began.elapsed().as_secs_f64() * 1e9 / count as f64;
                runs[which].push(nanos);
            }
        }
    }
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
    let bus = bus(pages * PAGE as u64)?;
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

/// The way of a device to memory of its own.
fn bus(size: u64) -> Result<BusMaster> {
    let bus = BusMaster::default();
    let request = MapRequest {
        iova: 0,
        size,
        offset: 0,
        writable: true,
    };
    bus.map(request, Some(memory(size)?.into()))?;
    bus.set_enabled(true);
    Ok(bus)
}

fn memory(len: u64) -> Result<File> {
    let memory = File::from(memfd_create("ram", MemfdFlags::CLOEXEC)?);
    memory.set_len(len)?;
    Ok(memory)
}
