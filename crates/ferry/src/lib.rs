//! The migration itself: which phases it has, and what is done in each.
//!
//! | module | what |
//! |---|---|
//! | [`phase`] | the phases, one enum for code, trace, progress, report and docs |
//! | [`strategy`] | how a device's state gets to the other side |
//! | [`cooperative`] | what is asked of the guest, and what its answers are good for |
//! | [`recovery`], [`sleep`] | a device that the guest's kernel starts anew; a guest that is moved asleep |
//! | [`vm`] | one VM's devices between QEMU's hooks and the migration: who may halt, mark, hand over |
//! | [`comparison`] | memory in which nobody knows what devices wrote |
//! | [`check`] | what must agree on both sides before anything is touched |
//! | [`link`] | the messages between the two vferry processes |
//! | [`commit`] | who may run the VM when: the last step's decisions |
//! | [`resolve`] | the ways out where it is not known who runs the VM |
//! | [`source`], [`destination`] | the two sides' part of a migration |
//! | [`restore`], [`root_port`] | programming PCI configuration and MSI-X into the destination's QEMU |
//! | [`digest`] | digests of guest memory, to prove that every page arrived |
//! | [`report`] | what happened, for people and machines |
//!
//! Memory and device state travel in QEMU's own stream; the link carries only what QEMU has no
//! place for. The destination's VM is held until the source has seen its own QEMU complete and says
//! `Run`: that message is the one point at which the VM changes hosts.
//!
//! # What it does not do
//!
//! It opens no socket: QEMU's monitor, the link and the devices are handed to it. It knows no
//! device model and no file format of configuration.

pub mod check;
pub mod commit;
pub mod comparison;
pub mod cooperative;
pub mod destination;
pub mod digest;
pub mod driverless;
pub mod link;
pub mod phase;
mod protection;
pub mod recovery;
pub mod report;
pub mod resolve;
pub mod restore;
pub mod root_port;
#[cfg(test)]
mod scripted;
pub mod sleep;
pub mod source;
pub mod state;
pub mod strategy;
pub mod vm;

pub use cooperative::Guest;
pub use phase::Phase;
pub use protection::Protection;
pub use report::Report;
pub use strategy::Strategy;
pub use vm::{Controls, Vm};
