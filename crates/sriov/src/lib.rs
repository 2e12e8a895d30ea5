//! The host's side of virtual functions (SR-IOV): how many there are, which driver has them, and how
//! the physical function treats their traffic. What is changed is written down first, so that the
//! host can be given back as it was.
//!
//! | module | what |
//! |---|---|
//! | [`address`] | addresses of the host's PCI functions |
//! | `sysfs` | what the kernel tells and takes in files |
//! | [`port`] | MAC address, VLAN, spoof check and trust, by rtnetlink |
//! | [`record`] | what was changed: written before each change, read after any end |
//! | `take` | makes the host as a VM needs it |
//! | `give_back` | makes it as it was |
//!
//! The kernel's side is described in `Documentation/PCI/pci-iov-howto.rst`,
//! `Documentation/ABI/testing/sysfs-bus-pci` and `include/uapi/linux/if_link.h`.
//!
//! # What it does not do
//!
//! It opens no function and knows nothing of VFIO or of migration: the driver that gives functions to
//! processes is a name to it. A function must not be open when it is given back, as the kernel
//! waits for its user then: whoever calls this sees to that. It sets no rates, GUIDs or link
//! states, does not touch representors (switchdev), and makes no virtual functions where there are
//! some already, because Linux does not change a number that is not 0.

pub mod address;
mod error;
mod give_back;
mod host;
pub mod port;
pub mod record;
mod sysfs;
mod take;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use address::Address;
pub use error::SriovError;
pub use give_back::GivenBack;
pub use host::Host;
pub use port::{Mac, Port, PortWish, Setting, Vlan};
pub use record::{Change, Ledger};
pub use take::{Which, Wish};
