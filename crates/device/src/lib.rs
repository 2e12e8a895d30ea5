//! What every device model sees of the world, and the order in which a device is stopped.
//!
//! A model is driven through [`Model`] and reaches outwards only through the traits here: guest
//! memory ([`GuestMemory`]), interrupts ([`Interrupts`]), time ([`Clock`]) and, for a NIC, its
//! network ([`FrameLink`]). Unit tests, fuzzers, an in-process driver and QEMU therefore all drive
//! the same code. A model that stands for a real device is told what others ask for ([`Hardware`]).
//!
//! The other half is the order of migration: [`BusMaster`] is the gate through which all DMA goes
//! and which `halt` closes, and [`lifecycle`] holds the types that make *halt, then mark, then
//! hand over* the only order that compiles.
//!
//! # What it does not do
//!
//! It knows no protocol and no device: vfio-user is in `vfio-user`, PCI configuration space in
//! `pci`, and the two are joined with a model in `endpoint`.

pub mod ahead;
pub mod bus_master;
pub mod clock;
pub mod hardware;
pub mod interrupts;
pub mod lifecycle;
pub mod link;
pub mod memory;
pub mod model;
pub mod mortal;
pub mod plain;
pub mod state;

pub use ahead::{Ahead, Ledger, Stage, Writes};
pub use bus_master::{BusMaster, Look};
pub use clock::{Clock, ManualClock, MonotonicClock};
pub use hardware::{Hardware, LogSource, Mappable, Run};
pub use interrupts::Interrupts;
pub use link::{FrameLink, Offloads, RxFrame, Sent, TxFrame, TxOffload};
pub use memory::{
    DirtySink, DmaError, FlatMemory, GuestMemory, GuestPageSink, MapError, MapRequest, MemoryFile,
    MemoryId, PAGE_SIZE,
};
pub use model::{Access, Claim, Model, Progress, Reset};
pub use mortal::Mortal;
pub use plain::{PlainReader, PlainWriter};
pub use state::{State, StateError, StateRecord};
