//! The vfio-user protocol, server side: a process is a PCI device of a VMM over a unix socket.
//!
//! Written against the specification (QEMU's `docs/interop/vfio-user.rst`) and against what
//! QEMU 11.1 and Cloud Hypervisor send; errnos follow libvfio-user where the specification names
//! none.
//!
//! # How it is built
//!
//! From the wire up, each layer usable, and tested, without the one above:
//!
//! * [`wire`]: the messages, as they lie in memory.
//! * [`frame`]: from a stream of bytes and file descriptors to whole messages. No I/O.
//! * [`session`]: from a message to its reply, with the [`Backend`] in between. No I/O;
//!   [`session::replay`] runs a whole connection from a byte string.
//! * [`Server`]: sockets. One blocking thread per connection, the caller's; a [`Stopper`] ends it
//!   at any moment.
//! * [`Client`]: the way back, for the device's own threads: the client's memory by message, where
//!   it could not be mapped.
//!
//! A register read costs three system calls (`poll`, `recvmsg`, `sendmsg`) and no allocation; a
//! row of posted writes is taken with one `recvmsg`. On a connection that outlives its process
//! ([`Server::serve_kept`], by [`keeper::Conversation`]) it costs four, and a row of writes two.
//!
//! # What it does not do
//!
//! * It knows no device: configuration space, MSI-X and guest memory are the backend's.
//! * It is no client.
//! * No `VFIO_USER_DEVICE_GET_REGION_IO_FDS` (no VMM asks for it), no twin socket (QEMU has none;
//!   commands both ways share the one socket), no `VFIO_USER_DIRTY_PAGES` (gone from the
//!   specification).
//! * No memory of mappings: that ranges do not overlap is for the backend to see to, which has to
//!   know them anyway.
//! * Both sides are on one machine: everything is in its byte order.

pub mod backend;
mod client;
mod connection;
pub mod frame;
pub mod migration;
mod outbound;
mod server;
pub mod session;
mod stop;
mod version;
pub mod wire;

pub use backend::{
    Backend, DeviceInfo, DmaMap, DmaUnmap, Done, IrqChange, IrqEvent, IrqInfo, IrqSet, MapArea,
    Region, RegionMapping,
};
pub use client::{Client, DmaMessageError};
pub use connection::{Ended, ServeError};
pub use migration::{DmaLog, Migration};
pub use rustix::io::Errno;
pub use server::{BindError, Options, Server};
pub use session::{Session, Violation};
pub use stop::Stopper;
pub use version::Negotiated;

/// File descriptors taken in one message: all that QEMU sends (`VFIO_USER_MAX_MAX_FDS`), and it
/// refuses a server that announces more.
pub const MAX_MSG_FDS: usize = 16;

/// Most bytes of data in one message: the specification's default.
pub const MAX_DATA_XFER_SIZE: u32 = 1 << 20;

/// DMA mappings that a client may have at once: the specification's default.
pub const MAX_DMA_MAPS: usize = 65535;

/// Bytes of the longest message: header, fixed part and data.
pub const MAX_MESSAGE: usize = wire::HEADER_LEN + 16 + MAX_DATA_XFER_SIZE as usize;

/// Most bytes that [`Client::dma_read`] asks for in one message. QEMU 11.1 sends no more than fits
/// into its socket's free send buffer and loses the stream where that was too little.
pub const MAX_DMA_READ: usize = 32 * 1024;
