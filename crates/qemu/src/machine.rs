//! What a QEMU says about itself, as far as two of them must agree to migrate.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};

use crate::bridge::{Bridge, Window};
use crate::client::unexpected;
use crate::message::WireVersion;
use crate::{PciAddress, Qmp, QmpError};

/// The oldest QEMU whose `vfio-user-pci` vferry was tried with.
pub const OLDEST_SUPPORTED: (u32, u32) = (11, 1);

/// A QEMU's version, ordered as its numbers are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Version {
    /// 11 of 11.1.3.
    pub major: u32,
    /// 1 of 11.1.3.
    pub minor: u32,
    /// 3 of 11.1.3.
    pub micro: u32,
    /// The distributor's name for this build; may be empty.
    pub package: String,
}

impl Version {
    /// Whether it is at least [`OLDEST_SUPPORTED`].
    pub fn is_supported(&self) -> bool {
        (self.major, self.minor) >= OLDEST_SUPPORTED
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)?;
        if self.package.is_empty() {
            Ok(())
        } else {
            write!(f, " ({})", self.package)
        }
    }
}

/// One QEMU's machine. What both ends of a migration must have in common is here; serialisable, so
/// that one side can send it to the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// QEMU's version.
    pub version: Version,
    /// The versioned name, `pc-q35-11.1`, also where `q35` was asked for.
    pub machine_type: String,
    /// The type of each vCPU by index, `max-x86_64-cpu` or the like.
    pub cpus: Vec<String>,
    /// Memory present at start, in bytes.
    pub base_memory: u64,
    /// Memory plugged in later, in bytes.
    pub plugged_memory: u64,
    /// All memory backends.
    pub memory_backends: Vec<MemoryBackend>,
    /// The id of the backend that holds the main memory, if it has one with an id.
    pub main_memory: Option<String>,
    /// Whether KVM runs the vCPUs; else they are emulated.
    pub kvm: bool,
}

impl Machine {
    /// Whether other processes can map the main memory, which vfio-user and vhost-user both need.
    pub fn main_memory_is_shared(&self) -> bool {
        self.memory_backends
            .iter()
            .any(|backend| backend.id == self.main_memory && backend.share)
    }
}

/// A memory backend, as in `query-memdev`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryBackend {
    /// Its id, if it has one.
    #[serde(default)]
    pub id: Option<String>,
    /// Bytes.
    pub size: u64,
    /// Whether it can be mapped by other processes. QEMU does not say for some kinds, which then
    /// cannot.
    #[serde(default)]
    pub share: bool,
}

/// A PCI function as QEMU has it now, as in `query-pci`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciFunction {
    /// Where it sits. Below a bridge that has no bus number yet, the bus is 0.
    pub address: PciAddress,
    /// The `id` given to `-device`; empty if none was.
    pub id: String,
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Whether it sits below a bridge, so that the bridge must be programmed before it.
    pub behind_bridge: bool,
    /// What it passes on, if it is a bridge.
    pub bridge: Option<Bridge>,
}

impl Qmp {
    /// `query-version`, asked now. [`Qmp::version`] is what QEMU greeted with.
    ///
    /// # Errors
    ///
    /// As [`Qmp::execute`].
    pub fn query_version(&self) -> Result<Version, QmpError> {
        self.query::<WireVersion>("query-version")
            .map(Version::from)
    }

    /// Describes the machine, in six questions that work in every run state.
    ///
    /// # Errors
    ///
    /// As [`Qmp::execute`].
    pub fn machine(&self) -> Result<Machine, QmpError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "kebab-case")]
        struct Memory {
            base_memory: u64,
            #[serde(default)]
            plugged_memory: u64,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "kebab-case")]
        struct Cpu {
            cpu_index: u64,
            qom_type: String,
        }
        #[derive(Deserialize)]
        struct Kvm {
            enabled: bool,
        }
        let memory: Memory = self.query("query-memory-size-summary")?;
        let mut cpus: Vec<Cpu> = self.query("query-cpus-fast")?;
        cpus.sort_by_key(|cpu| cpu.cpu_index);
        let kvm: Kvm = self.query("query-kvm")?;
        let class = self.machine_property("type")?;
        let backend = self.machine_property("memory-backend")?;
        Ok(Machine {
            version: self.version().clone(),
            machine_type: class.strip_suffix("-machine").unwrap_or(&class).to_owned(),
            cpus: cpus.into_iter().map(|cpu| cpu.qom_type).collect(),
            base_memory: memory.base_memory,
            plugged_memory: memory.plugged_memory,
            memory_backends: self.query("query-memdev")?,
            // A path in QEMU's object tree, `/objects/ID`.
            main_memory: backend
                .rsplit('/')
                .next()
                .filter(|id| !id.is_empty())
                .map(str::to_owned),
            kvm: kvm.enabled,
        })
    }

    /// The threads of the vCPUs, by their numbers on this host, in order of the vCPUs.
    ///
    /// # Errors
    ///
    /// As [`Qmp::execute`].
    pub fn vcpu_threads(&self) -> Result<Vec<i32>, QmpError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "kebab-case")]
        struct Cpu {
            cpu_index: u64,
            thread_id: i32,
        }
        let mut cpus: Vec<Cpu> = self.query("query-cpus-fast")?;
        cpus.sort_by_key(|cpu| cpu.cpu_index);
        Ok(cpus.into_iter().map(|cpu| cpu.thread_id).collect())
    }

    /// All PCI functions, bridges before what is below them.
    ///
    /// # Errors
    ///
    /// As [`Qmp::execute`]; [`QmpError::UnexpectedReply`] also for an address that PCI cannot have.
    pub fn pci_functions(&self) -> Result<Vec<PciFunction>, QmpError> {
        let buses: Vec<WireBus> = self.query("query-pci")?;
        let mut found = Vec::new();
        for bus in &buses {
            collect(&bus.devices, false, &mut found)?;
        }
        Ok(found)
    }

    fn machine_property(&self, property: &str) -> Result<String, QmpError> {
        let arguments = json!({ "path": "/machine", "property": property });
        match self.execute("qom-get", arguments)? {
            Value::String(text) => Ok(text),
            other => Err(unexpected(
                "qom-get",
                format!("/machine.{property} is {other}"),
            )),
        }
    }
}

/// As deep as the bridges, which serde bounds when it parses the reply.
fn collect(
    devices: &[WireFunction],
    behind_bridge: bool,
    found: &mut Vec<PciFunction>,
) -> Result<(), QmpError> {
    for wire in devices {
        let address = PciAddress::new(wire.bus, wire.slot, wire.function).ok_or_else(|| {
            unexpected("query-pci", "a device number above 31 or function above 7")
        })?;
        found.push(PciFunction {
            address,
            id: wire.qdev_id.clone(),
            vendor: wire.id.vendor,
            device: wire.id.device,
            behind_bridge,
            bridge: wire.pci_bridge.as_ref().map(|bridge| bridge.bus),
        });
        if let Some(bridge) = &wire.pci_bridge {
            collect(&bridge.devices, true, found)?;
        }
    }
    Ok(())
}

#[derive(Deserialize)]
struct WireBus {
    devices: Vec<WireFunction>,
}

#[derive(Deserialize)]
struct WireFunction {
    bus: u8,
    slot: u8,
    function: u8,
    id: WireId,
    #[serde(default)]
    qdev_id: String,
    pci_bridge: Option<WireBridge>,
}

#[derive(Deserialize)]
struct WireId {
    vendor: u16,
    device: u16,
}

fn bridge<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bridge, D::Error> {
    #[derive(Deserialize)]
    struct Wire {
        secondary: u8,
        subordinate: u8,
        memory_range: WireRange,
        prefetchable_range: WireRange,
    }
    /// QEMU's schema has signed numbers here; firmware sets all high bits to see which there are.
    #[derive(Deserialize)]
    struct WireRange {
        base: i64,
        limit: i64,
    }
    impl From<WireRange> for Window {
        fn from(WireRange { base, limit }: WireRange) -> Self {
            Self {
                base: base.cast_unsigned(),
                limit: limit.cast_unsigned(),
            }
        }
    }
    let wire = Wire::deserialize(deserializer)?;
    Ok(Bridge {
        secondary: wire.secondary,
        subordinate: wire.subordinate,
        memory: wire.memory_range.into(),
        prefetchable: wire.prefetchable_range.into(),
    })
}

#[derive(Deserialize)]
struct WireBridge {
    #[serde(deserialize_with = "bridge")]
    bus: Bridge,
    #[serde(default)]
    devices: Vec<WireFunction>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As QEMU prints it while firmware looks which bits of a window's registers there are.
    #[test]
    fn a_bridge_whose_windows_are_all_ones_is_understood() {
        let text = json!({
            "bus": {
                "number": 0, "secondary": 0, "subordinate": 0,
                "io_range": { "base": 0xf000, "limit": 0xffff },
                "memory_range": { "base": 0xfff0_0000_u32, "limit": 0xffff_ffff_u32 },
                "prefetchable_range": { "base": -0x10_0000, "limit": -1 }
            }
        });
        let bridge = serde_json::from_value::<WireBridge>(text).unwrap().bus;
        assert_eq!(bridge.memory.base, 0xfff0_0000);
        assert_eq!(bridge.prefetchable.base, 0xffff_ffff_fff0_0000);
        assert_eq!(bridge.prefetchable.limit, u64::MAX);
    }
}
