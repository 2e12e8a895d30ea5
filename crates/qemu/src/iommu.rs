//! Virtual IOMMUs: which one a VM has, and whether devices behind it can be served.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Qmp, QmpError};

/// A virtual IOMMU under which QEMU tells a vfio-user device what the guest maps for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Iommu {
    /// `virtio-iommu-pci`, whose driver maps by request.
    #[serde(rename = "virtio-iommu")]
    Virtio,
    /// `intel-iommu` in caching mode, in which drivers report what they map, too.
    #[serde(rename = "intel-iommu")]
    Intel,
}

impl Iommu {
    /// All there are.
    pub const ALL: [Self; 2] = [Self::Virtio, Self::Intel];

    /// Its name, in configurations and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Virtio => "virtio-iommu",
            Self::Intel => "intel-iommu",
        }
    }
}

impl fmt::Display for Iommu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a VM's QEMU has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// No virtual IOMMU.
    Nothing,
    /// One that works.
    Iommu(Iommu),
    /// One that does not, and why.
    Unusable(String),
}

impl Qmp {
    /// Which virtual IOMMU the VM has.
    ///
    /// # Errors
    ///
    /// As [`Qmp::execute`].
    pub fn virtual_iommu(&self) -> Result<Found, QmpError> {
        Ok(find(&self.human_monitor("info qtree")?))
    }
}

/// Looks for a virtual IOMMU in QEMU's tree of devices.
pub fn find(tree: &str) -> Found {
    let mut lines = tree.lines().map(str::trim);
    while let Some(line) = lines.next() {
        let Some(device) = line.strip_prefix("dev: ") else {
            continue;
        };
        match device.split(',').next() {
            Some("virtio-iommu-pci") => return Found::Iommu(Iommu::Virtio),
            Some("intel-iommu") => {
                let mut properties = lines
                    .by_ref()
                    .take_while(|line| !line.starts_with("dev: ") && !line.starts_with("bus: "));
                return if properties.any(|property| property == "caching-mode = true") {
                    Found::Iommu(Iommu::Intel)
                } else {
                    let why = "intel-iommu without caching mode, which does not tell what the \
                               guest maps for a device: add caching-mode=on";
                    Found::Unusable(why.into())
                };
            }
            Some("amd-iommu") => {
                let why = "amd-iommu, under which vferry was never tried: use virtio-iommu";
                return Found::Unusable(why.into());
            }
            _ => {}
        }
    }
    Found::Nothing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_found_in_the_tree() {
        let none = "bus: main-system-bus\n  dev: ioapic, id \"\"\n    caching-mode = true\n";
        assert_eq!(find(none), Found::Nothing);
        let intel = |mode| {
            let rest = "    pasid = false\n    bypass-iommu = false\n  dev: q35-pcihost, id \"\"\n";
            format!("{none}  dev: intel-iommu, id \"\"\n    caching-mode = {mode}\n{rest}")
        };
        assert_eq!(find(&intel(true)), Found::Iommu(Iommu::Intel));
        let without = find(&intel(false));
        assert!(
            matches!(&without, Found::Unusable(why) if why.contains("caching-mode=on")),
            "{without:?}"
        );
        // Of another device.
        let other = "dev: intel-iommu, id \"\"\n dev: x, id \"\"\n  caching-mode = true\n";
        assert!(matches!(find(other), Found::Unusable(_)));
        let virtio = "  dev: virtio-iommu-pci, id \"\"\n     dev: virtio-iommu-device, id \"\"\n";
        assert_eq!(find(virtio), Found::Iommu(Iommu::Virtio));
        assert!(matches!(find("dev: amd-iommu, id"), Found::Unusable(_)));
    }
}
