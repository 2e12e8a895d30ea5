//! What a model is that stands for a real device.
//!
//! A device of software asks for everything that it uses: memory, interrupts, time. A real one does DMA
//! and interrupts by itself, once the host has let it, and a VMM may map its registers. So its owner
//! tells it what a software model asks for.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::{GuestPageSink, MapError, MapRequest};

/// A real device behind a [`Model`](crate::Model).
pub trait Hardware: Send {
    /// The part of BAR `bar` that a VMM may map, if any.
    fn mappable(&self, bar: u8) -> Option<Mappable>;

    /// All memory that the VMM may have pinned for the device has so many bytes at most.
    fn limit_memory(&mut self, bytes: u64);

    /// The device reaches this memory from now on, as far as bus mastering is on. Nothing is reached
    /// where there is no `file`.
    ///
    /// # Errors
    /// When the host does not let it; nothing changed then.
    fn map(&mut self, request: MapRequest, file: Option<OwnedFd>) -> Result<(), MapError>;

    /// The device does not reach exactly this mapped range any more.
    ///
    /// # Errors
    /// When nothing is mapped so, or the host cannot tell that the device does not reach it.
    fn unmap(&mut self, iova: u64, size: u64) -> Result<(), MapError>;

    /// The device reaches no memory any more.
    fn unmap_all(&mut self);

    /// Bus Master Enable of the real function: without it it writes no memory and sends no
    /// interrupt. What it has written before may be under way still when this returns;
    /// [`Model::drain`](crate::Model::drain) waits for it.
    ///
    /// # Errors
    /// When the function does not take it.
    fn set_bus_master(&mut self, on: bool) -> io::Result<()>;

    /// The function went without bus mastering for a while in which a guest did not ask for that:
    /// interrupts that it could not send are raised.
    fn raise_what_was_lost(&mut self);

    /// MSI-X vectors from `first` on signal these; `None` signals nobody.
    ///
    /// # Errors
    /// When the host does not connect them.
    fn connect(&mut self, first: u32, eventfds: Vec<Option<OwnedFd>>) -> io::Result<()>;

    /// No vector signals anybody.
    ///
    /// # Errors
    /// When the host does not disconnect them.
    fn disconnect(&mut self) -> io::Result<()>;

    /// Raises `vector`, as if the device had.
    ///
    /// # Errors
    /// When the host does not.
    fn raise(&mut self, vector: u32) -> io::Result<()>;

    /// The VMM is gone: no guest's memory is reached any more, and the device is as after power-on.
    fn abandon(&mut self);

    /// Whether nobody can have used the device since it was last reset.
    fn is_untouched(&self) -> bool;

    /// Takes a step of a halt by the device's own means, or undoes it, where it has such means; else
    /// bus mastering is all there is. A halt takes both steps, and then
    /// [`set_bus_master`](Self::set_bus_master) is told `false`; what undoes it is told `true` before.
    ///
    /// # Errors
    /// When the device does not take it.
    fn run(&mut self, run: Run) -> io::Result<()> {
        let _ = run;
        Ok(())
    }

    /// Who logs what the device writes; `None` if nobody does. While the log is open, who does now.
    fn log_source(&self) -> Option<LogSource> {
        None
    }

    /// From here on what the device writes is logged. One that is open begins anew.
    ///
    /// # Errors
    /// When it is not; no log is open then.
    fn open_log(&mut self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Reports the pages that were written since the log was opened or read last, and maybe others.
    ///
    /// # Errors
    /// When what was written is not known any more, or no log is open.
    fn read_log(&mut self, sink: &mut dyn GuestPageSink) -> io::Result<()> {
        let _ = sink;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// What the device writes is not logged any more.
    fn close_log(&mut self) {}
}

/// How much a device does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Run {
    /// All that it is there for.
    On,
    /// No access to other devices any more, and maybe none to memory; it still answers to theirs.
    WithoutPeers,
    /// Nothing: no DMA, no interrupt, and its state does not change.
    Off,
}

/// Who logs what a real device writes, from the best on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogSource {
    /// The device.
    Device,
    /// The host's IOMMU, which sets a bit where it has translated a write.
    Iommu,
}

impl LogSource {
    /// Its one name, in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Device => "dma-logging",
            Self::Iommu => "iommu-dirty-bits",
        }
    }
}

/// The part of a BAR that a VMM may map into its guest.
#[derive(Debug, Clone)]
pub struct Mappable {
    /// What is to be mapped.
    pub file: Arc<OwnedFd>,
    /// Where the BAR's first byte is in it.
    pub offset: u64,
    /// Offset in the BAR and length of each part; none for all of it.
    pub areas: Vec<(u64, u64)>,
}
