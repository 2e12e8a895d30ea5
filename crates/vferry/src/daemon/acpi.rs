//! The ACPI table that QEMU gives the guest.

use std::fs::{self, Permissions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::config::Config;

/// The file; goes with its owner.
pub(super) struct AcpiTable(PathBuf);

/// Puts the table there, if any device is behind a root port.
pub(super) fn write(config: &Config) -> anyhow::Result<Option<AcpiTable>> {
    let ports = config.root_ports();
    if ports.is_empty() {
        return Ok(None);
    }
    let path = config.acpi_table();
    let table = qemu::acpi::readiness_table(&ports);
    replace(&path, &table).with_context(|| format!("the ACPI table {}", path.display()))?;
    Ok(Some(AcpiTable(path)))
}

/// Whatever is at `path` is replaced, not written to or through: it may be a link of somebody else's.
fn replace(path: &Path, table: &[u8]) -> anyhow::Result<()> {
    let folder = path.parent().context("it is in no folder")?;
    // QEMU may be another user's.
    let mut file = tempfile::Builder::new()
        .permissions(Permissions::from_mode(0o644))
        .tempfile_in(folder)?;
    file.write_all(table)?;
    file.persist(path)?;
    Ok(())
}

impl Drop for AcpiTable {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_replaced_and_a_link_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (path, others) = (folder.path().join("vm.aml"), folder.path().join("others"));
        fs::write(&others, "others").unwrap();
        std::os::unix::fs::symlink(&others, &path).unwrap();
        for table in [b"one", b"two"] {
            replace(&path, table).unwrap();
            assert_eq!(fs::read(&path).unwrap(), table);
        }
        assert_eq!(fs::read_to_string(&others).unwrap(), "others");
        drop(AcpiTable(path));
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }
}
