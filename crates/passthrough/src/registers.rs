//! The few registers of the function's own configuration space that are read and written here. All
//! that a guest programs stays in the copy that it sees (`pci::guest_view`).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use pci::express;
use pci::registers::{COMMAND, COMMAND_BUS_MASTER, COMMAND_INTX_DISABLE, COMMAND_MEMORY};

/// Where they are in the device's file.
pub(crate) struct Registers {
    command: u64,
    status: Option<u64>,
}

/// What they say.
pub(crate) struct Seen {
    pub(crate) bus_master: bool,
    /// The function waits for completions of what it has asked for.
    pub(crate) is_pending: bool,
}

impl Registers {
    /// Those of the function whose configuration space is at `at`, with its Express capability at
    /// `express`.
    pub(crate) fn new(at: u64, express: Option<usize>) -> Self {
        let status = express.map(|capability| at + (capability + express::DEVICE_STATUS) as u64);
        Self {
            command: at + COMMAND as u64,
            status,
        }
    }

    /// It always answers to memory addresses: whether the guest's do is the VMM's business.
    pub(crate) fn set_bus_master(&self, file: &File, on: bool) -> io::Result<()> {
        let mut command = COMMAND_MEMORY | COMMAND_INTX_DISABLE;
        if on {
            command |= COMMAND_BUS_MASTER;
        }
        file.write_all_at(&command.to_le_bytes(), self.command)
    }

    pub(crate) fn look(&self, file: &File) -> io::Result<Seen> {
        let read = |at| {
            let mut word = [0; 2];
            file.read_exact_at(&mut word, at)?;
            io::Result::Ok(u16::from_le_bytes(word))
        };
        let command = read(self.command)?;
        let status = self.status.map(read).transpose()?;
        Ok(Seen {
            bus_master: command & COMMAND_BUS_MASTER != 0,
            is_pending: status.is_some_and(|status| status & express::DEVICE_STATUS_PENDING != 0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bus_mastering_is_switched_and_seen_where_the_function_has_it() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(0x2000).unwrap();
        let registers = Registers::new(0x1000, Some(0xa0));
        for on in [true, false] {
            registers.set_bus_master(&file, on).unwrap();
            let seen = registers.look(&file).unwrap();
            assert_eq!((seen.bus_master, seen.is_pending), (on, false));
        }
        file.write_all_at(&[0x20, 0], 0x10aa).unwrap();
        assert!(registers.look(&file).unwrap().is_pending);
        let mut command = [0; 2];
        file.read_exact_at(&mut command, 0x1004).unwrap();
        assert_eq!(command, [0x02, 0x04]);
    }
}
