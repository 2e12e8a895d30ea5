//! The command line of a QEMU that vferry can serve and migrate.
//!
//! Only the part that concerns vferry: memory that other processes can map, the devices, and the
//! monitor. The rest (disks, consoles, firmware) belongs to whoever runs the VM, and goes in by
//! [`QemuArgs::arg`].

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use crate::{Iommu, PciAddress};

/// Longest path of a unix socket, without the terminating zero (`sun_path` in `unix(7)`).
const MAX_SOCKET_PATH: usize = 107;

/// An argument that QEMU would misread or refuse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArgsError {
    /// QEMU's command line is text.
    #[error("path {path} is not UTF-8, and QEMU's arguments are; rename it", path = .0.display())]
    PathNotText(PathBuf),
    /// The kernel has no room for it.
    #[error(
        "socket path {path} has {length} bytes, but a unix socket's path has at most \
         {MAX_SOCKET_PATH}; use a folder with a shorter name",
        path = .path.display()
    )]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
    },
    /// Ids appear in lists whose separators QEMU would see.
    #[error("`{0}` is not a QEMU id; use a letter, then letters, digits, `-`, `.` or `_`")]
    InvalidId(String),
    /// Memory comes in whole pages.
    #[error("{} bytes of memory in pages of {}: give a multiple of a page that is not 0", .0.size, .0.page())]
    InvalidMemory(Memory),
    /// QEMU counts in milliseconds, 32 bits of them.
    #[error("a message timeout of {0:?}: give 1 ms to 49 days")]
    InvalidTimeout(Duration),
}

/// A list of arguments in the making.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QemuArgs {
    args: Vec<String>,
}

/// A VM's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Bytes.
    pub size: u64,
    /// The size of the pages that the host has set aside for it (hugetlb), in bytes; none for pages of the
    /// usual kind.
    ///
    /// Of those QEMU's memfd is mapped at any address, so that KVM has a page table entry for each 4 KiB even
    /// where the kernel gave it large ones.
    pub hugepage: Option<u64>,
}

impl Memory {
    fn page(self) -> u64 {
        self.hugepage.unwrap_or(4096)
    }
}

impl From<u64> for Memory {
    fn from(size: u64) -> Self {
        Self {
            size,
            hugepage: None,
        }
    }
}

/// Where a device is plugged in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plug {
    /// The id of the bus; QEMU's main bus, `pcie.0` on q35, if absent.
    pub bus: Option<String>,
    /// The address on that bus, of which device and function count; QEMU picks one if absent.
    pub address: Option<PciAddress>,
}

/// A `vfio-user-pci` device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VfioUser {
    /// Its id.
    pub id: String,
    /// The socket on which its server listens.
    pub socket: PathBuf,
    /// Where it is plugged in. Must be the same on both sides of a migration.
    pub plug: Plug,
    /// How long QEMU waits for the server's answer before it gives the guest all ones; 5 s if
    /// absent.
    pub message_timeout: Option<Duration>,
}

/// A `pcie-root-port` for one function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootPort {
    /// Its id, which is its bus' as well.
    pub id: String,
    /// Where it sits on the main bus.
    pub address: PciAddress,
}

/// A `vhost-user-fs-pci` device, as the sidecar is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VhostUserFs {
    /// Its id; its socket's is `ID-socket`.
    pub id: String,
    /// The socket on which its server listens.
    pub socket: PathBuf,
    /// The name by which a guest would mount it.
    pub tag: String,
    /// Where it is plugged in. Must be the same on both sides of a migration.
    pub plug: Plug,
}

impl QemuArgs {
    /// No arguments yet; the program's own name is not among them.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends an argument as it is.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Appends arguments as they are.
    #[must_use]
    pub fn args<T: Into<String>>(mut self, args: impl IntoIterator<Item = T>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// The machine and its memory, in a memfd that the devices' servers can map. The backend's id,
    /// `vferry-memory`, is part of the migration stream, so both sides need this.
    ///
    /// # Errors
    ///
    /// [`ArgsError::InvalidMemory`], or [`ArgsError::InvalidId`] for the machine type.
    pub fn machine(self, machine_type: &str, memory: impl Into<Memory>) -> Result<Self, ArgsError> {
        let memory = memory.into();
        if memory.size == 0 || memory.page() == 0 || !memory.size.is_multiple_of(memory.page()) {
            return Err(ArgsError::InvalidMemory(memory));
        }
        let mut object = json!({
            "qom-type": "memory-backend-memfd", "id": "vferry-memory", "size": memory.size,
            "share": true
        });
        if let Some(hugepage) = memory.hugepage {
            object["hugetlb"] = json!(true);
            object["hugetlbsize"] = json!(hugepage);
        }
        Ok(self
            .args([
                "-machine".to_owned(),
                format!("{},memory-backend=vferry-memory", id(machine_type)?),
            ])
            .args(["-m".to_owned(), size(memory.size)])
            .args(["-object".to_owned(), object.to_string()]))
    }

    /// A QMP monitor on a unix socket, which QEMU creates.
    ///
    /// # Errors
    ///
    /// [`ArgsError::PathNotText`] or [`ArgsError::PathTooLong`].
    pub fn qmp(self, socket: &Path) -> Result<Self, ArgsError> {
        let path = option_value(socket_path(socket)?);
        Ok(self.args(["-qmp".to_owned(), format!("unix:{path},server=on,wait=off")]))
    }

    /// A device that a vfio-user server provides.
    ///
    /// # Errors
    ///
    /// [`ArgsError`], each for the field it names.
    pub fn vfio_user(self, device: &VfioUser) -> Result<Self, ArgsError> {
        let mut properties = json!({
            "driver": "vfio-user-pci", "id": id(&device.id)?,
            "socket": { "type": "unix", "path": socket_path(&device.socket)? }
        });
        device.plug.add_to(&mut properties)?;
        if let Some(timeout) = device.message_timeout {
            let milliseconds = u32::try_from(timeout.as_millis())
                .ok()
                .filter(|ms| *ms > 0)
                .ok_or(ArgsError::InvalidTimeout(timeout))?;
            properties["x-msg-timeout"] = json!(milliseconds);
        }
        Ok(self.args(["-device".to_owned(), properties.to_string()]))
    }

    /// A virtual IOMMU. Devices that come before it on the command line are not behind it.
    #[must_use]
    pub fn iommu(self, iommu: Iommu, address: PciAddress) -> Self {
        let properties = match iommu {
            Iommu::Virtio => json!({ "driver": "virtio-iommu-pci", "addr": address.slot() }),
            // No PCI function. Without caching mode the guest need not tell what it maps anew.
            Iommu::Intel => json!({ "driver": "intel-iommu", "caching-mode": true }),
        };
        self.args(["-device".to_owned(), properties.to_string()])
    }

    /// A root port whose link Linux can bring up again after an error: of 2.5 GT/s, and without a
    /// report of the link's state, which QEMU does not keep over a reset of the bus behind it
    /// (`pci_bridge_wait_for_secondary_bus` in Linux).
    ///
    /// # Errors
    ///
    /// [`ArgsError::InvalidId`].
    pub fn root_port(self, port: &RootPort) -> Result<Self, ArgsError> {
        let properties = json!({
            "driver": "pcie-root-port", "id": id(&port.id)?, "bus": "pcie.0",
            "addr": port.address.slot(),
            // Slots must differ in one of their two numbers.
            "chassis": port.address.device(),
            "hotplug": false, "x-speed": "2_5", "x-pcie-lnksta-dllla": false
        });
        Ok(self.args(["-device".to_owned(), properties.to_string()]))
    }

    /// A device that a vhost-user file system server provides.
    ///
    /// # Errors
    ///
    /// [`ArgsError`], each for the field it names.
    pub fn vhost_user_fs(self, device: &VhostUserFs) -> Result<Self, ArgsError> {
        let chardev = format!("{}-socket", id(&device.id)?);
        let path = option_value(socket_path(&device.socket)?);
        let mut properties = json!({
            "driver": "vhost-user-fs-pci", "id": device.id, "chardev": chardev,
            "tag": id(&device.tag)?
        });
        device.plug.add_to(&mut properties)?;
        Ok(self
            .args([
                "-chardev".to_owned(),
                format!("socket,id={chardev},path={path}"),
            ])
            .args(["-device".to_owned(), properties.to_string()]))
    }

    /// A file with an ACPI table for the guest beside QEMU's own, with its header.
    ///
    /// # Errors
    ///
    /// [`ArgsError`] if the path is none that QEMU takes.
    pub fn acpi_table(self, file: &Path) -> Result<Self, ArgsError> {
        let text = file.to_str();
        let text = text.ok_or_else(|| ArgsError::PathNotText(file.to_owned()))?;
        let file = option_value(text);
        Ok(self.args(["-acpitable".to_owned(), format!("file={file}")]))
    }

    /// The arguments, one element each, for `execve`.
    pub fn into_vec(self) -> Vec<String> {
        self.args
    }

    /// The arguments as one line that a POSIX shell splits into exactly them.
    pub fn shell_line(&self) -> String {
        self.args
            .iter()
            .map(|arg| shell_quoted(arg))
            .collect::<Vec<_>>()
            .join(" ")
    }
}

impl Plug {
    fn add_to(&self, properties: &mut serde_json::Value) -> Result<(), ArgsError> {
        if let Some(bus) = &self.bus {
            properties["bus"] = json!(id(bus)?);
        }
        if let Some(address) = self.address {
            properties["addr"] = json!(address.slot());
        }
        Ok(())
    }
}

/// As `id_wellformed` in QEMU's `util/id.c`.
fn id(text: &str) -> Result<&str, ArgsError> {
    let rest = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    let well_formed = text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.chars().all(rest);
    if well_formed {
        Ok(text)
    } else {
        Err(ArgsError::InvalidId(text.to_owned()))
    }
}

/// QEMU takes `-m` in MiB unless told otherwise, and reads nothing after a `B`.
fn size(bytes: u64) -> String {
    if bytes.is_multiple_of(1 << 20) {
        format!("{}M", bytes >> 20)
    } else {
        format!("{bytes}B")
    }
}

fn socket_path(path: &Path) -> Result<&str, ArgsError> {
    let length = path.as_os_str().len();
    if length > MAX_SOCKET_PATH {
        return Err(ArgsError::PathTooLong {
            path: path.to_owned(),
            length,
        });
    }
    path.to_str()
        .ok_or_else(|| ArgsError::PathNotText(path.to_owned()))
}

/// A text as a value in QEMU's `key=value,...` lists, where a doubled comma stands for one.
#[must_use]
pub fn option_value(text: &str) -> String {
    text.replace(',', ",,")
}

fn shell_quoted(arg: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_@%+=:,./-".contains(c);
    if !arg.is_empty() && arg.chars().all(plain) {
        arg.to_owned()
    } else {
        format!("'{}'", arg.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    #[test]
    fn a_vm_with_both_devices() {
        let address = PciAddress::new(0, 5, 0);
        let args = QemuArgs::new()
            .machine("q35", 512 << 20)
            .unwrap()
            .qmp(Path::new("/run/vm,1/qmp"))
            .unwrap()
            .vfio_user(&VfioUser {
                id: "nic0".to_owned(),
                socket: "/run/nic,0".into(),
                plug: Plug { bus: None, address },
                message_timeout: Some(Duration::from_secs(30)),
            })
            .unwrap()
            .vhost_user_fs(&VhostUserFs {
                id: "sidecar".to_owned(),
                socket: "/run/side,car".into(),
                tag: "vferry".to_owned(),
                plug: Plug {
                    bus: Some("rp0".to_owned()),
                    address: None,
                },
            })
            .unwrap()
            .into_vec();
        let json = |index: usize| serde_json::from_str::<Value>(&args[index]).unwrap();
        assert_eq!(args[..2], ["-machine", "q35,memory-backend=vferry-memory"]);
        assert_eq!(args[2..5], ["-m", "512M", "-object"]);
        assert_eq!(json(5)["size"], 512 << 20);
        assert_eq!(json(5)["share"], true);
        assert_eq!(
            args[6..8],
            ["-qmp", "unix:/run/vm,,1/qmp,server=on,wait=off"]
        );
        assert_eq!(json(9)["socket"]["path"], "/run/nic,0");
        assert_eq!(json(9)["addr"], "05.0");
        assert_eq!(json(9)["x-msg-timeout"], 30_000);
        assert_eq!(
            args[10..12],
            ["-chardev", "socket,id=sidecar-socket,path=/run/side,,car"]
        );
        assert_eq!(json(13)["chardev"], "sidecar-socket");
        assert_eq!(json(13)["bus"], "rp0");
    }

    #[test]
    fn what_qemu_would_misread_is_refused() {
        assert_eq!(
            QemuArgs::new().machine("q35", 0),
            Err(ArgsError::InvalidMemory(0.into()))
        );
        assert_eq!(
            QemuArgs::new().machine("q35", 5),
            Err(ArgsError::InvalidMemory(5.into()))
        );
        let odd = Memory {
            size: 3 << 20,
            hugepage: Some(2 << 20),
        };
        assert_eq!(
            QemuArgs::new().machine("q35", odd),
            Err(ArgsError::InvalidMemory(odd))
        );
        let list = "q35,accel=kvm";
        assert_eq!(
            QemuArgs::new().machine(list, 4096),
            Err(ArgsError::InvalidId(list.to_owned()))
        );
        let long = PathBuf::from("/".repeat(108));
        let error = QemuArgs::new().qmp(&long).unwrap_err();
        assert!(error.to_string().contains("108 bytes"), "{error}");
        assert!(QemuArgs::new().qmp(Path::new(&"/".repeat(107))).is_ok());
        let mut device = VfioUser {
            id: "nic0".to_owned(),
            socket: "/s".into(),
            plug: Plug::default(),
            message_timeout: Some(Duration::ZERO),
        };
        let timeout = ArgsError::InvalidTimeout(Duration::ZERO);
        assert_eq!(QemuArgs::new().vfio_user(&device), Err(timeout));
        device = VfioUser {
            id: "5".to_owned(),
            message_timeout: None,
            ..device
        };
        assert!(matches!(
            QemuArgs::new().vfio_user(&device),
            Err(ArgsError::InvalidId(_))
        ));
    }

    #[test]
    fn odd_memory_sizes_are_given_in_bytes() {
        assert_eq!(
            (size(1 << 30), size(4096)),
            ("1024M".to_owned(), "4096B".to_owned())
        );
    }

    proptest! {
        // One shell per case.
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn a_shell_splits_the_line_into_the_same_arguments(
            args in prop::collection::vec("[^\\x00]{0,12}|['\"$`\\\\ \n*~]{0,6}", 1..5)
        ) {
            let line = QemuArgs::new().args(args.clone()).shell_line();
            let script = format!("printf '%s\\0' {line}");
            let output = Command::new("sh").arg("-c").arg(script).output().unwrap();
            let expected = args.join("\0") + "\0";
            prop_assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
        }
    }
}
