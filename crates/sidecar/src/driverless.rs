//! Starting the sidecar from outside of the guest.
//!
//! QEMU opens the dirty log only for a vhost device that was started, which is a guest driver's
//! work: it writes the virtio device status up to `DRIVER_OK`. No guest sees the sidecar where it
//! should sit ([`crate`] says where), so vferry does it before a migration: for QEMU, the status is
//! all that there is to a device without queues.
//!
//! Nor has anybody given the function's BARs an address. But virtio has a way to a BAR's content
//! through configuration space, for firmware that cannot map one ([`ConfigWindow`]), and that space
//! answers whatever the guest has done or not done: also while it boots or is suspended.
//!
//! # What it does not do
//!
//! * It does not stop the device afterwards: it is started once for all migrations, on whichever
//!   host, until the guest reboots or sleeps.
//! * It negotiates no features, for none are needed: as drivers did before there was a step for that
//!   in the status (virtio 1.2, 3.1.2 "Legacy Interface: Device Initialization").

use std::io;

/// The virtio device status (virtio 1.2, 2.1), wherever it is reached.
pub trait StatusRegister {
    /// Reads it.
    ///
    /// # Errors
    /// When it cannot be reached.
    fn read(&mut self) -> io::Result<u8>;

    /// Writes it.
    ///
    /// # Errors
    /// When it cannot be reached.
    fn write(&mut self, status: u8) -> io::Result<()>;
}

/// The sidecar's PCI configuration space.
///
/// Accesses are 1, 2 or 4 bytes wide and naturally aligned, and must arrive as one access each.
/// All data is little-endian.
pub trait ConfigSpace {
    /// Reads at `offset`.
    ///
    /// # Errors
    /// When the function cannot be reached.
    fn read(&mut self, offset: u8, data: &mut [u8]) -> io::Result<()>;

    /// Writes at `offset`.
    ///
    /// # Errors
    /// When the function cannot be reached.
    fn write(&mut self, offset: u8, data: &[u8]) -> io::Result<()>;
}

/// Of a virtio file system (virtio 1.2, 4.1.2 and 5.11: 0x1040 + 26).
const PCI_ID: (u16, u16) = (0x1af4, 0x105a);

// Virtio 1.2, 4.1.4.3, `struct virtio_pci_common_cfg`.
const DEVICE_STATUS: u32 = 0x14;
const COMMON_LEN: u32 = 0x38;

// PCI Local Bus Specification 3.0, 6.1 and 6.7.
const VENDOR_ID: u8 = 0x00;
const CAPABILITIES: u8 = 0x34;
const CAP_VENDOR: u8 = 0x09;
/// Capabilities are 4-aligned in the 192 bytes after the header: no list is longer.
const MAX_CAPS: usize = 48;

// Virtio 1.2, 4.1.4, `struct virtio_pci_cap`, and 4.1.4.9, `struct virtio_pci_cfg_cap`.
const CAP_BAR: u8 = 4;
const CAP_OFFSET: u8 = 8;
const CAP_LENGTH: u8 = 12;
const CAP_DATA: u8 = 16;
const CFG_TYPE_COMMON: u8 = 1;
const CFG_TYPE_PCI: u8 = 5;
const PCI_CAP_LEN: u8 = 20;

// Virtio 1.2, 2.1.
const ACKNOWLEDGE: u8 = 1;
const DRIVER: u8 = 2;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;
const FAILED: u8 = 0x80;
const NEEDS_RESET: u8 = 0x40;
const RUNNING: u8 = ACKNOWLEDGE | DRIVER | DRIVER_OK;

/// Reads of the status until a reset must be over.
const RESET_READS: usize = 1000;

/// What [`start`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Started {
    /// It ran already: a migration before this one has started it.
    Before,
    /// It did not run.
    Now,
}

/// Brings the device to `DRIVER_OK`, unless it is there.
///
/// A driver that has tried the device and given it up leaves `FAILED`, which is no obstacle.
///
/// # Errors
/// [`DriverlessError`]. Nothing was written if the reason is that a driver is at it; in the other
/// cases the device is left reset.
pub fn start(device: &mut dyn StatusRegister) -> Result<Started, DriverlessError> {
    let status = device.read()?;
    if status & DRIVER_OK != 0 && status & NEEDS_RESET == 0 {
        return Ok(Started::Before);
    }
    if status & (FEATURES_OK | DRIVER_OK | FAILED) == FEATURES_OK {
        return Err(DriverlessError::DriverBusy { status });
    }
    initialise(device).inspect_err(|_| {
        // Best effort: the error that matters is the one at hand.
        let _ = device.write(0);
    })?;
    Ok(Started::Now)
}

fn initialise(device: &mut dyn StatusRegister) -> Result<(), DriverlessError> {
    device.write(0)?;
    let mut reads = 1;
    loop {
        match device.read()? {
            0 => break,
            status if reads == RESET_READS => {
                return Err(DriverlessError::StuckInReset { status });
            }
            _ => reads += 1,
        }
    }
    // No step in between has anything to do: there are no features to negotiate and no queues.
    device.write(RUNNING)?;
    match device.read()? {
        RUNNING => Ok(()),
        status => Err(DriverlessError::NotStarted { status }),
    }
}

/// Why the device was not started.
#[derive(Debug, thiserror::Error)]
pub enum DriverlessError {
    /// Another device, or none, is at the address.
    #[error(
        "at the sidecar's PCI address is {vendor:04x}:{device:04x} instead of 1af4:105a: \
         does the address in the configuration fit QEMU's arguments?"
    )]
    NotTheSidecar {
        /// Vendor id found.
        vendor: u16,
        /// Device id found.
        device: u16,
    },
    /// There is no modern virtio interface.
    #[error("the sidecar has no usable virtio capabilities: {0}")]
    NoCapability(&'static str),
    /// A guest driver is setting the device up.
    #[error(
        "a driver in the guest is about to take the sidecar (device status {status:#04x}): try \
         again"
    )]
    DriverBusy {
        /// The device status.
        status: u8,
    },
    /// The reset did not end.
    #[error("the sidecar does not come out of its reset (device status {status:#04x})")]
    StuckInReset {
        /// The last status read.
        status: u8,
    },
    /// The device fell back from `DRIVER_OK`.
    #[error(
        "the sidecar did not start (device status {status:#04x}): does vferry serve its socket?"
    )]
    NotStarted {
        /// The status read back.
        status: u8,
    },
    /// The function cannot be reached.
    #[error("the sidecar's PCI function cannot be reached: {0}")]
    Unreachable(#[from] io::Error),
}

/// The status through configuration space: the capability `VIRTIO_PCI_CAP_PCI_CFG` is a window to
/// the BARs' content (virtio 1.2, 4.1.4.9), which works whether a BAR has an address or not.
///
/// Configuration space is the guest's: its vCPUs must stand still while the window is in use. They
/// find the window pointing elsewhere afterwards, which whoever uses it sets before each access.
pub struct ConfigWindow<'s> {
    space: &'s mut dyn ConfigSpace,
    /// Of `pci_cfg_data`.
    data: u8,
}

impl std::fmt::Debug for ConfigWindow<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConfigWindow")
            .field("data", &self.data)
            .finish_non_exhaustive()
    }
}

impl<'s> ConfigWindow<'s> {
    /// Points the window of the function behind `space` at its device status.
    ///
    /// # Errors
    /// [`DriverlessError`]: it is another function, or has no such window.
    pub fn open(space: &'s mut dyn ConfigSpace) -> Result<Self, DriverlessError> {
        let id = read_u32(space, VENDOR_ID)?.to_le_bytes();
        let (vendor, device) = (
            u16::from_le_bytes([id[0], id[1]]),
            u16::from_le_bytes([id[2], id[3]]),
        );
        if (vendor, device) != PCI_ID {
            return Err(DriverlessError::NotTheSidecar { vendor, device });
        }
        let Capabilities { window, common } = Capabilities::find(space)?;
        if read_u32(space, common + CAP_LENGTH)? < COMMON_LEN {
            return Err(DriverlessError::NoCapability(
                "the common structure is short",
            ));
        }
        let mut bar = [0];
        space.read(common + CAP_BAR, &mut bar)?;
        let status = read_u32(space, common + CAP_OFFSET)?
            .checked_add(DEVICE_STATUS)
            .ok_or(DriverlessError::NoCapability(
                "the common structure is in no BAR",
            ))?;
        space.write(window + CAP_BAR, &bar)?;
        space.write(window + CAP_OFFSET, &status.to_le_bytes())?;
        space.write(window + CAP_LENGTH, &1u32.to_le_bytes())?;
        Ok(Self {
            space,
            data: window + CAP_DATA,
        })
    }
}

impl StatusRegister for ConfigWindow<'_> {
    fn read(&mut self) -> io::Result<u8> {
        let mut data = [0];
        self.space.read(self.data, &mut data)?;
        Ok(data[0])
    }

    fn write(&mut self, status: u8) -> io::Result<()> {
        self.space.write(self.data, &[status])
    }
}

/// Where the two capabilities are that matter.
struct Capabilities {
    window: u8,
    common: u8,
}

impl Capabilities {
    fn find(space: &mut dyn ConfigSpace) -> Result<Self, DriverlessError> {
        let (mut window, mut common) = (None, None);
        let mut at = read_u32(space, CAPABILITIES)?.to_le_bytes()[0] & !3;
        for _ in 0..MAX_CAPS {
            if at < 0x40 {
                return Err(DriverlessError::NoCapability("the list ends without them"));
            }
            let [id, next, len, kind] = read_u32(space, at)?.to_le_bytes();
            // One that would end past the space is none.
            if id == CAP_VENDOR && at.checked_add(PCI_CAP_LEN).is_some() {
                match kind {
                    CFG_TYPE_PCI if len >= PCI_CAP_LEN => window = window.or(Some(at)),
                    CFG_TYPE_COMMON => common = common.or(Some(at)),
                    _ => {}
                }
            }
            if let (Some(window), Some(common)) = (window, common) {
                return Ok(Self { window, common });
            }
            at = next & !3;
        }
        Err(DriverlessError::NoCapability("the list has no end"))
    }
}

fn read_u32(space: &mut dyn ConfigSpace, offset: u8) -> io::Result<u32> {
    let mut data = [0; 4];
    space.read(offset, &mut data)?;
    Ok(u32::from_le_bytes(data))
}

#[cfg(test)]
mod tests;
