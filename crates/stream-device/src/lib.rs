//! A streaming test device: a PCI function that writes guest memory by DMA, as fast as it is
//! allowed to, and nothing else.
//!
//! It is there to prove who knows which pages a device wrote. What it writes says when it was
//! written and where it belongs ([`spec::word`]), so a driver that finds an old word, or a word of
//! another place, has found a page that was lost on the way. Its driver for Linux, in `linux/`,
//! maps memory in all the ways in which drivers do.
//!
//! [`spec`] is the device's specification: registers, descriptors, completions. [`StreamDevice`]
//! is the function without its configuration space, a [`device::Model`]. Its live state is plain
//! data in [`state`]; [`saved`] has the form in which that travels.
//!
//! The way of a page: the driver puts a descriptor into a channel's ring and moves the tail. In
//! `poll`, as often as the rate allows, the channels take turns; the one whose turn it is fills
//! what its next descriptor names, then writes a completion, and raises the vector at the end of
//! the call. A cyclic channel goes round its ring for ever and completes nothing, as devices do
//! that play or record. Between two calls no descriptor is half done.
//!
//! # What it does not do
//!
//! * It reads nothing of guest memory but descriptors, and takes no data from the guest.
//! * It keeps no exact time: what it may write is counted in steps of 2 ms.
//! * There is one vector for all channels, no MSI, no INTx and no interrupt moderation but the
//!   steps.
//! * It is of no use to anybody but tests, though a hostile guest may have it.

mod channel;
pub mod fuzz;
mod model;
mod pace;
pub mod saved;
pub mod spec;
pub mod state;

pub use model::StreamDevice;
