//! Root ports between the main bus and a device.
//!
//! QEMU migrates them itself. But what is behind one cannot be reached before the guest, or its
//! firmware, has given the bus a number, nor at the destination before QEMU has loaded the VM: so
//! the destination's ports are programmed as the source's, and a port without a number gets one for
//! as long as vferry needs it.

use std::collections::BTreeMap;

use control_device::spec::Location;
use qemu::bridge::{self, Bridge};
use qemu::pci::PciConfig;
use qemu::{PciAddress, Place, Qmp, QmpError};
use serde::{Deserialize, Serialize};

use crate::Vm;
use crate::restore::{RestoreError, Slot};

/// The root port of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootPort {
    /// Name of the device behind it.
    pub device: String,
    /// As the guest has programmed it.
    pub bridge: Bridge,
    /// It has reported an error by QEMU's doing, and does not tell its link's capabilities since.
    /// QEMU loads it only into one that does not either.
    pub has_reported: bool,
}

/// The root ports of those of the VM's `slots` that have one. The guest is told by the control
/// device where what is behind them is.
///
/// # Errors
/// When QEMU does not answer, or does not have them.
pub fn find(vm: &Vm, qmp: &Qmp, slots: &[Slot]) -> Result<Vec<RootPort>, RestoreError> {
    let ports = read(qmp, slots)?;
    if let Some(guest) = vm.guest() {
        // Where it is busy from an earlier migration, asking it says so.
        let _ = guest.control.place(&locations(slots, &ports));
    }
    Ok(ports)
}

fn read(qmp: &Qmp, slots: &[Slot]) -> Result<Vec<RootPort>, RestoreError> {
    let buses = Buses::look(qmp, slots)?;
    let mut ports = Vec::new();
    for slot in slots {
        if let Place::RootPort(at) = slot.place {
            ports.push((slot.endpoint.name(), at, buses.bridge(at)?));
        }
    }
    if ports.is_empty() {
        return Ok(Vec::new());
    }
    let port = |(device, at, bridge): (&str, PciAddress, Bridge)| {
        let tells = qmp.with_pci_config(|config| bridge::tells_link_capabilities(config, at));
        Ok(RootPort {
            device: device.into(),
            bridge,
            has_reported: !tells?,
        })
    };
    qmp.at_rest(|| ports.into_iter().map(port).collect())?
}

/// Of `slots`' root ports, those of `ports` that have reported an error keep it as their first one again.
///
/// A guest that sets a port up anew, as after a sleep, may clear what the port has reported
/// (`pci_aer_clear_status` of Linux). It stands at the other side, where the port is made to report as well, and
/// QEMU loads a port only into one that has kept the same first error. So it stands here again, and nobody is told.
/// One that the guest clears after this is refused by the other side's QEMU.
///
/// # Errors
/// When QEMU does not do it.
pub fn keep_errors(qmp: &Qmp, slots: &[Slot], ports: &[RootPort]) -> Result<(), RestoreError> {
    let reported = |slot: &&Slot| {
        let name = slot.endpoint.name();
        ports
            .iter()
            .any(|port| port.device == name && port.has_reported)
    };
    for slot in slots.iter().filter(reported) {
        if let Place::RootPort(at) = slot.place {
            qmp.at_rest(|| keep_error(qmp, at))??;
        }
    }
    Ok(())
}

fn keep_error(qmp: &Qmp, at: PciAddress) -> Result<(), RestoreError> {
    if qmp.first_error(at)? != Some(0) {
        return Ok(());
    }
    let muted = qmp.with_pci_config(|config| bridge::mute(config, at))?;
    let kept = report_error(qmp, at);
    qmp.with_pci_config(|config| muted.end(config, at))?;
    kept
}

/// Programs the root ports of `slots` as `ports` are at the other side.
///
/// # Errors
/// When QEMU does not do it, or a device has no root port here.
pub fn program(qmp: &Qmp, slots: &[Slot], ports: &[RootPort]) -> Result<(), RestoreError> {
    let mut programmed = 0;
    for slot in slots {
        let name = slot.endpoint.name();
        let port = ports.iter().find(|port| port.device == name);
        let (Place::RootPort(at), Some(port)) = (slot.place, port) else {
            continue;
        };
        if port.has_reported {
            // To nobody: what the guest has set up is yet to be loaded, and so is what is reported.
            qmp.with_pci_config(|config| bridge::pass_errors_on(config, at))?;
            report_error(qmp, at)?;
        }
        qmp.with_pci_config(|config| port.bridge.program(config, at))?;
        programmed += 1;
    }
    // The sides were compared: only a source that is no vferry has others.
    if programmed == ports.len() {
        Ok(())
    } else {
        let names: Vec<_> = ports.iter().map(|port| port.device.as_str()).collect();
        Err(RestoreError::UnknownDevice(names.join(", ")))
    }
}

/// Whether the root port at `at` has no bus behind it, as before firmware has given it a number.
pub(crate) fn is_as_after_reset(qmp: &Qmp, at: PciAddress) -> Result<bool, QmpError> {
    let functions = qmp.pci_functions()?;
    let port = functions.iter().find(|function| function.address == at);
    let bridge = port.and_then(|port| port.bridge.as_ref());
    Ok(bridge.is_some_and(|bridge| bridge.secondary == 0))
}

/// Has the root port at `at` report a fatal error.
pub(crate) fn report_error(qmp: &Qmp, at: PciAddress) -> Result<(), RestoreError> {
    let functions = qmp.pci_functions()?;
    let port = functions
        .iter()
        .find(|function| function.address == at && function.bridge.is_some());
    let port = port.ok_or(RestoreError::NoRootPort(at))?;
    Ok(qmp.report_fatal_error(&port.id)?)
}

/// Where the guest finds each of `slots`; `None` if it cannot yet.
pub fn locations(slots: &[Slot], ports: &[RootPort]) -> Vec<Option<Location>> {
    let location = |slot: &Slot| {
        let port = ports
            .iter()
            .find(|port| port.device == slot.endpoint.name());
        let address = slot
            .place
            .address(port.map_or(0, |port| port.bridge.secondary))?;
        Some(Location {
            segment: 0,
            bus: address.bus(),
            device: address.device(),
            function: address.function(),
        })
    };
    slots.iter().map(location).collect()
}

/// The numbers of the buses behind all bridges, as QEMU has them now.
#[derive(Debug, Default)]
pub(crate) struct Buses(BTreeMap<PciAddress, Bridge>);

impl Buses {
    /// Asks QEMU, if any of `slots` needs it.
    pub(crate) fn look(qmp: &Qmp, slots: &[Slot]) -> Result<Self, QmpError> {
        let behind_port = |slot: &Slot| matches!(slot.place, Place::RootPort(_));
        if !slots.iter().any(behind_port) {
            return Ok(Self::default());
        }
        let functions = qmp.pci_functions()?.into_iter();
        let bridges = functions.filter_map(|function| Some((function.address, function.bridge?)));
        Ok(Self(bridges.collect()))
    }

    /// Has `work` done with the address by which the function at `place` can be reached.
    pub(crate) fn reach<T>(
        &self,
        config: &PciConfig<'_>,
        place: Place,
        work: impl FnOnce(PciAddress) -> Result<T, RestoreError>,
    ) -> Result<T, RestoreError> {
        let at = match place {
            Place::MainBus(address) => return work(address),
            Place::RootPort(at) => at,
        };
        let secondary = self.bridge(at)?.secondary;
        if let Some(address) = place.address(secondary) {
            return work(address);
        }
        let spare = self.spare();
        let address = place.address(spare).ok_or(RestoreError::NoRootPort(at))?;
        bridge::set_buses(config, at, spare, spare)?;
        let result = work(address);
        bridge::set_buses(config, at, 0, 0)?;
        result
    }

    fn bridge(&self, at: PciAddress) -> Result<Bridge, RestoreError> {
        // Behind another bridge that has no number yet, a bridge seems to be on the main bus.
        self.0.get(&at).copied().ok_or(RestoreError::NoRootPort(at))
    }

    /// The highest number that no bridge passes on, 0 if there is none.
    fn spare(&self) -> u8 {
        let taken = |number: u8| {
            let mut ranges = self
                .0
                .values()
                .map(|b| b.secondary..=b.subordinate.max(b.secondary));
            ranges.any(|range| range.contains(&number))
        };
        (1..=u8::MAX)
            .rev()
            .find(|number| !taken(*number))
            .unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use qemu::bridge::Window;

    use super::*;

    fn bridge(secondary: u8, subordinate: u8) -> Bridge {
        let nothing = Window { base: 0, limit: 0 };
        Bridge {
            secondary,
            subordinate,
            memory: nothing,
            prefetchable: nothing,
        }
    }

    fn buses(all: &[(u8, Bridge)]) -> Buses {
        let at = |device| PciAddress::new(0, device, 0).unwrap();
        Buses(
            all.iter()
                .map(|(device, bridge)| (at(*device), *bridge))
                .collect(),
        )
    }

    #[test]
    fn a_spare_number_is_nobodys() {
        assert_eq!(buses(&[]).spare(), 255);
        assert_eq!(buses(&[(1, bridge(0, 0)), (2, bridge(1, 0xff))]).spare(), 0);
        assert_eq!(
            buses(&[(1, bridge(1, 4)), (2, bridge(200, 255))]).spare(),
            199
        );
        assert_eq!(buses(&[(1, bridge(255, 3))]).spare(), 254, "not in order");
    }

    #[test]
    fn a_root_port_that_is_not_there_is_named() {
        let at = PciAddress::new(0, 3, 0).unwrap();
        let error = buses(&[(1, bridge(1, 1))]).bridge(at).unwrap_err();
        assert!(error.to_string().contains("00:03.0"), "{error}");
    }
}
