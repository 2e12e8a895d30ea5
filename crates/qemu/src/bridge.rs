//! PCI bridges, a root port among them: which addresses they pass on.

use serde::{Deserialize, Serialize};

use crate::monitor::Width;
use crate::pci::PciConfig;
use crate::{PciAddress, QmpError};

/// Registers of a bridge's header (PCI-to-PCI Bridge Architecture 1.2, section 3.2).
mod register {
    pub(super) const COMMAND: u8 = 0x04;
    pub(super) const PRIMARY_BUS: u8 = 0x18;
    pub(super) const MEMORY: u8 = 0x20;
    pub(super) const PREFETCHABLE: u8 = 0x24;
    pub(super) const PREFETCHABLE_BASE_HIGH: u8 = 0x28;
    pub(super) const PREFETCHABLE_LIMIT_HIGH: u8 = 0x2c;
}

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
