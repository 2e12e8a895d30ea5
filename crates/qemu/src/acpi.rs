//! What the guest's ACPI tables say of devices behind root ports, beyond what QEMU says.

use acpi_tables::aml::{
    Arg, BufferData, Equal, If, Method, Ones, Package, Path, Return, Scope, Uuid,
};
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};

use crate::PciAddress;

/// `_DSM` of PCI devices (PCI Firmware Specification 3.3, section 4.6).
const DSM: &str = "e5c937d0-3553-4d7a-9117-ea4d19c3434d";
/// Its function for the durations after which a device is ready (section 4.6.9), and a bit for each
/// function that there is, the one that asks for these bits included.
const READINESS_DURATIONS: u8 = 9;
const FUNCTIONS: u16 = 1 << READINESS_DURATIONS | 1;
/// In microseconds, after a conventional reset.
const RESET: u16 = 1000;
/// In microseconds, from D3hot to D0: as without the table. Linux takes "not said" (all ones) for 0.
const FROM_D3HOT: u16 = 10_000;

/// Length of a table's header (ACPI 6.4, section 5.2.6), and our name in it.
const HEADER: u32 = 36;
const OEM: [u8; 6] = *b"VFERRY";
const TABLE: [u8; 8] = *b"READY   ";

/// A table (SSDT) that tells the guest of the devices behind these root ports, each on the main bus,
/// that they may be looked at a millisecond after a reset of their bus, until they answer.
///
/// Without it Linux waits for 100 ms after such a reset; for a device that has no power management
/// capability, as an SR-IOV function has none, it does not wait at all, and its driver may find a
/// device that does not answer yet (`pci_bus_max_d3cold_delay`, `pci_acpi_optimize_delay`).
pub fn readiness_table(root_ports: &[PciAddress]) -> Vec<u8> {
    let mut table = Sdt::new(*b"SSDT", HEADER, 2, OEM, TABLE, 1);
    let mut code = Code(Vec::new());
    for port in root_ports {
        DeviceBehind(*port).to_aml_bytes(&mut code);
    }
    table.append_slice(&code.0);
    table.as_slice().to_vec()
}

struct Code(Vec<u8>);

impl AmlSink for Code {
    fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }
}

/// As QEMU names them (`build_append_pci_bus_devices`): by device and function, 5 and 3 bits.
fn name(device: u8, function: u8) -> String {
    format!("S{:02X}_", device << 3 | function)
}

/// The only device behind this root port.
struct DeviceBehind(PciAddress);

impl Aml for DeviceBehind {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let port = name(self.0.device(), self.0.function());
        let path = format!("\\_SB_.PCI0.{port}.{}", name(0, 0));
        let functions = BufferData::new(FUNCTIONS.to_le_bytes().to_vec());
        let durations = Package::new(vec![&RESET, &Ones {}, &Ones {}, &FROM_D3HOT, &Ones {}]);
        let none = BufferData::new(vec![0]);
        let (uuid, function) = (Uuid::new(DSM), Arg(2));
        Scope::new(
            Path::new(&path),
            vec![&Method::new(
                Path::new("_DSM"),
                4,
                false,
                vec![
                    &If::new(
                        &Equal::new(&Arg(0), &uuid),
                        vec![
                            &If::new(
                                &Equal::new(&function, &0_u8),
                                vec![&Return::new(&functions)],
                            ),
                            &If::new(
                                &Equal::new(&function, &READINESS_DURATIONS),
                                vec![&Return::new(&durations)],
                            ),
                        ],
                    ),
                    &Return::new(&none),
                ],
            )],
        )
        .to_aml_bytes(sink);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(table: &[u8], wanted: &[u8]) -> usize {
        let windows = table.windows(wanted.len());
        windows.filter(|window| *window == wanted).count()
    }

    /// That a guest's kernel makes of it what is meant is shown where one does (`testbed`).
    #[test]
    fn a_table_has_one_method_for_each_port() {
        let ports = [PciAddress::new(0, 5, 0), PciAddress::new(0, 9, 1)];
        let ports = ports.map(|port| port.expect("it is an address"));
        let table = readiness_table(&ports);
        assert_eq!(table[..4], *b"SSDT");
        assert_eq!(
            table[4..8],
            u32::try_from(table.len()).unwrap().to_le_bytes()
        );
        let sum = table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!(sum, 0, "the checksum");
        assert_eq!(count(&table, b"_DSM"), 2);
        for name in [b"_SB_PCI0S28_S00_", b"_SB_PCI0S49_S00_"] {
            assert_eq!(count(&table, name), 1);
        }
    }
}
