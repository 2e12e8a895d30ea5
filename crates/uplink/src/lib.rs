//! Where a NIC model's frames go.
//!
//! Two ends implement [`device::FrameLink`], which is all that a model knows:
//!
//! * [`Tap`]: a TAP interface of this host; checksums and TCP segmentation of sent frames are left
//!   to the kernel.
//! * [`Wire`]: a unix stream socket, each frame behind its length as QEMU's `-netdev stream` and
//!   passt have it, so that those can be at the other end.
//!
//! For the lab and the demo there is an other end that measures: [`Peer`], a host of its own behind
//! a [`Switch`], which sends numbered packets, checks those that the guest sends, keeps a TCP
//! transfer running and says how long it heard nothing. When the VM moves, its new process
//! [announces](device::FrameLink::announce) the MAC on another wire and the switch follows.
//!
//! [`Attentive`] is either of them with a memory: it keeps what the guest's neighbours said of
//! themselves, for a guest that has to ask anew after its device was started anew.
//!
//! Nothing here trusts the far side: lengths are checked, queues are bounded, what cannot be
//! delivered is dropped and counted, and no call blocks.
//!
//! # What it does not do
//!
//! It does not reconnect: a [`Wire`] that broke says so and stays down. It keeps no frames across a
//! migration; what is in a queue when a VM leaves is lost, as on any cable. The switch knows no
//! VLANs, does not age addresses and detects no loops. The peer speaks IPv4 only.

mod announce;
mod error;
pub mod far_side;
mod framing;
mod neighbours;
pub mod peer;
mod switch;
mod tap;
mod wire;

pub use announce::rarp;
pub use error::UplinkError;
pub use framing::{Deframer, FrameTooLong, MAX_FRAME};
pub use neighbours::Attentive;
pub use peer::{Load, Peer, PeerConfig};
pub use switch::{Port, PortReport, Switch, SwitchReport};
pub use tap::Tap;
pub use wire::Wire;
