//! What a model is that stands for a real device.
//!
//! A device of software asks for everything that it uses: memory, interrupts, time. A real one does DMA
//! and interrupts by itself, once the host has let it, and a VMM may map its registers. So its owner
//! tells it what a software model asks for.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::{MapError, MapRequest};

/// A real device behind a [`Model`](crate::Model).
pub trait Hardware: Send {
    /// The part of BAR `bar` that a VMM may map, if any.
    fn mappable(&self, bar: u8) -> Option<Mappable>;

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
