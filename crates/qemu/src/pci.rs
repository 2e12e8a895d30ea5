//! PCI configuration space, reached from outside the guest.
//!
//! The monitor's port commands drive the x86 configuration mechanism (PCI Local Bus 3.0, section
//! 3.2.2.3.2: address in port 0xcf8, data in 0xcfc to 0xcff). They work in every run state, also in
//! `inmigrate` before the load, and what they program survives the load.

use std::cell::Cell;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::monitor::Width;
use crate::{Qmp, QmpError};

const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;
const CONFIG_ENABLE: u32 = 1 << 31;

/// Where a PCI function sits: `00:05.0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PciAddress {
    bus: u8,
    device: u8,
    function: u8,
}

impl PciAddress {
    /// `None` unless `device` is below 32 and `function` below 8.
    pub const fn new(bus: u8, device: u8, function: u8) -> Option<Self> {
        if device < 32 && function < 8 {
            Some(Self {
                bus,
                device,
                function,
            })
        } else {
            None
        }
    }

    /// Bus number.
    pub const fn bus(self) -> u8 {
        self.bus
    }

    /// Device number on the bus, 0 to 31.
    pub const fn device(self) -> u8 {
        self.device
    }

    /// Function number, 0 to 7.
    pub const fn function(self) -> u8 {
        self.function
    }

    /// Device and function as `-device`'s `addr` wants them: `05.0`.
    pub fn slot(self) -> String {
        format!("{:02x}.{:x}", self.device, self.function)
    }

    fn config_address(self, offset: u8) -> u32 {
        CONFIG_ENABLE
            | u32::from(self.bus) << 16
            | u32::from(self.device) << 11
            | u32::from(self.function) << 8
            | u32::from(offset & !3)
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:02x}:{:02x}.{:x}",
            self.bus, self.device, self.function
        )
    }
}

/// Where a function is plugged in, which is known before a guest gives buses their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// On the main bus.
    MainBus(PciAddress),
    /// Alone behind the root port that sits there on the main bus.
    RootPort(PciAddress),
}

impl Place {
    /// The function's address, if the bus behind its root port has the number `secondary`, and 0 is
    /// none.
    pub const fn address(self, secondary: u8) -> Option<PciAddress> {
        match self {
            Self::MainBus(address) => Some(address),
            Self::RootPort(_) if secondary == 0 => None,
            Self::RootPort(_) => PciAddress::new(secondary, 0, 0),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MainBus(address) => address.fmt(f),
            Self::RootPort(address) => write!(f, "root port {address}"),
        }
    }
}

/// A text that is not a PCI address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a PCI address; write bus, device and function in hexadecimal, as in 00:05.0")]
pub struct InvalidPciAddress(String);

impl FromStr for PciAddress {
    type Err = InvalidPciAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (bus, rest) = text.split_once(':')?;
            let (device, function) = rest.split_once('.')?;
            Self::new(
                hexadecimal(bus, 2)?,
                hexadecimal(device, 2)?,
                hexadecimal(function, 1)?,
            )
        };
        parse().ok_or_else(|| InvalidPciAddress(text.to_owned()))
    }
}

impl TryFrom<String> for PciAddress {
    type Error = InvalidPciAddress;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<PciAddress> for String {
    fn from(address: PciAddress) -> Self {
        address.to_string()
    }
}

fn hexadecimal(text: &str, digits: usize) -> Option<u8> {
    let well_formed = text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit());
    well_formed
        .then(|| u8::from_str_radix(text, 16).ok())
        .flatten()
}

/// Access to configuration space, within [`Qmp::with_pci_config`].
#[derive(Debug)]
pub struct PciConfig<'a> {
    qmp: &'a Qmp,
    /// What the address port holds, once it was written.
    selected: Cell<Option<u32>>,
}

impl Qmp {
    /// Runs `work` with access to all functions' configuration space, and restores the guest's
    /// address port afterwards, also when `work` fails.
    ///
    /// Use it while the vCPUs do not run: a guest that uses the same ports in between would meet
    /// our address in them.
    ///
    /// # Errors
    ///
    /// What `work` returns, else what reading and restoring the address port returns.
    pub fn with_pci_config<T, E: From<QmpError>>(
        &self,
        work: impl FnOnce(&PciConfig<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let saved = self.read_port(CONFIG_ADDRESS, Width::Word)?;
        let result = work(&PciConfig {
            qmp: self,
            selected: Cell::new(None),
        });
        let restored = self.write_port(CONFIG_ADDRESS, Width::Word, saved);
        let value = result?;
        restored?;
        Ok(value)
    }
}

impl PciConfig<'_> {
    /// Reads at `offset`, 0 to 0xff. A function that is not there reads as all ones.
    ///
    /// # Errors
    ///
    /// [`QmpError::InvalidArgument`] if `offset` is not a multiple of `width`, or as
    /// [`Qmp::read_port`].
    pub fn read(&self, address: PciAddress, offset: u8, width: Width) -> Result<u32, QmpError> {
        let port = self.select(address, offset, width)?;
        self.qmp.read_port(port, width)
    }

    /// Writes at `offset`, 0 to 0xff. Bits of `value` above `width` are not written.
    ///
    /// # Errors
    ///
    /// As [`PciConfig::read`].
    pub fn write(
        &self,
        address: PciAddress,
        offset: u8,
        width: Width,
        value: u32,
    ) -> Result<(), QmpError> {
        let port = self.select(address, offset, width)?;
        self.qmp.write_port(port, width, value)
    }

    fn select(&self, address: PciAddress, offset: u8, width: Width) -> Result<u16, QmpError> {
        if !offset.is_multiple_of(width.bytes()) {
            return Err(QmpError::InvalidArgument(format!(
                "configuration space of {address}: offset {offset:#x} is not a multiple of {}",
                width.bytes()
            )));
        }
        let wanted = Some(address.config_address(offset));
        if self.selected.get() != wanted {
            // Not known, should the write fail half-way.
            self.selected.set(None);
            self.qmp
                .write_port(CONFIG_ADDRESS, Width::Word, address.config_address(offset))?;
            self.selected.set(wanted);
        }
        Ok(CONFIG_DATA + u16::from(offset & 3))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_whole_addresses_parse() {
        let address: PciAddress = "00:05.0".parse().unwrap();
        assert_eq!(
            (address.bus(), address.device(), address.function()),
            (0, 5, 0)
        );
        for wrong in [
            "", "5", "00:05", "00:20.0", "00:05.8", "0:5.0", "00:+5.0", "00:05.0 ", "zz:05.0",
        ] {
            let error = wrong.parse::<PciAddress>().unwrap_err();
            assert!(error.to_string().contains("00:05.0"), "{wrong:?}");
        }
    }

    #[test]
    fn the_config_address_is_the_one_of_mechanism_one() {
        let address = PciAddress::new(0, 5, 0).unwrap();
        assert_eq!(address.config_address(4), 0x8000_2804);
        assert_eq!(
            PciAddress::new(0xff, 31, 7).unwrap().config_address(0xff),
            0x80ff_fffc
        );
    }

    proptest! {
        #[test]
        fn display_and_parse_agree(bus: u8, device in 0u8..32, function in 0u8..8) {
            let address = PciAddress::new(bus, device, function).unwrap();
            prop_assert_eq!(address.to_string().parse(), Ok(address));
            let json = serde_json::to_string(&address).unwrap();
            prop_assert_eq!(serde_json::from_str::<PciAddress>(&json).unwrap(), address);
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC*") {
            let _ = text.parse::<PciAddress>();
        }
    }
}
