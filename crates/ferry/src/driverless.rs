//! Starting the sidecar in a guest without a driver for it, and releasing it again where the VM
//! ends up, through the devices' DMA messages.

use std::io;

use endpoint::Endpoint;
use qemu::monitor::Width;
use qemu::{PciAddress, Qmp, QmpError};
use sidecar::driverless::{self, DriverlessError, PciWindow};

use crate::restore::Slot;

/// `PCI_COMMAND` and its Bus Master Enable.
const COMMAND: u8 = 4;
const BUS_MASTER: u32 = 1 << 2;

/// Why the sidecar was not started or released.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The sequence failed.
    #[error("the sidecar in a guest that has no driver for it: {0}")]
    Driverless(#[from] DriverlessError),
    /// QEMU's monitor refused.
    #[error("the sidecar in a guest that has no driver for it: {0}")]
    Qmp(#[from] QmpError),
    /// No ECAM.
    #[error(
        "QEMU shows no PCI configuration space in memory (`pcie-mmcfg-mmio` in `info mtree`): is the machine a q35?"
    )]
    NoEcam,
}

/// Makes sure that the sidecar at `sidecar` is started: by the guest's driver, else from here, and
/// says whether it was from here. `through` is a function whose messages reach it.
///
/// # Errors
/// See [`StartError`].
pub fn ensure_started(qmp: &Qmp, sidecar: PciAddress, through: &Slot) -> Result<bool, StartError> {
    match reach(qmp, sidecar, through, |window| driverless::start(window))? {
        Ok(()) => Ok(true),
        Err(DriverlessError::DriverBound { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Undoes a start from here, lest a driver that the guest loads later finds the device running.
///
/// # Errors
/// See [`StartError`].
pub fn release(qmp: &Qmp, sidecar: PciAddress, through: &Slot) -> Result<(), StartError> {
    match reach(qmp, sidecar, through, |window| driverless::release(window))? {
        // A driver came meanwhile: the device is its own.
        Ok(()) | Err(DriverlessError::DriverBound { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn reach<T>(
    qmp: &Qmp,
    sidecar: PciAddress,
    through: &Slot,
    work: impl FnOnce(&mut dyn PciWindow) -> T,
) -> Result<T, StartError> {
    let ecam = ecam_base(&qmp.human_monitor("info mtree")?).ok_or(StartError::NoEcam)?;
    let mut window = Window {
        endpoint: &through.endpoint,
        config: ecam
            .checked_add(ecam_offset(sidecar))
            .ok_or(StartError::NoEcam)?,
    };
    if through.endpoint.is_bus_master() {
        return Ok(work(&mut window));
    }
    // Without a driver on this function either, its messages do not get through. The vCPUs stand
    // still while that is lent to it, so that nobody sees it, and its own DMA stays off: it is
    // the guest that has not allowed it.
    through.endpoint.bus().halt();
    let result = qmp
        .stop()
        .and_then(|()| with_bus_master(qmp, through.address, || work(&mut window)));
    through.endpoint.bus().unhalt();
    // Also where `stop` was not answered: it may be carried out late.
    qmp.cont()?;
    Ok(result?)
}

fn with_bus_master<T>(
    qmp: &Qmp,
    address: PciAddress,
    work: impl FnOnce() -> T,
) -> Result<T, QmpError> {
    let command = qmp.with_pci_config(|config| {
        let command = config.read(address, COMMAND, Width::Half)?;
        config.write(address, COMMAND, Width::Half, command | BUS_MASTER)?;
        Ok(command)
    })?;
    let result = work();
    qmp.with_pci_config(|config| config.write(address, COMMAND, Width::Half, command))?;
    Ok(result)
}

/// `00000000b0000000-00000000bfffffff (prio 0, i/o): pcie-mmcfg-mmio`
fn ecam_base(mtree: &str) -> Option<u64> {
    let line = mtree
        .lines()
        .find(|line| line.contains("): pcie-mmcfg-mmio"))?;
    let (base, _) = line.trim().split_once('-')?;
    u64::from_str_radix(base, 16).ok()
}

/// PCIe 7.2.2: bus, device and function in bits 27:20, 19:15 and 14:12.
fn ecam_offset(address: PciAddress) -> u64 {
    u64::from(address.bus()) << 20
        | u64::from(address.device()) << 15
        | u64::from(address.function()) << 12
}

struct Window<'a> {
    endpoint: &'a Endpoint,
    config: u64,
}

impl PciWindow for Window<'_> {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) -> io::Result<()> {
        self.memory_read(self.config + u64::from(offset), data)
    }

    fn memory_read(&mut self, address: u64, data: &mut [u8]) -> io::Result<()> {
        let bytes = self
            .endpoint
            .read_through_vmm(address, data.len())
            .map_err(io::Error::other)?;
        if bytes.len() != data.len() {
            return Err(io::Error::other("a short answer"));
        }
        data.copy_from_slice(&bytes);
        Ok(())
    }

    fn memory_write(&mut self, address: u64, data: &[u8]) -> io::Result<()> {
        self.endpoint
            .write_through_vmm(address, data)
            .map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_space_is_found_in_the_memory_tree() {
        let tree = "address-space: memory\n  0000000000000000-ffffffffffffffff (prio 0, i/o): system\n    00000000b0000000-00000000bfffffff (prio 0, i/o): pcie-mmcfg-mmio\n";
        assert_eq!(ecam_base(tree), Some(0xb000_0000));
        assert_eq!(ecam_base("nothing"), None);
        assert_eq!(
            ecam_offset("01:06.1".parse().unwrap()),
            0x10_0000 + 0x30000 + 0x1000
        );
    }
}
