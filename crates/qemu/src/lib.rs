//! QMP client, and what vferry asks of QEMU.
//!
//! [`Qmp`] speaks QEMU's machine protocol over a unix socket: one line of JSON per message, each
//! command answered once, events in between. Everything vferry asks for is a method on it, grouped
//! by what it is about:
//!
//! | module | asks QEMU to |
//! |---|---|
//! | [`migration`] | set capabilities and limits, start, watch and cancel a migration |
//! | [`stream_tls`] | protect its stream by TLS |
//! | [`machine`] | describe itself, so that two QEMUs can be compared before a migration |
//! | [`pci`] | read and write PCI configuration space from outside the guest |
//! | [`monitor`] | run a command of the human monitor, read guest-physical memory |
//! | [`debugger`] | write guest-physical memory while the VM stands still |
//! | [`iommu`] | tell which virtual IOMMU the VM has |
//! | [`system`] | stop, continue, quit, press the sleep key, wake up, and tell its run state |
//!
//! [`args`] is the other end of the same knowledge: the command line that makes a QEMU which can
//! be asked all this.
//!
//! [`acpi`] makes a table for that command line.
//!
//! [`guest_agent`] asks a program in the guest instead, over a socket of its own.
//!
//! A reader thread sorts what arrives. Replies go to the caller that waits for them, by the
//! command's id; events go into one bounded ring that any number of [`Events`] cursors read.
//! QEMU is trusted no further than its line of JSON parses: lines are bounded, nesting is bounded,
//! what is retained is bounded, and anything else ends the connection with an error.
//!
//! # What it does not do
//!
//! It decides nothing: which phases a migration has and what to do when one fails is in `ferry`.
//! It starts no QEMU (the lab's own is started by `lab`). It passes no file descriptors and uses no
//! out-of-band commands. It knows only the x86 way into PCI configuration space.

pub mod acpi;
mod aer;
pub mod args;
pub mod bridge;
mod client;
mod connection;
pub mod debugger;
mod error;
pub mod guest_agent;
pub mod iommu;
pub mod machine;
pub mod message;
pub mod migration;
pub mod monitor;
pub mod pci;
pub mod stream_tls;
pub mod system;

pub use client::{DEFAULT_TIMEOUT, Qmp};
pub use connection::{Event, Events};
pub use error::{Disconnect, QmpError};
pub use guest_agent::{AgentError, GuestAgent};
pub use iommu::Iommu;
pub use machine::Version;
pub use pci::{PciAddress, Place};
