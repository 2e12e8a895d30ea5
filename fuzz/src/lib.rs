//! A fuzz target for each place where bytes of somebody else come in.
//!
//! A target is a function of a byte string that must return, whatever the bytes are; what it finds
//! out beyond "no panic" it asserts. [`TARGETS`] is the list.
//!
//! | target | what comes in | from whom |
//! |---|---|---|
//! | [`vfio_user`] | vfio-user messages with descriptors, register accesses in them | QEMU, guest |
//! | [`vhost_user`] | vhost-user messages | QEMU |
//! | [`sidecar_state`] | the frame around the devices' state in QEMU's stream | the other host |
//! | [`state`] | the devices' state in that frame | the other host |
//! | [`link`] | the control link's messages, first as a stream, then as one body | the other host |
//! | [`ixgbevf`] | register accesses, descriptors, frames, saved states | guest, network |
//! | [`nvme`] | register accesses, commands, disk errors, saved states | guest, disk, the other host |
//! | [`control_device`] | register accesses, the DMA table, resets amid a migration | guest |
//! | [`stream`] | register accesses, descriptors, saved states | guest, the other host |
//! | [`config_space`] | accesses to PCI configuration space | guest |
//! | [`frames`] | the wire's framing | network |
//! | [`peer`] | frames to the lab's built-in peer | guest |
//! | [`load_packet`] | the numbered packets' payload | network |
//! | [`qmp`] | lines of QMP | QEMU |
//! | [`control`] | lines of the control socket | other processes |
//! | [`config`] | the configuration file | operator |
//!
//! # How it is built
//!
//! This crate is plain Rust: its test replays `corpus/TARGET/*`, wherever tests run. `libfuzzer/`,
//! a package of its own outside of the workspace, is the same table behind libFuzzer; `cargo xtask
//! fuzz` builds and runs it, on the stable toolchain. A finding is fixed, then its file is kept in
//! the corpus.
//!
//! # What it does not do
//!
//! It knows no message of its own and checks no answer's content: what is right is tested in the
//! crates. Descriptors come only with vfio-user messages; vhost-user messages with descriptors are
//! what `sidecar`'s property tests are for.

mod function;
mod guest;
mod hosts;
mod network;
mod text;
mod vmm;

pub use guest::control_device;
pub use hosts::{link, sidecar_state, state};
pub use network::{frames, load_packet, peer};
pub use text::{config, control, qmp};
pub use vmm::{config_space, ixgbevf, nvme, stream, vfio_user, vhost_user};

/// A target.
pub type Target = fn(&[u8]);

/// All targets, by the name of their corpus.
pub const TARGETS: &[(&str, Target)] = &[
    ("config", config),
    ("config_space", config_space),
    ("control", control),
    ("control_device", control_device),
    ("frames", frames),
    ("ixgbevf", ixgbevf),
    ("link", link),
    ("load_packet", load_packet),
    ("nvme", nvme),
    ("peer", peer),
    ("qmp", qmp),
    ("sidecar_state", sidecar_state),
    ("state", state),
    ("stream", stream),
    ("vfio_user", vfio_user),
    ("vhost_user", vhost_user),
];
