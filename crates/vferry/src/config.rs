//! The configuration file of one VM.
//!
//! Both hosts of a migration have one; names, addresses and models must agree, sockets need not.

mod file;
mod problem;
mod validate;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ferry::cooperative::Deadlines;
use ferry::sleep::Bedtime;
use qemu::args::Memory;
use qemu::{Iommu, PciAddress, Place};
use sriov::Wish;
use tls::Peers;

pub use problem::{ConfigError, Problem};

/// The highest VLAN there is (IEEE 802.1Q, 9.6).
pub(crate) const LAST_VLAN: u16 = 4094;

/// A configuration that was found sound.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where it came from, and some lines, for later messages.
    pub origin: Origin,
    /// Name of the VM.
    pub name: String,
    /// Guest memory.
    pub memory: Memory,
    /// The group that may use its sockets, beside its user and root.
    pub socket_group: Option<u32>,
    /// QEMU's `-machine` type.
    pub machine: String,
    /// QEMU's monitor.
    pub qmp: PathBuf,
    /// The virtual IOMMU that the VM's devices are behind.
    pub iommu: Option<Iommu>,
    /// Where `vferry migrate` and `vferry status` reach this VM's process.
    pub control: PathBuf,
    /// The sidecar's socket.
    pub sidecar: PathBuf,
    /// The sidecar's address.
    pub sidecar_address: PciAddress,
    /// The control device, through which the guest may help a migration.
    pub guest: Option<Guest>,
    /// How the guest is put to sleep, for the strategy that wants it.
    pub bedtime: Bedtime,
    /// Where the other host's vferry reaches this one.
    pub link: Endpoint,
    /// Where QEMU listens for an incoming migration.
    pub incoming: Endpoint,
    /// How what goes there is protected.
    pub protection: Protection,
    /// The id of QEMU's `authz` object that says whose stream it takes, where that is protected.
    pub stream_authz: Option<String>,
    /// Longest pause that QEMU may plan for the last pass.
    pub downtime_limit: Duration,
    /// Most bytes per second of QEMU's stream; 0 is no limit.
    pub max_bandwidth: u64,
    /// The devices.
    pub devices: Vec<Device>,
    /// When the process that serves them is replaced, if it may be.
    pub keeper: Option<Replaced>,
}

/// When the process that serves the devices is replaced by another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replaced {
    /// Where it dies, so often.
    pub rate: keeper::Rate,
    /// Where it hangs for so long, if that is noticed.
    pub hung_after: Option<Duration>,
}

/// Where a configuration came from.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The file.
    pub path: PathBuf,
    /// The line of `memory`.
    pub memory_line: usize,
    /// The line of `link`.
    pub link_line: usize,
}

/// One device.
#[derive(Debug, Clone)]
pub struct Device {
    /// Its name, in messages and saved state.
    pub name: String,
    /// Its model.
    pub model: String,
    /// Its vfio-user socket.
    pub socket: PathBuf,
    /// Where it is plugged in.
    pub place: Place,
    /// Who knows which pages it writes.
    pub dirty_log: DirtyLog,
    /// What its model needs.
    pub settings: Settings,
}

/// Who knows which pages a device writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DirtyLog {
    /// The device: its model logs each write, or hardware does.
    #[default]
    Device,
    /// Hardware, if it does, and else the guest: it is seen when the device is opened.
    Best,
    /// The guest alone, which lets the host know by the control device; as for hardware that keeps
    /// no log.
    Guest,
}

/// What the models need.
#[derive(Debug, Clone)]
pub enum Settings {
    /// A NIC.
    Nic(Nic),
    /// A disk.
    Disk(Disk),
    /// A function of the host, and what is wished of it.
    Host(Wish),
    /// None: the model has no settings.
    None,
}

/// The control device.
#[derive(Debug, Clone)]
pub struct Guest {
    /// Its vfio-user socket.
    pub socket: PathBuf,
    /// Its PCI address.
    pub address: PciAddress,
    /// How long the guest may take.
    pub deadlines: Deadlines,
}

impl Guest {
    /// The control device's name, in messages, saved state and QEMU.
    pub const NAME: &str = "guest-control";
}

/// A NIC's settings.
#[derive(Debug, Clone)]
pub struct Nic {
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Queue pairs.
    pub queues: u8,
    /// Where its frames go.
    pub uplink: Uplink,
}

/// A disk's settings.
#[derive(Debug, Clone)]
pub struct Disk {
    /// The file or block device that holds it.
    pub file: PathBuf,
    /// Where it is written whose the file is, if not beside it.
    pub lease: Option<PathBuf>,
    /// Its serial number.
    pub serial: String,
    /// I/O queue pairs.
    pub queues: u16,
}

/// Where a NIC's frames go.
#[derive(Debug, Clone)]
pub enum Uplink {
    /// A TAP interface.
    Tap(String),
    /// A unix socket that speaks as QEMU's `-netdev stream` does.
    Wire(PathBuf),
}

/// Where somebody listens: `unix:PATH` or `tcp:ADDRESS:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A unix socket.
    Unix(PathBuf),
    /// A TCP port.
    Tcp(SocketAddr),
}

/// How what goes to other hosts by TCP is protected. A unix socket is its folder's matter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Protection {
    /// By TLS, with the certificates in a folder, between hosts that have these names.
    Tls {
        /// As QEMU's `tls-creds-x509` has it.
        folder: PathBuf,
        /// Who is taken.
        peers: Peers,
    },
    /// It does not leave the host.
    Loopback,
    /// Not at all, as the configuration says in so many words.
    None,
}

impl Protection {
    /// Whether something may go to, or be taken at, this place.
    pub fn allows(&self, place: &Endpoint) -> bool {
        match (self, place) {
            (Self::Loopback, Endpoint::Tcp(address)) => address.ip().to_canonical().is_loopback(),
            _ => true,
        }
    }
}

impl Config {
    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    /// All that is wrong with it, each with line, reason and remedy.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
            path: path.into(),
            source,
        })?;
        Self::parse(path, &text)
    }

    /// The id in QEMU of the root port that device `name` is behind.
    pub fn root_port_id(name: &str) -> String {
        format!("{name}-port")
    }

    /// The root ports that devices are behind.
    pub fn root_ports(&self) -> Vec<PciAddress> {
        let places = self.devices.iter().map(|device| device.place);
        let ports = places.filter_map(|place| match place {
            Place::RootPort(at) => Some(at),
            Place::MainBus(_) => None,
        });
        ports.collect()
    }

    /// Where a virtual IOMMU sits on the main bus, if it is a PCI device: in the highest slot that no
    /// other has. `None` if there is none.
    pub fn free_slot(&self) -> Option<PciAddress> {
        let of_device = |device: &Device| match device.place {
            Place::MainBus(at) | Place::RootPort(at) => at.device(),
        };
        let mut taken: Vec<_> = self.devices.iter().map(of_device).collect();
        taken.extend(self.guest.as_ref().map(|guest| guest.address.device()));
        taken.push(self.sidecar_address.device());
        let free = (1..=Self::LAST_DEVICE)
            .rev()
            .find(|device| !taken.contains(device));
        PciAddress::new(0, free?, 0)
    }

    /// The highest device number that q35 leaves free: 1f is the chipset's.
    const LAST_DEVICE: u8 = 0x1e;

    /// Where `vferry run` puts the ACPI table of what is behind them, for QEMU: beside the sidecar's
    /// socket.
    pub fn acpi_table(&self) -> PathBuf {
        let mut path = self.sidecar.clone().into_os_string();
        path.push(".aml");
        path.into()
    }

    /// Where it is written what the host was before this VM: beside the control socket.
    pub fn host_record(&self) -> PathBuf {
        let mut path = self.control.clone().into_os_string();
        path.push(".host");
        path.into()
    }

    /// As [`load`](Self::load), of a text. For tests and fuzzers too.
    ///
    /// # Errors
    /// See [`load`](Self::load).
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let wrong = |problems| ConfigError::Wrong {
            path: path.into(),
            problems,
        };
        let file = file::parse(text).map_err(|problem| wrong(vec![problem]))?;
        validate::validate(path, text, &file).map_err(wrong)
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

impl std::str::FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let explain =
            || format!("`{text}` is no place to listen: write unix:/PATH or tcp:ADDRESS:PORT");
        if let Some(path) = text.strip_prefix("unix:") {
            if path.is_empty() {
                Err(explain())
            } else {
                Ok(Self::Unix(path.into()))
            }
        } else if let Some(address) = text.strip_prefix("tcp:") {
            address.parse().map(Self::Tcp).map_err(|_| explain())
        } else {
            Err(explain())
        }
    }
}

#[cfg(test)]
mod tests;
