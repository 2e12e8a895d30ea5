//! `cargo xtask kill-worker`

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Args;
use lab::{Lab, progress_on_stderr};
use testbed::{Devices, Options, Programs, Testbed, kill_workers};

use crate::device::{self, Device};
use crate::workspace::seed;

/// After so many kills it says how far it is.
const TOLD: u64 = 25;

/// Kills the process that serves the devices of a guest under load, at random moments. Another goes on
/// where it died, and the guest is to notice nothing but lost frames; of a disk nothing but that it is slow.
#[derive(Debug, Args)]
pub(crate) struct KillWorker {
    /// What the guest has: `nic`, or `nic,nvme`.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "nic,nvme")]
    device: Vec<Device>,
    /// How often.
    #[arg(long, value_name = "N", default_value_t = 500)]
    times: u64,
    /// The moments follow from it; another each time if left out.
    #[arg(long)]
    seed: Option<u64>,
}

pub(crate) fn run(options: &KillWorker) -> Result<ExitCode> {
    let devices = device::all(&options.device);
    ensure!(
        devices != Devices::Disk,
        "the guest's network tells how long it was away: --device nic, or nic,nvme"
    );
    let lab = Lab::ensure(&progress_on_stderr)?;
    let programs = Programs::build()?;
    let seed = seed(options.seed)?;
    eprintln!("kill-worker: --seed {seed}");
    let guest = Options {
        deaths_per_minute: Some(1000),
        packets_per_second: 400,
        devices,
        ..Options::default()
    };
    let testbed = Testbed::start(lab, programs, guest)?;
    let times = options.times;
    let kills = kill_workers(&testbed, times, seed, &|survived| {
        if survived.is_multiple_of(TOLD) {
            eprintln!("kill-worker: {survived} of {times} kills survived");
        }
    })?;
    let (longest, median) = kills.outage_ms().context("none was killed")?;
    println!(
        "kill-worker: {} of {} kills survived; outage {median:.0} ms in the middle, {longest:.0} ms at most; \
         {} and {} bytes over one TCP connection, all right",
        kills.survived, kills.killed, kills.tcp_bytes[0], kills.tcp_bytes[1]
    );
    if let (Some((longest, median)), Some(disk)) = (kills.disk_outage_ms(), &kills.disk) {
        println!(
            "kill-worker: the disk completed nothing for {median:.0} ms in the middle, {longest:.0} ms at most; {} \
             operations, {} blocks checked, {} wrong, {} errors",
            disk.operations, disk.checked_blocks, disk.wrong_blocks, disk.io_errors
        );
    }
    for fault in &kills.faults {
        println!("kill-worker: {fault}");
    }
    Ok(if kills.faults.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
