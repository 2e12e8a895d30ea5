//! Starting the sidecar, which no driver in a guest does.

use std::io;
use std::time::Instant;

use qemu::monitor::Width;
use qemu::pci::PciConfig;
use qemu::{PciAddress, Qmp, QmpError};
use sidecar::LogHandle;
use sidecar::driverless::{self, ConfigSpace, ConfigWindow, DriverlessError, Started};

/// Why the sidecar was not started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The sequence failed.
    #[error("starting the sidecar: {0}")]
    Driverless(#[from] DriverlessError),
    /// QEMU's monitor refused.
    #[error("starting the sidecar: {0}")]
    Qmp(#[from] QmpError),
}

/// Makes sure that the sidecar at `sidecar`, whose log is `log`, is started.
///
/// If it is not, the vCPUs are stopped for some thirty commands of QEMU's monitor if they run, a
/// tenth of a millisecond each on an idle host: the ports to configuration space are the guest's.
/// That is once for all migrations until the guest reboots or sleeps.
///
/// # Errors
/// See [`StartError`].
pub fn ensure_started(qmp: &Qmp, sidecar: PciAddress, log: &LogHandle) -> Result<(), StartError> {
    if log.is_started() {
        return Ok(());
    }
    let began = Instant::now();
    let started = qmp.at_rest(|| start(qmp, sidecar))??;
    tracing::info!(?started, took = ?began.elapsed(), "sidecar started");
    Ok(())
}

fn start(qmp: &Qmp, sidecar: PciAddress) -> Result<Started, StartError> {
    qmp.with_pci_config(|config| {
        let mut space = Ports { config, sidecar };
        let mut window = ConfigWindow::open(&mut space)?;
        Ok(driverless::start(&mut window)?)
    })
}

/// Configuration space through the monitor's port accesses.
struct Ports<'a> {
    config: &'a PciConfig<'a>,
    sidecar: PciAddress,
}

impl ConfigSpace for Ports<'_> {
    fn read(&mut self, offset: u8, data: &mut [u8]) -> io::Result<()> {
        let value = self.config.read(self.sidecar, offset, width(data.len()));
        let bytes = value.map_err(io::Error::other)?.to_le_bytes();
        data.copy_from_slice(&bytes[..data.len()]);
        Ok(())
    }

    fn write(&mut self, offset: u8, data: &[u8]) -> io::Result<()> {
        let mut value = [0; 4];
        value[..data.len()].copy_from_slice(data);
        let value = u32::from_le_bytes(value);
        self.config
            .write(self.sidecar, offset, width(data.len()), value)
            .map_err(io::Error::other)
    }
}

/// Of an access as [`ConfigSpace`] has them.
fn width(bytes: usize) -> Width {
    match bytes {
        1 => Width::Byte,
        2 => Width::Half,
        _ => Width::Word,
    }
}
