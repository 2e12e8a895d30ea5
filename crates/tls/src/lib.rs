//! TLS 1.3 between hosts that know each other by name.
//!
//! A folder holds the certificates, with the names of QEMU's `tls-creds-x509` (QEMU's manual, "TLS
//! setup for network services"), so that one folder serves both. Each side shows a certificate of
//! the authority in it, and takes the other only if that one's certificate is for a name that
//! it was told to expect: a DNS name or address of the subject's alternative names, never the
//! common name. What comes of it is one [`TlsStream`] with one owner, whose every call has a time limit.
//!
//! Files are read anew for each connection, so that renewed certificates need no restart. There is no resumption: whoever
//! connects is looked at as if for the first time.
//!
//! # What it does not do
//!
//! No TLS 1.2, no keys without certificates, no OCSP; certificates are revoked by `ca-crl.pem` alone. It knows
//! nothing of what is said over the connection, and logs nothing.

mod credentials;
mod error;
mod peers;
mod stream;

pub use credentials::{CredentialsError, Role, check};
pub use error::{Flaw, TlsError};
pub use peers::{PeerName, Peers, PeersError};
pub use stream::{TlsStream, accept, connect, part};

/// What the two sides speak inside: neither is led to a server that has a certificate for another purpose
/// (RFC 7301).
const SPOKEN: &[u8] = b"vferry-link";
