//! What the built-in peer (`uplink`) and the load inside the guest (`lab-guest`) agree on.
//!
//! * [`numbered`]: the payload of the numbered, time-stamped UDP packets and ICMP echoes;
//! * [`sequence`]: what the receiver of such numbers keeps: lost, late and doubled ones, silences;
//! * [`content`]: the content of the TCP transfer, a function of the byte's offset;
//! * [`journal`]: the records of a disk that is to be cut off its power, and what is left of them;
//! * [`report`] and [`disk`]: what the guest tells of its load, as JSON.
//!
//! The TCP transfer has no framing: the peer sends [`Content::TO_GUEST`] from offset 0 at its own
//! pace, and the guest answers each byte received with the next byte of [`Content::FROM_GUEST`].
//! So one rate, the peer's, governs both directions.
//!
//! # What it does not do
//!
//! It opens no sockets and no files, and reads no clocks: all times come in as nanoseconds of the receiver's
//! `CLOCK_MONOTONIC`.

pub mod content;
pub mod disk;
pub mod journal;
pub mod numbered;
pub mod report;
pub mod sequence;

pub use content::{Checked, Content};
pub use disk::{
    DiskIoError, DiskOperation, DiskReport, DiskSilence, ExpectedBlock, FoundBlock, WrongBlock,
};
pub use numbered::{NotNumbered, Numbered, Seen};
pub use report::{DirtyReport, GuestReport, GuestTcpReport, GuestUdpReport, Rate, Run};
pub use sequence::{Arrival, Gap, Sequence, Silence};
