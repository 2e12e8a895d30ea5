//! Load on block devices, with every block checked.
//!
//! Each worker has a region of a device to itself and one operation on its way: so it always knows
//! what each block should hold, and as many commands are on their way as there are workers. They
//! are spread over the processors, since a driver's queues are.

mod account;
mod pattern;
mod random;
mod table;
mod target;
mod worker;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::Builder;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use clap::Args;
use rustix::thread::CpuSet;

use crate::direct::Direct;
use crate::{now_nanos, pin};
use pattern::{BLOCK, Pattern};
use target::Disk;
use worker::{Region, Worker};

pub(crate) use account::Account;
pub(crate) use random::Random;

/// How the devices are loaded.
#[derive(Debug, Args)]
pub(crate) struct DiskOptions {
    /// Workers per device, each with one operation on its way.
    #[arg(long = "disk-workers", default_value_t = 4)]
    workers: usize,
    /// MiB to read and write per second, over all devices and workers (0: all they can).
    #[arg(long = "disk-mib-per-second", default_value_t = 8)]
    mib_per_second: u64,
    /// KiB that one operation is for at most.
    #[arg(long = "disk-max-kib", default_value_t = 1024)]
    max_kib: usize,
    /// MiB of each device to use, from its beginning (0: all of it).
    #[arg(long = "disk-mib", default_value_t = 0)]
    mib: u64,
    /// The devices promise that discarded blocks read as zeroes.
    #[arg(long = "disk-discard-zeroes")]
    discard_zeroes: bool,
}

const MIB: u64 = 1024 * 1024;

/// Regions begin at multiples of this many blocks, so that they share no block of any device.
const REGION_UNIT: u64 = 4096 / BLOCK as u64;

/// Starts the load on `devices`, whose content is lost.
pub(crate) fn start(devices: &[PathBuf], options: &DiskOptions) -> Result<Arc<Account>> {
    ensure!(options.workers > 0, "--disk-workers must be 1 or more");
    let run = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos());
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the low bits tell runs apart"
    )]
    let run = run as u64;
    let mut regions = Vec::new();
    for (device, path) in (0..).zip(devices) {
        regions.extend(split(path, Pattern { run, device }, options)?);
    }
    let account = Arc::new(Account::new(regions.len(), now_nanos()));
    let rate = options.mib_per_second.saturating_mul(MIB);
    // Of a pace there is always something left, which would otherwise be none at all.
    let share = rate.div_ceil(regions.len().max(1) as u64);
    let processors = processors()?;
    for (number, region) in regions.into_iter().enumerate() {
        let processor = processors.get(number % processors.len().max(1)).copied();
        let mut worker = Worker::new(region, number, Arc::clone(&account));
        let run = move || {
            // Where it runs is a matter of which queues it uses, not of whether it does.
            if let Some(Err(error)) = processor.map(pin) {
                eprintln!("lab-guest: disk: {error:#}");
            }
            worker.run(share);
        };
        Builder::new()
            .name(format!("disk{number}"))
            .spawn(run)
            .context("cannot start a thread")?;
    }
    Ok(account)
}

/// The workers' regions of one device.
fn split(path: &Path, pattern: Pattern, options: &DiskOptions) -> Result<Vec<Region>> {
    let device = Direct::open(path)?;
    let used = match options.mib {
        0 => device.len(),
        mib => device.len().min(mib.saturating_mul(MIB)),
    };
    let workers = options.workers as u64;
    let unit = (device.unit() / BLOCK as u64).max(1);
    let aligned = REGION_UNIT.max(unit);
    let each = used / BLOCK as u64 / workers / aligned * aligned;
    ensure!(
        each > 0,
        "{} is too small for {workers} workers",
        path.display()
    );
    let blocks = usize::try_from(each).context("the device is too large")?;
    let unit = usize::try_from(unit).context("blocks too large")?;
    let longest = options.max_kib.saturating_mul(1024 / BLOCK);
    let longest = longest.min(blocks) / unit * unit;
    ensure!(longest > 0, "--disk-max-kib is less than a block");
    let disk: Arc<dyn Disk> = Arc::new(device);
    let regions = (0..workers).map(|worker| Region {
        disk: Arc::clone(&disk),
        name: path.display().to_string(),
        pattern,
        first: worker * each,
        blocks,
        unit,
        longest,
        discards_are_zeroes: options.discard_zeroes,
    });
    Ok(regions.collect())
}

/// All that are online. Those that the kernel keeps free of other work have queues too, though no
/// program runs there unless it asks to.
fn processors() -> Result<Vec<usize>> {
    let path = "/sys/devices/system/cpu/online";
    let list = std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    numbers(list.trim()).with_context(|| format!("{path} says {list:?}"))
}

/// A list as the kernel writes it (`Documentation/admin-guide/cputopology.rst`): `0-1,3`.
fn numbers(list: &str) -> Option<Vec<usize>> {
    let mut all = Vec::new();
    for range in list.split(',') {
        let (from, to) = range.split_once('-').unwrap_or((range, range));
        let (from, to) = (from.parse().ok()?, to.parse::<usize>().ok()?);
        if to >= CpuSet::MAX_CPU {
            return None;
        }
        all.extend(from..=to);
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors_are_understood() {
        assert_eq!(numbers("0"), Some(vec![0]));
        assert_eq!(numbers("0-1,3"), Some(vec![0, 1, 3]));
        assert_eq!(numbers(""), None);
        assert_eq!(numbers("0-"), None);
        assert_eq!(numbers("0-99999999"), None);
    }
}
