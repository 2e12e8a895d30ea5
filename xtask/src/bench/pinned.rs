//! Which processors are whose.
//!
//! All that a benchmark compares has the same two processors, used alike. What serves (a server, a host's
//! QEMU without its vCPUs, vferry, the guest's peer) has the first, what is served (a driver, a guest's vCPUs) the second: so
//! nothing that is measured waits because the kernel has put two of its threads on one processor in one run
//! and not in the next, and a device that is emulated in QEMU's own threads has as much as one that is not. Guests
//! that move are two hosts' and have two vCPUs: each host's other threads have a processor, and each vCPU
//! has one. Where there is one processor it is everybody's.

use std::sync::OnceLock;

use anyhow::{Context, Result};
use rustix::thread::{CpuSet, sched_getaffinity};
use testbed::Processors;

/// Asked for once: a thread that has been put on one of them may use no other.
static TWO: OnceLock<[usize; 2]> = OnceLock::new();

/// The two, of those that this process may use.
pub(super) fn two() -> Result<[usize; 2]> {
    if let Some(two) = TWO.get() {
        return Ok(*two);
    }
    let allowed = sched_getaffinity(None)?;
    let mut all = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
    let first = all.next().context("no processor to run on")?;
    Ok(*TWO.get_or_init(|| [first, all.next().unwrap_or(first)]))
}

/// From now on this thread, and what it starts, runs on this one.
pub(super) fn run_on(processor: usize) -> Result<()> {
    testbed::run_on(None, processor)
}

/// For a guest that stays on one host. This thread, and so the guest's peer, is with what serves.
pub(super) fn serving() -> Result<Processors> {
    let [serves, guest] = two()?;
    run_on(serves)?;
    Ok(Processors {
        hosts: vec![serves],
        vcpus: vec![guest],
    })
}

/// For guests that move. Their peer is on the first host's processor.
pub(super) fn moving() -> Result<Processors> {
    let both = two()?;
    run_on(both[0])?;
    Ok(Processors {
        hosts: both.to_vec(),
        vcpus: both.to_vec(),
    })
}
