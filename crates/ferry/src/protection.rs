//! What QEMU's stream is protected by: the same as the control link.

use std::net::SocketAddr;

use qemu::stream_tls::StreamTls;

/// How QEMU's stream goes, which has all of the VM's memory in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Protection {
    /// By TLS.
    Tls(StreamTls),
    /// In the open, but not out of this host: what leaves it is somebody else's tunnel.
    Local,
    /// In the open, wherever the other side wants it, as the operator said.
    Open,
}

impl Protection {
    /// What QEMU is told.
    pub(crate) fn tls(&self) -> Option<&StreamTls> {
        match self {
            Self::Tls(tls) => Some(tls),
            Self::Local | Self::Open => None,
        }
    }

    /// Whether a stream may go to `uri`, which the other side has named.
    pub(crate) fn allows(&self, uri: &str) -> bool {
        match (self, uri.strip_prefix("tcp:")) {
            (Self::Local, Some(address)) => address
                .parse::<SocketAddr>()
                .is_ok_and(|address| address.ip().to_canonical().is_loopback()),
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_in_the_open_stays_on_the_host() {
        for (uri, local) in [
            ("unix:/run/x", true),
            ("tcp:127.0.0.1:1", true),
            ("tcp:[::1]:1", true),
            ("tcp:192.0.2.1:1", false),
            // Whoever it is.
            ("tcp:localhost:1", false),
            ("tcp:0.0.0.0:1", false),
        ] {
            assert_eq!(Protection::Local.allows(uri), local, "{uri}");
            assert!(Protection::Open.allows(uri), "{uri}");
        }
    }
}
