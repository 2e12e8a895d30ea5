//! `cargo xtask bench pause-nvme`
//!
//! As [`pause`](super::pause), of a disk: a guest with vferry's `NVMe` controller beside one with QEMU's
//! virtio-blk, each on a file that both hosts see, written and read by six programs, 4 KiB at a time. An outage is the
//! longest time in which no operation was completed, by the guest's clock and with the pause, in which
//! that clock stands still; the load rests now and then by itself, with either, for as long as the report says.
//! Operations of up to 1 MiB, which at the same rate are far fewer, would leave longer rests.
//!
//! In vferry's pause are two durable writes, of the lease by which one host at a time has the disk: the
//! source's that gives it up, and then the destination's that takes it. QEMU has no such thing. How long
//! such writes take here is measured, too.

use std::os::unix::fs::FileExt;
use std::time::Instant;

use anyhow::Result;
use lab::{Lab, progress_on_stderr};
use testbed::{Devices, Stock};

use super::moves::By;
use super::{Report, median, pause};

const DISK: [(&str, By); 2] = [
    ("virtio-blk", By::Qemu(Stock::VirtioBlk)),
    ("vferry's NVMe", By::Vferry(Devices::Disk)),
];
const WRITES: usize = 31;

pub(super) fn run(quick: bool) -> Result<Report> {
    let lab = Lab::ensure(&progress_on_stderr)?;
    let floor = format!(
        "Of vferry's, two durable writes of the disk's lease take {:.3} ms here.",
        2.0 * durable_write()?
    );
    Ok(pause::compare("pause-nvme", &lab, &DISK, &floor, quick)?.0)
}

/// Milliseconds that one takes, where the guests' disks are.
fn durable_write() -> Result<f64> {
    let file = tempfile::tempfile()?;
    let mut took = Vec::new();
    for number in 0..WRITES {
        let began = Instant::now();
        file.write_all_at(&[u8::try_from(number)?; 512], 0)?;
        file.sync_data()?;
        took.push(began.elapsed().as_secs_f64() * 1e3);
    }
    Ok(median(&took))
}
