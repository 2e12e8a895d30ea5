//! Advanced Error Reporting of root ports: what the guest has made of it, and a fatal error.

use crate::monitor::Width;
use crate::{PciAddress, Qmp, QmpError};

/// `PCIEXBAR` of q35's host bridge (`82G33 [...] Memory Controller Hub` datasheet, section 5.1.16):
/// where configuration space lies in memory.
const PCIEXBAR: (PciAddress, u8) = (PciAddress::new(0, 0, 0).unwrap(), 0x60);
const ENABLED: u64 = 1;
/// Of a window of 256 buses, which is all that firmware sets up.
const BASE: u64 = 0x7f_f000_0000;
/// Bytes of a function's configuration space, and of what no port reaches.
const SPACE: u64 = 0x1000;
const EXTENDED: u64 = 0x100;
/// Extended capability of Advanced Error Reporting (PCI Express Base 5.0, section 7.8.4).
const AER: u32 = 0x0001;
/// Root Error Command (section 7.8.4.9).
const ROOT_ERROR_COMMAND: usize = 0x2c / 4;
/// Fatal Error Reporting Enable.
const REPORT_FATAL: u32 = 1 << 2;
/// Advanced Error Capabilities and Control (section 7.8.4.7).
const CONTROL: usize = 0x18 / 4;
/// First Error Pointer.
const FIRST_ERROR: u32 = 0x1f;

/// Words of extended configuration space.
const WORDS: usize = ((SPACE - EXTENDED) / 4) as usize;

impl Qmp {
    /// Whether the guest has itself interrupted at fatal errors that the root port at `port`, on
    /// bus 0, reports, as an operating system that owns error reporting does. The vCPUs must not
    /// run.
    ///
    /// # Errors
    ///
    /// As [`Qmp::execute`].
    pub fn handles_fatal_errors(&self, port: PciAddress) -> Result<bool, QmpError> {
        let command = self.error_register(port, ROOT_ERROR_COMMAND)?;
        Ok(command.is_some_and(|command| command & REPORT_FATAL != 0))
    }

    /// Which error the root port at `port`, on bus 0, has kept as its first, by its bit; 0 also if it has none.
    /// `None` if it cannot be told. The vCPUs must not run.
    ///
    /// # Errors
    ///
    /// As [`Qmp::execute`].
    pub fn first_error(&self, port: PciAddress) -> Result<Option<u32>, QmpError> {
        let control = self.error_register(port, CONTROL)?;
        Ok(control.map(|control| control & FIRST_ERROR))
    }

    /// A register of the capability, if the guest's firmware has placed configuration space in memory.
    fn error_register(&self, port: PciAddress, register: usize) -> Result<Option<u32>, QmpError> {
        let (bridge, at) = PCIEXBAR;
        let window = self.with_pci_config(|config| {
            let low = config.read(bridge, at, Width::Word)?;
            let high = config.read(bridge, at + 4, Width::Word)?;
            Ok::<_, QmpError>(u64::from(low) | u64::from(high) << 32)
        })?;
        if window & ENABLED == 0 {
            return Ok(None);
        }
        let slot = u64::from(port.device()) << 3 | u64::from(port.function());
        let space = (window & BASE) + slot * SPACE;
        let words = self.read_physical(space + EXTENDED, WORDS)?;
        let capability = extended_capability(&words, AER);
        Ok(capability.and_then(|capability| words.get(capability + register).copied()))
    }

    /// Has the root port with `id` report a fatal error of its own, of the data link protocol.
    ///
    /// # Errors
    ///
    /// [`QmpError::Monitor`] if it cannot, or as [`Qmp::execute`].
    pub fn report_fatal_error(&self, id: &str) -> Result<(), QmpError> {
        let line = format!("pcie_aer_inject_error {id} DLP");
        let output = self.human_monitor(&line)?;
        if output.trim_start().starts_with("OK ") {
            Ok(())
        } else {
            Err(QmpError::Monitor {
                command: line,
                output,
            })
        }
    }
}

/// The word of `space`, which begins with extended configuration space, at which the capability
/// begins.
fn extended_capability(space: &[u32], id: u32) -> Option<usize> {
    let mut at = 0;
    // A list cannot be longer than its space.
    for _ in 0..space.len() {
        let header = *space.get(at)?;
        if header & 0xffff == id {
            return Some(at);
        }
        let next = (header >> 20) as usize & !3;
        at = next.checked_sub(0x100)? / 4;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_capabilities_is_followed_to_its_end() {
        let mut space = [0; WORDS];
        space[0] = 0x1481_0003;
        space[0x48 / 4] = 0x1000_000b;
        assert_eq!(extended_capability(&space, 0x3), Some(0));
        assert_eq!(extended_capability(&space, 0xb), Some(0x48 / 4));
        assert_eq!(extended_capability(&space, AER), None, "a circle");
        space[0x48 / 4] = 0x0000_000b;
        assert_eq!(extended_capability(&space, AER), None, "the end");
        assert_eq!(extended_capability(&[0xffff_ffff; 4], AER), None);
        assert_eq!(extended_capability(&[], AER), None);
    }
}
