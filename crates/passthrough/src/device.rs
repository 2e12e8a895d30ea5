//! A function of the host, opened, as a device model.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use ::device::{
    Access, Hardware, MapError, MapRequest, Mappable, Model, Progress, Reset, StateError,
    StateRecord,
};
use pci::registers::CAPABILITY_END;
use pci::{ConfigSpace, guest_view};
use rustix::io::Errno;
use vfio_bindings::bindings::vfio::{
    VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSIX_IRQ_INDEX, VFIO_REGION_INFO_FLAG_MMAP,
};
use vfio_ioctls::{VfioContainer, VfioDevice, VfioError, VfioRegionInfoCap};

use crate::kernel::{Handle, Linux};
use crate::memory::Memory;
use crate::registers::Registers;
use crate::vectors::Vectors;
use crate::{Function, vfio};

/// The name of the model.
const NAME: &str = "passthrough";
/// How long what the function has under way may take once bus mastering is off. A read that nobody
/// answers is given up after 50 ms to 64 s as the function is set (PCIe 7.5.3.16); by default within
/// 50 ms.
const PENDING: Duration = Duration::from_millis(100);
/// How often it is looked at.
const LOOK: Duration = Duration::from_micros(50);

/// A function of the host that a guest has. It has it once: whoever had it may still have its
/// descriptor, so another guest's memory is never given to it. To serve another, open it again,
/// which the kernel allows when nobody has it any more.
pub struct Passthrough {
    name: String,
    // Before the device: its memory goes while the IOMMU still knows the device.
    memory: Memory,
    device: VfioDevice,
    /// The same, to read and write its regions, and to ask the kernel about it.
    file: Handle,
    /// The same, for the VMM to map them.
    shared: Arc<OwnedFd>,
    registers: Registers,
    vectors: Vectors,
    untouched: bool,
    /// Its VMM is gone.
    over: bool,
}

/// Why it could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// VFIO refused.
    #[error(
        "VFIO does not give PCI function {address} away: {error}. Another process may have it: `fuser -v \
         /dev/vfio/{group}` tells which"
    )]
    Vfio {
        /// The function.
        address: String,
        /// Its group.
        group: u32,
        /// Why.
        error: VfioError,
    },
    /// What one guest leaves in it another would find.
    #[error(
        "PCI function {0} has no reset of its own, so it would keep what one guest has left in it: it \
         cannot be given to one"
    )]
    NoReset(String),
    /// It is not a function that a guest can have.
    #[error("PCI function {0} cannot be given to a guest: {1}")]
    NotShown(String, guest_view::NotShown),
    /// The system refused.
    #[error("PCI function {0}: {1}")]
    System(String, io::Error),
}

impl Passthrough {
    /// Takes the function from the host, with what a guest sees of its configuration space. It is
    /// reset.
    ///
    /// # Errors
    /// When VFIO does not give it, or it cannot be reset or shown to a guest.
    pub fn open(function: &Function) -> Result<(ConfigSpace, Self), OpenError> {
        let address = || function.address.clone();
        let vfio = |error| OpenError::Vfio {
            address: address(),
            group: function.group,
            error,
        };
        let container = Arc::new(VfioContainer::new(None).map_err(vfio)?);
        let device = VfioDevice::new(&function.folder, container.clone(), true).map_err(vfio)?;
        #[expect(
            unsafe_code,
            reason = "the crate lends its descriptor as a number only"
        )]
        // SAFETY: `device` has it open, and outlives this.
        let borrowed = unsafe { BorrowedFd::borrow_raw(device.as_raw_fd()) };
        let system = |error| OpenError::System(address(), error);
        let file = File::from(borrowed.try_clone_to_owned().map_err(system)?);
        let file = Handle::new(file, Arc::new(Linux));
        let shared = Arc::new(borrowed.try_clone_to_owned().map_err(system)?);
        if !vfio::can_reset(&file).map_err(|errno| system(errno.into()))? {
            return Err(OpenError::NoReset(address()));
        }
        vfio::reset(&file).map_err(|errno| system(errno.into()))?;
        let at = device.get_region_offset(VFIO_PCI_CONFIG_REGION_INDEX);
        let mut header = [0; CAPABILITY_END];
        file.read_exact_at(&mut header, at).map_err(system)?;
        let sizes = [0, 1, 2, 3, 4, 5].map(|bar| device.get_region_size(bar));
        let space = guest_view::of(&header, sizes);
        let space = space.map_err(|error| OpenError::NotShown(address(), error))?;
        let registers = Registers::new(at, space.express());
        registers.set_bus_master(&file, false).map_err(system)?;
        let vectors = space.msix().map_or(0, |(_, layout)| layout.vectors);
        let this = Self {
            name: address(),
            memory: Memory::new(container),
            device,
            registers,
            vectors: Vectors::new(VFIO_PCI_MSIX_IRQ_INDEX, vectors),
            file,
            shared,
            untouched: true,
            over: false,
        };
        Ok((space, this))
    }

    /// Where `offset` of BAR `bar` is in the device's file, if `len` bytes are there.
    fn place(&self, bar: u8, offset: u64, len: usize) -> Option<u64> {
        let bar = u32::from(bar);
        let end = offset.checked_add(u64::try_from(len).ok()?)?;
        let is_there = bar < 6 && end <= self.device.get_region_size(bar) && !self.over;
        is_there.then(|| self.device.get_region_offset(bar).checked_add(offset))?
    }
}

impl Model for Passthrough {
    fn read(&mut self, bar: u8, offset: u64, data: &mut [u8], _: &Access<'_>) {
        self.untouched = false;
        let at = self.place(bar, offset, data.len());
        let read = at.map(|at| self.file.read_exact_at(data, at));
        if !matches!(read, Some(Ok(()))) {
            data.fill(0xff);
        }
    }

    fn write(&mut self, bar: u8, offset: u64, data: &[u8], _: &Access<'_>) {
        self.untouched = false;
        let at = self.place(bar, offset, data.len());
        if let Some(Err(error)) = at.map(|at| self.file.write_all_at(data, at)) {
            tracing::debug!(%error, function = self.name, bar, offset, "not written");
        }
    }

    /// The kernel makes it by the function's own means, and knows how long it takes.
    fn reset(&mut self, _: Reset) {
        match vfio::reset(&self.file) {
            Ok(()) => self.untouched = true,
            Err(error) => tracing::error!(%error, function = self.name, "not reset"),
        }
    }

    fn poll(&mut self, _: &Access<'_>) -> Progress {
        Progress::Idle(None)
    }

    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn poll_read(&self) -> bool {
        false
    }

    fn needs_poll(&self) -> bool {
        false
    }

    /// Bus mastering is off, so nothing new begins; what had begun is over when no transaction is
    /// pending (PCIe 7.5.3.5). A read of the function comes back behind the writes that it has sent
    /// before (PCIe 2.4.1), so when this has read, they have arrived.
    fn drain(&mut self) -> io::Result<()> {
        let deadline = Instant::now() + PENDING;
        loop {
            let seen = self.registers.look(&self.file)?;
            if seen.bus_master {
                return Err(io::Error::other(
                    "it does not let its bus mastering be switched off",
                ));
            }
            if !seen.is_pending {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(io::Error::other(format!(
                    "its transactions are still under way {PENDING:?} after its bus mastering was \
                     switched off"
                )));
            }
            thread::sleep(LOOK);
        }
    }

    fn hardware(&mut self) -> Option<&mut dyn Hardware> {
        Some(self)
    }

    fn has_state(&self) -> bool {
        false
    }

    fn save(&self) -> Result<StateRecord, StateError> {
        Err(StateError::NotReadable(NAME))
    }

    fn load(&mut self, _: &StateRecord) -> Result<(), StateError> {
        Err(StateError::NotReadable(NAME))
    }

    fn resume(&mut self, _: &Access<'_>) {}
}

impl Hardware for Passthrough {
    fn mappable(&self, bar: u8) -> Option<Mappable> {
        let index = u32::from(bar);
        let flags = self.device.get_region_flags(index);
        if bar > 5 || flags & VFIO_REGION_INFO_FLAG_MMAP == 0 {
            return None;
        }
        let areas = self.device.get_region_caps(index).into_iter();
        let areas = areas.filter_map(|capability| match capability {
            VfioRegionInfoCap::SparseMmap(sparse) => Some(sparse.areas),
            _ => None,
        });
        Some(Mappable {
            file: Arc::clone(&self.shared),
            offset: self.device.get_region_offset(index),
            areas: areas
                .flatten()
                .map(|area| (area.offset, area.size))
                .collect(),
        })
    }

    fn map(&mut self, request: MapRequest, file: Option<OwnedFd>) -> Result<(), MapError> {
        if self.over {
            return Err(MapError::System("its guest is gone".into()));
        }
        self.memory.map(request, file)
    }

    fn unmap(&mut self, iova: u64, size: u64) -> Result<(), MapError> {
        self.memory.unmap(iova, size)
    }

    fn unmap_all(&mut self) {
        self.memory.unmap_all();
    }

    fn set_bus_master(&mut self, on: bool) -> io::Result<()> {
        let on = on && !self.over;
        self.untouched &= !on;
        self.registers.set_bus_master(&self.file, on)
    }

    fn raise_what_was_lost(&mut self) {
        if let Err(error) = self.vectors.raise_all(&self.file) {
            tracing::warn!(%error, function = self.name, "an interrupt may be lost");
        }
    }

    fn connect(&mut self, first: u32, eventfds: Vec<Option<OwnedFd>>) -> io::Result<()> {
        if self.over {
            return Err(Errno::NODEV.into());
        }
        Ok(self.vectors.put(first, eventfds, &self.file)?)
    }

    fn disconnect(&mut self) -> io::Result<()> {
        Ok(self.vectors.clear(&self.file)?)
    }

    fn raise(&mut self, vector: u32) -> io::Result<()> {
        Ok(self.vectors.raise(vector, &self.file)?)
    }

    /// It may write guest memory until it has been reset: before its memory goes.
    fn abandon(&mut self) {
        self.over = true;
        let quiet = self.registers.set_bus_master(&self.file, false);
        let clear = self.vectors.clear(&self.file);
        for result in [quiet, clear.map_err(Into::into)] {
            if let Err(error) = result {
                tracing::warn!(%error, function = self.name, "not switched off");
            }
        }
        self.reset(Reset::Bus);
        self.memory.unmap_all();
    }

    fn is_untouched(&self) -> bool {
        self.untouched
    }
}

impl std::fmt::Debug for Passthrough {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Passthrough")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
