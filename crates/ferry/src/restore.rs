//! Programming PCI configuration and MSI-X into the destination's QEMU.
//!
//! QEMU keeps its own BARs, Command register and MSI-X table of a vfio-user function and does not
//! migrate them. The writes are made while it waits for the VM, with the port accesses of its
//! monitor and, for the table, by a DMA message to the function's own BAR; they survive the load.
//! Behind a virtual IOMMU no message gets there: the table is read by the monitor, and written as
//! a debugger does.
//! What the guest changes afterwards is corrected between the load and the VM's first instruction.

use endpoint::{Carry, Endpoint, EndpointError};
use pci::restore::{ConfigWrite, Step};
use pci::{ImageError, MsixTable};
use qemu::debugger::MAX_WRITE;
use qemu::monitor::Width;
use qemu::pci::PciConfig;
use qemu::{Iommu, PciAddress, Place, Qmp, QmpError};

use crate::link::Function;
use crate::root_port::Buses;

const COMMAND: u8 = 4;
const _: () = assert!(COMMAND as usize == pci::registers::COMMAND);

/// Why a function could not be programmed.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The sides have other devices.
    #[error("the source speaks of device `{0}`, which is not here")]
    UnknownDevice(String),
    /// The configuration space does not fit.
    #[error("device `{0}`: {1}")]
    Image(String, ImageError),
    /// The table has another length.
    #[error(
        "device `{0}`: the MSI-X table that the source sent does not have the device's number of vectors"
    )]
    Table(String),
    /// QEMU was started with other arguments than vferry's.
    #[error(
        "QEMU has no root port at {0}, behind which a device is to be: start it with the arguments \
         of `vferry qemu-args`"
    )]
    NoRootPort(PciAddress),
    /// QEMU's monitor refused.
    #[error("programming PCI configuration: {0}")]
    Qmp(#[from] QmpError),
    /// QEMU did not take the table.
    #[error("programming MSI-X: {0}")]
    Endpoint(#[from] EndpointError),
    /// Of another version.
    #[error("what another process has left to be programmed: {0}")]
    Programme(serde_json::Error),
}

/// One function and where it sits.
#[derive(Debug, Clone)]
pub struct Slot {
    /// The function.
    pub endpoint: Endpoint,
    /// Where it is plugged in.
    pub place: Place,
    /// The virtual IOMMU that it is behind. Its DMA messages then reach what the guest has mapped for
    /// it, by other addresses than the guest's own, and nothing else.
    pub iommu: Option<Iommu>,
}

/// Programs all of `functions` that are not as in `known` already. Returns how many were not.
///
/// # Errors
/// See [`RestoreError`]; some functions may be programmed then.
pub fn program(
    qmp: &Qmp,
    slots: &[Slot],
    functions: &[Function],
    known: &[Function],
) -> Result<usize, RestoreError> {
    let mut changed = functions
        .iter()
        .filter(|function| !known.contains(function))
        .peekable();
    if changed.peek().is_none() {
        return Ok(0);
    }
    let buses = Buses::look(qmp, slots)?;
    let mut count = 0;
    for function in changed {
        let slot = slots
            .iter()
            .find(|slot| slot.endpoint.name() == function.name);
        let slot = slot.ok_or_else(|| RestoreError::UnknownDevice(function.name.clone()))?;
        let before = known.iter().find(|known| known.name == function.name);
        program_one(qmp, &buses, slot, function, before, BusMaster::AsItWas)?;
        count += 1;
    }
    Ok(count)
}

/// Programs a function that was reset, and leaves it to the guest to let it be bus master.
///
/// # Errors
/// See [`RestoreError`]; the function may be programmed then.
pub(crate) fn program_anew(
    qmp: &Qmp,
    slot: &Slot,
    function: &Function,
) -> Result<(), RestoreError> {
    let buses = Buses::look(qmp, std::slice::from_ref(slot))?;
    program_one(qmp, &buses, slot, function, None, BusMaster::Off)
}

/// What of bus mastering is programmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BusMaster {
    AsItWas,
    /// Whatever it was.
    Off,
}

/// What the guest has programmed into each function, with the MSI-X tables of those whose state goes
/// over.
///
/// # Errors
/// When QEMU does not answer.
pub fn read(qmp: &Qmp, slots: &[Slot], carry: &[Carry]) -> Result<Vec<Function>, RestoreError> {
    let carry = carry.iter().copied().chain(std::iter::repeat(Carry::State));
    slots
        .iter()
        .zip(carry)
        .map(|(slot, carry)| read_one(qmp, slot, carry))
        .collect()
}

fn read_one(qmp: &Qmp, slot: &Slot, carry: Carry) -> Result<Function, RestoreError> {
    let endpoint = &slot.endpoint;
    let table = if carry == Carry::Configuration && !endpoint.is_in_use() {
        // Its driver writes it anew. One that recovers a device that it had at work may not
        // (`igbvf`).
        None
    } else if endpoint.is_bus_master() && slot.iommu.is_none() {
        endpoint.read_msix_table()?
    } else {
        // Messages do not get through; the monitor still reads what the BAR shows.
        match endpoint.msix_table_address() {
            Some((at, entries)) => Some(table_of(&qmp.read_physical(at, entries * 4)?)),
            None => None,
        }
    };
    Ok(Function {
        name: endpoint.name().into(),
        config: endpoint.config_image(),
        table,
    })
}

fn table_of(words: &[u32]) -> MsixTable {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    MsixTable::from_bytes(&bytes)
}

fn program_one(
    qmp: &Qmp,
    buses: &Buses,
    slot: &Slot,
    function: &Function,
    before: Option<&Function>,
    bus_master: BusMaster,
) -> Result<(), RestoreError> {
    let name = || function.name.clone();
    let table =
        function.table.is_some() && before.is_none_or(|before| before.table != function.table);
    let steps = slot
        .endpoint
        .restore_plan(&function.config, before.map(|before| &before.config), table)
        .map_err(|error| RestoreError::Image(name(), error))?;
    // Messages, by which the table is written, need it on until then.
    let is_command =
        |step: &Step| matches!(step, Step::Config(write) if write.offset == u16::from(COMMAND));
    let last = steps.iter().rposition(is_command);
    let vectors = slot.endpoint.vector_count();
    if function
        .table
        .as_ref()
        .is_some_and(|table| table.0.len() != vectors)
    {
        return Err(RestoreError::Table(name()));
    }
    let tables = function.table.as_ref();
    qmp.with_pci_config(|config| {
        buses.reach(config, slot.place, |address| {
            for (number, step) in steps.into_iter().enumerate() {
                match (step, tables) {
                    (Step::Config(mut write), _) => {
                        if bus_master == BusMaster::Off && Some(number) == last {
                            write.value &= !u32::from(pci::registers::COMMAND_BUS_MASTER);
                        }
                        config_write(config, address, write)?;
                    }
                    (Step::MsixTable { at }, Some(table)) => {
                        write_table(qmp, slot, at, table)?;
                    }
                    (Step::MsixTable { .. }, None) => {}
                }
            }
            Ok(())
        })
    })
}

fn write_table(qmp: &Qmp, slot: &Slot, at: u64, table: &MsixTable) -> Result<(), RestoreError> {
    if slot.iommu.is_some() {
        let bytes: Vec<u8> = table.0.iter().flat_map(|e| e.to_bytes()).collect();
        let parts = (at..).step_by(MAX_WRITE).zip(bytes.chunks(MAX_WRITE));
        for (at, bytes) in parts {
            qmp.write_physical(at, bytes)?;
        }
        return Ok(());
    }
    let offsets = (at..).step_by(pci::msix::ENTRY_LEN);
    for (at, entry) in offsets.zip(&table.0) {
        slot.endpoint.write_through_vmm(at, &entry.to_bytes())?;
    }
    Ok(())
}

fn config_write(
    config: &PciConfig<'_>,
    address: PciAddress,
    write: ConfigWrite,
) -> Result<(), QmpError> {
    let offset = u8::try_from(write.offset).map_err(|_| {
        QmpError::InvalidArgument("extended configuration space has no port".into())
    })?;
    let width = match write.size {
        1 => Width::Byte,
        2 => Width::Half,
        _ => Width::Word,
    };
    config.write(address, offset, width, write.value)
}
