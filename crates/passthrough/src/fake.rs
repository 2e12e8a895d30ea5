//! A kernel for tests, with one function and an IOMMU. It takes the numbers and bytes that the real one
//! takes, looks at them as closely, and keeps the same state; each check says where the kernel has it.
//! Failures can be ordered.

mod function;
mod iommu;

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use pci::ConfigSpace;
use pci::express::{DEVICE_STATUS, DEVICE_STATUS_PENDING};
use pci::registers::{CAPABILITY_END, COMMAND, COMMAND_BUS_MASTER};
use rustix::io::Errno;

use crate::Function;
use crate::device::Passthrough;
use crate::kernel::{Call, Kernel};
use crate::vfio::RESET;

pub(crate) use function::{Data, RESUMING, RUNNING, RUNNING_P2P, STOP, STOP_COPY};

pub(crate) const ID: (u16, u16) = (0x8086, 0x10ca);
/// Where the function's regions are in its file.
const CONFIG: u64 = 7 << 20;
/// Where its Express capability is in configuration space.
const EXPRESS: usize = 0xa0;

/// What the kernel, its driver of the function, and the IOMMU have.
#[derive(Clone)]
pub(crate) struct Has {
    pub(crate) iommufd: bool,
    pub(crate) dirty_bits: bool,
    pub(crate) logging: bool,
    /// How many ranges the function logs.
    pub(crate) ranges: usize,
    /// By pages of so many bytes.
    pub(crate) log_page: u64,
    /// `VFIO_MIGRATION_*`; 0 for none.
    pub(crate) states: u64,
    /// What `MIG_DATA_SIZE` says.
    pub(crate) expects: u64,
    pub(crate) data: Data,
}

impl Has {
    /// A kernel with iommufd, and nothing else.
    pub(crate) fn little() -> Self {
        Self {
            iommufd: true,
            dirty_bits: false,
            logging: false,
            ranges: 256,
            log_page: 4096,
            states: 0,
            expects: 5,
            data: Data::Bytes(b"state".to_vec()),
        }
    }

    /// And one with everything.
    pub(crate) fn all() -> Self {
        Self {
            dirty_bits: true,
            logging: true,
            states: 3,
            ..Self::little()
        }
    }
}

/// When a failure is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// At this call.
    Call(Call),
    /// When this feature is asked for.
    Feature(u32),
    /// When the function is to go to this state; it is in `ERROR` then.
    Breaks(u32),
    /// The same, and it stays where it was.
    Refuses(u32),
}

#[derive(Clone)]
pub(crate) struct Fake(Arc<Shared>);

struct Shared {
    has: Has,
    function_file: File,
    iommu_file: File,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    function: function::Function,
    iommu: iommu::Iommu,
    /// What has happened, in order.
    journal: Vec<String>,
    failures: VecDeque<(When, Errno)>,
    interruptions: usize,
}

impl Fake {
    pub(crate) fn new(has: Has) -> Self {
        let function_file = tempfile::tempfile().unwrap();
        function_file.set_len(CONFIG + 4096).unwrap();
        function_file.write_all_at(&header(), CONFIG).unwrap();
        Self(Arc::new(Shared {
            has,
            function_file,
            iommu_file: tempfile::tempfile().unwrap(),
            state: Mutex::default(),
        }))
    }

    pub(crate) fn open(&self) -> io::Result<(ConfigSpace, Passthrough)> {
        let kernel: Arc<dyn Kernel> = Arc::new(self.clone());
        let function = Function {
            address: "0000:01:10.0".into(),
            folder: PathBuf::new(),
            group: 7,
            id: ID,
        };
        let opened = Passthrough::open_by(&kernel, &function, Path::new(FILE))?;
        Ok(opened.unwrap())
    }

    pub(crate) fn fail(&self, when: When, errno: Errno) {
        self.lock().failures.push_back((when, errno));
    }

    /// The next calls are cut short by signals.
    pub(crate) fn interrupt(&self, times: usize) {
        self.lock().interruptions = times;
    }

    /// The function writes this page as soon as it may not begin anything new any more: on its way to
    /// `STOP`.
    pub(crate) fn has_under_way(&self, page: u64) {
        self.lock().function.under_way.push(page);
    }

    /// The function writes a page of its memory; whether it got through.
    pub(crate) fn writes(&self, page: u64) -> bool {
        let may = self.is_bus_master();
        let mut state = self.lock();
        may && state.function.runs() && state.write(page)
    }

    /// The function waits for what never comes, until it is reset, or for ever.
    pub(crate) fn waits(&self, whatever_happens: bool) {
        self.put_pending(true);
        self.lock().function.waits = whatever_happens;
    }

    fn put_pending(&self, pending: bool) {
        let bit = if pending { DEVICE_STATUS_PENDING } else { 0 };
        let at = CONFIG + (EXPRESS + DEVICE_STATUS) as u64;
        let file = &self.0.function_file;
        file.write_all_at(&bit.to_le_bytes(), at).unwrap();
    }

    pub(crate) fn state(&self) -> u32 {
        self.lock().function.state
    }

    /// What the function would go on from.
    pub(crate) fn loaded(&self) -> Vec<u8> {
        self.lock().function.loaded.clone()
    }

    pub(crate) fn mapped(&self) -> Vec<Range<u64>> {
        self.lock().iommu.mapped()
    }

    pub(crate) fn is_logging(&self) -> bool {
        let state = self.lock();
        state.function.log.is_some() || state.iommu.is_tracking()
    }

    pub(crate) fn watched(&self) -> Vec<Range<u64>> {
        let state = self.lock();
        let log = state.function.log.as_ref();
        log.map_or(Vec::new(), |log| log.ranges.clone())
    }

    /// What has happened since this was asked last.
    pub(crate) fn journal(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().journal)
    }

    pub(crate) fn is_bus_master(&self) -> bool {
        let mut command = [0; 2];
        let at = CONFIG + COMMAND as u64;
        self.0
            .function_file
            .read_exact_at(&mut command, at)
            .unwrap();
        u16::from_le_bytes(command) & COMMAND_BUS_MASTER != 0
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap()
    }
}

pub(crate) const FILE: &str = "/dev/vfio/devices/vfio0";

impl Kernel for Fake {
    #[expect(unsafe_code, reason = "as the trait has it")]
    unsafe fn ioctl(&self, file: &File, call: Call, argument: &mut [u8]) -> Result<i32, Errno> {
        let bus_master = self.is_bus_master();
        let mut state = self.lock();
        if state.interruptions > 0 {
            state.interruptions -= 1;
            return Err(Errno::INTR);
        }
        state.fails(When::Call(call))?;
        let inode = |file: &File| file.metadata().unwrap().ino();
        if inode(file) == inode(&self.0.iommu_file) {
            state.iommu.ioctl(call, argument, &self.0.has)?;
            Ok(0)
        } else {
            assert_eq!(inode(file), inode(&self.0.function_file));
            state.ask_function(call, argument, &self.0.has, bus_master)?;
            if call == RESET && !state.function.waits {
                self.put_pending(false);
            }
            Ok(0)
        }
    }

    fn open(&self, path: &Path) -> io::Result<File> {
        match path.to_str() {
            Some("/dev/iommu") if self.0.has.iommufd => self.0.iommu_file.try_clone(),
            Some(FILE) if self.0.has.iommufd => self.0.function_file.try_clone(),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

impl State {
    /// The failure that is due, if one is.
    fn fails(&mut self, when: When) -> Result<(), Errno> {
        match self.failures.front() {
            Some((due, errno)) if *due == when => {
                let errno = *errno;
                self.failures.pop_front();
                Err(errno)
            }
            _ => Ok(()),
        }
    }

    fn write(&mut self, page: u64) -> bool {
        let reaches = self.iommu.write(page);
        if reaches && let Some(log) = &mut self.function.log {
            log.add(page);
        }
        reaches
    }
}

/// An 82576 virtual function, as in `pci::guest_view`'s tests.
fn header() -> [u8; CAPABILITY_END] {
    let mut bytes = [0; CAPABILITY_END];
    let mut put = |at: usize, data: &[u8]| bytes[at..at + data.len()].copy_from_slice(data);
    put(0, &[0x86, 0x80, 0xca, 0x10]);
    put(0x06, &[0x10, 0]);
    put(0x08, &[1, 0, 0, 2]);
    put(0x10, &[0xc, 0, 0, 0xfe]);
    put(0x1c, &[0xc, 0, 0x10, 0xfe]);
    put(0x2c, &[0x86, 0x80, 0x3c, 0xa0]);
    put(0x34, &[0x70]);
    put(0x70, &[0x11, 0xa0, 2, 0, 3, 0, 0, 0, 3, 0x20, 0, 0]);
    put(EXPRESS, &[0x10, 0, 2, 0, 0x20, 0x80]);
    bytes
}

/// The bytes of a call's argument.
struct Argument<'a>(&'a mut [u8]);

impl Argument<'_> {
    fn u32(&self, at: usize) -> u32 {
        u32::from_ne_bytes(self.0[at..at + 4].try_into().unwrap())
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_ne_bytes(self.0[at..at + 8].try_into().unwrap())
    }

    fn put_u32(&mut self, at: usize, value: u32) {
        self.0[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }

    fn put_u64(&mut self, at: usize, value: u64) {
        self.0[at..at + 8].copy_from_slice(&value.to_ne_bytes());
    }
}

/// `u64_to_user_ptr`, and what is there: as much as the kernel would read or write.
fn user_words<'a>(address: u64, len: u64) -> &'a mut [u64] {
    let address = usize::try_from(address).unwrap();
    let len = usize::try_from(len).unwrap();
    assert!(address != 0 && address.is_multiple_of(8));
    #[expect(unsafe_code, reason = "the caller of a call hands over addresses")]
    // SAFETY: who made the call promised that it is there, and nobody else's (`Kernel::ioctl`).
    unsafe {
        std::slice::from_raw_parts_mut(std::ptr::with_exposed_provenance_mut(address), len)
    }
}

/// `iova_bitmap_set`: the bits of what is from `iova` on `len` bytes long, as far as there are any.
fn set_bits(bitmap: &mut [u64], base: u64, page_size: u64, iova: u64, len: u64) {
    let first = iova.max(base) - base;
    let last = iova + len - 1 - base;
    for bit in first / page_size..=last / page_size {
        if let Some(word) = bitmap.get_mut(usize::try_from(bit / 64).unwrap()) {
            *word |= 1 << (bit % 64);
        }
    }
}
