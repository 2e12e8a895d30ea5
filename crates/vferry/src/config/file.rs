//! The file as it is written.

use serde::Deserialize;
use toml::Spanned;

use super::Problem;

type Text = Spanned<String>;

/// The whole file. Every section refuses keys that it does not know.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) vm: VmSection,
    pub(super) qemu: QemuSection,
    pub(super) control: ControlSection,
    pub(super) sidecar: SidecarSection,
    pub(super) guest: Option<GuestSection>,
    pub(super) sleep: Option<SleepSection>,
    pub(super) migration: MigrationSection,
    pub(super) keeper: Option<Spanned<KeeperSection>>,
    #[serde(default)]
    pub(super) device: Vec<Spanned<DeviceSection>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct VmSection {
    pub(super) name: Text,
    pub(super) memory: Text,
    pub(super) hugepages: Option<Text>,
    pub(super) socket_group: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct QemuSection {
    pub(super) qmp: Text,
    pub(super) machine: Option<Text>,
    pub(super) iommu: Option<Text>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ControlSection {
    pub(super) socket: Text,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct KeeperSection {
    pub(super) deaths_per_minute: Option<Spanned<u64>>,
    pub(super) hung_after_ms: Option<Spanned<u64>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SidecarSection {
    pub(super) socket: Text,
    pub(super) address: Text,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct SleepSection {
    pub(super) agent: Option<Text>,
    pub(super) deadline_ms: Option<Spanned<u64>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct GuestSection {
    pub(super) socket: Text,
    pub(super) address: Text,
    pub(super) track_deadline_ms: Option<Spanned<u64>>,
    pub(super) quiesce_deadline_ms: Option<Spanned<u64>>,
    pub(super) restart_deadline_ms: Option<Spanned<u64>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct MigrationSection {
    pub(super) link: Text,
    pub(super) incoming: Text,
    pub(super) tls: Option<Text>,
    pub(super) peers: Option<Spanned<Vec<Text>>>,
    pub(super) stream_authz: Option<Text>,
    pub(super) plain_tcp_without_protection: Option<Spanned<bool>>,
    pub(super) downtime_limit_ms: Option<Spanned<u64>>,
    pub(super) max_bandwidth: Option<Text>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct DeviceSection {
    pub(super) name: Text,
    pub(super) model: Text,
    pub(super) socket: Text,
    pub(super) address: Text,
    pub(super) root_port: Option<bool>,
    pub(super) dirty_log: Option<Text>,
    pub(super) mac: Option<Text>,
    pub(super) queues: Option<Spanned<u8>>,
    pub(super) uplink: Option<Text>,
    pub(super) file: Option<Text>,
    pub(super) lease: Option<Text>,
    pub(super) serial: Option<Text>,
    pub(super) function: Option<Text>,
    pub(super) physical: Option<Text>,
    #[serde(rename = "virtual")]
    pub(super) number: Option<Spanned<u16>>,
    pub(super) create: Option<Spanned<u16>>,
    pub(super) bind: Option<Spanned<bool>>,
    pub(super) vlan: Option<Spanned<u16>>,
    pub(super) trust: Option<Spanned<bool>>,
    pub(super) spoof_check: Option<Spanned<bool>>,
}

pub(super) fn parse(text: &str) -> Result<File, Problem> {
    toml::from_str(text).map_err(|error| {
        let span = error.span().unwrap_or_default();
        let message = error.message().trim();
        let instead = match message.split_once(", expected ") {
            Some((_, expected)) => expected.to_owned(),
            None if message.starts_with("missing field") => {
                format!(
                    "the {} in this section",
                    message.trim_start_matches("missing ")
                )
            }
            None => "see the example in the README".to_owned(),
        };
        Problem::at(text, &span, message, instead)
    })
}
