//! The device's side of the vhost-user conversation, message by message. The `vhost` crate reads,
//! checks and answers the messages; what they mean is decided here.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use rustix::event::PollFlags;
use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVirtioFeatures,
    VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{
    Error as VhostError, GpuBackend, Result as VhostResult, VhostUserBackendReqHandlerMut,
};

use crate::log::{DirtyLog, LogSlot};
use crate::memory::{MAX_REGIONS, MemoryMap, RegionInfo};
use crate::ring::Ring;
use crate::transfer::{Done, Transfer};
use crate::{Config, Hooks, LogStart, Stop, Stopped, Veto};

/// One high-priority and one request ring, QEMU's default for the device.
pub(crate) const RINGS: usize = 2;

const LOG_ALL: u64 = VhostUserVirtioFeatures::LOG_ALL.bits();
const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
const VIRTIO_F_VERSION_1: u64 = 1 << 32;
const FEATURES: u64 = VIRTIO_F_VERSION_1 | PROTOCOL_FEATURES | LOG_ALL;

/// Without `CONFIG`: QEMU's vhost-user-fs makes the configuration space (tag, number of request
/// queues) from its own properties (`vuf_get_config`), and warns about a backend that offers it.
/// Without `PAGEFAULT`: so QEMU refuses postcopy.
const PROTOCOL: VhostUserProtocolFeatures = VhostUserProtocolFeatures::MQ
    .union(VhostUserProtocolFeatures::LOG_SHMFD)
    .union(VhostUserProtocolFeatures::REPLY_ACK)
    .union(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS)
    .union(VhostUserProtocolFeatures::DEVICE_STATE);

/// The device during one connection.
pub(crate) struct Device<'h> {
    hooks: &'h mut dyn Hooks,
    config: Config,
    log: Arc<LogSlot>,
    /// Readable once the sidecar is to stop.
    stop: BorrowedFd<'h>,
    memory: MemoryMap,
    rings: [Ring; RINGS],
    life: Life,
    /// A log was opened, and QEMU has not said since that it logs no more.
    migrating: bool,
    protocol: u64,
    transfer: Option<Transfer>,
}

/// Whether the rings run, and what is known if not.
#[derive(Debug)]
enum Life {
    Running,
    Stopped { how: Stopped, veto: Option<Veto> },
}

impl<'h> Device<'h> {
    pub(crate) fn new(
        hooks: &'h mut dyn Hooks,
        config: Config,
        log: Arc<LogSlot>,
        stop: BorrowedFd<'h>,
    ) -> Self {
        Self {
            hooks,
            config,
            log,
            stop,
            memory: MemoryMap::default(),
            rings: Default::default(),
            life: Life::Stopped {
                how: Stopped::Never,
                veto: None,
            },
            migrating: false,
            protocol: 0,
            transfer: None,
        }
    }

    /// The descriptors that the message loop waits on beside the socket, and what for.
    pub(crate) fn interests(&self) -> impl Iterator<Item = (Source, BorrowedFd<'_>, PollFlags)> {
        use std::os::fd::AsFd;
        let kicks = self.rings.iter().enumerate().filter_map(|(index, ring)| {
            let kick = ring.kick()?;
            Some((Source::Ring(index), kick.as_fd(), PollFlags::IN))
        });
        let transfer = self.transfer.as_ref().and_then(Transfer::interest);
        kicks.chain(transfer.map(|(fd, flags)| (Source::Transfer, fd, flags)))
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.transfer.as_ref().and_then(Transfer::deadline)
    }

    /// Whether `source` is to be served though its descriptor is not ready.
    pub(crate) fn is_due(&self, source: Source) -> bool {
        match source {
            Source::Ring(index) => self.rings[index].has_more(),
            Source::Transfer => self.deadline().is_some_and(|at| at <= Instant::now()),
        }
    }

    /// Does what `source`, which is ready or due, asks for.
    pub(crate) fn serve(&mut self, source: Source) {
        match source {
            Source::Transfer => {
                if let Some(transfer) = &mut self.transfer {
                    transfer.advance();
                }
            }
            Source::Ring(index) => {
                self.rings[index].take_kick();
                self.answer(index);
            }
        }
    }

    /// The rings that are set up now were served by another process.
    pub(crate) fn catch_up(&mut self, catches_up: bool) {
        for ring in &mut self.rings {
            ring.catch_up(catches_up);
        }
    }

    fn answer(&mut self, index: usize) {
        let ring = &mut self.rings[index];
        if ring.is_served() {
            match self.memory.mapped() {
                Ok(memory) => ring.answer(memory, self.log.lock().marker()),
                Err(error) => ring.leave_alone(&error),
            }
        }
    }

    fn ring(&mut self, index: u32) -> VhostResult<&mut Ring> {
        ring_index(index).map(|i| &mut self.rings[i])
    }

    /// The first message of a stop. Those after it find the rings stopped already.
    fn stop_rings(&mut self) {
        if !matches!(self.life, Life::Running) {
            return;
        }
        for ring in &mut self.rings {
            ring.set_enabled(false);
        }
        let log = self.log.lock();
        let (how, stop) = match log.marker() {
            Some(marker) => (Stopped::Logged, Stop::Logged(marker)),
            None => (Stopped::Unlogged, Stop::Unlogged),
        };
        tracing::debug!(?how, "QEMU stops the rings");
        let veto = self.hooks.stopping(stop).err();
        drop(log);
        // QEMU reads the log once more when the last ring has stopped, and frees it without a
        // word (`vhost_log_put` in `vhost_dev_stop`). This answer is the last certain moment.
        self.log.clear();
        self.log.set_started(false);
        self.life = Life::Stopped { how, veto };
    }

    fn start_rings(&mut self) {
        let before = std::mem::replace(&mut self.life, Life::Running);
        self.transfer = None;
        self.log.set_started(true);
        if let Life::Stopped { how, .. } = before
            && how != Stopped::Never
        {
            tracing::debug!("the rings run again");
            self.hooks.restarted();
        }
    }

    fn save(&mut self, pipe: File) -> Result<Transfer, Veto> {
        let Life::Stopped { how, veto } = &self.life else {
            return Err(Veto::new("QEMU asks for the state of a device that runs"));
        };
        if let Some(veto) = veto {
            return Err(veto.clone());
        }
        let missed = self.log.totals().missed;
        if *how == Stopped::Logged && missed > 0 {
            return Err(Veto::new(format!(
                "{missed} pages that devices wrote lie outside of QEMU's dirty log and would be stale"
            )));
        }
        let state = self.hooks.save(*how)?;
        Transfer::save(pipe, &state, &self.config).map_err(|e| Veto::new(e.to_string()))
    }

    fn load(&mut self, pipe: File) -> Result<Transfer, Veto> {
        if matches!(self.life, Life::Running) {
            return Err(Veto::new("QEMU brings a state to a device that runs"));
        }
        Transfer::load(pipe, &self.config).map_err(|e| Veto::new(e.to_string()))
    }

    fn finish_transfer(&mut self) -> Result<(), Veto> {
        let Some(transfer) = self.transfer.take() else {
            return Err(Veto::new("no state was transferred that could be checked"));
        };
        match transfer.finish(self.stop) {
            Ok(Done::Saved) => Ok(()),
            Ok(Done::Loaded(state)) => self.hooks.load(state),
            Err(error) => Err(Veto::new(error.to_string())),
        }
    }

    /// Tells the world of a refusal, and QEMU that there is one.
    fn refused(&mut self, veto: &Veto) -> VhostError {
        tracing::warn!(%veto, "the migration is refused");
        self.hooks.refused(veto);
        refusal(veto.to_string())
    }
}

fn ring_index(index: u32) -> VhostResult<usize> {
    usize::try_from(index)
        .ok()
        .filter(|i| *i < RINGS)
        .ok_or_else(|| refusal(format!("ring {index} does not exist")))
}

/// A descriptor of the device's that the message loop waits on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Ring(usize),
    Transfer,
}

impl VhostUserBackendReqHandlerMut for Device<'_> {
    fn set_owner(&mut self) -> VhostResult<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> VhostResult<()> {
        // Deprecated and sent by nobody; the specification allows to ignore it.
        Ok(())
    }

    fn reset_device(&mut self) -> VhostResult<()> {
        Err(not_offered("RESET_DEVICE"))
    }

    fn get_features(&mut self) -> VhostResult<u64> {
        Ok(FEATURES)
    }

    fn set_features(&mut self, features: u64) -> VhostResult<()> {
        if features & !FEATURES != 0 || features & PROTOCOL_FEATURES == 0 {
            return Err(refusal(format!(
                "features {features:#x}: only {FEATURES:#x} were offered, and bit 30 is needed"
            )));
        }
        if features & LOG_ALL == 0 {
            self.migrating = false;
            if self.log.clear() {
                tracing::debug!("QEMU closed the dirty log");
                self.hooks.log_stopped();
            }
        }
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy_listening: Option<bool>,
    ) -> VhostResult<Option<Vec<VhostUserMemoryRegionBase>>> {
        let regions = regions.iter().map(region_info).zip(files);
        self.memory.set(regions).map_err(refusal)?;
        self.log.set_layout(self.memory.layout());
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> VhostResult<()> {
        self.ring(index)?.set_size(num).map_err(refusal)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> VhostResult<()> {
        // The flag and the address for logging tell nothing new: whatever is written to the used
        // ring is marked at the ring's own address whenever a log is active.
        let gpa = |addr: u64| {
            let outside = || refusal(format!("ring address {addr:#x} is not in guest memory"));
            self.memory.gpa_of(addr).ok_or_else(outside)
        };
        let (descriptor, available, used) = (gpa(descriptor)?, gpa(available)?, gpa(used)?);
        self.ring(index)?
            .place(descriptor, available, used)
            .map_err(refusal)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> VhostResult<()> {
        self.ring(index)?.set_base(base).map_err(refusal)
    }

    fn get_vring_base(&mut self, index: u32) -> VhostResult<VhostUserVringState> {
        self.ring(index)?;
        self.stop_rings();
        let ring = self.ring(index)?;
        ring.set_kick(None);
        ring.set_call(None);
        Ok(VhostUserVringState::new(index, ring.base()))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> VhostResult<()> {
        self.ring(index.into())?.set_kick(nonblocking(fd)?);
        Ok(())
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> VhostResult<()> {
        self.ring(index.into())?.set_call(nonblocking(fd)?);
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, _fd: Option<File>) -> VhostResult<()> {
        self.ring(index.into()).map(drop)
    }

    fn get_protocol_features(&mut self) -> VhostResult<VhostUserProtocolFeatures> {
        Ok(PROTOCOL)
    }

    fn set_protocol_features(&mut self, features: u64) -> VhostResult<()> {
        if features & !PROTOCOL.bits() != 0 {
            return Err(refusal(format!(
                "protocol features {features:#x}: only {:#x} were offered",
                PROTOCOL.bits()
            )));
        }
        let missing = PROTOCOL.bits() & !VhostUserProtocolFeatures::MQ.bits() & !features;
        if missing != 0 {
            tracing::warn!(
                missing = format_args!("{missing:#x}"),
                "QEMU does without protocol features that a migration needs"
            );
        }
        self.protocol = features;
        Ok(())
    }

    fn get_queue_num(&mut self) -> VhostResult<u64> {
        Ok(RINGS as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> VhostResult<()> {
        let index = ring_index(index)?;
        if enable {
            self.start_rings();
            self.rings[index].set_enabled(true);
            // What the guest put there while nobody listened has no kick of its own.
            self.answer(index);
        } else {
            self.stop_rings();
        }
        Ok(())
    }

    fn get_config(
        &mut self,
        _offset: u32,
        _size: u32,
        _flags: VhostUserConfigFlags,
    ) -> VhostResult<Vec<u8>> {
        Err(not_offered("CONFIG"))
    }

    fn set_config(
        &mut self,
        _offset: u32,
        _buf: &[u8],
        _flags: VhostUserConfigFlags,
    ) -> VhostResult<()> {
        Err(not_offered("CONFIG"))
    }

    fn set_gpu_socket(&mut self, _gpu_backend: GpuBackend) -> VhostResult<()> {
        Err(refusal("this is no GPU"))
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> VhostResult<File> {
        Err(not_offered("SHARED_OBJECT"))
    }

    fn get_inflight_fd(
        &mut self,
        _inflight: &VhostUserInflight,
    ) -> VhostResult<(VhostUserInflight, File)> {
        Err(not_offered("INFLIGHT_SHMFD"))
    }

    fn set_inflight_fd(&mut self, _inflight: &VhostUserInflight, _file: File) -> VhostResult<()> {
        Err(not_offered("INFLIGHT_SHMFD"))
    }

    fn get_max_mem_slots(&mut self) -> VhostResult<u64> {
        Ok(MAX_REGIONS as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy_listening: Option<bool>,
    ) -> VhostResult<Option<VhostUserMemoryRegionBase>> {
        self.memory
            .add(region_info(region), file)
            .map_err(refusal)?;
        self.log.set_layout(self.memory.layout());
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> VhostResult<()> {
        self.memory.remove(region_info(region)).map_err(refusal)?;
        self.log.set_layout(self.memory.layout());
        Ok(())
    }

    fn set_device_state_fd(
        &mut self,
        direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        fd: File,
    ) -> VhostResult<Option<File>> {
        self.needs_device_state()?;
        // An older transfer is one that QEMU gave up without asking for its end.
        self.transfer = None;
        let begun = match direction {
            VhostTransferStateDirection::SAVE => self.save(fd),
            VhostTransferStateDirection::LOAD => self.load(fd),
        };
        match begun {
            Ok(mut transfer) => {
                transfer.advance();
                self.transfer = Some(transfer);
                Ok(None)
            }
            Err(veto) => Err(self.refused(&veto)),
        }
    }

    fn check_device_state(&mut self) -> VhostResult<()> {
        self.needs_device_state()?;
        self.finish_transfer().map_err(|veto| self.refused(&veto))
    }

    fn get_shmem_config(&mut self) -> VhostResult<VhostUserShMemConfig> {
        Err(not_offered("SHMEM"))
    }

    fn set_log_base(&mut self, log: &VhostUserLog, file: File) -> VhostResult<()> {
        let new = DirtyLog::map(file, log.mmap_size, log.mmap_offset).map_err(refusal)?;
        if !self.migrating {
            self.log.reset_totals();
        }
        self.migrating = true;
        if self.log.put(new) {
            // A larger log for more memory. QEMU reads what is in the old one after this answer,
            // so nothing is lost between the two (`vhost_dev_log_resize`).
            tracing::debug!(bytes = log.mmap_size, "QEMU replaced the dirty log");
            return Ok(());
        }
        let start = match self.life {
            Life::Running => LogStart::Fresh,
            Life::Stopped { .. } => LogStart::MidMigration,
        };
        tracing::debug!(bytes = log.mmap_size, ?start, "QEMU opened the dirty log");
        self.hooks.log_started(start);
        Ok(())
    }
}

impl Device<'_> {
    /// The `vhost` crate checks this for every message but the two of the device state.
    fn needs_device_state(&self) -> VhostResult<()> {
        if self.protocol & VhostUserProtocolFeatures::DEVICE_STATE.bits() == 0 {
            return Err(VhostError::InactiveOperation(
                VhostUserProtocolFeatures::DEVICE_STATE,
            ));
        }
        Ok(())
    }
}

fn region_info(region: &VhostUserMemoryRegion) -> RegionInfo {
    RegionInfo {
        gpa: region.guest_phys_addr,
        len: region.memory_size,
        user_addr: region.user_addr,
        offset: region.mmap_offset,
    }
}

/// `fd` such that neither kicks nor calls can hold up the message loop. QEMU's eventfds are
/// non-blocking already.
fn nonblocking(fd: Option<File>) -> VhostResult<Option<File>> {
    if let Some(fd) = &fd {
        rustix::fs::fcntl_getfl(fd)
            .and_then(|f| rustix::fs::fcntl_setfl(fd, f | rustix::fs::OFlags::NONBLOCK))
            .map_err(|e| VhostError::ReqHandlerError(e.into()))?;
    }
    Ok(fd)
}

fn refusal(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> VhostError {
    VhostError::ReqHandlerError(io::Error::other(why))
}

fn not_offered(what: &str) -> VhostError {
    refusal(format!("{what} was not offered"))
}
