//! What the firmware of a q35 machine does not put back when its guest is woken.
//!
//! QEMU resets the machine then, and the firmware programs the chipset as it was. OVMF does so, and
//! SeaBIOS does on an i440fx (its `pci_resume`), but not on a q35: the guest comes to itself without
//! ACPI's registers, by which it would sleep once more, hear its power button and keep its watchdog
//! (`iTCO_wdt`) from resetting it, and without the memory window to configuration space. That one it even
//! closes, a moment after its start: whoever opens it before has to do so once more ([`Found`]).

use qemu::monitor::Width;
use qemu::{PciAddress, Qmp, QmpError};

/// `82G33 [...] Memory Controller Hub` datasheet, section 5.1: vendor and device.
const Q35_HOST_BRIDGE: u32 = 0x29c0_8086;
/// `I/O Controller Hub 9` datasheet, section 13.1: vendor and device.
const ICH9_LPC: u32 = 0x2918_8086;
/// 82G33 section 5.1.18 (`PCIEXBAR`): the memory window to configuration space.
const PCIEXBAR: u8 = 0x60;
/// What it is after a reset.
const CLOSED_BY_RESET: u32 = 0xb000_0000;
/// ICH9 section 13.1.13 (`PMBASE`): a window of 128 bytes.
const PMBASE: u8 = 0x40;
const PMBASE_ADDRESS: u32 = 0xff80;

/// The clock's ports, and its register with the reason of a reset (`CMOS_RESET_CODE` in SeaBIOS): QEMU
/// writes there that the guest has fallen asleep, firmware takes it away when it wakes it.
const CMOS_INDEX: u16 = 0x70;
const CMOS_DATA: u16 = 0x71;
const RESET_CODE: u32 = 0x0f;
const ASLEEP: u32 = 0xfe;

const HOST_BRIDGE: PciAddress = PciAddress::new(0, 0, 0).unwrap();
const LPC: PciAddress = PciAddress::new(0, 0x1f, 0).unwrap();

/// Configuration registers, in the order in which they are put back.
const REGISTERS: [(PciAddress, u8, Width); 7] = [
    // PCIEXBAR: its half with the enable bit last.
    (HOST_BRIDGE, 0x64, Width::Word),
    (HOST_BRIDGE, PCIEXBAR, Width::Word),
    // PIRQ[A-D]_ROUT, PIRQ[E-H]_ROUT
    (LPC, 0x60, Width::Word),
    (LPC, 0x68, Width::Word),
    // RCBA
    (LPC, 0xf0, Width::Word),
    (LPC, PMBASE, Width::Word),
    // ACPI_CNTL
    (LPC, 0x44, Width::Byte),
];

/// ACPI 6.5, section 4.8.3 (`PM1 event` and `control` registers): offsets from `PMBASE`.
const PM1_STATUS: u16 = 0;
const PM1_ENABLE: u16 = 2;
const PM1_CONTROL: u16 = 4;
/// `PWRBTN_STS`, by which QEMU tells that it was woken; a write of 1 clears it.
const POWER_BUTTON: u32 = 1 << 8;
/// `SCI_EN` and `BM_RLD`. The bits above send the machine to sleep.
const CONTROL_KEPT: u32 = 0b11;

/// How far a guest's firmware is, by the window to configuration space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// The window was as it is to be: nothing has been at it since it was put back, if it was.
    AsItWas,
    /// As a reset leaves it: the firmware is yet to come to it.
    AfterReset,
    /// The firmware has been there.
    Closed,
}

/// A sleeping q35 machine's chipset.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Chipset {
    registers: [u32; REGISTERS.len()],
    power: Option<Power>,
}

/// What the registers at `PMBASE` hold.
#[derive(Debug, PartialEq, Eq)]
struct Power {
    base: u16,
    enable: u32,
    control: u32,
}

impl Chipset {
    /// To be called while the vCPUs do not run. `None` if the machine is no q35.
    pub(super) fn read(qmp: &Qmp) -> Result<Option<Self>, QmpError> {
        let registers = qmp.with_pci_config(|config| {
            if config.read(HOST_BRIDGE, 0, Width::Word)? != Q35_HOST_BRIDGE
                || config.read(LPC, 0, Width::Word)? != ICH9_LPC
            {
                return Ok(None);
            }
            let mut values = [0; REGISTERS.len()];
            for (value, (function, offset, width)) in values.iter_mut().zip(REGISTERS) {
                *value = config.read(function, offset, width)?;
            }
            Ok::<_, QmpError>(Some(values))
        })?;
        let Some(registers) = registers else {
            return Ok(None);
        };
        let power = match pm_base(&registers) {
            0 => None,
            base => Some(Power {
                base,
                enable: qmp.read_port(base + PM1_ENABLE, Width::Half)?,
                control: qmp.read_port(base + PM1_CONTROL, Width::Half)?,
            }),
        };
        Ok(Some(Self { registers, power }))
    }

    /// Writes what is not as it was. To be called while the vCPUs do not run, as soon after the
    /// wake-up as can be: what the guest writes to ACPI's registers before is lost.
    pub(super) fn put_back(&self, qmp: &Qmp) -> Result<Found, QmpError> {
        let (found, lost_power) = qmp.with_pci_config(|config| {
            let (mut found, mut lost_power) = (Found::AsItWas, false);
            for ((function, offset, width), value) in REGISTERS.into_iter().zip(self.registers) {
                let is = config.read(function, offset, width)?;
                if is != value {
                    config.write(function, offset, width, value)?;
                    lost_power |= (function, offset) == (LPC, PMBASE);
                    if (function, offset) == (HOST_BRIDGE, PCIEXBAR) {
                        found = Found::of(is);
                    }
                }
            }
            Ok::<_, QmpError>((found, lost_power))
        })?;
        let Some(power) = self.power.as_ref().filter(|_| lost_power) else {
            return Ok(found);
        };
        // Enabled with its status set, the power button would be pressed: many guests switch
        // themselves off then.
        qmp.write_port(power.base + PM1_STATUS, Width::Half, POWER_BUTTON)?;
        let control = power.control & CONTROL_KEPT;
        qmp.write_port(power.base + PM1_CONTROL, Width::Half, control)?;
        qmp.write_port(power.base + PM1_ENABLE, Width::Half, power.enable)?;
        Ok(found)
    }
}

impl Found {
    /// By what the window's register is, which it was not.
    fn of(register: u32) -> Self {
        if register == CLOSED_BY_RESET {
            Self::AfterReset
        } else {
            Self::Closed
        }
    }
}

/// Whether firmware would wake the guest after a reset, and not boot. Not to be asked of a guest that is
/// awake, which may be between these two accesses itself.
pub(super) fn wakes_at_reset(qmp: &Qmp) -> Result<bool, QmpError> {
    qmp.write_port(CMOS_INDEX, Width::Byte, RESET_CODE)?;
    Ok(qmp.read_port(CMOS_DATA, Width::Byte)? == ASLEEP)
}

/// 0 if there is none.
fn pm_base(registers: &[u32; REGISTERS.len()]) -> u16 {
    let pmbase = REGISTERS
        .into_iter()
        .zip(registers)
        .find(|((function, offset, _), _)| (*function, *offset) == (LPC, PMBASE));
    // The mask leaves 16 bits.
    pmbase.map_or(0, |(_, value)| (value & PMBASE_ADDRESS) as u16)
}
