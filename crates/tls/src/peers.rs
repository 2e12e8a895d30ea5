//! Names that the other side may have.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

/// A host's name: a DNS name or an address, without wildcards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerName(ServerName<'static>);

/// The hosts that are taken. At least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peers(Vec<PeerName>);

/// Why names are none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeersError {
    /// Not a name.
    #[error("`{0}` is neither a DNS name nor an address")]
    NoName(String),
    /// No name at all.
    #[error("no host is named")]
    Empty,
}

impl FromStr for PeerName {
    type Err = PeersError;

    fn from_str(text: &str) -> Result<Self, PeersError> {
        let name = ServerName::try_from(text.to_owned());
        name.map(Self)
            .map_err(|_| PeersError::NoName(text.to_owned()))
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_str())
    }
}

impl Peers {
    /// These hosts.
    ///
    /// # Errors
    /// [`PeersError::Empty`] without any.
    pub fn new(names: Vec<PeerName>) -> Result<Self, PeersError> {
        if names.is_empty() {
            return Err(PeersError::Empty);
        }
        Ok(Self(names))
    }

    /// The first of them that `certificate` is for.
    pub(crate) fn named_by(&self, certificate: &CertificateDer<'_>) -> Result<PeerName, Error> {
        let certificate = ParsedCertificate::try_from(certificate)?;
        let mut refusal = CertificateError::NotValidForName.into();
        for name in &self.0 {
            match verify_server_name(&certificate, &name.0) {
                Ok(()) => return Ok(name.clone()),
                Err(error) => refusal = error,
            }
        }
        Err(refusal)
    }

    /// For what the server's name is not known before it is looked at. Any of them does.
    pub(crate) fn any(&self) -> ServerName<'static> {
        self.0[0].0.clone()
    }
}

impl fmt::Display for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.0.iter().map(PeerName::to_string).collect();
        f.write_str(&names.join(", "))
    }
}

/// A verifier of rustls' own, and a name besides.
#[derive(Debug)]
pub(crate) struct Named<V: ?Sized> {
    peers: Peers,
    verifier: Arc<V>,
}

impl<V: ?Sized> Named<V> {
    pub(crate) fn new(verifier: Arc<V>, peers: &Peers) -> Self {
        let peers = peers.clone();
        Self { peers, verifier }
    }
}

impl ClientCertVerifier for Named<dyn ClientCertVerifier> {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.verifier.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self
            .verifier
            .verify_client_cert(end_entity, intermediates, now)?;
        self.peers.named_by(end_entity)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

impl ServerCertVerifier for Named<WebPkiServerVerifier> {
    /// The name that rustls was given is one of several.
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verify = |name: &ServerName<'_>| {
            self.verifier
                .verify_server_cert(end_entity, intermediates, name, ocsp_response, now)
        };
        match self.peers.named_by(end_entity) {
            Ok(name) => verify(&name.0),
            // Who signed it is told first.
            Err(refusal) => verify(&self.peers.any()).and(Err(refusal)),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}
