//! The folder with certificates and keys.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::peers::{Named, Peers};

/// No file is longer, in bytes.
const MAX_FILE: u64 = 1 << 20;
/// Permissions that a key's file must not give: all of others, and writing of its group.
const EXPOSING: u32 = 0o027;

/// Which side of a connection, and so which certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The side that connects: `client-cert.pem` and `client-key.pem`.
    Client,
    /// The side that is connected to: `server-cert.pem` and `server-key.pem`.
    Server,
}

/// Why the folder is of no use. Each names the file.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// There is no such file.
    #[error("{} is missing: it holds {}", path.display(), what)]
    Missing {
        /// The file.
        path: PathBuf,
        /// What it holds.
        what: &'static str,
    },
    /// The system does not give it.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// More may get at a key than should.
    #[error(
        "{} has mode {mode:03o}, by which others than its owner and group can read it, or others than its owner write it: `chmod 640` or `chmod 600` it, and have a new key made if others were on this host",
        path.display()
    )]
    Exposed {
        /// The key's file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It cannot hold what it should.
    #[error("{} is longer than the {MAX_FILE} bytes that are read of it", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// It does not hold what it should.
    #[error("{} holds no {what} in PEM form", path.display())]
    NotPem {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
    /// It holds something that cannot be used.
    #[error("{} cannot be used: {why}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The key is another certificate's.
    #[error("{} is not the key of {}: make both anew, together", key.display(), certificate.display())]
    Inconsistent {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's.
        key: PathBuf,
    },
}

/// Whether both roles' files in `folder` are there and of use. Who shows expired ones is told by the
/// other side.
///
/// # Errors
/// See [`CredentialsError`].
pub fn check(folder: &Path, peers: &Peers) -> Result<(), CredentialsError> {
    server(folder, peers)?;
    client(folder, peers).map(drop)
}

impl Role {
    /// The name of this role's certificate in the folder.
    pub fn certificate(self) -> &'static str {
        match self {
            Self::Client => "client-cert.pem",
            Self::Server => "server-cert.pem",
        }
    }

    fn key(self) -> &'static str {
        match self {
            Self::Client => "client-key.pem",
            Self::Server => "server-key.pem",
        }
    }
}

/// What this side shows, and what it takes.
struct Credentials {
    folder: PathBuf,
    role: Role,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Arc<RootCertStore>,
    revoked: Vec<CertificateRevocationListDer<'static>>,
}

/// For the side that is connected to.
pub(crate) fn server(folder: &Path, peers: &Peers) -> Result<Arc<ServerConfig>, CredentialsError> {
    let ours = Credentials::load(folder, Role::Server)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&ours.roots), provider())
        .with_crls(ours.revoked.clone())
        .build()
        .map_err(|error| ours.untrusted(&error))?;
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| ours.unusable(&error))?
        .with_client_cert_verifier(Arc::new(Named::new(verifier, peers)));
    let mut config = builder
        .with_single_cert(ours.chain.clone(), ours.key.clone_key())
        .map_err(|error| ours.unusable(&error))?;
    config.send_tls13_tickets = 0;
    config.alpn_protocols = vec![crate::SPOKEN.to_vec()];
    Ok(Arc::new(config))
}

/// For the side that connects.
pub(crate) fn client(folder: &Path, peers: &Peers) -> Result<Arc<ClientConfig>, CredentialsError> {
    let ours = Credentials::load(folder, Role::Client)?;
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::clone(&ours.roots), provider())
        .with_crls(ours.revoked.clone())
        .build()
        .map_err(|error| ours.untrusted(&error))?;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| ours.unusable(&error))?
        // Dangerous if it took more than `verifier`: it takes the same, for any of several names.
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Named::new(verifier, peers)))
        .with_client_auth_cert(ours.chain.clone(), ours.key.clone_key())
        .map_err(|error| ours.unusable(&error))?;
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![crate::SPOKEN.to_vec()];
    Ok(Arc::new(config))
}

impl Credentials {
    fn load(folder: &Path, role: Role) -> Result<Self, CredentialsError> {
        let authority = folder.join("ca-cert.pem");
        let what = "the authority's certificate";
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&authority, what)? {
            let added = roots.add(certificate);
            added.map_err(|error| CredentialsError::Unusable {
                path: authority.clone(),
                why: error.to_string(),
            })?;
        }
        let chain = certificates(&folder.join(role.certificate()), "this host's certificate")?;
        let path = folder.join(role.key());
        let key = read(&path, "this host's key", Secrecy::Secret)?;
        let key = PrivateKeyDer::from_pem_slice(&key).map_err(|_| CredentialsError::NotPem {
            path,
            what: "private key",
        })?;
        Ok(Self {
            folder: folder.into(),
            role,
            chain,
            key,
            roots: Arc::new(roots),
            revoked: revoked(&folder.join("ca-crl.pem"))?,
        })
    }

    fn unusable(&self, error: &rustls::Error) -> CredentialsError {
        let certificate = self.folder.join(self.role.certificate());
        match error {
            rustls::Error::InconsistentKeys(_) => CredentialsError::Inconsistent {
                certificate,
                key: self.folder.join(self.role.key()),
            },
            error => CredentialsError::Unusable {
                path: certificate,
                why: error.to_string(),
            },
        }
    }

    fn untrusted(&self, error: &dyn fmt::Display) -> CredentialsError {
        let file = if self.revoked.is_empty() {
            "ca-cert.pem"
        } else {
            "ca-crl.pem"
        };
        CredentialsError::Unusable {
            path: self.folder.join(file),
            why: error.to_string(),
        }
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// One or more.
fn certificates(
    path: &Path,
    what: &'static str,
) -> Result<Vec<CertificateDer<'static>>, CredentialsError> {
    let pem = read(path, what, Secrecy::Public)?;
    let all = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    let all = all.ok().filter(|all| !all.is_empty());
    all.ok_or_else(|| CredentialsError::NotPem {
        path: path.into(),
        what: "certificate",
    })
}

/// None if there is no such file.
fn revoked(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, CredentialsError> {
    let what = "what the authority has revoked";
    let pem = match read(path, what, Secrecy::Public) {
        Ok(pem) => pem,
        Err(CredentialsError::Missing { .. }) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let all = CertificateRevocationListDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    // An empty one would allow what its writer meant to forbid.
    let all = all.ok().filter(|all| !all.is_empty());
    all.ok_or_else(|| CredentialsError::NotPem {
        path: path.into(),
        what: "revocation list",
    })
}

#[derive(Clone, Copy, PartialEq)]
enum Secrecy {
    Public,
    Secret,
}

fn read(path: &Path, what: &'static str, secrecy: Secrecy) -> Result<Vec<u8>, CredentialsError> {
    let unreadable = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => CredentialsError::Missing {
            path: path.into(),
            what,
        },
        _ => CredentialsError::Unreadable {
            path: path.into(),
            source,
        },
    };
    let file = File::open(path).map_err(unreadable)?;
    // Of the opened file, which nobody can exchange any more.
    let mode = file.metadata().map_err(unreadable)?.permissions().mode() & 0o777;
    if secrecy == Secrecy::Secret && mode & EXPOSING != 0 {
        return Err(CredentialsError::Exposed {
            path: path.into(),
            mode,
        });
    }
    let mut bytes = Vec::new();
    let read = file.take(MAX_FILE + 1).read_to_end(&mut bytes);
    read.map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(CredentialsError::TooLong { path: path.into() });
    }
    Ok(bytes)
}
