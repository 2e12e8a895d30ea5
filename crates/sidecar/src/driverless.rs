//! Starting the sidecar in a guest that has no driver for it.
//!
//! QEMU opens the dirty log only for a vhost device that was started, which is the guest driver's
//! work: it goes through the virtio status sequence (virtio 1.2, 3.1.1 "Driver Requirements:
//! Device Initialization"). A device needs no queue for that. vferry can do it from outside,
//! because a vfio-user device's DMA reaches ECAM and the BARs of its neighbours.
//!
//! # What it does not do
//!
//! * It assigns no BAR and switches no decoding on: without a firmware or an operating system that
//!   did, there is nothing to migrate yet.
//! * It cannot lock out the guest. Linux resets a virtio device when its bus driver finds it, not
//!   when the file system driver is loaded later, so a driver that comes after [`start`] finds a
//!   device that runs already, and its mounts hang. Hence: start it just before a migration, and
//!   [`release`] it when that is over, here or on the destination.

use std::io;

/// The sidecar's PCI function as one can reach it from outside of the guest.
///
/// Accesses are 1, 2 or 4 bytes wide and naturally aligned, and must arrive as one access each.
/// All data is little-endian.
pub trait PciWindow {
    /// Reads configuration space at `offset`.
    ///
    /// # Errors
    /// When the function cannot be reached.
    fn config_read(&mut self, offset: u16, data: &mut [u8]) -> io::Result<()>;

    /// Reads guest physical `address`, which lies in one of the function's BARs.
    ///
    /// # Errors
    /// When the BAR cannot be reached.
    fn memory_read(&mut self, address: u64, data: &mut [u8]) -> io::Result<()>;

    /// Writes guest physical `address`, which lies in one of the function's BARs.
    ///
    /// # Errors
    /// When the BAR cannot be reached.
    fn memory_write(&mut self, address: u64, data: &[u8]) -> io::Result<()>;
}

// PCI Local Bus Specification 3.0, 6.1 and 6.7.
const VENDOR_ID: u16 = 0x00;
const COMMAND: u16 = 0x04;
const COMMAND_MEMORY: u16 = 1 << 1;
const STATUS: u16 = 0x06;
const STATUS_CAPABILITIES: u16 = 1 << 4;
const BAR0: u16 = 0x10;
const BARS: u8 = 6;
const CAPABILITIES: u16 = 0x34;
const CAP_VENDOR: u8 = 0x09;
/// Capabilities are 4-aligned in the 192 bytes after the header: no list is longer.
const MAX_CAPS: usize = 48;

// Virtio 1.2, 4.1.2 and 5.11: 0x1040 + 26.
const VIRTIO_VENDOR: u16 = 0x1af4;
const VIRTIO_FS: u16 = 0x105a;

// Virtio 1.2, 4.1.4, `struct virtio_pci_cap`.
const CAP_CFG_TYPE: u16 = 3;
const CAP_BAR: u16 = 4;
const CAP_OFFSET: u16 = 8;
const CAP_LENGTH: u16 = 12;
const CFG_TYPE_COMMON: u8 = 1;

// Virtio 1.2, 4.1.4.3, `struct virtio_pci_common_cfg`.
const DEVICE_FEATURE_SELECT: u64 = 0x00;
const DEVICE_FEATURE: u64 = 0x04;
const DRIVER_FEATURE_SELECT: u64 = 0x08;
const DRIVER_FEATURE: u64 = 0x0c;
const DEVICE_STATUS: u64 = 0x14;
const QUEUE_SELECT: u64 = 0x16;
const QUEUE_ENABLE: u64 = 0x1c;
const COMMON_LEN: u32 = 0x38;

// Virtio 1.2, 2.1.
const ACKNOWLEDGE: u8 = 1;
const DRIVER: u8 = 2;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;
const RUNNING: u8 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;

/// `VIRTIO_F_VERSION_1`, bit 32: bit 0 of the upper word. The only feature that is taken; no other
/// makes a difference to a device without queues.
const VERSION_1: u32 = 1;

/// Reads of the status until a reset must be over.
const RESET_READS: usize = 1000;

/// Brings the device to `DRIVER_OK`, unless a guest driver has it.
///
/// # Errors
/// [`DriverlessError`]. Nothing was written if the reason is that the device is absent, cannot be
/// reached yet or is bound; in the other cases it is left without a driver.
pub fn start(window: &mut dyn PciWindow) -> Result<(), DriverlessError> {
    let mut device = Common::find(window)?;
    // ACKNOWLEDGE alone is the guest's bus driver: it has seen the device and knows no driver.
    match device.status()? {
        0 | ACKNOWLEDGE => {}
        status => return Err(DriverlessError::DriverBound { status }),
    }
    device.initialise().inspect_err(|_| {
        // Best effort: the error that matters is the one at hand.
        let _ = device.abandon();
    })
}

/// Undoes [`start`], also where the VM has moved to meanwhile, so that a guest driver that comes
/// later finds the device as it should be. Does nothing to a device that does not run.
///
/// # Errors
/// [`DriverlessError`], in particular [`DriverBound`](DriverlessError::DriverBound) when a guest
/// driver has set up a queue: then the device is its own.
pub fn release(window: &mut dyn PciWindow) -> Result<(), DriverlessError> {
    let mut device = Common::find(window)?;
    if device.status()? != RUNNING {
        return Ok(());
    }
    // A file system driver always has its request queue, behind the one for high priority.
    device.write_u16(QUEUE_SELECT, 1)?;
    if device.read_u16(QUEUE_ENABLE)? != 0 {
        return Err(DriverlessError::DriverBound { status: RUNNING });
    }
    device.abandon()
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
    #[error("the sidecar has no usable virtio common configuration structure: {0}")]
    NoCommonConfig(&'static str),
    /// The BAR has no address.
    #[error(
        "the sidecar's BAR {bar} has no address: the firmware has not set it up yet, try again later"
    )]
    BarUnassigned {
        /// Which one.
        bar: u8,
    },
    /// Memory decoding is off.
    #[error(
        "the sidecar's memory decoding is off: the guest has not enabled the device yet, or has \
         disabled it"
    )]
    DecodeOff,
    /// A guest driver, or an earlier [`start`], has the device.
    #[error(
        "the sidecar is in use (device status {status:#04x}): a guest driver has it, which starts \
         it itself, or it was started before"
    )]
    DriverBound {
        /// The device status.
        status: u8,
    },
    /// The reset did not end.
    #[error("the sidecar does not come out of its reset (device status {status:#04x})")]
    StuckInReset {
        /// The last status read.
        status: u8,
    },
    /// `VERSION_1` is not offered, or was refused.
    #[error("the sidecar does not take the VERSION_1 feature: is it a legacy device?")]
    Features,
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

/// The address of the common configuration structure.
fn find_common(window: &mut dyn PciWindow) -> Result<u64, DriverlessError> {
    let vendor = config_u16(window, VENDOR_ID)?;
    let device = config_u16(window, VENDOR_ID + 2)?;
    if (vendor, device) != (VIRTIO_VENDOR, VIRTIO_FS) {
        return Err(DriverlessError::NotTheSidecar { vendor, device });
    }
    if config_u16(window, STATUS)? & STATUS_CAPABILITIES == 0 {
        return Err(DriverlessError::NoCommonConfig("no capability list"));
    }
    let mut at = u16::from(config_u8(window, CAPABILITIES)? & !3);
    for _ in 0..MAX_CAPS {
        if at < 0x40 {
            return Err(DriverlessError::NoCommonConfig("no such capability"));
        }
        let id = config_u8(window, at)?;
        if id == CAP_VENDOR && config_u8(window, at + CAP_CFG_TYPE)? == CFG_TYPE_COMMON {
            return locate(window, at);
        }
        at = u16::from(config_u8(window, at + 1)? & !3);
    }
    Err(DriverlessError::NoCommonConfig(
        "the capability list has no end",
    ))
}

/// Where the structure that the capability at `cap` describes lies in guest physical memory.
fn locate(window: &mut dyn PciWindow, cap: u16) -> Result<u64, DriverlessError> {
    let bar = config_u8(window, cap + CAP_BAR)?;
    let offset = config_u32(window, cap + CAP_OFFSET)?;
    if config_u32(window, cap + CAP_LENGTH)? < COMMON_LEN {
        return Err(DriverlessError::NoCommonConfig("it is too short"));
    }
    if bar >= BARS {
        return Err(DriverlessError::NoCommonConfig("it is in no BAR"));
    }
    let low = config_u32(window, BAR0 + 4 * u16::from(bar))?;
    let high = match low & 0b111 {
        0b000 => 0,
        0b100 if bar + 1 < BARS => config_u32(window, BAR0 + 4 * u16::from(bar + 1))?,
        _ => return Err(DriverlessError::NoCommonConfig("its BAR is no memory BAR")),
    };
    let base = u64::from(high) << 32 | u64::from(low & !0xf);
    if base == 0 {
        return Err(DriverlessError::BarUnassigned { bar });
    }
    if config_u16(window, COMMAND)? & COMMAND_MEMORY == 0 {
        return Err(DriverlessError::DecodeOff);
    }
    base.checked_add(u64::from(offset))
        .filter(|at| at.checked_add(COMMON_LEN.into()).is_some())
        .ok_or(DriverlessError::NoCommonConfig(
            "it ends past the address space",
        ))
}

/// The common configuration structure, mapped at `at`.
struct Common<'w> {
    window: &'w mut dyn PciWindow,
    at: u64,
}

impl<'w> Common<'w> {
    fn find(window: &'w mut dyn PciWindow) -> Result<Self, DriverlessError> {
        let at = find_common(window)?;
        Ok(Self { window, at })
    }

    fn initialise(&mut self) -> Result<(), DriverlessError> {
        self.reset()?;
        let mut status = ACKNOWLEDGE;
        self.set_status(status)?;
        status |= DRIVER;
        self.set_status(status)?;

        self.write_u32(DEVICE_FEATURE_SELECT, 1)?;
        if self.read_u32(DEVICE_FEATURE)? & VERSION_1 == 0 {
            return Err(DriverlessError::Features);
        }
        for (word, features) in [(0, 0), (1, VERSION_1)] {
            self.write_u32(DRIVER_FEATURE_SELECT, word)?;
            self.write_u32(DRIVER_FEATURE, features)?;
        }
        status |= FEATURES_OK;
        self.set_status(status)?;
        if self.status()? & FEATURES_OK == 0 {
            return Err(DriverlessError::Features);
        }

        status |= DRIVER_OK;
        self.set_status(status)?;
        match self.status()? {
            now if now == status => Ok(()),
            now => Err(DriverlessError::NotStarted { status: now }),
        }
    }

    /// Leaves the device as the guest's bus driver does that found no driver for it.
    fn abandon(&mut self) -> Result<(), DriverlessError> {
        self.reset()?;
        Ok(self.set_status(ACKNOWLEDGE)?)
    }

    fn reset(&mut self) -> Result<(), DriverlessError> {
        self.set_status(0)?;
        let mut status = 0;
        for _ in 0..RESET_READS {
            status = self.status()?;
            if status == 0 {
                return Ok(());
            }
        }
        Err(DriverlessError::StuckInReset { status })
    }

    fn status(&mut self) -> io::Result<u8> {
        let mut data = [0];
        self.window
            .memory_read(self.at + DEVICE_STATUS, &mut data)?;
        Ok(data[0])
    }

    fn set_status(&mut self, status: u8) -> io::Result<()> {
        self.window.memory_write(self.at + DEVICE_STATUS, &[status])
    }

    fn read_u16(&mut self, field: u64) -> io::Result<u16> {
        let mut data = [0; 2];
        self.window.memory_read(self.at + field, &mut data)?;
        Ok(u16::from_le_bytes(data))
    }

    fn write_u16(&mut self, field: u64, value: u16) -> io::Result<()> {
        self.window
            .memory_write(self.at + field, &value.to_le_bytes())
    }

    fn read_u32(&mut self, field: u64) -> io::Result<u32> {
        let mut data = [0; 4];
        self.window.memory_read(self.at + field, &mut data)?;
        Ok(u32::from_le_bytes(data))
    }

    fn write_u32(&mut self, field: u64, value: u32) -> io::Result<()> {
        self.window
            .memory_write(self.at + field, &value.to_le_bytes())
    }
}

fn config_u8(window: &mut dyn PciWindow, offset: u16) -> io::Result<u8> {
    let mut data = [0];
    window.config_read(offset, &mut data)?;
    Ok(data[0])
}

fn config_u16(window: &mut dyn PciWindow, offset: u16) -> io::Result<u16> {
    let mut data = [0; 2];
    window.config_read(offset, &mut data)?;
    Ok(u16::from_le_bytes(data))
}

fn config_u32(window: &mut dyn PciWindow, offset: u16) -> io::Result<u32> {
    let mut data = [0; 4];
    window.config_read(offset, &mut data)?;
    Ok(u32::from_le_bytes(data))
}

#[cfg(test)]
mod tests;
