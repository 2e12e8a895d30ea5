//! What can go wrong when an uplink is opened; once open, it drops and counts instead.

use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use thiserror::Error;

/// An uplink could not be opened.
#[derive(Debug, Error)]
pub enum UplinkError {
    /// The name of a TAP interface cannot be one.
    #[error(
        "'{name}' cannot name a network interface: give 1 to 15 bytes without '/', blanks or NUL"
    )]
    InterfaceName {
        /// The name given.
        name: String,
    },
    /// `/dev/net/tun` cannot be opened.
    #[error("cannot open /dev/net/tun: {source}; load the 'tun' module and run with CAP_NET_ADMIN")]
    TunDevice {
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel refused the TAP interface.
    #[error(
        "cannot attach to TAP interface '{name}': {source}; \
         is it in use, or made without vnet_hdr, or is CAP_NET_ADMIN missing?"
    )]
    Attach {
        /// The interface.
        name: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Nobody answers at a wire's socket.
    #[error("cannot connect to the network at {}: {source}; is the other end running?", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The switch cannot listen.
    #[error(
        "cannot listen at {}: {source}; remove it if an earlier run left it there",
        path.display()
    )]
    Listen {
        /// The socket.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The peer's configuration contradicts itself.
    #[error("the peer cannot be {ip} and talk to {guest_ip}: {reason}")]
    PeerConfig {
        /// Its own address.
        ip: Ipv4Addr,
        /// The guest's address.
        guest_ip: Ipv4Addr,
        /// What is wrong, and what would be right.
        reason: &'static str,
    },
    /// The peer's thread cannot be started.
    #[error("cannot start the peer: {source}")]
    Start {
        /// The kernel's answer.
        source: io::Error,
    },
}
