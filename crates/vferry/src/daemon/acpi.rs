//! The ACPI table that QEMU gives the guest.

use std::fs;
use std::path::PathBuf;

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
    fs::write(&path, table).with_context(|| format!("the ACPI table {}", path.display()))?;
    Ok(Some(AcpiTable(path)))
}

impl Drop for AcpiTable {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
