//! How long a device's registers take: reads and writes of one each, through the BAR that Linux lets a
//! program map.

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::ptr::NonNull;

use anyhow::{Context, Result, ensure};
use clap::Args;
use load_format::Rate;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::now_nanos;

/// Which registers. What is written is 0.
#[derive(Debug, Args)]
pub(crate) struct MmioOptions {
    /// The BAR, such as /sys/bus/pci/devices/0000:00:05.0/resource0 of a device that no driver has.
    bar: PathBuf,
    /// Offset of a register of 32 bits that can be read at any time.
    #[arg(long)]
    read: usize,
    /// Offset of one that takes 0 at any time.
    #[arg(long)]
    write: usize,
    /// Accesses of each kind.
    #[arg(long, default_value_t = 20_000)]
    count: u64,
}

/// A read after so many writes: as a driver does, and so that those which are posted have arrived.
const BURST: u64 = 64;
/// Of a BAR; no smaller one can be mapped.
const PAGE: usize = 4096;

/// Prints two [`Rate`]s, reads and writes, as one line of JSON.
pub(crate) fn run(options: &MmioOptions) -> Result<()> {
    let bar = Bar::open(options)?;
    let reads = timed(options.count, |_| {
        bar.read();
    });
    let writes = timed(options.count, |number| {
        bar.write();
        if number.is_multiple_of(BURST) || number == options.count {
            bar.read();
        }
    });
    println!("{}", serde_json::to_string(&[reads, writes])?);
    Ok(())
}

fn timed(count: u64, access: impl Fn(u64)) -> Rate {
    let since = now_nanos();
    (1..=count).for_each(access);
    Rate {
        done: count,
        failed: 0,
        nanos: now_nanos().saturating_sub(since),
    }
}

/// The first page of a BAR.
#[derive(Debug)]
struct Bar {
    page: NonNull<u8>,
    read: usize,
    write: usize,
}

#[expect(
    unsafe_code,
    reason = "registers are reached by a mapping and by volatile accesses"
)]
impl Bar {
    fn open(options: &MmioOptions) -> Result<Self> {
        let &MmioOptions { read, write, .. } = options;
        for offset in [read, write] {
            ensure!(
                offset.is_multiple_of(4) && offset < PAGE,
                "a register is at a multiple of 4 below {PAGE}, not at {offset}"
            );
        }
        let path = options.bar.display();
        let file = OpenOptions::new().read(true).write(true).open(&options.bar);
        let file = file.with_context(|| format!("cannot open {path}"))?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, where the kernel finds room.
        let page = unsafe {
            mmap(
                std::ptr::null_mut(),
                PAGE,
                protection,
                MapFlags::SHARED,
                &file,
                0,
            )
        };
        let page = page.with_context(|| format!("cannot map {path}"))?;
        let page = NonNull::new(page.cast()).context("mapped at 0")?;
        Ok(Self { page, read, write })
    }

    fn read(&self) -> u32 {
        // SAFETY: within the page, aligned (`open`), and mapped until this is dropped.
        unsafe { self.page.add(self.read).cast::<u32>().read_volatile() }
    }

    fn write(&self) {
        // SAFETY: as above; the page is a device's, and no memory of this program.
        unsafe { self.page.add(self.write).cast::<u32>().write_volatile(0) }
    }
}

impl Drop for Bar {
    #[expect(unsafe_code, reason = "the mapping is this one's own")]
    fn drop(&mut self) {
        // SAFETY: `open` has mapped it, and nobody else knows of it.
        let _ = unsafe { munmap(self.page.as_ptr().cast(), PAGE) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_stands_in_for_a_bar() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), [0xff; PAGE]).expect("room");
        let options = |read, write| MmioOptions {
            bar: file.path().to_owned(),
            read,
            write,
            count: 100,
        };
        let bar = Bar::open(&options(8, 12)).expect("a page");
        bar.write();
        assert_eq!(bar.read(), u32::MAX);
        drop(bar);
        let bytes = std::fs::read(file.path()).expect("still there");
        assert_eq!(
            (&bytes[8..12], &bytes[12..16]),
            (&[0xff; 4][..], &[0; 4][..])
        );
        for (read, write) in [(2, 0), (0, PAGE), (usize::MAX, 0)] {
            assert!(Bar::open(&options(read, write)).is_err(), "{read} {write}");
        }
        assert!(run(&options(0, 4)).is_ok());
    }
}
