//! The function and its driver, behind `drivers/vfio/vfio_main.c`.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::os::fd::IntoRawFd;
use std::os::unix::fs::FileExt;

use rustix::io::Errno;

use super::{Argument, Has, State, When, set_bits, user_words};
use crate::iommufd::{ATTACH, BIND};
use crate::kernel::Call;
use crate::regions::GET_REGION_INFO;
use crate::vfio::feature::FEATURE;
use crate::vfio::{GET_INFO, RESET, SET_IRQS};

const ERROR: u32 = 0;
pub(crate) const STOP: u32 = 1;
pub(crate) const RUNNING: u32 = 2;
pub(crate) const STOP_COPY: u32 = 3;
pub(crate) const RESUMING: u32 = 4;
pub(crate) const RUNNING_P2P: u32 = 5;
const P2P: u64 = 2;

const MIGRATION: u32 = 1;
const MIG_DEVICE_STATE: u32 = 2;
const LOGGING_START: u32 = 6;
const LOGGING_STOP: u32 = 7;
const LOGGING_REPORT: u32 = 8;
const MIG_DATA_SIZE: u32 = 9;
const MASK: u32 = 0xffff;
const GET: u32 = 1 << 16;
const SET: u32 = 1 << 17;
const PROBE: u32 = 1 << 18;
/// Of `struct vfio_device_feature`.
const HEAD: usize = 8;
const PAGE: u64 = 4096;

/// What is to be read in `STOP_COPY`.
#[derive(Debug, Clone)]
pub(crate) enum Data {
    Bytes(Vec<u8>),
    /// More and more.
    Endless,
    /// Neither anything nor an end.
    Silent,
    /// Nor anything to read it from.
    Missing,
}

pub(super) struct Function {
    bound: bool,
    attached: bool,
    pub(super) state: u32,
    pub(super) log: Option<Log>,
    pub(super) under_way: Vec<u64>,
    /// What is written to in `RESUMING`.
    resuming: Option<File>,
    pub(super) loaded: Vec<u8>,
    silent: Option<std::io::PipeWriter>,
    /// A reset does not end what it has under way.
    pub(super) waits: bool,
}

impl Default for Function {
    fn default() -> Self {
        Self {
            bound: false,
            attached: false,
            state: RUNNING,
            log: None,
            under_way: Vec::new(),
            resuming: None,
            loaded: Vec::new(),
            silent: None,
            waits: false,
        }
    }
}

pub(super) struct Log {
    pub(super) ranges: Vec<Range<u64>>,
    page: u64,
    /// Addresses of pages.
    written: BTreeSet<u64>,
}

impl Log {
    pub(super) fn add(&mut self, page: u64) {
        let at = page * PAGE;
        if self.ranges.iter().any(|range| range.contains(&at)) {
            self.written.insert(at / self.page * self.page);
        }
    }
}

impl Function {
    pub(super) fn runs(&self) -> bool {
        matches!(self.state, RUNNING | RUNNING_P2P)
    }

    /// `vfio_mig_get_next_state`, without the states that nobody asks for here.
    fn next(&self, to: u32, has: &Has) -> Result<u32, Errno> {
        let p2p = has.states & P2P != 0;
        let next = match (self.state, to) {
            (ERROR, _) | (_, ERROR) => return Err(Errno::INVAL),
            (_, RUNNING_P2P) if !p2p => return Err(Errno::INVAL),
            (from, to) if from == to => to,
            (RUNNING, _) | (STOP, RUNNING) if p2p => RUNNING_P2P,
            (RUNNING_P2P | STOP, RUNNING) => RUNNING,
            (RUNNING | RUNNING_P2P | STOP_COPY | RESUMING, _) => STOP,
            (STOP, STOP_COPY | RESUMING | RUNNING_P2P) => to,
            _ => return Err(Errno::INVAL),
        };
        Ok(next)
    }
}

impl State {
    /// `vfio_device_fops_unl_ioctl`
    pub(super) fn ask_function(
        &mut self,
        call: Call,
        argument: &mut [u8],
        has: &Has,
        bus_master: bool,
    ) -> Result<(), Errno> {
        let mut argument = Argument(argument);
        if call != RESET {
            assert_eq!(argument.u32(0) as usize, argument.0.len(), "argsz");
        }
        if call == BIND {
            // `vfio_df_ioctl_bind_iommufd`
            if argument.0.len() < 16 || argument.u32(4) != 0 || argument.u32(8).cast_signed() < 0 {
                return Err(Errno::INVAL);
            }
            assert_eq!(argument.u64(16), 0, "E2BIG before Linux 6.19");
            if std::mem::replace(&mut self.function.bound, true) {
                return Err(Errno::INVAL);
            }
            argument.put_u32(12, self.iommu.add_function());
            return Ok(());
        }
        // Nothing before it is bound (`access_granted`).
        if !self.function.bound {
            return Err(Errno::INVAL);
        }
        match call {
            ATTACH => {
                // `vfio_df_ioctl_attach_pt`
                if argument.0.len() < 12 || argument.u32(4) != 0 {
                    return Err(Errno::INVAL);
                }
                self.iommu.attach(argument.u32(8))?;
                self.function.attached = true;
            }
            GET_INFO => {
                argument.put_u32(4, 1 | 2);
                argument.put_u32(8, 9);
                argument.put_u32(12, 5);
            }
            GET_REGION_INFO => region_info(&mut argument)?,
            SET_IRQS => {}
            RESET => {
                self.journal.push("reset".into());
                self.function.state = RUNNING;
                self.function.resuming = None;
                self.function.loaded.clear();
            }
            FEATURE => self.feature(&mut argument, has, bus_master)?,
            _ => return Err(Errno::NOTTY),
        }
        Ok(())
    }

    /// `vfio_ioctl_device_feature`
    fn feature(
        &mut self,
        argument: &mut Argument<'_>,
        has: &Has,
        bus_master: bool,
    ) -> Result<(), Errno> {
        if argument.0.len() < HEAD {
            return Err(Errno::INVAL);
        }
        let flags = argument.u32(4);
        let both = flags & GET != 0 && flags & SET != 0;
        if flags & !(MASK | GET | SET | PROBE) != 0 || (flags & PROBE == 0 && both) {
            return Err(Errno::INVAL);
        }
        let feature = flags & MASK;
        let (there, ways, len) = match feature {
            MIGRATION | MIG_DATA_SIZE => (has.states != 0, GET, 8),
            MIG_DEVICE_STATE => (has.states != 0, GET | SET, 8),
            LOGGING_START => (has.logging, SET, 24),
            LOGGING_STOP => (has.logging, SET, 0),
            LOGGING_REPORT => (has.logging, GET, 32),
            _ => (false, 0, 0),
        };
        if !there {
            return Err(Errno::NOTTY);
        }
        // `vfio_check_feature`
        if flags & (GET | SET) & !ways != 0 {
            return Err(Errno::INVAL);
        }
        if flags & PROBE != 0 {
            return Ok(());
        }
        if flags & (GET | SET) == 0 || argument.0.len() - HEAD < len {
            return Err(Errno::INVAL);
        }
        self.fails(When::Feature(feature))?;
        match feature {
            MIGRATION => argument.put_u64(HEAD, has.states),
            MIG_DATA_SIZE => argument.put_u64(HEAD, has.expects),
            LOGGING_START => self.start_logging(argument, has)?,
            LOGGING_STOP => {
                self.journal.push("log stops".into());
                self.function.log = None;
            }
            LOGGING_REPORT => self.report(argument, bus_master)?,
            _ if flags & GET != 0 => {
                argument.put_u32(HEAD, self.function.state);
                argument.put_u32(HEAD + 4, u32::MAX);
            }
            _ => self.set_state(argument, has, bus_master)?,
        }
        Ok(())
    }

    /// `vfio_ioctl_device_feature_logging_start`, and a driver that takes so many ranges.
    fn start_logging(&mut self, argument: &mut Argument<'_>, has: &Has) -> Result<(), Errno> {
        let page_size = argument.u64(HEAD);
        let count = argument.u32(HEAD + 8);
        match count {
            0 => return Err(Errno::INVAL),
            1..=256 => {}
            _ => {
                self.journal.push("too many ranges".into());
                return Err(Errno::TOOBIG);
            }
        }
        let words = user_words(argument.u64(HEAD + 16), u64::from(count) * 2);
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for range in words.chunks(2) {
            let (iova, length) = (range[0], range[1]);
            if iova % page_size != 0 || length % page_size != 0 {
                return Err(Errno::INVAL);
            }
            let end = iova.checked_add(length).ok_or(Errno::OVERFLOW)?;
            if ranges
                .iter()
                .any(|other| other.start < end && iova < other.end)
            {
                return Err(Errno::INVAL);
            }
            ranges.push(iova..end);
        }
        if ranges.len() > has.ranges {
            return Err(Errno::NOSPC);
        }
        if self.function.log.is_some() {
            return Err(Errno::INVAL);
        }
        self.journal.push("log starts".into());
        self.function.log = Some(Log {
            ranges,
            page: has.log_page,
            written: BTreeSet::new(),
        });
        argument.put_u64(HEAD, has.log_page);
        Ok(())
    }

    /// `vfio_ioctl_device_feature_logging_report`
    fn report(&mut self, argument: &Argument<'_>, bus_master: bool) -> Result<(), Errno> {
        let [iova, length, page_size, bitmap] = [0, 8, 16, 24].map(|at| argument.u64(HEAD + at));
        if page_size < PAGE || !page_size.is_power_of_two() {
            return Err(Errno::INVAL);
        }
        let end = iova.checked_add(length).ok_or(Errno::OVERFLOW)?;
        let state = self.function.state;
        let log = self.function.log.as_mut().ok_or(Errno::INVAL)?;
        let bitmap = user_words(bitmap, (length / page_size).div_ceil(64));
        let page = log.page;
        log.written.retain(|&at| {
            let is_asked_for = at < end && iova < at + page;
            if is_asked_for {
                set_bits(bitmap, iova, page_size, at, page);
            }
            !is_asked_for
        });
        let on = if bus_master { "on" } else { "off" };
        self.journal
            .push(format!("reported in state {state}, bus mastering {on}"));
        Ok(())
    }

    /// `vfio_ioctl_device_feature_mig_device_state`, and the loop of its drivers.
    fn set_state(
        &mut self,
        argument: &mut Argument<'_>,
        has: &Has,
        bus_master: bool,
    ) -> Result<(), Errno> {
        let to = argument.u32(HEAD);
        argument.put_u32(HEAD + 4, u32::MAX);
        loop {
            let from = self.function.state;
            let next = self.function.next(to, has)?;
            if from == next {
                return Ok(());
            }
            self.fails(When::Refuses(next))?;
            if let Err(errno) = self.fails(When::Breaks(next)) {
                self.function.state = ERROR;
                return Err(errno);
            }
            if let Some(file) = self.step(from, next, has)? {
                argument.put_u32(HEAD + 4, file.into_raw_fd().cast_unsigned());
            }
            self.function.state = next;
            let on = if bus_master { "on" } else { "off" };
            self.journal
                .push(format!("state {next}, bus mastering {on}"));
        }
    }

    fn step(&mut self, from: u32, to: u32, has: &Has) -> Result<Option<File>, Errno> {
        match (from, to) {
            (RUNNING | RUNNING_P2P, STOP) => {
                for page in std::mem::take(&mut self.function.under_way) {
                    self.write(page);
                }
            }
            (_, STOP_COPY) => {
                let file = match &has.data {
                    Data::Missing => return Ok(None),
                    Data::Bytes(bytes) => {
                        let file = tempfile::tempfile().unwrap();
                        file.write_all_at(bytes, 0).unwrap();
                        file
                    }
                    data => {
                        let (reader, mut writer) = std::io::pipe().unwrap();
                        if matches!(data, Data::Silent) {
                            self.function.silent = Some(writer);
                        } else {
                            // Until nobody reads.
                            std::thread::spawn(
                                move || while writer.write_all(&[1; 4096]).is_ok() {},
                            );
                        }
                        File::from(std::os::fd::OwnedFd::from(reader))
                    }
                };
                return Ok(Some(file));
            }
            (_, RESUMING) => {
                let file = tempfile::tempfile().unwrap();
                self.function.resuming = Some(file.try_clone().unwrap());
                return Ok(Some(file));
            }
            (RESUMING, STOP) => {
                let file = self.function.resuming.take().unwrap();
                let len = usize::try_from(file.metadata().unwrap().len()).unwrap();
                let mut bytes = vec![0; len];
                file.read_exact_at(&mut bytes, 0).unwrap();
                if bytes.starts_with(b"bad") {
                    self.function.state = ERROR;
                    return Err(Errno::INVAL);
                }
                self.function.loaded = bytes;
            }
            _ => {}
        }
        Ok(None)
    }
}

/// `vfio_pci_ioctl_get_region_info`: BARs 0 and 3, of which 3 may be mapped in part, and configuration
/// space.
fn region_info(argument: &mut Argument<'_>) -> Result<(), Errno> {
    const MAPPABLE: u32 = 0b111;
    const HAS_CAPABILITIES: u32 = 1 << 3;
    let index = argument.u32(8);
    let (flags, size) = match index {
        0 => (MAPPABLE, 0x4000),
        3 => (MAPPABLE | HAS_CAPABILITIES, 0x4000),
        7 => (0b011, 4096),
        1 | 2 | 4..=6 | 8 => (0, 0),
        _ => return Err(Errno::INVAL),
    };
    argument.put_u32(4, flags);
    argument.put_u64(16, size);
    argument.put_u64(24, u64::from(index) << 20);
    argument.put_u32(12, 0);
    if index == 3 {
        let chain: [u32; 8] = [1 | 1 << 16, 0, 1, 0, 0, 0, 0x2000, 0];
        if argument.0.len() < 32 + 32 {
            // Where it would be is told once there is room.
            argument.put_u32(0, 64);
        } else {
            argument.put_u32(12, 32);
            for (word, at) in chain.into_iter().zip((32..).step_by(4)) {
                argument.put_u32(at, word);
            }
        }
    }
    Ok(())
}
