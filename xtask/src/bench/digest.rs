//! Digests of guest memory, beside what one processor can read.
//!
//! Where nobody knows what a device wrote, both hosts take digests of all guest memory while the VM
//! stands still (`ferry::comparison`), and what that takes is a part of the outage. It cannot take
//! less than reading the memory once does: the peer is a loop that adds up the words of a vector of the
//! same size.
//!
//! # What the numbers leave out
//!
//! More processors than one, of which a host takes all there are; page faults, which are taken
//! before the VM stops. The vector is the process' own memory, which the kernel may hold in huge
//! pages; that of the digests is a memfd, as a guest's.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::Instant;

use anyhow::{Context, Result};
use device::{BusMaster, MapRequest};
use ferry::digest::{GuestRam, Secret, Urgency};
use ferry::link::DigestKey;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::{Report, Table, goal, variants};

const PAGE: u64 = 4096;
const NAMES: [&str; 2] = ["a vector added up", "digests of its pages"];

pub(super) fn run(quick: bool) -> Result<Report> {
    let (rounds, mib) = if quick { (1, 64_u32) } else { (15, 1024) };
    let len = u64::from(mib) << 20;
    one_processor()?;
    let words = vec![1_u64; usize::try_from(len)? / size_of::<u64>()];
    let memory = File::from(memfd_create("ram", MemfdFlags::CLOEXEC)?);
    memory.set_len(len)?;
    fill(&memory, len)?;
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
    let mut runs: [Vec<f64>; 2] = Default::default();
    for round in 1..=rounds {
        for turn in 0..2 {
            let which = (round + turn) % 2;
            let began = Instant::now();
            if which == 0 {
                std::hint::black_box(add_up(&words));
            } else {
                std::hint::black_box(ram.digest(Urgency::Now, &secret)?);
            }
            let rate = f64::from(mib) / 1024.0 / began.elapsed().as_secs_f64();
            eprintln!(
                "bench: round {round} of {rounds}: {}: {rate:.2}",
                NAMES[which]
            );
            runs[which].push(rate);
        }
    }
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let variants = variants(NAMES, runs);
    let is = variants[1].paired_ratio;
    let goals = vec![goal(
        "digests at 0.8 of reading or more",
        is,
        is >= 0.8,
        "The floor is the reading itself; the rest has not been taken apart.",
    )];
    Ok(Report {
        goals,
        name: "digest",
        machine: format!("{}, one processor, {mib} MiB", kernel.trim()),
        tables: vec![Table {
            what: "GiB per second",
            variants,
        }],
    })
}

/// This thread, and those that it starts, run on one of the processors that there are.
pub(super) fn one_processor() -> Result<()> {
    let allowed = sched_getaffinity(None)?;
    let first = (0..CpuSet::MAX_CPU).find(|cpu| allowed.is_set(*cpu));
    let mut one = CpuSet::new();
    one.set(first.context("no processor to run on")?);
    Ok(sched_setaffinity(None, &one)?)
}

/// Something else in every page.
fn fill(memory: &File, len: u64) -> Result<()> {
    for page in 0..len / PAGE {
        memory.write_all_at(&page.to_le_bytes(), page * PAGE)?;
    }
    Ok(())
}

fn add_up(words: &[u64]) -> u64 {
    words
        .iter()
        .fold(0, |sum: u64, word| sum.wrapping_add(*word))
}
