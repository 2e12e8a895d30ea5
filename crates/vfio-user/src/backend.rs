//! What a device is to the server.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;

use crate::Negotiated;
use crate::client::Client;
use crate::migration::Migration;

/// A device behind a vfio-user socket.
///
/// Every call is made by the one thread that serves the connection, one at a time and in the order
/// in which the client sent its commands. QEMU holds a vCPU, and its big lock, until a call has
/// been answered, and takes a device that needs more than 5 s (`x-msg-timeout`) for dead: so no
/// call may wait for the client, and none may take long.
///
/// An [`Errno`] that a call returns is what the client is told.
pub trait Backend {
    /// What the device is. Asked once or more in a connection; never changes.
    fn device_info(&self) -> DeviceInfo {
        DeviceInfo::default()
    }

    /// Region `index`, or `None` where the device has none.
    ///
    /// Asked once or more in a connection; size and access never change.
    fn region_info(&self, index: u32) -> Option<Region>;

    /// Interrupts of kind `index` (`VFIO_PCI_*_IRQ_INDEX`); the default count is none.
    fn irq_info(&self, index: u32) -> IrqInfo;

    /// Fills `data` (1 byte or more) from `offset` of `region` on. Always within the region, and
    /// only if it is readable.
    ///
    /// # Errors
    /// Where the device does not complete the access; the guest then reads what its VMM makes of
    /// it, usually all ones or zeros.
    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), Errno>;

    /// Writes `data` (1 byte or more) from `offset` of `region` on. Always within the region, and
    /// only if it is writable.
    ///
    /// # Errors
    /// Where the device does not complete the access.
    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), Errno>;

    /// All that the client has sent so far is carried out. What need not be done for each command by
    /// itself can be put off until here; replies have been sent.
    fn settle(&mut self) {}

    /// Makes a range of the client's memory reachable for DMA.
    ///
    /// Without `fd` the range is known to the client but cannot be mapped (ROMs, other devices'
    /// BARs); it is reached by messages only, see [`Client`].
    ///
    /// # Errors
    /// `EEXIST` when a part of the range is mapped already, as the specification asks for; else
    /// whatever kept the range from being mapped. QEMU does not survive a refused mapping of a
    /// running VM.
    fn dma_map(&mut self, map: DmaMap, fd: Option<OwnedFd>) -> Result<(), Errno>;

    /// Takes back what [`dma_map`](Self::dma_map) made reachable. No access to it may be under way
    /// once this returns.
    ///
    /// # Errors
    /// `ENOENT` when no mapping is exactly that range.
    fn dma_unmap(&mut self, unmap: DmaUnmap) -> Result<(), Errno>;

    /// Connects, disconnects, masks or triggers interrupts.
    ///
    /// # Errors
    /// `EINVAL` or `ENOTSUP` where that kind of interrupt cannot do what is asked.
    fn set_irqs(&mut self, set: IrqSet<'_>) -> Result<(), Errno>;

    /// Resets the device as a bus reset does.
    ///
    /// Clients reset at start and with the machine, some (Cloud Hypervisor) even where
    /// [`DeviceInfo::resettable`] is false. Mappings and eventfds stay as they are.
    ///
    /// # Errors
    /// Where the device cannot be reset.
    fn reset(&mut self) -> Result<(), Errno>;

    /// A client has connected and agreed on a version; `client` reaches it until
    /// [`disconnected`](Self::disconnected).
    fn connected(&mut self, client: Client);

    /// The client is gone, or serving it was stopped. Its memory and eventfds are to be let go of;
    /// the device's own state stays. Called once for every [`connected`](Self::connected).
    fn disconnected(&mut self);

    /// A command of the client's was refused, by the device or before it came to it: `EMFILE` where this process
    /// had no descriptor left for what the client sent.
    fn refused(&mut self, errno: Errno) {
        let _ = errno;
    }

    /// A message of the client is about to be carried out, by calls that follow.
    fn begin(&mut self) {}

    /// It has been: what came of it counts from here on, also for a process that goes on with the connection
    /// ([`Server::serve_kept`](crate::Server::serve_kept)).
    ///
    /// # Errors
    /// When it cannot be made to count. The connection is of no use then.
    fn commit(&mut self, done: Done<'_>) -> Result<(), Errno> {
        let _ = done;
        Ok(())
    }

    /// The migration half of a device that has one.
    ///
    /// By default there is none: the client is told `ENOTTY` when it probes for it, as
    /// `VFIO_DEVICE_FEATURE` does.
    fn migration(&mut self) -> Option<&mut dyn Migration> {
        None
    }
}

/// A message that has been carried out.
#[derive(Debug, Clone, Copy)]
pub struct Done<'a> {
    /// Its length, header included.
    pub len: u64,
    /// What the client is to be told, header included.
    pub reply: Option<&'a [u8]>,
    /// What was agreed on by it.
    pub agreed: Option<Negotiated>,
}

/// A device's basic facts (`VFIO_USER_DEVICE_GET_INFO`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Number of regions: 9 for PCI, at most 100 as QEMU takes them.
    pub regions: u32,
    /// Number of kinds of interrupts: 5 for PCI, at most 50 as QEMU takes them.
    pub irqs: u32,
    /// The client may send `VFIO_USER_DEVICE_RESET`.
    pub resettable: bool,
}

impl Default for DeviceInfo {
    /// A PCI device: `VFIO_PCI_NUM_REGIONS` regions, `VFIO_PCI_NUM_IRQS` kinds of interrupts.
    fn default() -> Self {
        Self {
            regions: 9,
            irqs: 5,
            resettable: true,
        }
    }
}

/// A region of a device: a BAR, the ROM, or configuration space.
#[derive(Debug, Clone, Default)]
pub struct Region {
    /// Length in bytes.
    pub size: u64,
    /// The client may read.
    pub readable: bool,
    /// The client may write.
    pub writable: bool,
    /// The part of the region that the client may map into the guest, if any.
    ///
    /// QEMU stops posting writes to the *whole* device once one of its regions can be mapped, and
    /// does not migrate what is in the mapped part.
    pub mapping: Option<RegionMapping>,
}

impl Region {
    /// A region of `size` bytes, each access to which comes as a message.
    pub fn trapped(size: u64) -> Self {
        Self {
            size,
            readable: true,
            writable: true,
            mapping: None,
        }
    }
}

/// Memory behind a region that the client may map.
#[derive(Debug, Clone)]
pub struct RegionMapping {
    /// What is to be mapped.
    pub fd: Arc<OwnedFd>,
    /// Where the region's first byte is in `fd`.
    pub offset: u64,
    /// The parts of the region that may be mapped, page aligned; empty for all of it.
    pub areas: Vec<MapArea>,
}

/// A part of a region (`struct vfio_region_sparse_mmap_area`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapArea {
    /// First byte, from the start of the region.
    pub offset: u64,
    /// Length in bytes.
    pub size: u64,
}

/// The interrupts of one kind (`VFIO_USER_DEVICE_GET_IRQ_INFO`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IrqInfo {
    /// How many there are.
    pub count: u32,
    /// The client may mask and unmask them.
    pub maskable: bool,
    /// They mask themselves when triggered.
    pub automasked: bool,
    /// They are set up as a whole: more can be connected only after all were disabled.
    pub noresize: bool,
}

impl IrqInfo {
    /// `count` MSI-X vectors.
    pub fn msix(count: u32) -> Self {
        Self {
            count,
            noresize: true,
            ..Self::default()
        }
    }
}

/// A range of client memory that is to be reachable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DmaMap {
    /// First address, as the device sees it. `iova + size` does not overflow.
    pub iova: u64,
    /// Length in bytes, not 0.
    pub size: u64,
    /// Where the range starts in the file descriptor. `offset + size` does not overflow.
    pub offset: u64,
    /// The device may read.
    pub readable: bool,
    /// The device may write.
    pub writable: bool,
}

/// What is no longer to be reachable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DmaUnmap {
    /// One earlier mapping, exactly.
    Range {
        /// Its first address.
        iova: u64,
        /// Its length in bytes.
        size: u64,
    },
    /// Every mapping.
    All,
}

/// What happens to interrupts `start..start + count` of kind `index`
/// (`VFIO_USER_DEVICE_SET_IRQS`). Always within [`IrqInfo::count`].
#[derive(Debug)]
pub struct IrqSet<'a> {
    /// Kind of interrupt (`VFIO_PCI_*_IRQ_INDEX`: 0 `INTx`, 1 MSI, 2 MSI-X, 3 error, 4 request).
    pub index: u32,
    /// The first one.
    pub start: u32,
    /// How many; 0 only for [`IrqChange::DisableAll`].
    pub count: u32,
    /// What happens to them.
    pub change: IrqChange<'a>,
}

/// See [`IrqSet`].
#[derive(Debug)]
pub enum IrqChange<'a> {
    /// All interrupts of the kind are disconnected.
    DisableAll,
    /// Interrupt `start + i` signals `eventfds[i]` when `event` happens. There are
    /// [`IrqSet::count`] eventfds; a client sends them in chunks of at most
    /// [`MAX_MSG_FDS`](crate::MAX_MSG_FDS). They are not known to be eventfds.
    Connect {
        /// When.
        event: IrqEvent,
        /// Whom.
        eventfds: Vec<OwnedFd>,
    },
    /// The interrupts no longer signal anybody when `event` happens.
    Disconnect {
        /// When.
        event: IrqEvent,
    },
    /// The client itself makes `event` happen.
    Do {
        /// What.
        event: IrqEvent,
        /// To interrupt `start + i` only where `only[i]` is not 0; without it, to all of them.
        only: Option<&'a [u8]>,
    },
}

/// What can happen to an interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IrqEvent {
    /// It is masked.
    Mask,
    /// It is unmasked.
    Unmask,
    /// It fires.
    Trigger,
}
