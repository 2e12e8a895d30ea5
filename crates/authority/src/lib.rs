//! Certificates for tests: an authority of one's own, and folders as QEMU's `tls-creds-x509` has
//! them.
//!
//! # What it does not do
//!
//! Nothing for use outside of tests: keys are kept nowhere else, and certificates are valid for a
//! thousand years.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair,
    KeyUsagePurpose, RevocationReason, RevokedCertParams, SerialNumber, date_time_ymd,
};

/// An authority.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// When a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    /// Now.
    Now,
    /// Until some years ago.
    Past,
    /// In some centuries.
    Future,
}

/// What a host's certificates are like.
#[derive(Debug, Clone)]
pub struct Subject<'a> {
    /// DNS names and addresses.
    pub names: &'a [&'a str],
    /// The common name.
    pub common_name: &'a str,
    /// When they are valid.
    pub validity: Validity,
    /// Their serial number.
    pub serial: u64,
}

impl<'a> Subject<'a> {
    /// A host with these names.
    pub fn new(names: &'a [&'a str]) -> Self {
        Self {
            names,
            common_name: names.first().copied().unwrap_or("nobody"),
            validity: Validity::Now,
            serial: 1,
        }
    }
}

impl Authority {
    /// A new one, with a name that all have.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub fn new() -> Result<Self> {
        Self::named("an authority for tests")
    }

    /// A new one of this name.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub fn named(name: &str) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        Ok(Self(CertifiedIssuer::self_signed(params, key)?))
    }

    /// Writes a host's folder: the authority's certificate, and certificate and key as server and as
    /// client.
    ///
    /// # Errors
    /// When a name is none, or the folder cannot be written.
    pub fn write(&self, folder: &Path, subject: &Subject<'_>) -> Result<()> {
        fs::create_dir_all(folder)?;
        fs::write(folder.join("ca-cert.pem"), self.0.pem())?;
        for (role, usage) in [
            ("server", ExtendedKeyUsagePurpose::ServerAuth),
            ("client", ExtendedKeyUsagePurpose::ClientAuth),
        ] {
            let names: Vec<String> = subject.names.iter().map(ToString::to_string).collect();
            let mut params = CertificateParams::new(names)?;
            (params.not_before, params.not_after) = match subject.validity {
                Validity::Now => (date_time_ymd(2020, 1, 1), date_time_ymd(3020, 1, 1)),
                Validity::Past => (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1)),
                Validity::Future => (date_time_ymd(2900, 1, 1), date_time_ymd(3020, 1, 1)),
            };
            params.distinguished_name = common_name(subject.common_name);
            params.serial_number = Some(SerialNumber::from(subject.serial));
            params.key_usages = vec![
                KeyUsagePurpose::DigitalSignature,
                KeyUsagePurpose::KeyEncipherment,
            ];
            params.extended_key_usages = vec![usage];
            params.use_authority_key_identifier_extension = true;
            let key = KeyPair::generate()?;
            let certificate = params.signed_by(&key, &self.0)?;
            fs::write(folder.join(format!("{role}-cert.pem")), certificate.pem())?;
            let path = folder.join(format!("{role}-key.pem"));
            fs::write(&path, key.serialize_pem())?;
            fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        }
        Ok(())
    }

    /// Writes into a folder that the certificates with this serial number are revoked.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn revoke(&self, folder: &Path, serial: u64) -> Result<()> {
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(3020, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![RevokedCertParams {
                serial_number: SerialNumber::from(serial),
                revocation_time: date_time_ymd(2020, 1, 1),
                reason_code: Some(RevocationReason::KeyCompromise),
                invalidity_date: None,
            }],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.0)?;
        fs::write(folder.join("ca-crl.pem"), list.pem()?)?;
        Ok(())
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

fn common_name(name: &str) -> DistinguishedName {
    let mut all = DistinguishedName::new();
    all.push(DnType::CommonName, name);
    all
}
