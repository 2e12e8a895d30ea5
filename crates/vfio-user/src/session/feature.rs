//! `VFIO_USER_DEVICE_FEATURE`, `VFIO_USER_MIG_DATA_READ` and `_WRITE`: migration.
//!
//! Errors are those of the kernel's `vfio_check_feature` and of libvfio-user: `ENOTTY` for a
//! feature that the device does not have, `EINVAL` for one that is asked for in the wrong way or
//! at the wrong time.

use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::{Session, room};
use crate::backend::Backend;
use crate::migration::{DmaLog, IovaRange, Machine, Migration, State};
use crate::version::Negotiated;
use crate::wire::{self, feature};

/// Smallest unit of a report: nobody has smaller pages.
const MIN_PAGE: u64 = 4096;

const FEATURE_LEN: usize = size_of::<feature::Feature>();

impl Session {
    pub(super) fn device_feature(
        &mut self,
        body: &[u8],
        negotiated: &Negotiated,
        backend: &mut dyn Backend,
    ) -> Result<(), Errno> {
        let (asked, data) = wire::take::<feature::Feature>(body)?;
        room(asked.argsz, FEATURE_LEN)?;
        let index = asked.flags & feature::FEATURE_MASK;
        let migration = backend.migration().ok_or(Errno::NOTTY)?;
        let methods = match index {
            feature::MIG_DEVICE_STATE => feature::GET | feature::SET,
            feature::DMA_LOGGING_START | feature::DMA_LOGGING_STOP => feature::SET,
            feature::MIGRATION | feature::DMA_LOGGING_REPORT => feature::GET,
            _ => return Err(Errno::NOTTY),
        };
        if index >= feature::DMA_LOGGING_START && migration.dma_log().is_none() {
            return Err(Errno::NOTTY);
        }
        let asked_for = asked.flags & !feature::FEATURE_MASK;
        if asked_for & !(methods | feature::PROBE) != 0 {
            return Err(Errno::INVAL);
        }
        match asked_for {
            _ if asked_for & feature::PROBE != 0 => self.reply.extend_from_slice(body),
            feature::GET => {
                let max_bitmap = negotiated.max_data_xfer_size as usize;
                let data = get(&self.machine, migration, asked, data, max_bitmap)?;
                let argsz = room(asked.argsz, FEATURE_LEN + data.len())?;
                self.append(&feature::Feature { argsz, ..asked });
                self.reply.extend_from_slice(&data);
            }
            feature::SET => {
                // The reply is the command again, but for what the device changed in it.
                self.reply.extend_from_slice(body);
                let echo = self.reply.len() - data.len();
                let echo = &mut self.reply[echo..];
                set(&mut self.machine, migration, asked, data, echo)?;
            }
            _ => return Err(Errno::INVAL),
        }
        Ok(())
    }

    pub(super) fn mig_data_read(
        &mut self,
        body: &[u8],
        negotiated: &Negotiated,
        backend: &mut dyn Backend,
    ) -> Result<(), Errno> {
        let (asked, _) = wire::take::<feature::MigData>(body)?;
        let fixed = size_of::<feature::MigData>();
        room(asked.argsz, fixed + asked.size as usize)?;
        let migration = backend.migration().ok_or(Errno::NOTSUP)?;
        if asked.size > negotiated.max_data_xfer_size || !self.machine.state.is_saving() {
            return Err(Errno::INVAL);
        }
        let start = self.reply.len();
        let data = start + fixed;
        self.reply.resize(data + asked.size as usize, 0);
        let size = migration.read(&mut self.reply[data..])?;
        self.reply.truncate(data + size);
        let size = u32::try_from(size.min(asked.size as usize)).map_err(|_| Errno::IO)?;
        let done = feature::MigData {
            argsz: u32::try_from(self.reply.len() - start).map_err(|_| Errno::IO)?,
            size,
        };
        self.reply[start..data].copy_from_slice(done.as_bytes());
        Ok(())
    }

    pub(super) fn mig_data_write(
        &mut self,
        body: &[u8],
        negotiated: &Negotiated,
        backend: &mut dyn Backend,
    ) -> Result<(), Errno> {
        let (asked, data) = wire::take::<feature::MigData>(body)?;
        room(asked.argsz, size_of::<feature::MigData>())?;
        let data = data.get(..asked.size as usize).ok_or(Errno::INVAL)?;
        let migration = backend.migration().ok_or(Errno::NOTSUP)?;
        if asked.size > negotiated.max_data_xfer_size || self.machine.state != State::Resuming {
            return Err(Errno::INVAL);
        }
        migration.write(data)
    }
}

/// The data of a feature.
fn get(
    machine: &Machine,
    migration: &mut dyn Migration,
    asked: feature::Feature,
    data: &[u8],
    max_bitmap: usize,
) -> Result<Vec<u8>, Errno> {
    match asked.flags & feature::FEATURE_MASK {
        feature::MIGRATION => {
            let mut flags = feature::MIGRATION_STOP_COPY;
            if migration.has_pre_copy() {
                flags |= feature::MIGRATION_PRE_COPY;
            }
            Ok(feature::MigrationFlags { flags }.as_bytes().to_vec())
        }
        feature::MIG_DEVICE_STATE => {
            let state = feature::DeviceState {
                state: machine.state as u32,
                // As an int, -1: there is none.
                data_fd: u32::MAX,
            };
            Ok(state.as_bytes().to_vec())
        }
        feature::DMA_LOGGING_REPORT if machine.logging => {
            let log = migration.dma_log().ok_or(Errno::NOTTY)?;
            report(log, asked, data, max_bitmap)
        }
        _ => Err(Errno::INVAL),
    }
}

fn report(
    log: &mut dyn DmaLog,
    asked: feature::Feature,
    data: &[u8],
    max_bitmap: usize,
) -> Result<Vec<u8>, Errno> {
    let (report, _) = wire::take::<feature::LoggingReport>(data)?;
    let page_size = report.page_size;
    if !page_size.is_power_of_two() || page_size < MIN_PAGE {
        return Err(Errno::INVAL);
    }
    let range = range(report.iova, report.length)?;
    let pages = range.len.div_ceil(page_size);
    let words = usize::try_from(pages.div_ceil(64)).map_err(|_| Errno::INVAL)?;
    if words > max_bitmap / 8 {
        return Err(Errno::INVAL);
    }
    // Before the log is read: what it reports, it forgets.
    room(
        asked.argsz,
        FEATURE_LEN + report.as_bytes().len() + words * 8,
    )?;
    let mut bitmap = vec![0u64; words];
    log.report(range, page_size, &mut bitmap)?;
    if let (Some(last), used @ 1..) = (bitmap.last_mut(), pages % 64) {
        *last &= (1 << used) - 1;
    }
    Ok([report.as_bytes(), bitmap.as_bytes()].concat())
}

/// Takes the data of a feature; `echo` is the data in the reply.
fn set(
    machine: &mut Machine,
    migration: &mut dyn Migration,
    asked: feature::Feature,
    data: &[u8],
    echo: &mut [u8],
) -> Result<(), Errno> {
    match asked.flags & feature::FEATURE_MASK {
        feature::MIG_DEVICE_STATE => {
            let (state, _) = wire::take::<feature::DeviceState>(data)?;
            room(asked.argsz, FEATURE_LEN + size_of_val(&state))?;
            let state = State::from_wire(state.state).ok_or(Errno::INVAL)?;
            machine.go(migration, state)
        }
        feature::DMA_LOGGING_START => {
            let log = migration.dma_log().ok_or(Errno::NOTTY)?;
            if machine.logging {
                return Err(Errno::INVAL);
            }
            let (mut start, ranges) = wire::take::<feature::LoggingStart>(data)?;
            room(asked.argsz, FEATURE_LEN + data.len())?;
            let ranges = logging_ranges(&start, ranges)?;
            start.page_size = log.start(start.page_size, &ranges)?;
            machine.logging = true;
            echo[..size_of_val(&start)].copy_from_slice(start.as_bytes());
            Ok(())
        }
        feature::DMA_LOGGING_STOP => {
            let log = migration.dma_log().ok_or(Errno::NOTTY)?;
            if std::mem::take(&mut machine.logging) {
                log.stop();
            }
            Ok(())
        }
        _ => Err(Errno::INVAL),
    }
}

fn logging_ranges(start: &feature::LoggingStart, bytes: &[u8]) -> Result<Vec<IovaRange>, Errno> {
    let len = (start.num_ranges as usize).checked_mul(size_of::<feature::LoggingRange>());
    let bytes = len.and_then(|len| bytes.get(..len)).ok_or(Errno::INVAL)?;
    if !start.page_size.is_power_of_two() {
        return Err(Errno::INVAL);
    }
    let ranges = bytes.chunks_exact(size_of::<feature::LoggingRange>());
    ranges
        .map(|bytes| {
            let (r, _) = wire::take::<feature::LoggingRange>(bytes)?;
            range(r.iova, r.length)
        })
        .collect()
}

fn range(iova: u64, len: u64) -> Result<IovaRange, Errno> {
    if len == 0 || iova.checked_add(len).is_none() {
        return Err(Errno::INVAL);
    }
    Ok(IovaRange { iova, len })
}
