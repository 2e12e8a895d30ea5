//! What can go wrong between the sidecar and QEMU.

use std::io;
use std::path::PathBuf;

/// Why the sidecar cannot be served, or why a connection with QEMU ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process listens on the path.
    #[error(
        "another process serves {}: stop it, or give the sidecar another socket", .0.display()
    )]
    InUse(PathBuf),
    /// The path is taken by something that is no socket.
    #[error("{} exists and is no socket: remove it, or give the sidecar another path", .0.display())]
    NoSocket(PathBuf),
    /// The socket cannot be made.
    #[error("the sidecar's socket {} cannot be made: {source}", .path.display())]
    Bind {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The host has no descriptors or memory left for the sidecar's own work.
    #[error("the sidecar cannot wait for QEMU: {0}")]
    Host(#[from] io::Error),
    /// QEMU sent something that is not allowed, or could not be done, and was disconnected.
    ///
    /// QEMU has no way to connect the device again: the VM runs on, and cannot be migrated until
    /// it is started anew.
    #[error("the sidecar's conversation with QEMU broke off: {0}")]
    Protocol(vhost::vhost_user::Error),
}
