//! Numbered records on a disk, told to the outside when they are durable and not before.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use load_format::journal::{self, MAX_IN_FLIGHT, MIN_SLOTS, RECORD_LEN, Record};
use rustix::fs::{Advice, fadvise};

use crate::direct::{Buffer, Direct};
use crate::now_nanos;

/// Where the journal is, and who is told.
#[derive(Debug, Args)]
pub(crate) struct JournalOptions {
    /// The block device, whose content is lost (a journal's numbers go on).
    device: PathBuf,
    /// Tells this address, over TCP: one line `DURABLE N` whenever all records up to N are durable.
    #[arg(long, value_name = "IP:PORT", conflicts_with = "tell")]
    peer: Option<SocketAddr>,
    /// Tells this file or terminal instead (without either: the standard output).
    #[arg(long, value_name = "PATH")]
    tell: Option<PathBuf>,
    /// Records to write per second (0: as many as the disk takes).
    #[arg(long, default_value_t = 50)]
    per_second: u64,
    /// Records to write before a flush and a word to the outside: 1 to 16.
    #[arg(long, default_value_t = 1)]
    batch: u64,
    /// MiB of the device to use, from its beginning (0: all of it).
    #[arg(long, default_value_t = 0)]
    mib: u64,
    /// Ends after this many records.
    #[arg(long)]
    records: Option<u64>,
}

/// The journal that is written.
#[derive(Debug)]
struct Journal {
    device: Direct,
    slots: u32,
    first: u64,
    next: u64,
    buffer: Buffer,
}

/// How a batch is made durable: by turns, so that both ways are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Plain writes, then a flush.
    Flush,
    /// Writes that are durable each (FUA).
    Durable,
}

/// Writes until killed, or until all records are written.
pub(crate) fn run(options: &JournalOptions) -> Result<()> {
    ensure!(
        (1..=MAX_IN_FLIGHT).contains(&options.batch),
        "--batch must be 1 to {MAX_IN_FLIGHT}"
    );
    let mut outside: Box<dyn Write> = match (&options.peer, &options.tell) {
        (Some(peer), _) => Box::new(connect(*peer)?),
        (None, Some(path)) => Box::new(
            OpenOptions::new()
                .write(true)
                .open(path)
                .with_context(|| format!("cannot open {}", path.display()))?,
        ),
        (None, None) => Box::new(std::io::stdout()),
    };
    let mut journal = Journal::open(&options.device, options.mib)?;
    let end = options
        .records
        .map_or(u64::MAX, |records| journal.next.saturating_add(records));
    let mut due = now_nanos();
    let mut way = Way::Flush;
    while journal.next < end {
        let count = options.batch.min(end - journal.next);
        let durable = journal.write(count, way)?;
        // One write, so that no line is cut in two.
        outside
            .write_all(format!("DURABLE {durable}\n").as_bytes())
            .and_then(|()| outside.flush())
            .context("cannot tell what is durable")?;
        way = match way {
            Way::Flush => Way::Durable,
            Way::Durable => Way::Flush,
        };
        let nanos = (count * 1_000_000_000).checked_div(options.per_second);
        let now = now_nanos();
        due = (due + nanos.unwrap_or(0)).max(now);
        std::thread::sleep(Duration::from_nanos(due - now));
    }
    Ok(())
}

fn connect(peer: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(peer).with_context(|| format!("cannot reach {peer}"))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Prints what is left of the journal on `path`.
pub(crate) fn check(path: &Path) -> Result<()> {
    println!("{}", serde_json::to_string(&state(path)?)?);
    Ok(())
}

fn state(path: &Path) -> Result<journal::State> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    // What the page cache holds is not what the disk does. Without the right to, it is the same.
    let _ = fadvise(&file, 0, None, Advice::DontNeed);
    journal::check(&mut file).with_context(|| format!("cannot read {}", path.display()))
}

impl Journal {
    /// Goes on behind the newest record that is there.
    fn open(path: &Path, mib: u64) -> Result<Self> {
        let state = state(path)?;
        let device = Direct::open(path)?;
        ensure!(
            (RECORD_LEN as u64).is_multiple_of(device.unit()),
            "{} has blocks larger than a record",
            path.display()
        );
        let used = match mib {
            0 => device.len(),
            mib => device.len().min(mib.saturating_mul(1024 * 1024)),
        };
        let slots = u32::try_from(used / RECORD_LEN as u64).unwrap_or(u32::MAX);
        ensure!(
            slots >= MIN_SLOTS,
            "{} is too small for a journal of {MIN_SLOTS} records",
            path.display()
        );
        let first = state.newest.map_or(0, |newest| newest.saturating_add(1));
        Ok(Self {
            device,
            slots,
            first,
            next: first,
            buffer: Buffer::new(RECORD_LEN),
        })
    }

    /// Writes the next `count` records; gives back the number of the last, when it is durable.
    fn write(&mut self, count: u64, way: Way) -> Result<u64> {
        let mut number = self.next;
        for next in self.next..self.next + count {
            number = next;
            let record = Record {
                number,
                first: self.first,
                slots: self.slots,
            };
            let bytes = self.buffer.bytes();
            if let [record_bytes] = bytes.as_chunks_mut().0 {
                record.write(record_bytes);
            }
            self.device
                .write(
                    record.slot() * RECORD_LEN as u64,
                    bytes,
                    way == Way::Durable,
                )
                .with_context(|| format!("record {number} was not written"))?;
        }
        if way == Way::Flush {
            self.device
                .flush()
                .with_context(|| format!("record {number} was not flushed"))?;
        }
        self.next += count;
        Ok(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a file");
        file.as_file().set_len(80 * 4096).expect("room");
        file
    }

    #[test]
    fn what_is_written_in_either_way_is_found_and_the_numbers_go_on() {
        let file = disk();
        let mut journal = Journal::open(file.path(), 0).expect("large enough");
        for way in [Way::Flush, Way::Durable].into_iter().cycle().take(60) {
            journal.write(3, way).expect("room");
        }
        let found = state(file.path()).expect("readable");
        assert_eq!((found.newest, found.whole_to), (Some(179), Some(179)));
        assert_eq!((found.missing, found.damaged), (0, 0));

        let mut again = Journal::open(file.path(), 0).expect("large enough");
        assert_eq!(again.write(1, Way::Durable).expect("room"), 180);
        let found = state(file.path()).expect("readable");
        assert_eq!((found.first, found.whole_to), (Some(180), Some(180)));
    }

    #[test]
    fn a_disk_that_is_too_small_is_refused() {
        let file = disk();
        file.as_file().set_len(63 * 4096).expect("shorter");
        assert!(Journal::open(file.path(), 0).is_err());
    }
}
