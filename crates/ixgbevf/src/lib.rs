//! The Intel 82599's virtual function (8086:10ed) as a device model, exact enough for the stock
//! `ixgbevf` drivers.
//!
//! [`Vf`] is the function without its configuration space: a [`device::Model`] over a
//! [`device::FrameLink`]. Its registers, descriptors and mailbox messages are in [`spec`], as
//! numbers and types without behaviour. What the guest can see or has set is plain data in
//! [`state`]; the engine around it keeps only what may be lost (throttling intervals, buffers,
//! counters for reports). [`saved`] has the form in which that state travels.
//!
//! The physical function, whose driver would sit in the host, is played by the model: it answers
//! every mailbox message in the write that sends it, also while the function is being suspended.
//!
//! One way of a frame: on a write of TDT, descriptors are read, the frame is gathered into one
//! buffer (one copy) and given to the link; what exceeds the call's budget follows in `poll`. In
//! `poll`, the link's frames are copied from where the link shows them to the guest's buffers (one
//! copy) and their descriptors written back. A link that is full keeps the descriptor waiting, a
//! ring that is full keeps the frame in the link, and with it those behind it, also of the other
//! queue; between any two calls each frame is wholly on one side.
//!
//! A driver is told of nothing before the state that comes of it is where another process finds it, if one
//! is to be able to go on ([`device::ahead`]). Such a process may send a frame once more that was on its way
//! when its predecessor died, and frames that were received then are lost; none is damaged.
//!
//! # What it does not do
//!
//! * Legacy descriptors and header split: no known VF driver uses them. Frames of such a transmit
//!   descriptor are dropped, and a receive queue of such a type drops what it should receive.
//! * Receive-side coalescing, time stamps, `IPsec`, `FCoE`, DCB, flow control, direct cache access.
//! * RSS hashes: flows are spread over the queues by a hash of the model's own, and descriptors say
//!   that they carry none. The messages for RSS tables are refused, as a PF may.
//! * Anti-spoofing and switching between functions: the link has one function.
//! * Legacy interrupts and MSI: a virtual function has none.
//! * Statistics that a virtual function has no register for.

mod access;
mod budget;
mod checksum;
mod filter;
pub mod fuzz;

mod interrupts;
mod live;
mod mailbox;
mod offload;
mod packet;
mod receive;
mod reminder;
mod ring;
pub mod saved;
pub mod spec;
pub mod state;
mod stats;
mod transmit;
mod vf;

pub use stats::{Counters, Drops, Traffic, VectorCounters};
pub use vf::{ConfigError, QUEUE_PAIRS, Vf, VfConfig};
