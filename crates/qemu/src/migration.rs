//! Migration as QEMU offers it (`qapi/migration.json`): capabilities, limits, start, watch, cancel.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::client::unexpected;
use crate::{Qmp, QmpError};

/// Capabilities under which a device's memory or the VM's one owner cannot be kept.
const UNSOUND: [(&str, &str); 5] = [
    (
        "postcopy-ram",
        "the destination would run before its memory has arrived, so that its devices do DMA to \
         pages whose content is still on the source",
    ),
    (
        "x-colo",
        "two hosts would run the VM at once, each with its own device",
    ),
    (
        "background-snapshot",
        "memory is saved as it was at the start, without what devices write afterwards",
    ),
    (
        "x-ignore-shared",
        "shared memory is not sent, and all of the VM's memory is shared",
    ),
    (
        "mapped-ram",
        "no destination answers, so that it could refuse what it cannot restore",
    ),
];

/// A migration capability that vferry sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capability {
    /// Report every change of state as a `MIGRATION` event.
    Events,
    /// Let the destination answer, so that its refusal leaves the VM running on the source.
    ReturnPath,
    /// Wait in [`MigrationStatus::PreSwitchover`], vCPUs stopped, for [`Qmp::migrate_continue`].
    PauseBeforeSwitchover,
    /// Send memory over several connections.
    Multifd,
}

impl Capability {
    /// QEMU's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::ReturnPath => "return-path",
            Self::PauseBeforeSwitchover => "pause-before-switchover",
            Self::Multifd => "multifd",
        }
    }
}

/// What a migration is told before it starts. Source and destination need the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MigrationSettings {
    /// Stop at the switchover and wait to be told to go on.
    pub pause_before_switchover: bool,
    /// Most bytes per second sent while the VM runs; QEMU's default is 128 MiB/s, 0 is no limit.
    pub max_bandwidth: Option<u64>,
    /// Longest pause that QEMU may plan for the last pass over memory, in whole milliseconds; its
    /// default is 300 ms.
    pub downtime_limit: Option<Duration>,
    /// Bytes per second by which QEMU plans the last pass, instead of what it has measured; 0 is what it
    /// has measured, which is its default.
    pub switchover_bandwidth: Option<u64>,
}

/// QEMU's `MigrationStatus`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub enum MigrationStatus {
    /// None was started.
    None,
    /// Connecting, or waiting for the incoming connection.
    Setup,
    /// Memory is being sent while the VM runs.
    Active,
    /// The vCPUs are stopped and QEMU waits for [`Qmp::migrate_continue`].
    PreSwitchover,
    /// The vCPUs are stopped and the rest is being sent.
    Device,
    /// The destination has everything.
    Completed,
    /// An error was met; the source is about to run on.
    Failing,
    /// Over, and the source runs on.
    Failed,
    /// A cancel is being carried out.
    Cancelling,
    /// Over by a cancel, and the source runs on.
    Cancelled,
    /// Any other, in QEMU's words.
    Unknown(String),
}

impl MigrationStatus {
    /// Whether nothing more will happen.
    pub fn is_over(&self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

impl From<String> for MigrationStatus {
    fn from(name: String) -> Self {
        match name.as_str() {
            "none" => Self::None,
            "setup" => Self::Setup,
            "active" => Self::Active,
            "pre-switchover" => Self::PreSwitchover,
            "device" => Self::Device,
            "completed" => Self::Completed,
            "failing" => Self::Failing,
            "failed" => Self::Failed,
            "cancelling" => Self::Cancelling,
            "cancelled" => Self::Cancelled,
            _ => Self::Unknown(name),
        }
    }
}

impl Default for MigrationStatus {
    /// QEMU leaves the status out before the first migration.
    fn default() -> Self {
        Self::None
    }
}

/// The answer to `query-migrate`. Which fields QEMU fills depends on the status.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct MigrationInfo {
    /// Where it stands.
    pub status: MigrationStatus,
    /// Since its start, or from start to end.
    #[serde(rename = "total-time", deserialize_with = "milliseconds")]
    pub total_time: Option<Duration>,
    /// How long the vCPUs were stopped, once it has completed.
    #[serde(deserialize_with = "milliseconds")]
    pub downtime: Option<Duration>,
    /// How long QEMU expects them to be stopped, while it is active.
    #[serde(deserialize_with = "milliseconds")]
    pub expected_downtime: Option<Duration>,
    /// What the setup took.
    #[serde(deserialize_with = "milliseconds")]
    pub setup_time: Option<Duration>,
    /// How far memory has got.
    pub ram: Option<RamProgress>,
    /// Why it failed, in QEMU's words.
    pub error_desc: Option<String>,
    /// Why it cannot be started, in QEMU's words.
    pub blocked_reasons: Vec<String>,
}

/// The `ram` part of [`MigrationInfo`]. Sizes in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct RamProgress {
    /// Guest memory in all.
    pub total: u64,
    /// Not yet sent in this pass.
    pub remaining: u64,
    /// Sent, in all passes.
    pub transferred: u64,
    /// Sent while the vCPUs were stopped.
    pub downtime_bytes: u64,
    /// Pages sent whole.
    pub normal: u64,
    /// Pages of zeroes.
    pub duplicate: u64,
    /// Passes over memory so far.
    pub dirty_sync_count: u64,
    /// Pages written per second, as of the last pass.
    pub dirty_pages_rate: u64,
    /// Size of a page.
    pub page_size: u64,
    /// Rate of sending, in Mbit/s.
    pub mbps: f64,
}

impl Qmp {
    /// Switches capabilities on or off. Both sides of a migration need the same.
    ///
    /// # Errors
    ///
    /// As [`Qmp::execute`]; QEMU refuses while a migration runs.
    pub fn set_migration_capabilities(
        &self,
        capabilities: &[(Capability, bool)],
    ) -> Result<(), QmpError> {
        let capabilities: Vec<Value> = capabilities
            .iter()
            .map(|(capability, on)| json!({ "capability": capability.name(), "state": on }))
            .collect();
        let arguments = json!({ "capabilities": capabilities });
        self.execute("migrate-set-capabilities", arguments)
            .map(drop)
    }

    /// All capabilities by QEMU's name, and whether each is on.
    ///
    /// # Errors
    ///
    /// As [`Qmp::execute`].
    pub fn migration_capabilities(&self) -> Result<BTreeMap<String, bool>, QmpError> {
        #[derive(Deserialize)]
        struct One {
            capability: String,
            state: bool,
        }
        let all: Vec<One> = self.query("query-migrate-capabilities")?;
        Ok(all
            .into_iter()
            .map(|one| (one.capability, one.state))
            .collect())
    }

    /// Refuses a QEMU that was set up for a kind of migration that loses device memory.
    ///
    /// # Errors
    ///
    /// [`QmpError::UnsoundCapability`] naming the first such capability, or as [`Qmp::execute`].
    pub fn refuse_unsound_capabilities(&self) -> Result<(), QmpError> {
        let capabilities = self.migration_capabilities()?;
        for (name, reason) in UNSOUND {
            if capabilities.get(name).copied().unwrap_or(false) {
                return Err(QmpError::UnsoundCapability {
                    capability: name.to_owned(),
                    reason,
                });
            }
        }
        Ok(())
    }

    /// Makes a QEMU ready for a migration, on either side: refuses unsound capabilities, sets the
    /// ones that vferry always needs, and sets the limits.
    ///
    /// # Errors
    ///
    /// As [`Qmp::refuse_unsound_capabilities`] and [`Qmp::set_migration_parameters`].
    pub fn prepare_migration(&self, settings: &MigrationSettings) -> Result<(), QmpError> {
        self.refuse_unsound_capabilities()?;
        self.set_migration_capabilities(&[
            (Capability::Events, true),
            (Capability::ReturnPath, true),
            (
                Capability::PauseBeforeSwitchover,
                settings.pause_before_switchover,
            ),
        ])?;
        self.set_migration_parameters(settings)
    }

    /// Sets the limits that `settings` names; may be called while a migration runs.
    ///
    /// # Errors
    ///
    /// [`QmpError::InvalidArgument`] for a downtime limit that does not fit 64 bits, or as
    /// [`Qmp::execute`].
    pub fn set_migration_parameters(&self, settings: &MigrationSettings) -> Result<(), QmpError> {
        let mut parameters = serde_json::Map::new();
        if let Some(bandwidth) = settings.max_bandwidth {
            parameters.insert("max-bandwidth".to_owned(), json!(bandwidth));
        }
        if let Some(limit) = settings.downtime_limit {
            let limit = u64::try_from(limit.as_millis())
                .map_err(|_| QmpError::InvalidArgument(format!("downtime limit {limit:?}")))?;
            parameters.insert("downtime-limit".to_owned(), json!(limit));
        }
        if let Some(bandwidth) = settings.switchover_bandwidth {
            parameters.insert("avail-switchover-bandwidth".to_owned(), json!(bandwidth));
        }
        if parameters.is_empty() {
            return Ok(());
        }
        self.execute("migrate-set-parameters", parameters.into())
            .map(drop)
    }

    /// Starts sending to `uri`: `tcp:HOST:PORT`, `unix:PATH`. Returns when QEMU has begun; success
    /// or failure follow as events and in [`Qmp::migration`].
    ///
    /// # Errors
    ///
    /// As [`Qmp::execute`]; QEMU's words say what blocks a migration.
    pub fn migrate(&self, uri: &str) -> Result<(), QmpError> {
        refuse_all_but_streams(uri)?;
        self.execute("migrate", json!({ "uri": uri })).map(drop)
    }

    /// Starts listening on `uri`, in a QEMU that was started with `-incoming defer`.
    ///
    /// # Errors
    ///
    /// As [`Qmp::execute`].
    pub fn migrate_incoming(&self, uri: &str) -> Result<(), QmpError> {
        refuse_all_but_streams(uri)?;
        self.execute("migrate-incoming", json!({ "uri": uri }))
            .map(drop)
    }

    /// Goes on from [`MigrationStatus::PreSwitchover`].
    ///
    /// # Errors
    ///
    /// As [`Qmp::execute`]; QEMU refuses in any other state.
    pub fn migrate_continue(&self) -> Result<(), QmpError> {
        self.execute("migrate-continue", json!({ "state": "pre-switchover" }))
            .map(drop)
    }

    /// Cancels; the source runs on. Without effect if none runs.
    ///
    /// # Errors
    ///
    /// As [`Qmp::execute`].
    pub fn migrate_cancel(&self) -> Result<(), QmpError> {
        self.execute("migrate_cancel", json!({})).map(drop)
    }

    /// Closes the migration's stream under a QEMU that is held up by it: it waits, with all else, for
    /// a destination that takes nothing more. The migration fails then, as if the link had been cut.
    ///
    /// # Errors
    ///
    /// As [`Qmp::execute`]; refused if no migration is under way.
    pub fn cut_migration(&self) -> Result<(), QmpError> {
        let stream = json!({ "instances": [{ "type": "migration" }] });
        self.execute_out_of_band("yank", stream).map(drop)
    }

    /// `query-migrate`.
    ///
    /// # Errors
    ///
    /// As [`Qmp::execute`].
    pub fn migration(&self) -> Result<MigrationInfo, QmpError> {
        self.query("query-migrate")
    }

    /// One of `query-migrate-parameters`, such as `max-bandwidth`; `Value::Null` if QEMU has none
    /// of that name.
    ///
    /// # Errors
    ///
    /// As [`Qmp::execute`].
    pub fn migration_parameter(&self, name: &str) -> Result<Value, QmpError> {
        match self.execute("query-migrate-parameters", json!({}))? {
            Value::Object(mut all) => Ok(all.remove(name).unwrap_or(Value::Null)),
            _ => Err(unexpected("query-migrate-parameters", "not an object")),
        }
    }
}

/// QEMU would also run a shell command (`exec:`) or write a file (`file:`), and the address may come
/// from another host.
fn refuse_all_but_streams(uri: &str) -> Result<(), QmpError> {
    let unix = uri
        .strip_prefix("unix:")
        .is_some_and(|path| path.starts_with('/'));
    let tcp = uri
        .strip_prefix("tcp:")
        .and_then(|address| address.rsplit_once(':'));
    let tcp = tcp.is_some_and(|(host, port)| {
        let in_host = |c: char| c.is_ascii_alphanumeric() || "-.:[]".contains(c);
        !host.is_empty() && host.chars().all(in_host) && port.parse::<u16>().is_ok()
    });
    if unix || tcp {
        return Ok(());
    }
    let shown: String = uri
        .chars()
        .take(100)
        .flat_map(char::escape_default)
        .collect();
    Err(QmpError::InvalidArgument(format!(
        "migration address `{shown}`: only unix:/PATH and tcp:HOST:PORT are used"
    )))
}

fn milliseconds<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    Ok(Option::<u64>::deserialize(from)?.map(Duration::from_millis))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_streams_are_taken_for_an_address() {
        for good in [
            "unix:/run/in.sock",
            "tcp:192.0.2.1:7801",
            "tcp:[2001:db8::1]:7801",
        ] {
            assert!(refuse_all_but_streams(good).is_ok(), "{good}");
        }
        let bad = [
            "exec:rm -rf /",
            "file:/etc/passwd",
            "fd:3",
            "unix:",
            "unix:x",
            "tcp::1",
            "tcp:h:x",
            "tcp:h:1,to=9",
            "",
        ];
        for bad in bad {
            assert!(refuse_all_but_streams(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn reads_a_completed_migration() {
        let info: MigrationInfo = serde_json::from_value(json!({
            "status": "completed", "setup-time": 2, "downtime": 11, "total-time": 407,
            "ram": {"total": 554_508_288_u64, "postcopy-requests": 0, "dirty-sync-count": 4,
                "multifd-bytes": 0, "pages-per-second": 35_000, "downtime-bytes": 4096,
                "page-size": 4096, "remaining": 0, "mbps": 973.15, "transferred": 43_000_000,
                "duplicate": 129_000, "dirty-pages-rate": 0, "normal-bytes": 1, "normal": 6500}
        }))
        .unwrap();
        assert_eq!(info.status, MigrationStatus::Completed);
        assert_eq!(info.downtime, Some(Duration::from_millis(11)));
        assert_eq!(info.total_time, Some(Duration::from_millis(407)));
        assert_eq!(info.setup_time, Some(Duration::from_millis(2)));
        let ram = info.ram.unwrap();
        assert_eq!(
            (ram.dirty_sync_count, ram.downtime_bytes, ram.normal),
            (4, 4096, 6500)
        );
    }

    #[test]
    fn reads_no_migration_and_one_from_the_future() {
        let none: MigrationInfo = serde_json::from_value(json!({})).unwrap();
        assert_eq!(none.status, MigrationStatus::None);
        let info: MigrationInfo =
            serde_json::from_value(json!({"status": "teleporting", "qubits": 3})).unwrap();
        assert_eq!(
            info.status,
            MigrationStatus::Unknown("teleporting".to_owned())
        );
        assert!(!info.status.is_over());
    }

    #[test]
    fn reads_why_one_failed() {
        let info: MigrationInfo =
            serde_json::from_value(json!({"status": "failed", "error-desc": "no route"})).unwrap();
        assert!(info.status.is_over());
        assert_eq!(info.error_desc.as_deref(), Some("no route"));
    }
}
