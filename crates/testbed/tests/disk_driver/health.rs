//! Whether the guest's disk does all that it should: the one check that follows every action.

use anyhow::{Context, Result, ensure};
use testbed::wait_until;

use crate::PATIENCE;
use crate::guest::{DISK_MIB, Guest, LOAD_MIB, NODE};

/// What the driver says whenever it has started a controller: two queues for writes and all else,
/// two for reads, none that is polled.
const STARTED: &str = "2/2/0 default/read/poll queues";
/// How that ends, whatever the numbers.
const STARTED_SOMEHOW: &str = "default/read/poll queues";

/// The kernel's words for something that went wrong anywhere.
const COMPLAINTS: [&str; 6] = [
    "WARNING:",
    "BUG:",
    "Call Trace",
    "No irq handler",
    "I/O error",
    "blocked for more than",
];

/// Its words for what went wrong with a controller, though it may be no warning to it.
const TROUBLES: [&str; 6] = ["fail", "timeout", "abort", "error", "not ready", "invalid"];

/// What the kernel says at the level of a warning of any function-level reset that was asked for.
const ASKED_FOR: [&str; 2] = [": resetting", ": reset done"];

/// The controller was found with all that it should have.
pub(crate) fn probed(guest: &Guest) -> Result<()> {
    let of_controller = [
        ("serial", "LAB0".to_owned()),
        ("state", "live".to_owned()),
        // The admin queue is one of them.
        ("queue_count", "5".to_owned()),
    ];
    for (file, expected) in of_controller {
        let value = guest.shell(&format!("cat /sys/class/nvme/nvme0/{file}"))?;
        ensure!(
            value.trim() == expected,
            "its {file} is {value:?}, not {expected}"
        );
    }
    let sectors = guest.shell("cat /sys/block/nvme0n1/size")?;
    ensure!(
        sectors.trim().parse() == Ok(DISK_MIB << 11),
        "the disk has {sectors:?} sectors"
    );
    let cache = guest.shell("cat /sys/block/nvme0n1/queue/write_cache")?;
    ensure!(
        cache.trim() == "write back",
        "without flushes its write cache loses data: {cache:?}"
    );
    check(guest, 1)
}

/// Checks the guest's disk; the driver must have started the controller so often since the last
/// check.
pub(crate) fn check(guest: &Guest, starts: usize) -> Result<()> {
    wait_until("the controller is live", PATIENCE, || {
        let state = guest.shell("cat /sys/class/nvme/nvme0/state")?;
        Ok(state.trim() == "live")
    })?;
    let queues = guest.shell("ls /sys/block/nvme0n1/mq | wc -l")?;
    ensure!(
        queues.trim() == "4",
        "the disk has {queues:?} queues, not 4"
    );
    guest.wait_for_load()?;
    every_queue_works(guest)?;
    kernel_has_no_complaint(guest, starts)
}

/// Each processor writes what the other one reads, and all queues interrupt.
fn every_queue_works(guest: &Guest) -> Result<()> {
    let before = queue_interrupts(guest)?;
    for (writer, reader) in [(0b01, 0b10), (0b10, 0b01)] {
        guest
            .shell(&format!(
                "set -e; exec 2> /tmp/dd.log; trap 'cat /tmp/dd.log' EXIT; cd /tmp; \
                 dd if=/dev/urandom of=written bs=64k count=1; \
                 taskset {writer} dd if=written of={NODE} bs=64k seek={} oflag=direct; \
                 taskset {reader} dd if={NODE} of=read bs=64k skip={} count=1 iflag=direct; \
                 cmp written read > /dev/null",
                LOAD_MIB * 16,
                LOAD_MIB * 16
            ))
            .with_context(|| format!("written by processors {writer:#b}, read by {reader:#b}"))?;
    }
    let after = queue_interrupts(guest)?;
    ensure!(
        before
            .iter()
            .zip(after)
            .all(|(before, after)| after > *before),
        "not all queues interrupt: {before:?}, then {after:?}"
    );
    Ok(())
}

/// The lines of the driver's I/O queues in `/proc/interrupts`, all processors together.
fn queue_interrupts(guest: &Guest) -> Result<[u64; 4]> {
    let table = guest.shell("cat /proc/interrupts")?;
    let mut counts = [0; 4];
    for (count, queue) in counts.iter_mut().zip(1..) {
        let name = format!("nvme0q{queue}");
        let line = table.lines().find(|line| line.trim_end().ends_with(&name));
        let line = line.with_context(|| format!("no interrupt {name} in:\n{table}"))?;
        *count = line
            .split_whitespace()
            .skip(1)
            .map_while(|word| word.parse::<u64>().ok())
            .sum();
    }
    Ok(counts)
}

/// Neither the kernel, of anything, nor its driver, of the controller, which it has started so often.
/// What it said is taken away, so that the next check sees only what is new.
fn kernel_has_no_complaint(guest: &Guest, starts: usize) -> Result<()> {
    let messages = guest.shell("dmesg -r -c")?;
    let bad: Vec<_> = messages.lines().filter(|line| complains(line)).collect();
    ensure!(
        bad.is_empty(),
        "the kernel complains: {bad:#?}\nof all:\n{messages}"
    );
    let count = |words: &str| messages.lines().filter(|line| line.contains(words)).count();
    ensure!(
        (count(STARTED), count(STARTED_SOMEHOW)) == (starts, starts),
        "the driver should have started the controller {starts} times with its four queues:\n{messages}"
    );
    Ok(())
}

/// The driver says nothing to warn of a sound controller.
fn complains(line: &str) -> bool {
    // The command line names the driver's parameters.
    let names_us = line.contains("nvme") && !line.contains("command line");
    let level = line.strip_prefix('<').and_then(|line| line.split_once('>'));
    // The three bits of the level.
    let level = level.and_then(|(level, _)| Some(level.parse::<u32>().ok()? & 7));
    let warns = level.is_some_and(|level| level <= KERN_WARNING);
    let in_trouble = TROUBLES
        .iter()
        .any(|words| line.to_lowercase().contains(words));
    let asked_for = ASKED_FOR.iter().any(|words| line.ends_with(words));
    COMPLAINTS.iter().any(|words| line.contains(words))
        || names_us && !asked_for && (warns || in_trouble)
}

const KERN_WARNING: u32 = 4;
