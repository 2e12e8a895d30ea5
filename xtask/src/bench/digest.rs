//! Digests of guest memory, beside what one processor can read.
//!
//! Where nobody knows what a device wrote, both hosts take digests of all guest memory while the VM
//! stands still (`ferry::comparison`), and what that takes is a part of the outage. It cannot take
//! less than reading the memory once does: the peer is a loop that adds up the words of the same mapping.
//! The hash is measured alone, too: of one page, which is in the nearest cache, as often as there are pages.
//!
//! # What was found
//!
//! The hash of a page takes about a third of what its bytes take from memory, and nothing is asked of memory
//! meanwhile unless it was before: two pages ahead are fetched, a few lines for each few that are copied. Of one page ahead
//! and sixteen lines at a time (what was done before) digests were at three quarters of reading.
//!
//! Tried and dropped: hashing guest memory in place, with no copy. It was at half: the hash reads in an order that
//! the processor's own prefetching does not see through. It would also be a reference to memory that others write.
//!
//! # What the numbers leave out
//!
//! More processors than one, of which a host takes all there are; page faults, which are taken
//! before the VM stops; huge pages, of which a guest's memory may be made.

#![expect(
    unsafe_code,
    reason = "the words of a mapping are added up as a slice, as fast as they can be"
)]

use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use anyhow::Result;
use device::{BusMaster, MapRequest};
use ferry::digest::{GuestRam, Secret, Urgency};
use ferry::link::DigestKey;
use rustix::fs::{MemfdFlags, memfd_create};
use twox_hash::XxHash3_128;
use vm_memory::{FileOffset, MmapRegion};

use super::{Report, Table, goal, machine, pinned, variants};

const PAGE: u64 = 4096;
const NAMES: [&str; 3] = [
    "the mapping's words added up",
    "digests of its pages",
    "a page in the nearest cache hashed as often",
];

pub(super) fn run(quick: bool) -> Result<Report> {
    let (rounds, mib) = if quick { (1, 64_u32) } else { (15, 1024) };
    let len = u64::from(mib) << 20;
    let machine = machine()?;
    pinned::run_on(pinned::two()?[0])?;
    let memory = File::from(memfd_create("ram", MemfdFlags::CLOEXEC)?);
    memory.set_len(len)?;
    fill(&memory, len)?;
    let bytes = usize::try_from(len)?;
    let mapping: MmapRegion =
        MmapRegion::from_file(FileOffset::new(memory.try_clone()?, 0), bytes)?;
    // SAFETY: the mapping is as long and lives as long, and nobody writes the file meanwhile.
    let words: &[u64] =
        unsafe { std::slice::from_raw_parts(mapping.as_ptr().cast(), bytes / size_of::<u64>()) };
    let bus = BusMaster::default();
    let request = MapRequest {
        iova: 0,
        size: len,
        offset: 0,
        writable: true,
    };
    bus.map(request, Some(memory.into()))?;
    let ram = GuestRam::map(bus.memory_files().remove(0))?;
    ram.touch();
    let secret = Secret::of(&DigestKey::new()?);
    let mut runs: [Vec<f64>; NAMES.len()] = Default::default();
    // The first round warms up.
    for round in 0..=rounds {
        for turn in 0..NAMES.len() {
            let which = (round + turn) % NAMES.len();
            let began = Instant::now();
            match which {
                0 => {
                    black_box(add_up(words));
                }
                1 => {
                    black_box(ram.digest(Urgency::Now, &secret)?);
                }
                _ => (0..len / PAGE).for_each(|_| hash_cached()),
            }
            let rate = f64::from(mib) / 1024.0 / began.elapsed().as_secs_f64();
            eprintln!(
                "bench: round {round} of {rounds}: {}: {rate:.2}",
                NAMES[which]
            );
            if round > 0 {
                runs[which].push(rate);
            }
        }
    }
    let variants = variants(NAMES, runs);
    let is = variants[1].paired_ratio;
    let floor = format!(
        "The floor is the reading itself. The hash alone, of a page in the nearest cache, is at {:.3}: it has to \
         fit, with a copy of each page, into the time in which memory is waited for.",
        variants[2].paired_ratio
    );
    Ok(Report {
        goals: vec![goal(
            "digests at 0.8 of reading or more",
            is,
            is >= 0.8,
            &floor,
        )],
        name: "digest",
        machine: format!("{machine}, one of them, {mib} MiB"),
        tables: vec![Table {
            what: "GiB per second",
            variants,
        }],
        ..Report::default()
    })
}

/// Something else in every page.
fn fill(memory: &File, len: u64) -> Result<()> {
    for page in 0..len / PAGE {
        memory.write_all_at(&page.to_le_bytes(), page * PAGE)?;
    }
    Ok(())
}

/// As `ferry::digest` does.
fn hash_cached() {
    let digest =
        XxHash3_128::oneshot_with_secret(black_box(&[0x5a; 192]), black_box(&[0xa5; 4096]));
    let _ = black_box(digest);
}

fn add_up(words: &[u64]) -> u64 {
    words
        .iter()
        .fold(0, |sum: u64, word| sum.wrapping_add(*word))
}
