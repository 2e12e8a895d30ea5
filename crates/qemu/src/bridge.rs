//! PCI bridges, a root port among them: which addresses they pass on.

use serde::{Deserialize, Serialize};

use crate::monitor::Width;
use crate::pci::PciConfig;
use crate::{PciAddress, QmpError};

/// Registers of a bridge's header (PCI-to-PCI Bridge Architecture 1.2, section 3.2).
mod register {
    pub(super) const COMMAND: u8 = 0x04;
    pub(super) const PRIMARY_BUS: u8 = 0x18;
    pub(super) const CAPABILITIES: u8 = 0x34;
    pub(super) const MEMORY: u8 = 0x20;
    pub(super) const PREFETCHABLE: u8 = 0x24;
    pub(super) const PREFETCHABLE_BASE_HIGH: u8 = 0x28;
    pub(super) const PREFETCHABLE_LIMIT_HIGH: u8 = 0x2c;
    pub(super) const BRIDGE_CONTROL: u8 = 0x3e;
}

/// SERR# Enable in Command and in Bridge Control: an error is passed on to the root complex.
const COMMAND_SERR: u32 = 0x100;
const BRIDGE_CONTROL_SERR: u32 = 0x2;

/// Capability of PCI Express (PCI Express Base 5.0, section 7.5.3).
const EXPRESS: u32 = 0x10;
/// Device Control (section 7.5.3.4), and its Fatal Error Reporting Enable.
const DEVICE_CONTROL: u8 = 0x08;
const REPORT_FATAL: u32 = 1 << 2;
/// Link Capabilities (section 7.5.3.6): maximal link speed and width.
const LINK_CAPABILITIES: u8 = 0x0c;
const SPEED_AND_WIDTH: u32 = 0x3ff;

/// Memory decoding and bus mastering in a bridge's Command register.
const FORWARD: u32 = 0x6;

/// A bridge as the guest has programmed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bridge {
    /// The bus behind it; 0 before the guest has given it a number.
    pub secondary: u8,
    /// The last bus behind it.
    pub subordinate: u8,
    /// Memory behind it.
    pub memory: Window,
    /// Prefetchable memory behind it.
    pub prefetchable: Window,
}

/// A range of addresses; none if the base is above the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// First address, a multiple of 1 MiB.
    pub base: u64,
    /// Last address.
    pub limit: u64,
}

impl Window {
    /// The register that holds base and limit: their bits 31:20.
    fn register(self) -> u32 {
        let half = |address: u64| (low(address) >> 16) & 0xfff0;
        half(self.base) | half(self.limit) << 16
    }
}

fn low(address: u64) -> u32 {
    let [a, b, c, d, ..] = address.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

fn high(address: u64) -> u32 {
    low(address >> 32)
}

impl Bridge {
    /// Programs the bridge at `at` as this one is, apart from I/O ports, which it is not to pass on.
    ///
    /// # Errors
    ///
    /// As [`PciConfig::write`].
    pub fn program(&self, config: &PciConfig<'_>, at: PciAddress) -> Result<(), QmpError> {
        let registers = [
            (register::MEMORY, self.memory.register()),
            (register::PREFETCHABLE, self.prefetchable.register()),
            (
                register::PREFETCHABLE_BASE_HIGH,
                high(self.prefetchable.base),
            ),
            (
                register::PREFETCHABLE_LIMIT_HIGH,
                high(self.prefetchable.limit),
            ),
        ];
        for (offset, value) in registers {
            config.write(at, offset, Width::Word, value)?;
        }
        set_buses(config, at, self.secondary, self.subordinate)?;
        config.write(at, register::COMMAND, Width::Half, FORWARD)
    }
}

/// Gives the buses behind the bridge at `at`, which is on bus 0, their numbers.
///
/// # Errors
///
/// As [`PciConfig::write`].
pub fn set_buses(
    config: &PciConfig<'_>,
    at: PciAddress,
    secondary: u8,
    subordinate: u8,
) -> Result<(), QmpError> {
    let value = u32::from(secondary) << 8 | u32::from(subordinate) << 16;
    config.write(at, register::PRIMARY_BUS, Width::Word, value)
}

/// Has the root port at `at`, on bus 0, pass errors on to where they are reported.
///
/// # Errors
///
/// As [`PciConfig::write`].
pub fn pass_errors_on(config: &PciConfig<'_>, at: PciAddress) -> Result<(), QmpError> {
    let control = (register::BRIDGE_CONTROL, BRIDGE_CONTROL_SERR);
    let command = (register::COMMAND, COMMAND_SERR);
    for (offset, value) in [control, command] {
        config.write(at, offset, Width::Half, value)?;
    }
    if let Some(express) = express(config, at)? {
        let control = express + DEVICE_CONTROL;
        config.write(at, control, Width::Half, REPORT_FATAL)?;
    }
    Ok(())
}

/// Registers of a port that are to be as they were again.
#[derive(Debug)]
#[must_use = "the guest's settings are lost"]
pub struct Muted(Vec<(u8, u32)>);

/// Has the root port at `at`, on bus 0, tell nobody of errors of its own.
///
/// # Errors
///
/// As [`PciConfig::write`].
pub fn mute(config: &PciConfig<'_>, at: PciAddress) -> Result<Muted, QmpError> {
    let mut registers = vec![(register::COMMAND, COMMAND_SERR)];
    registers.extend(express(config, at)?.map(|at| (at + DEVICE_CONTROL, REPORT_FATAL)));
    let mut as_is = Vec::new();
    for (offset, bits) in registers {
        as_is.push((offset, config.read(at, offset, Width::Half)?, bits));
    }
    let muted = Muted(as_is.iter().map(|(at, value, _)| (*at, *value)).collect());
    for (offset, value, bits) in as_is {
        if let Err(error) = config.write(at, offset, Width::Half, value & !bits) {
            // What can be is as it was; the first error tells more.
            let _ = muted.end(config, at);
            return Err(error);
        }
    }
    Ok(muted)
}

impl Muted {
    /// As it was: each of them, whatever becomes of the others.
    ///
    /// # Errors
    ///
    /// As [`PciConfig::write`].
    pub fn end(self, config: &PciConfig<'_>, at: PciAddress) -> Result<(), QmpError> {
        let registers = self.0.into_iter();
        let written = registers.map(|(offset, value)| config.write(at, offset, Width::Half, value));
        let written: Vec<_> = written.collect();
        written.into_iter().collect()
    }
}

/// Whether the port at `at`, on bus 0, tells its link's maximal speed and width. QEMU's
/// `pcie-root-port` does not any more once it was made to report an error: QEMU writes 32 bits where
/// Device Status has 16 (`pcie_aer_inject_error`), and the upper ones are Link Capabilities'.
///
/// # Errors
///
/// As [`PciConfig::read`].
pub fn tells_link_capabilities(config: &PciConfig<'_>, at: PciAddress) -> Result<bool, QmpError> {
    let Some(express) = express(config, at)? else {
        return Ok(true);
    };
    let link = config.read(at, express + LINK_CAPABILITIES, Width::Word)?;
    Ok(link & SPEED_AND_WIDTH != 0)
}

/// Where the capability is, if there is one.
fn express(config: &PciConfig<'_>, at: PciAddress) -> Result<Option<u8>, QmpError> {
    let mut capability = config.read(at, register::CAPABILITIES, Width::Byte)?;
    // As many as there is room for.
    for _ in 0..48 {
        let Ok(offset @ 0x40..0xf0) = u8::try_from(capability & 0xfc) else {
            break;
        };
        let header = config.read(at, offset, Width::Half)?;
        if header & 0xff == EXPRESS {
            return Ok(Some(offset));
        }
        capability = header >> 8;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_goes_into_its_registers_in_units_of_a_mebibyte() {
        let window = Window {
            base: 0xfe60_0000,
            limit: 0xfe7f_ffff,
        };
        assert_eq!(window.register(), 0xfe70_fe60);
        let above = Window {
            base: 0x80_0010_0000,
            limit: 0x81_002f_ffff,
        };
        assert_eq!(above.register(), 0x0020_0010);
        assert_eq!((high(above.base), high(above.limit)), (0x80, 0x81));
    }
}
