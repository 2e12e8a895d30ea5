//! A function of the host, opened, as a device model.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use ::device::{
    Access, GuestPageSink, Hardware, LogSource, MapError, MapRequest, Mappable, Model, Progress,
    Reset, Run, StateError, StateRecord,
};
use pci::registers::CAPABILITY_END;
use pci::{ConfigSpace, guest_view};
use rustix::io::Errno;
use vfio_bindings::bindings::vfio::VFIO_PCI_MSIX_IRQ_INDEX;
use vfio_ioctls::{VfioContainer, VfioDevice, VfioError};

use crate::container::Container;
use crate::kernel::{Handle, Kernel, Linux};
use crate::log::Log;
use crate::memory::{Iommu, Memory};
use crate::migration::Migration;
use crate::regions::Regions;
use crate::registers::Registers;
use crate::vectors::Vectors;
use crate::{Function, iommufd, state, vfio};

/// The name of the model.
pub(crate) const NAME: &str = "passthrough";
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
    /// Vendor and device ID.
    id: (u16, u16),
    // Before the device: its memory goes while the IOMMU still knows the device.
    memory: Memory,
    /// Where it was opened by its group: nobody else can have it as long as this is there.
    _group: Option<VfioDevice>,
    /// To read and write its regions, and to ask the kernel about it.
    file: Handle,
    /// The same, for the VMM to map them.
    shared: Arc<OwnedFd>,
    regions: Regions,
    registers: Registers,
    vectors: Vectors,
    /// `None` if its driver on the host cannot stop it, nor read its state.
    migration: Option<Migration>,
    log: Log,
    /// What bus mastering is to be while it is not stopped.
    bus_master: bool,
    untouched: bool,
    /// Its VMM is gone.
    over: bool,
    halt: Halt,
}

/// How it was halted last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Halt {
    /// It goes on where it was.
    InOrder,
    /// It had to be reset, and nobody has reset it since who knows that.
    ByReset,
}

/// Why it could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// VFIO refused.
    #[error(
        "VFIO does not give PCI function {address} away: {error}. Another process may have it, or another \
         function of its IOMMU group: `fuser -v /dev/vfio/{group} /dev/vfio/devices/*` tells which{own}"
    )]
    Vfio {
        /// The function.
        address: String,
        /// Its group.
        group: u32,
        /// Why.
        error: VfioError,
        /// Why not by its own file either, if it has one.
        own: String,
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
        let mut own = String::new();
        if let Some(path) = function.own_file() {
            let kernel: Arc<dyn Kernel> = Arc::new(Linux);
            match Self::open_by(&kernel, function, &path) {
                Ok(opened) => return opened,
                Err(error) => own = format!(" (by {}: {error})", path.display()),
            }
        }
        let vfio = |error| OpenError::Vfio {
            address: address(),
            group: function.group,
            error,
            own: own.clone(),
        };
        let container = Arc::new(VfioContainer::new(None).map_err(vfio)?);
        let device = VfioDevice::new(&function.folder, container.clone(), true).map_err(vfio)?;
        #[expect(
            unsafe_code,
            reason = "the crate lends its descriptor as a number only"
        )]
        // SAFETY: `device` has it open, and outlives this.
        let borrowed = unsafe { BorrowedFd::borrow_raw(device.as_raw_fd()) };
        let file = borrowed.try_clone_to_owned();
        let file = file.map_err(|error| OpenError::System(address(), error))?;
        let file = Handle::new(File::from(file), Arc::new(Linux));
        let regions = Regions::of(&device);
        let container = Container::new(container, Arc::new(Linux));
        let container = container.map_err(|error| OpenError::System(address(), error))?;
        let memory = Memory::new(Iommu::Container(container));
        Self::of(function, file, Some(device), regions, memory)
    }

    /// By its own file at `path`. Errors are of that file only; what the function itself refuses, it would
    /// refuse by its group too.
    pub(crate) fn open_by(
        kernel: &Arc<dyn Kernel>,
        function: &Function,
        path: &Path,
    ) -> io::Result<Result<(ConfigSpace, Self), OpenError>> {
        let (file, ioas) = iommufd::open(kernel, path)?;
        let regions = Regions::read(&file)?;
        let memory = Memory::new(Iommu::Ioas(ioas));
        Ok(Self::of(function, file, None, regions, memory))
    }

    fn of(
        function: &Function,
        file: Handle,
        group: Option<VfioDevice>,
        regions: Regions,
        memory: Memory,
    ) -> Result<(ConfigSpace, Self), OpenError> {
        let address = || function.address.clone();
        let system = |error| OpenError::System(address(), error);
        let shared = Arc::new(file.try_clone().map_err(system)?.into());
        if !vfio::can_reset(&file).map_err(|errno| system(errno.into()))? {
            return Err(OpenError::NoReset(address()));
        }
        vfio::reset(&file).map_err(|errno| system(errno.into()))?;
        let at = regions.config().offset;
        let mut header = [0; CAPABILITY_END];
        file.read_exact_at(&mut header, at).map_err(system)?;
        let sizes = [0, 1, 2, 3, 4, 5].map(|bar| regions.bar(bar).map_or(0, |region| region.size));
        let space = guest_view::of(&header, sizes);
        let space = space.map_err(|error| OpenError::NotShown(address(), error))?;
        let registers = Registers::new(at, space.express());
        registers.set_bus_master(&file, false).map_err(system)?;
        let vectors = space.msix().map_or(0, |(_, layout)| layout.vectors);
        let this = Self {
            name: address(),
            id: function.id,
            migration: Migration::of(&file),
            log: Log::of(&file, &memory),
            memory,
            _group: group,
            registers,
            vectors: Vectors::new(VFIO_PCI_MSIX_IRQ_INDEX, vectors),
            regions,
            file,
            shared,
            bus_master: false,
            untouched: true,
            over: false,
            halt: Halt::InOrder,
        };
        Ok((space, this))
    }

    /// By the function's own states, which keep it from memory whatever bus mastering is.
    fn is_stopped(&self) -> bool {
        self.migration.as_ref().is_some_and(Migration::is_stopped)
    }

    /// Whether none of its transactions is pending, now that it may not begin any.
    fn is_quiet_within(&self, limit: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + limit;
        loop {
            let seen = self.registers.look(&self.file)?;
            if seen.bus_master {
                return Err(io::Error::other(
                    "it does not let its bus mastering be switched off",
                ));
            }
            if !seen.is_pending {
                return Ok(true);
            }
            if Instant::now() > deadline {
                return Ok(false);
            }
            thread::sleep(LOOK);
        }
    }

    /// Where `offset` of BAR `bar` is in the device's file, if `len` bytes are there.
    fn place(&self, bar: u8, offset: u64, len: usize) -> Option<u64> {
        let region = self.regions.bar(bar)?;
        let end = offset.checked_add(u64::try_from(len).ok()?)?;
        let is_there = end <= region.size && !self.over;
        is_there.then(|| region.offset.checked_add(offset))?
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
        if self.is_stopped() {
            // It runs after a reset, if only until it is stopped again.
            let quiet = self.registers.set_bus_master(&self.file, false);
            if let Err(error) = quiet {
                tracing::error!(%error, function = self.name, "not switched off");
            }
        }
        match vfio::reset(&self.file) {
            Ok(()) => (self.untouched, self.halt) = (true, Halt::InOrder),
            Err(error) => tracing::error!(%error, function = self.name, "not reset"),
        }
        if let Some(migration) = &self.migration {
            migration.was_reset();
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
    /// before (PCIe 2.4.1), so when this has read, they have arrived. One that is stopped has nothing
    /// under way: its driver on the host has waited for that.
    fn drain(&mut self) -> io::Result<()> {
        if self.is_stopped() {
            return Ok(());
        }
        if self.is_quiet_within(PENDING)? {
            return Ok(());
        }
        // What it waits for will never come. A reset ends that, and all that its driver has set.
        tracing::warn!(
            function = self.name,
            "its transactions are still under way {PENDING:?} after its bus mastering was switched off: it is reset"
        );
        vfio::reset(&self.file)?;
        self.halt = Halt::ByReset;
        self.registers.set_bus_master(&self.file, false)?;
        if self.is_quiet_within(PENDING)? {
            return Ok(());
        }
        Err(io::Error::other(
            "its transactions are still under way after its bus mastering was switched off and it was reset",
        ))
    }

    fn hardware(&mut self) -> Option<&mut dyn Hardware> {
        Some(self)
    }

    fn has_state(&self) -> bool {
        let migration = self.migration.as_ref();
        migration.is_some_and(Migration::carries_state)
    }

    fn save(&self) -> Result<StateRecord, StateError> {
        let migration = self.migration.as_ref();
        let migration = migration.ok_or(StateError::NotReadable(NAME))?;
        let data = migration.save().map_err(|error| failed(&error))?;
        state::pack(self.id, &data)
    }

    fn load(&mut self, record: &StateRecord) -> Result<(), StateError> {
        let migration = self.migration.as_ref();
        let migration = migration.ok_or(StateError::NotReadable(NAME))?;
        let data = state::unpack(record, self.id)?;
        let loaded = migration.load(&data);
        self.untouched = loaded.is_err();
        loaded.map_err(|error| failed(&error))
    }

    fn resume(&mut self, _: &Access<'_>) {}
}

impl Hardware for Passthrough {
    fn mappable(&self, bar: u8) -> Option<Mappable> {
        let region = self.regions.bar(bar);
        let region = region.filter(|region| region.is_mappable)?;
        Some(Mappable {
            file: Arc::clone(&self.shared),
            offset: region.offset,
            areas: region.areas.clone(),
        })
    }

    fn map(&mut self, request: MapRequest, file: Option<OwnedFd>) -> Result<(), MapError> {
        if self.over {
            return Err(MapError::System("its guest is gone".into()));
        }
        self.memory.map(request, file)?;
        if self.memory.is_written(request.iova) {
            let end = request.iova.saturating_add(request.size);
            self.log.mapped(request.iova..end);
        }
        Ok(())
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
        self.bus_master = on;
        // A driver on the host may need it to gather the state of one that is stopped.
        if self.is_stopped() {
            return Ok(());
        }
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
        self.log.close(&self.file, &self.memory);
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

    fn limit_memory(&mut self, bytes: u64) {
        self.memory.limit(bytes);
    }

    fn run(&mut self, run: Run) -> io::Result<()> {
        if run == Run::On && std::mem::replace(&mut self.halt, Halt::InOrder) == Halt::ByReset {
            return Err(io::Error::other(
                "it had to be reset to be halted: it works when its driver has started it anew",
            ));
        }
        let Some(migration) = &mut self.migration else {
            return Ok(());
        };
        if run == Run::On && migration.is_stopped() {
            // As it was before, or as it was on the host where the state comes from.
            let on = self.bus_master && !self.over;
            self.registers.set_bus_master(&self.file, on)?;
        }
        migration.run(run)
    }

    fn log_source(&self) -> Option<LogSource> {
        self.log.source()
    }

    fn open_log(&mut self) -> io::Result<()> {
        self.log.open(&self.file, &self.memory)
    }

    fn read_log(&mut self, sink: &mut dyn GuestPageSink) -> io::Result<()> {
        self.log.read(&self.file, &self.memory, sink)
    }

    fn close_log(&mut self) {
        self.log.close(&self.file, &self.memory);
    }
}

fn failed(error: &io::Error) -> StateError {
    let why = error.to_string();
    StateError::Device { name: NAME, why }
}

impl std::fmt::Debug for Passthrough {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Passthrough")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
