//! An `NVMe` 1.4 controller as a device model, for the stock `nvme` drivers.
//!
//! [`Controller`] is the function without its configuration space: a [`device::Model`] over one
//! [`Backing`] for each namespace. Its registers, commands and data structures are in [`spec`], as
//! numbers and types without behaviour. What the guest can see or has set is plain data in
//! [`state`], commands under way included; the engine around it keeps only what may be lost
//! (buffers, turns, counters for reports). [`saved`] has the form in which that state travels.
//!
//! The way of a command: a doorbell only moves a queue's tail. In `poll`, the entry is read and the
//! command becomes a part of the state; its operations on the backing are carried out one after the
//! other by an [`engine`], beside those of other commands; then its completion is written, its
//! vector raised, and it leaves the state. It is taken only while its completion queue has room for
//! it, so that no completion ever waits. A controller without access to memory (bus mastering off,
//! halted) takes no step. So a command is either in its queue, or in the state, or completed.
//!
//! The engine never sees guest memory: data goes through buffers, within a call. What is under way
//! when a call has returned is not part of the state, which says how much of a command has ended.
//! So an operation's result may be dropped, and the operation done again; that is how a controller
//! is [drained](device::Model::drain), and it cannot be saved before. An operation that outlives
//! its command, as after a reset, ends before another is begun.
//!
//! Only one host may write a backing. Until it is [acquired](device::Model::acquire), and once it
//! is released, the controller has registers and does no work: see [`FileBacking`] for the lock,
//! and for the lease that says whose a backing is while nobody has a lock.
//!
//! What is written goes to the host's page cache, so there is a volatile write cache, and the
//! controller says so: Flush, FUA, and disabling it all mean `fdatasync`.
//!
//! # What it does not do
//!
//! * SGLs, fused commands, metadata and protection information, larger pages, other command sets:
//!   not announced, and refused. Drivers use PRPs where there are no SGLs.
//! * Doorbells in memory (Doorbell Buffer Config), controller memory, persistent memory.
//! * Namespace management, format, firmware, security, directives, reservations, power states.
//! * Queues that are not contiguous (CAP.CQR), weighted arbitration, interrupt coalescing (its
//!   values are kept).
//! * Legacy interrupts and MSI: there is MSI-X, and INTMS and INTMC do nothing.
//! * Several operations of one command at a time, and stopping one that the system has: Abort says
//!   so. A controller that goes waits up to 10 s for a disk that does not answer.
//! * Keeping others than vferry from a backing: they may not heed its locks, and do not know of its
//!   lease.

mod access;
mod admin;
pub mod backing;
mod budget;
mod commands;
mod controller;
mod counters;
pub mod engine;
mod events;
mod flights;
pub mod fuzz;
mod identity;
mod io;
mod live;
mod prp;
mod queue;
pub mod saved;
pub mod spec;
pub mod state;

pub use backing::{Backing, FileBacking, HoldError, OpenError};
pub use controller::Controller;
pub use counters::Counters;
pub use identity::{ConfigError, ControllerConfig, NamespaceConfig};
