//! TLS for QEMU's own stream: `tls-creds-x509` and the migration parameters that name it
//! (`qapi/crypto.json`, `qapi/migration.json`).

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::json;

use crate::{Qmp, QmpError};

/// The id of vferry's own object with certificates.
const CREDENTIALS: &str = "vferry-tls";
/// For `GnuTLS`: TLS 1.3 and nothing older (its manual, "Priority Strings").
const PRIORITY: &str = "NORMAL:-VERS-ALL:+VERS-TLS1.3";

/// How QEMU protects its stream. Both sides need the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamTls {
    /// The folder with certificates, which QEMU must be able to read.
    pub folder: PathBuf,
    /// Which side this is.
    pub side: StreamSide,
    /// The id of an `authz` object that QEMU was started with, which says whose certificates it takes.
    /// `None` takes all that the authority has signed.
    pub authz: Option<String>,
}

/// A side of QEMU's stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamSide {
    /// It sends, to a QEMU whose certificate must be for this name.
    Source(String),
    /// It takes in.
    Destination,
}

/// What `query-migrate-parameters` tells of it.
#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Parameters {
    tls_creds: Option<String>,
}

impl Qmp {
    /// Has the next migration's stream be protected as `tls` says. Without, it is as the operator has
    /// set it: only what this set before is taken back.
    ///
    /// # Errors
    ///
    /// [`QmpError::Refused`] with QEMU's words on the certificates, or as [`Qmp::execute`].
    pub fn protect_stream(&self, tls: Option<&StreamTls>) -> Result<(), QmpError> {
        let Some(tls) = tls else {
            return self.stop_protecting();
        };
        // It has read its files when it was made, and they may have been renewed.
        match self.execute("object-del", json!({ "id": CREDENTIALS })) {
            Ok(_) | Err(QmpError::Refused { .. }) => {}
            Err(error) => return Err(error),
        }
        let (endpoint, hostname) = match &tls.side {
            StreamSide::Source(name) => ("client", name.as_str()),
            StreamSide::Destination => ("server", ""),
        };
        let credentials = json!({
            "qom-type": "tls-creds-x509",
            "id": CREDENTIALS,
            "endpoint": endpoint,
            "dir": tls.folder,
            "verify-peer": true,
            "priority": PRIORITY,
        });
        self.execute("object-add", credentials)?;
        // An empty text is none.
        let parameters = json!({
            "tls-creds": CREDENTIALS,
            "tls-hostname": hostname,
            "tls-authz": tls.authz.as_deref().unwrap_or_default(),
        });
        self.execute("migrate-set-parameters", parameters).map(drop)
    }

    fn stop_protecting(&self) -> Result<(), QmpError> {
        let now: Parameters = self.query("query-migrate-parameters")?;
        if now.tls_creds.as_deref() != Some(CREDENTIALS) {
            return Ok(());
        }
        let parameters = json!({ "tls-creds": "", "tls-hostname": "", "tls-authz": "" });
        self.execute("migrate-set-parameters", parameters).map(drop)
    }
}
