//! What a testbed is to be.

use std::path::PathBuf;
use std::time::Duration;

use ferry::Strategy;
use qemu::Iommu;

use crate::Processors;

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Guest memory in bytes.
    pub memory: u64,
    /// A law to switch off at every source: the argument of `--unsound-control`.
    pub unsound_control: Option<String>,
    /// Compare all guest memory in each migration.
    pub verify: bool,
    /// MiB of guest memory that a program writes over and over, and how many of them per second.
    pub dirty: (u32, u32),
    /// Most bytes per second that the first source sends; `None` is no limit.
    pub max_bandwidth: Option<u64>,
    /// Where the sidecar sits on the guest's PCI bus.
    pub sidecar_address: String,
    /// What the guest has.
    pub devices: Devices,
    /// What they are plugged into.
    pub plug: Plug,
    /// The virtual IOMMU that the devices are behind. The guest's kernel has to use it: see
    /// [`Options::modules`] and [`Options::append`].
    pub iommu: Option<Iommu>,
    /// The firmware's image; QEMU's own if `None`.
    pub firmware: Option<PathBuf>,
    /// How far the guest can boot.
    pub boot: Boot,
    /// More modules to load at boot.
    pub modules: Vec<String>,
    /// More for the kernel's command line.
    pub append: String,
    /// More for QEMU's.
    pub args: Vec<String>,
    /// Files to be put into the guest's `/bin`, and their names there.
    pub files: Vec<(PathBuf, String)>,
    /// Numbered UDP packets per second to the guest, and half as many echoes. A guest that has not
    /// the processor to itself drops some of many, migrated or not.
    pub packets_per_second: u32,
    /// What the guest can do to help, through the control device.
    pub guest: Help,
    /// A streaming test device beside the NIC, its driver loaded with these parameters.
    pub stream: Option<String>,
    /// The devices keep no log of what they write: only the guest knows.
    pub dirty_log_of_guest: bool,
    /// What is between the hosts.
    pub between: Between,
    /// When memory is compared before the VM runs elsewhere; vferry chooses if `None`.
    pub compare: Option<&'static str>,
    /// The strategy asked for; vferry chooses if `None`.
    pub strategy: Option<Strategy>,
    /// How long the guest may take to stop its devices. vferry's own default is for processors
    /// that are not translated.
    pub quiesce_deadline: Duration,
    /// How often a minute a keeper starts another process when the one that serves the devices dies; there is
    /// none if `None`.
    pub deaths_per_minute: Option<u32>,
    /// Where the hosts' files are.
    pub host_files: HostFiles,
    /// Where the service manager listens of which vferry is a unit; of none if `None`.
    pub notify: Option<PathBuf>,
    /// KiB that one operation on the guest's disk is for at most. The load's pace is in bytes, so where they are
    /// small it is silent for less long by itself.
    pub disk_max_kib: u32,
    /// Start the load; else the guest is left idle with its interface up, and the peer sends
    /// nothing by itself.
    pub load: bool,
    /// Where the hosts' threads run; wherever the kernel puts them if `None`.
    pub processors: Option<Processors>,
}

/// What a guest has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Devices {
    /// A NIC.
    Nic,
    /// An `NVMe` controller with a disk, which all hosts see.
    Disk,
    /// Both.
    NicAndDisk,
}

impl Devices {
    pub(crate) fn nic(self) -> bool {
        self != Self::Disk
    }

    pub(crate) fn disk(self) -> bool {
        self != Self::Nic
    }
}

/// How far a guest can boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Boot {
    /// To a shell.
    Kernel,
    /// Firmware is given no kernel.
    Firmware,
}

/// What is between the hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Between {
    /// Unix sockets.
    #[default]
    Sockets,
    /// TLS, for the link and for QEMU's stream; and vferry logs all that it can.
    Tls,
}

/// Where a host's sockets, logs and other files are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostFiles {
    /// In a folder beside those of the others.
    Together,
    /// In a small file system of its own, which a fault may fill. It takes root.
    Apart,
}

/// What a device is plugged into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plug {
    /// The main bus.
    MainBus,
    /// A root port on the main bus.
    RootPort,
}

/// What a guest can do to help.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Help {
    /// The VM has no control device.
    #[default]
    NoDevice,
    /// The guest has no driver for it.
    NoDriver,
    /// It has vferry's module, with these parameters.
    Module(String),
}

impl Default for Options {
    fn default() -> Self {
        Self {
            memory: 512 << 20,
            unsound_control: None,
            verify: true,
            dirty: (16, 8),
            max_bandwidth: None,
            sidecar_address: "00:06.1".into(),
            devices: Devices::Nic,
            plug: Plug::MainBus,
            iommu: None,
            firmware: None,
            boot: Boot::Kernel,
            modules: Vec::new(),
            append: String::new(),
            args: Vec::new(),
            files: Vec::new(),
            packets_per_second: 2000,
            guest: Help::NoDevice,
            stream: None,
            dirty_log_of_guest: false,
            between: Between::Sockets,
            compare: None,
            strategy: None,
            quiesce_deadline: Duration::from_secs(1),
            deaths_per_minute: None,
            host_files: HostFiles::Together,
            notify: None,
            disk_max_kib: 1024,
            load: true,
            processors: None,
        }
    }
}
