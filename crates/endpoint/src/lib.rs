//! One PCI endpoint of a VM, as a vfio-user server presents it.
//!
//! An [`Endpoint`] joins a device model with its configuration space, its MSI-X vectors and the
//! gate to guest memory. Two threads act on it: the connection's (register accesses, through
//! [`Frontend`]) and the engine's ([`engine`]: the network, rest of rings, timers). The model is
//! behind one lock; DMA runs under a permit of its `BusMaster`; both are held for one bounded call.
//!
//! [`Endpoints`] is all of a VM's, with the life cycle of a migration.
//!
//! # What it does not do
//!
//! It opens no sockets (`vfio-user` does), knows no particular device, and never talks to QEMU's
//! monitor: what the VMM keeps of a function is rebuilt by `ferry`, from [`Endpoint::restore_plan`].

pub mod engine;
mod frontend;
pub mod kept;
mod migrate;
mod presence;
mod real;
mod vectors;

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use device::{Access, BusMaster, Claim, Model, MonotonicClock, Reset};
use pci::{ConfigSpace, MsixTable};

pub use frontend::Frontend;
pub use migrate::{Carry, EndpointError, EndpointState, Endpoints};

use engine::Kick;
use kept::Kept;
use presence::Presence;
use rustix::io::Errno;
use vectors::Vectors;

/// One PCI function.
#[derive(Clone)]
pub struct Endpoint(Arc<Inner>);

struct Inner {
    name: String,
    keeps_log: bool,
    is_real: bool,
    /// What a real device wrote is not known.
    lost_log: AtomicBool,
    /// Why it does not run as it did before it was halted last, if it does not.
    fault: Mutex<Option<String>>,
    /// What this process had not left for something that the VMM asked for.
    lack: Mutex<Option<Errno>>,
    model: Mutex<Box<dyn Model>>,
    config: Mutex<ConfigSpace>,
    bus: BusMaster,
    vectors: Vectors,
    presence: Presence,
    clock: MonotonicClock,
    kick: Kick,
    stopping: AtomicBool,
    client: Mutex<Option<vfio_user::Client>>,
    /// Where what it comes to outlives this process, if it does.
    kept: OnceLock<Kept>,
}

impl Endpoint {
    /// A function called `name` (in messages and saved state) as after power-on.
    ///
    /// # Errors
    /// When the system has no descriptor left for the engine's wake-up.
    pub fn new(name: &str, config: ConfigSpace, model: Box<dyn Model>) -> std::io::Result<Self> {
        Self::make(name, config, model, true)
    }

    /// As [`Endpoint::new`], but what the function writes is not told by it: it stands for
    /// hardware that keeps no log, and somebody else must know the pages.
    ///
    /// # Errors
    /// See there.
    pub fn without_log(
        name: &str,
        config: ConfigSpace,
        model: Box<dyn Model>,
    ) -> std::io::Result<Self> {
        Self::make(name, config, model, false)
    }

    fn make(
        name: &str,
        config: ConfigSpace,
        mut model: Box<dyn Model>,
        keeps_log: bool,
    ) -> std::io::Result<Self> {
        let is_real = model.hardware().is_some();
        let vectors = config.msix().map_or(0, |(_, layout)| layout.vectors);
        Ok(Self(Arc::new(Inner {
            name: name.into(),
            keeps_log,
            is_real,
            lost_log: AtomicBool::new(false),
            fault: Mutex::default(),
            lack: Mutex::default(),
            model: Mutex::new(model),
            config: Mutex::new(config),
            bus: BusMaster::default(),
            vectors: Vectors::new(vectors),
            presence: Presence::default(),
            clock: MonotonicClock::default(),
            kick: Kick::new()?,
            stopping: AtomicBool::new(false),
            client: Mutex::new(None),
            kept: OnceLock::new(),
        })))
    }

    /// The function's name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Whether the pages that the function writes are marked by
    /// [`Migratable::mark`](device::lifecycle::Migratable::mark).
    pub fn keeps_log(&self) -> bool {
        self.0.keeps_log && !self.0.lost_log.load(Ordering::Acquire)
    }

    /// What a vfio-user connection talks to.
    pub fn frontend(&self) -> Frontend {
        Frontend::new(self.clone())
    }

    /// The gate to guest memory.
    pub fn bus(&self) -> &BusMaster {
        &self.0.bus
    }

    /// From the next reset of its bus on the function does not answer, as one that is not ready, until it
    /// has been programmed: see [`Endpoint::answer`] and [`Endpoint::appear`]. `programme` is what with.
    pub fn leave_at_reset(&self, programme: serde_json::Value) {
        self.change_presence(|presence| presence.leave_at_reset(programme));
    }

    /// What it has still to be programmed with: of the process that has called
    /// [`Endpoint::leave_at_reset`], or of the one before.
    pub fn programme(&self) -> Option<serde_json::Value> {
        self.0.presence.programme()
    }

    /// Whether that reset has come, and the function does not answer.
    pub fn has_left(&self) -> bool {
        self.0.presence.is_absent()
    }

    /// The function answers, to be programmed; a process that goes on from here does that anew.
    pub fn answer(&self) {
        self.change_presence(Presence::answer);
    }

    /// The function answers, and there is no more to be programmed.
    pub fn appear(&self) {
        self.change_presence(Presence::appear);
    }

    fn change_presence(&self, change: impl FnOnce(&Presence)) {
        self.in_turn(|| {
            change(&self.0.presence);
            self.note_change();
        });
    }

    /// What the model shows of itself, for reports.
    pub fn inspect(&self) -> serde_json::Value {
        self.lock_model().inspect()
    }

    /// A count that grows with what the model [does](Model::work_done).
    pub fn work_done(&self) -> u64 {
        self.lock_model().work_done()
    }

    /// The writes that bring the VMM's side of this function to where `image` has it, from where
    /// `before` has it, or from power-on. The MSI-X table is among them if `table`.
    ///
    /// # Errors
    /// When an image is of another function.
    pub fn restore_plan(
        &self,
        image: &pci::ConfigImage,
        before: Option<&pci::ConfigImage>,
        table: bool,
    ) -> Result<Vec<pci::restore::Step>, pci::ImageError> {
        let space = |image| {
            let mut space = self.lock_config().clone();
            space.load(image).map(|()| space)
        };
        let config = space(image)?;
        Ok(match before {
            Some(before) => pci::restore::changes(&space(before)?, &config, table),
            None => pci::restore::plan(&config, table),
        })
    }

    /// The saved configuration space.
    pub fn config_image(&self) -> pci::ConfigImage {
        self.lock_config().save()
    }

    /// The MSI-X table, which the VMM keeps: read from the function's own BAR by DMA messages.
    /// `None` while no BAR shows it.
    ///
    /// # Errors
    /// When the VMM does not answer; never call this while the VMM waits for us.
    pub fn read_msix_table(&self) -> Result<Option<MsixTable>, EndpointError> {
        let Some((at, entries)) = self.msix_table_address() else {
            return Ok(None);
        };
        let mut table = Vec::with_capacity(entries);
        for entry in 0..entries {
            let offset = (entry * pci::msix::ENTRY_LEN) as u64;
            let bytes = self.read_through_vmm(at + offset, pci::msix::ENTRY_LEN)?;
            table.extend(MsixTable::from_bytes(&bytes).0);
        }
        Ok(Some(MsixTable(table)))
    }

    /// Writes to guest-physical memory through the VMM, which may be a device's BAR.
    ///
    /// # Errors
    /// When the VMM refuses or does not answer.
    pub fn write_through_vmm(&self, at: u64, data: &[u8]) -> Result<(), EndpointError> {
        self.client()?
            .dma_write(at, data)
            .map_err(|e| self.error(&e))
    }

    /// Reads guest-physical memory through the VMM, which may be a device's BAR.
    ///
    /// # Errors
    /// When the VMM refuses or does not answer.
    pub fn read_through_vmm(&self, at: u64, len: usize) -> Result<Vec<u8>, EndpointError> {
        self.client()?.dma_read(at, len).map_err(|e| self.error(&e))
    }

    /// Why it does not run as it did before it was halted last, if it does not: a real function did not do what it
    /// was told to. Nothing is known of what its driver has done about it since.
    pub fn fault(&self) -> Option<String> {
        let fault = self.0.fault.lock();
        fault.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why not all was done that the VMM has asked for, if so: its device may not reach all of the VM's memory, or
    /// interrupt it. A VMM goes on all the same.
    pub fn lack(&self) -> Option<String> {
        let lack = self.lacking();
        lack.map(|errno| format!("vferry could not do what QEMU asked for: {errno}"))
    }

    fn lacking(&self) -> Option<Errno> {
        *self.0.lack.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_lack(&self, lack: Option<Errno>) {
        *self.0.lack.lock().unwrap_or_else(PoisonError::into_inner) = lack;
        if let Some(kept) = self.0.kept.get() {
            kept.note_change();
        }
    }

    fn set_fault(&self, fault: Option<String>) {
        *self.0.fault.lock().unwrap_or_else(PoisonError::into_inner) = fault;
    }

    /// Whether the VMM is connected.
    pub fn is_connected(&self) -> bool {
        self.0
            .client
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_some()
    }

    /// Whether the guest has bus mastering on, without which no message to the VMM gets through.
    pub fn is_bus_master(&self) -> bool {
        self.lock_config().bus_master()
    }

    /// Whether a driver has it at work: it may be bus master and interrupt, and is not powered down.
    /// A driver that was suspended may leave it bus master, but not the other two. One that polls
    /// has no interrupts: a device whose state can be read goes over by that, of any other it counts
    /// that it may be bus master.
    pub fn is_in_use(&self) -> bool {
        let may_poll = !self.has_state();
        let config = self.lock_config();
        config.bus_master() && (config.is_msix_enabled() || may_poll) && !config.is_powered_down()
    }

    /// Vendor and device ID.
    pub fn ids(&self) -> (u16, u16) {
        self.lock_config().ids()
    }

    /// Where the MSI-X table lies in guest-physical memory, and its number of entries; `None`
    /// while no BAR shows it.
    pub fn msix_table_address(&self) -> Option<(u64, usize)> {
        let config = self.lock_config();
        let (_, layout) = config.msix()?;
        let bar = config.bar_address(layout.bar)?;
        let at = bar.checked_add(u64::from(layout.table_offset))?;
        Some((at, usize::from(layout.vectors)))
    }

    /// Number of MSI-X vectors.
    pub fn vector_count(&self) -> usize {
        self.lock_config()
            .msix()
            .map_or(0, |(_, layout)| usize::from(layout.vectors))
    }

    fn reset(&self, kind: Reset) {
        self.note_change();
        let mut model = self.lock_model();
        match kind {
            Reset::Bus => self.lock_config().reset(),
            Reset::Function => self.lock_config().reset_function(),
        }
        self.0.bus.set_enabled(false);
        if let Err(error) = self.follow(model.as_mut()) {
            tracing::error!(device = self.name(), %error, "bus mastering not switched off");
        }
        self.0.vectors.forget_pending();
        model.reset(kind);
    }

    /// Runs `f` on the model with what it may use; wakes the engine if that left work for it.
    fn with_model<R>(&self, f: impl FnOnce(&mut dyn Model, &Access<'_>) -> R) -> R {
        self.access(|model, access| {
            let result = f(model, access);
            if model.needs_poll() {
                self.0.kick.kick();
            }
            result
        })
    }

    /// Runs `f` on the model with what it may use.
    fn access<R>(&self, f: impl FnOnce(&mut dyn Model, &Access<'_>) -> R) -> R {
        let mut model = self.lock_model();
        let dma = self.0.bus.begin();
        let access = Access {
            memory: dma.as_ref().map(|dma| dma as &dyn device::GuestMemory),
            interrupts: &self.0.vectors,
            clock: &self.0.clock,
            ledger: self.0.kept.get().map(|kept| kept as &dyn device::Ledger),
        };
        f(model.as_mut(), &access)
    }

    /// Something that seldom changes has.
    fn note_change(&self) {
        if let Some(kept) = self.0.kept.get() {
            kept.note_change();
        }
    }

    fn lock_model(&self) -> MutexGuard<'_, Box<dyn Model>> {
        self.0.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_config(&self) -> MutexGuard<'_, ConfigSpace> {
        self.0.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn client(&self) -> Result<vfio_user::Client, EndpointError> {
        let client = self
            .0
            .client
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        client.ok_or_else(|| EndpointError::NotConnected(self.0.name.clone()))
    }

    fn set_client(&self, client: Option<vfio_user::Client>) {
        *self.0.client.lock().unwrap_or_else(PoisonError::into_inner) = client;
    }

    fn acquire(&self, claim: Claim<'_>) -> Result<(), EndpointError> {
        let acquired = self.lock_model().acquire(claim);
        acquired.map_err(|error| self.hold_error(error))?;
        // What has waited for it may go on, unless the function is halted.
        self.0.kick.kick();
        Ok(())
    }

    fn release(&self, migration: &str) -> Result<(), EndpointError> {
        let released = self.lock_model().release(migration);
        released.map_err(|error| self.hold_error(error))
    }

    /// What only one host may have of it, as far as these are files: see [`Model::files`].
    pub fn files(&self) -> Vec<File> {
        self.lock_model().files()
    }

    fn hold_error(&self, error: std::io::Error) -> EndpointError {
        EndpointError::Hold(self.0.name.clone(), error)
    }

    fn error(&self, why: &dyn std::fmt::Display) -> EndpointError {
        EndpointError::Vmm {
            endpoint: self.0.name.clone(),
            why: why.to_string(),
        }
    }

    fn is_stopping(&self) -> bool {
        self.0.stopping.load(Ordering::Acquire)
    }
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint")
            .field("name", &self.0.name)
            .finish_non_exhaustive()
    }
}
