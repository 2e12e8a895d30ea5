//! What can go wrong with a connection, in words for the operators of both sides.

use std::fmt;
use std::io;
use std::time::Duration;

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage};

use crate::{CredentialsError, Peers, Role};

/// Names of a certificate that are shown.
const SHOWN: usize = 8;

/// Why there is no connection, or no more.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// This side's own files.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The other side does not speak TLS.
    #[error(
        "the other host does not speak TLS, as this one's configuration wants it: set `tls` and `peers` in [migration] of the other host's configuration too"
    )]
    NotTls,
    /// The other side speaks TLS for another purpose.
    #[error("the other host speaks TLS, but not for vferry's control link: is the address right?")]
    NotVferry,
    /// The other side's certificate is not taken.
    #[error("the other host's certificate {0}")]
    Refused(Flaw),
    /// The other side does not take this one's.
    #[error("the other host refused this host's {}: {}", certificate, why)]
    RefusedHere {
        /// The file.
        certificate: &'static str,
        /// What the alert means.
        why: &'static str,
    },
    /// The other side gave up, for another reason.
    #[error("the other host ended the TLS connection: {0:?}")]
    Alert(AlertDescription),
    /// No handshake in time.
    #[error("the other host did not complete the TLS handshake within {0:?}")]
    Timeout(Duration),
    /// It ended in the handshake.
    #[error("the other host closed the connection in the TLS handshake")]
    Closed,
    /// What it sent is no TLS 1.3.
    #[error("the other host sent what is no TLS 1.3: {0}")]
    Protocol(Error),
    /// The system failed.
    #[error("{0}")]
    System(#[from] io::Error),
}

/// What is wrong with the other side's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Flaw {
    /// Its time is over.
    Expired,
    /// Its time has not come.
    NotYetValid,
    /// Nobody that this side knows has signed it.
    UnknownAuthority,
    /// The authority has taken it back.
    Revoked,
    /// The authority's word of what it has taken back is missing or too old.
    RevocationUnknown,
    /// It is for other hosts.
    Name {
        /// These.
        presented: String,
        /// And not one of these.
        peers: String,
    },
    /// It is not for this side of a connection.
    Purpose,
    /// There is none.
    Missing,
    /// Another.
    Other(String),
}

impl TlsError {
    /// `error` as `role`, which takes `peers`.
    pub(crate) fn new(error: Error, role: Role, peers: &Peers) -> Self {
        match error {
            Error::InvalidCertificate(error) => Self::Refused(Flaw::new(&error, peers)),
            Error::NoCertificatesPresented => Self::Refused(Flaw::Missing),
            Error::InvalidMessage(InvalidMessage::InvalidContentType) => Self::NotTls,
            Error::AlertReceived(alert) => match meaning(alert) {
                Some(why) => Self::RefusedHere {
                    certificate: role.certificate(),
                    why,
                },
                None if alert == AlertDescription::NoApplicationProtocol => Self::NotVferry,
                None => Self::Alert(alert),
            },
            Error::NoApplicationProtocol => Self::NotVferry,
            error => Self::Protocol(error),
        }
    }
}

impl From<TlsError> for io::Error {
    fn from(error: TlsError) -> Self {
        match error {
            TlsError::System(error) => error,
            error => Self::new(io::ErrorKind::InvalidData, error),
        }
    }
}

impl Flaw {
    fn new(error: &CertificateError, peers: &Peers) -> Self {
        match error {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                Self::NotYetValid
            }
            // The second by an authority of the same name, with another key.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                Self::UnknownAuthority
            }
            CertificateError::Revoked => Self::Revoked,
            CertificateError::UnknownRevocationStatus
            | CertificateError::ExpiredRevocationList
            | CertificateError::ExpiredRevocationListContext { .. } => Self::RevocationUnknown,
            CertificateError::NotValidForName => Self::name("no name", peers),
            CertificateError::NotValidForNameContext { presented, .. } if presented.is_empty() => {
                Self::name("no name", peers)
            }
            CertificateError::NotValidForNameContext { presented, .. } => {
                let shown: Vec<_> = presented.iter().take(SHOWN).map(String::as_str).collect();
                Self::name(&shown.join(", "), peers)
            }
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                Self::Purpose
            }
            other => Self::Other(printable(&other.to_string())),
        }
    }

    fn name(presented: &str, peers: &Peers) -> Self {
        Self::Name {
            presented: printable(presented),
            peers: peers.to_string(),
        }
    }
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expired => f.write_str("has expired: have it renewed, if this host's clock is right"),
            Self::NotYetValid => f.write_str("is not valid yet: compare both hosts' clocks"),
            Self::UnknownAuthority => f.write_str(
                "is not signed by the authority in this host's ca-cert.pem: both hosts need certificates of the same",
            ),
            Self::Revoked => f.write_str("is revoked by this host's ca-crl.pem"),
            Self::RevocationUnknown => f.write_str(
                "may be revoked, and this host's ca-crl.pem does not say: it is too old or another authority's",
            ),
            Self::Name { presented, peers } => write!(
                f,
                "is for {presented}, and `peers` of this host's configuration names {peers}: if the host \
                 shall be let in, add a DNS name or an address of its certificate there"
            ),
            Self::Purpose => f.write_str(
                "is not for its side of a connection: server-cert.pem needs the extended key usage \
                 for servers, client-cert.pem that for clients",
            ),
            Self::Missing => f.write_str("is missing: it showed none"),
            Self::Other(why) => write!(f, "is not taken: {why}"),
        }
    }
}

/// What an alert says of this side's certificate (RFC 8446, section 6.2, and how rustls and `GnuTLS`
/// use them).
fn meaning(alert: AlertDescription) -> Option<&'static str> {
    Some(match alert {
        AlertDescription::CertificateExpired => {
            "it has expired, or is not valid yet by the other's clock"
        }
        AlertDescription::UnknownCA | AlertDescription::DecryptError => {
            "it is not signed by the authority in the other's ca-cert.pem"
        }
        AlertDescription::CertificateRevoked => "the other's ca-crl.pem revokes it",
        AlertDescription::BadCertificate | AlertDescription::AccessDenied => {
            "none of its DNS names and addresses is in `peers` of the other's configuration"
        }
        AlertDescription::UnsupportedCertificate => {
            "it has not the extended key usage for this side of a connection"
        }
        AlertDescription::CertificateRequired => "it was not shown",
        AlertDescription::CertificateUnknown => "it is not taken, for a reason that its log tells",
        _ => return None,
    })
}

/// What comes from the other side goes to a terminal.
fn printable(text: &str) -> String {
    let shown = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    shown.take(500).collect()
}
