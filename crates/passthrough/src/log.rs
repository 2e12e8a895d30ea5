//! What the function writes, as far as somebody logs it: the function itself (`VFIO_DEVICE_FEATURE_DMA_LOGGING_*`)
//! or the IOMMU (`IOMMU_HWPT_*_DIRTY_*`).
//!
//! Either may report more than was written, and never less. An error means that of what was written
//! nothing is known any more, as the kernel's header has it, so it stays one until the log is opened again.

use std::io;
use std::ops::Range;

use device::{GuestPageSink, LogSource, PAGE_SIZE};
use rustix::io::Errno;
use vfio_bindings::bindings::vfio::vfio_device_feature_dma_logging_range;

use crate::kernel::Handle;
use crate::memory::Memory;
use crate::ranges::Ranges;
use crate::vfio::feature;

/// So much memory is asked about in one call: 1 GiB, whose bits take 32 KiB.
const CHUNK: u64 = 1 << 30;
/// More ranges the kernel does not take (`LOG_MAX_RANGES`).
const MAX_RANGES: usize = 256;
/// Machines have memory on both sides of it, and a hole below.
const GIB_4: u64 = 4 << 30;
const BITS: u64 = u64::BITS as u64;

/// Who can log it, and the log while it is open.
pub(crate) struct Log {
    sources: Vec<LogSource>,
    open: Option<Open>,
}

struct Open {
    source: LogSource,
    /// What the function logs; all there is where the IOMMU does.
    watched: Ranges,
    /// What the function could reach at any time since.
    written: Ranges,
    fault: Option<String>,
}

impl Log {
    /// Of the function `device` with this memory.
    pub(crate) fn of(device: &Handle, memory: &Memory) -> Self {
        let has = |source: &LogSource| match source {
            LogSource::Device => feature::can_log(device),
            LogSource::Iommu => memory.tracked().is_some(),
        };
        let sources = [LogSource::Device, LogSource::Iommu].into_iter();
        Self {
            sources: sources.filter(has).collect(),
            open: None,
        }
    }

    pub(crate) fn source(&self) -> Option<LogSource> {
        let open = self.open.as_ref().map(|open| open.source);
        open.or_else(|| self.sources.first().copied())
    }

    /// By the best that does it now.
    pub(crate) fn open(&mut self, device: &Handle, memory: &Memory) -> io::Result<()> {
        self.close(device, memory);
        let written: Ranges = memory.written().collect();
        let mut why = "nobody logs what it writes".to_owned();
        for &source in &self.sources {
            let watched = match source {
                LogSource::Device => watch(device, &written),
                LogSource::Iommu => track(memory, true).map(|()| Ranges::default()),
            };
            match watched {
                Ok(watched) => {
                    self.open = Some(Open {
                        source,
                        watched,
                        written,
                        fault: None,
                    });
                    return Ok(());
                }
                Err(errno) => {
                    why = format!("{} does not begin: {errno}", source.name());
                    tracing::warn!(why);
                }
            }
        }
        Err(io::Error::other(why))
    }

    pub(crate) fn close(&mut self, device: &Handle, memory: &Memory) {
        let Some(open) = self.open.take() else { return };
        let closed = match open.source {
            LogSource::Device => feature::stop_logging(device),
            LogSource::Iommu => track(memory, false),
        };
        if let Err(errno) = closed {
            tracing::warn!(%errno, source = open.source.name(), "the log stays open");
        }
    }

    pub(crate) fn read(
        &mut self,
        device: &Handle,
        memory: &Memory,
        sink: &mut dyn GuestPageSink,
    ) -> io::Result<()> {
        let open = self.open.as_mut();
        let open = open.ok_or_else(|| io::Error::other("what it writes is not logged"))?;
        let read = match &open.fault {
            Some(fault) => Err(fault.clone()),
            None => open.read(device, memory, sink).map_err(|errno| {
                let name = open.source.name();
                format!("{name} cannot be read, and what it wrote is not known: {errno}")
            }),
        };
        read.map_err(|fault| {
            open.fault = Some(fault.clone());
            io::Error::other(fault)
        })
    }

    /// The function reaches this from now on.
    pub(crate) fn mapped(&mut self, range: Range<u64>) {
        let Some(open) = &mut self.open else { return };
        if open.source == LogSource::Device && !open.watched.contains(&range) {
            let fault = format!(
                "memory that came at {:#x} while the function logged is not in its log: migrate again",
                range.start
            );
            open.fault.get_or_insert(fault);
        }
        open.written.insert(range);
    }
}

impl Open {
    fn read(
        &mut self,
        device: &Handle,
        memory: &Memory,
        sink: &mut dyn GuestPageSink,
    ) -> Result<(), Errno> {
        match self.source {
            // It logs by address, whatever is mapped there.
            LogSource::Device => {
                for range in self.written.iter() {
                    in_chunks(range, sink, |iova, length, bitmap| {
                        feature::report(device, iova, length, PAGE_SIZE, bitmap)
                    })?;
                }
            }
            // Its bits go with a mapping. All that the function could write there is marked by the gate,
            // which knows what it was (`BusMaster::drain_released`).
            LogSource::Iommu => {
                let ioas = memory.tracked().ok_or(Errno::OPNOTSUPP)?;
                // Each as it was mapped: holes are refused (`__iommu_read_and_clear_dirty`).
                for range in memory.written() {
                    in_chunks(range, sink, |iova, length, bitmap| {
                        ioas.report(iova, length, PAGE_SIZE, bitmap)
                    })?;
                }
            }
        }
        Ok(())
    }
}

fn track(memory: &Memory, on: bool) -> Result<(), Errno> {
    let ioas = memory.tracked();
    ioas.map_or(Err(Errno::OPNOTSUPP), |ioas| ioas.track(on))
}

/// Has the function log what it writes to `written`, or where it does not take so many ranges, to what
/// holds them, as QEMU does (`vfio_dirty_tracking_init`): one range below 4 GiB and one above, or one
/// for all.
fn watch(device: &Handle, written: &Ranges) -> Result<Ranges, Errno> {
    let halves = [written.hull(..GIB_4), written.hull(GIB_4..)];
    let mut tries = vec![
        written.clone(),
        halves.into_iter().flatten().collect(),
        written.hull(..).into_iter().collect(),
    ];
    tries.retain(|ranges| (1..=MAX_RANGES).contains(&ranges.len()));
    tries.dedup();
    let mut refused = Errno::INVAL;
    for ranges in tries {
        let request: Vec<_> = ranges
            .iter()
            .map(|range| vfio_device_feature_dma_logging_range {
                iova: range.start,
                length: range.end - range.start,
            })
            .collect();
        match feature::start_logging(device, &request, PAGE_SIZE) {
            Ok(by) => {
                tracing::debug!(ranges = request.len(), by, "the function logs its writes");
                return Ok(ranges);
            }
            Err(errno) => refused = errno,
        }
    }
    Err(refused)
}

/// Asks for the bits of `range`, one piece after the other, and hands them on.
fn in_chunks(
    range: Range<u64>,
    sink: &mut dyn GuestPageSink,
    mut ask: impl FnMut(u64, u64, &mut [u64]) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let mut bitmap = Vec::new();
    let mut iova = range.start;
    while iova < range.end {
        let length = (range.end - iova).min(CHUNK);
        let pages = length / PAGE_SIZE;
        let words = usize::try_from(pages.div_ceil(BITS)).map_err(|_| Errno::OVERFLOW)?;
        bitmap.clear();
        bitmap.resize(words, 0);
        ask(iova, length, &mut bitmap)?;
        // Whoever logs by larger pages may have set bits for what is behind the last one.
        if let (Some(last), rest @ 1..) = (bitmap.last_mut(), pages % BITS) {
            *last &= (1 << rest) - 1;
        }
        sink.mark_words(iova / PAGE_SIZE, &bitmap);
        iova += length;
    }
    Ok(())
}
