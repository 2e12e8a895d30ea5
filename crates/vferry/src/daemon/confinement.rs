//! What the process gives up before it serves.

use std::path::{Path, PathBuf};

use anyhow::Context;
use confine::{Files, Needs};

use crate::config::{Config, Endpoint, Protection, Settings};

/// Whether privileges are given up.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Confinement {
    /// All that are not needed.
    Full,
    /// None: somebody looks for a fault.
    None,
}

impl Confinement {
    /// To be called when all is open, and before threads are started.
    pub(super) fn begin(self, config: &Config) -> anyhow::Result<()> {
        match self {
            Self::Full => {
                let files = confine::confine(&needs(config)).context(
                    "privileges could not be given up, so nothing is served. To find out why, \
                     `vferry run --keep-privileges-for-debugging` serves without",
                )?;
                if files == Files::NoLandlock {
                    tracing::warn!(
                        "this kernel has no Landlock: all files that this user may open are in \
                         reach of the process"
                    );
                }
                tracing::info!(?files, "privileges given up");
            }
            Self::None => tracing::warn!(
                "--keep-privileges-for-debugging: who takes this process over has all that it was \
                 started with"
            ),
        }
        Ok(())
    }
}

fn needs(config: &Config) -> Needs {
    let mut needs = Needs::default();
    // Sockets are removed at the end; beside the control socket is the record of the host.
    let guest = config.guest.iter().map(|guest| &guest.socket);
    let devices = config.devices.iter().map(|device| &device.socket);
    let link = match &config.link {
        Endpoint::Unix(path) => Some(path),
        Endpoint::Tcp(_) => None,
    };
    let sockets = [&config.control, &config.sidecar].into_iter();
    let sockets = sockets.chain(guest).chain(devices).chain(link);
    needs.writes.extend(sockets.map(|path| folder(path)));
    for device in &config.devices {
        match &device.settings {
            Settings::Disk(disk) => {
                needs.writes.push(disk.file.clone());
                let lease = disk.lease.as_ref().unwrap_or(&disk.file);
                // Beside a block device there is no lease: the folder would be that of all others.
                if !lease.starts_with("/dev") {
                    needs.writes.push(folder(lease));
                }
            }
            Settings::Host(_) => needs.host_functions = true,
            Settings::Nic(_) | Settings::None => {}
        }
    }
    if let Protection::Tls { folder, .. } = &config.protection {
        needs.reads.push(folder.clone());
    }
    needs
}

fn folder(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.into(),
        _ => ".".into(),
    }
}
