//! How fast a disk is: so many operations on their way at a time, and nobody looks at the data.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::Builder;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::direct::{Buffer, Direct};
use crate::disk::Random;
use crate::options::Window;

/// What is done with the disk.
#[derive(Debug, Args)]
pub(crate) struct DiskRateOptions {
    /// The block device.
    device: PathBuf,
    /// KiB of one operation.
    #[arg(long, default_value_t = 4)]
    kib: usize,
    /// Operations on their way at a time, each by a thread.
    #[arg(long, default_value_t = 1)]
    depth: u64,
    /// One after the other instead of anywhere.
    #[arg(long)]
    sequential: bool,
    /// Write, and lose what is there.
    #[arg(long)]
    write: bool,
    #[command(flatten)]
    window: Window,
}

const MAX_DEPTH: u64 = 256;

/// Prints a `Rate` as one line of JSON.
pub(crate) fn run(options: &DiskRateOptions) -> Result<()> {
    let device = Direct::open(&options.device)?;
    let len = options.kib as u64 * 1024;
    let places = device.len().checked_div(len).unwrap_or(0);
    ensure!(
        places > 0 && len.is_multiple_of(device.unit()),
        "--kib must be a multiple of the disk's blocks, and less than all of it"
    );
    ensure!(
        (1..=MAX_DEPTH).contains(&options.depth),
        "--depth must be 1 to {MAX_DEPTH}"
    );
    let shared = Arc::new(Shared {
        device,
        places,
        len,
        sequential: options.sequential,
        write: options.write,
        next: AtomicU64::new(0),
        done: AtomicU64::new(0),
        failed: AtomicU64::new(0),
    });
    for number in 0..options.depth {
        let shared = Arc::clone(&shared);
        Builder::new()
            .spawn(move || shared.work(number))
            .context("cannot start a thread")?;
    }
    options.window.print(|| {
        Ok((
            shared.done.load(Ordering::Relaxed),
            shared.failed.load(Ordering::Relaxed),
        ))
    })
}

#[derive(Debug)]
struct Shared {
    device: Direct,
    /// Where an operation can begin, in units of its length.
    places: u64,
    len: u64,
    sequential: bool,
    write: bool,
    next: AtomicU64,
    done: AtomicU64,
    failed: AtomicU64,
}

impl Shared {
    /// One operation after the other, until the process ends.
    fn work(&self, number: u64) {
        let mut random = Random::seeded(number);
        let mut buffer = Buffer::new(usize::try_from(self.len).unwrap_or(0));
        loop {
            let place = if self.sequential {
                self.next.fetch_add(1, Ordering::Relaxed) % self.places
            } else {
                random.below(self.places)
            };
            let offset = place * self.len;
            let done = if self.write {
                self.device.write(offset, buffer.bytes(), false)
            } else {
                self.device.read(offset, buffer.bytes())
            };
            let count = if done.is_ok() {
                &self.done
            } else {
                &self.failed
            };
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}
