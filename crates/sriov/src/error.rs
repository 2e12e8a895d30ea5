//! What can go wrong, and what to do.

use std::io;
use std::path::PathBuf;

use crate::{Address, Setting};

/// Why the host is not as a VM needs it.
#[derive(Debug, thiserror::Error)]
pub enum SriovError {
    /// Sysfs is not as it should be, or does not take what is written.
    #[error("{path}: {error}")]
    Sysfs {
        /// What.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// There is no such function.
    #[error("there is no PCI function {0} on this host: `lspci -D` lists them")]
    Absent(Address),
    /// It has no virtual functions, ever.
    #[error(
        "PCI function {0} has no virtual functions: it is none of a card with SR-IOV, or the firmware \
         or the card's own settings have SR-IOV switched off"
    )]
    NotPhysical(Address),
    /// It could have some.
    #[error(
        "PCI function {physical} has no virtual functions now: write `create = {}` or more in the \
         device's section, or make them (`echo {} > /sys/bus/pci/devices/{physical}/sriov_numvfs`)",
        u32::from(*number) + 1,
        u32::from(*number) + 1
    )]
    NoneYet {
        /// The physical function.
        physical: Address,
        /// The virtual function that is wanted.
        number: u16,
    },
    /// The card cannot have as many.
    #[error(
        "PCI function {physical} can have {total} virtual functions, not {count}: write `create = {total}` \
         or less"
    )]
    TooMany {
        /// The physical function.
        physical: Address,
        /// How many are wanted.
        count: u16,
        /// How many it can have.
        total: u16,
    },
    /// There are some, and Linux does not change their number.
    #[error(
        "PCI function {physical} has {count} virtual functions, so none with number {number}, and Linux \
         does not change a number that is not 0: take one of those (`virtual = 0` to {}), or remove \
         them all when nobody uses them (`echo 0 > /sys/bus/pci/devices/{physical}/sriov_numvfs`)",
        count.saturating_sub(1)
    )]
    TooFew {
        /// The physical function.
        physical: Address,
        /// How many there are.
        count: u16,
        /// The one that is wanted.
        number: u16,
    },
    /// The kernel did not make them.
    #[error(
        "the kernel does not make {count} virtual functions of PCI function {physical}: {error}. Its \
         driver must be loaded and know SR-IOV, and the firmware must have left room for them; `dmesg` \
         tells more"
    )]
    NotMade {
        /// The physical function.
        physical: Address,
        /// How many.
        count: u16,
        /// Why.
        error: io::Error,
    },
    /// Two devices of one VM.
    #[error("two devices of this VM are PCI function {0}: give each a function of its own")]
    Twice(Address),
    /// The driver is not there.
    #[error("the driver {0} is not loaded: `modprobe {0}`")]
    NotLoaded(String),
    /// The driver did not take it.
    #[error("{driver} did not take PCI function {function}{}: `dmesg` tells why", has(now.as_deref()))]
    NotBound {
        /// The function.
        function: Address,
        /// The driver that should have it.
        driver: String,
        /// The driver that has it.
        now: Option<String>,
    },
    /// Its traffic is nobody's to set.
    #[error(
        "PCI function {0} has no MAC address, VLAN, trust or spoof check to set: it is no virtual function \
         of a network card whose own interface is in this network namespace. Leave those keys out"
    )]
    NoPort(Address),
    /// The physical function's driver refused.
    #[error(
        "{interface} does not set {setting} for its virtual function {number}: {error}. It needs root \
         (CAP_NET_ADMIN), and a driver that knows the setting; `ip link show {interface}` shows them"
    )]
    NotSet {
        /// The physical function's interface.
        interface: String,
        /// The virtual function.
        number: u16,
        /// What.
        setting: Setting,
        /// Why.
        error: io::Error,
    },
    /// It said that it did, and did not.
    #[error(
        "{interface} was told {setting} for its virtual function {number}, and did not take it: its \
         driver does not know the setting. Leave the key out"
    )]
    NotTaken {
        /// The physical function's interface.
        interface: String,
        /// The virtual function.
        number: u16,
        /// What.
        setting: Setting,
    },
    /// Settings cannot be read.
    #[error("{interface} does not tell the settings of its virtual functions: {error}")]
    Unreadable {
        /// The physical function's interface.
        interface: String,
        /// Why.
        error: io::Error,
    },
    /// What the host was cannot be written down, so nothing is changed.
    #[error("{path}, in which it is written what the host was: {error}")]
    Record {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Another VM's vferry changes the host.
    #[error(
        "{path} is locked by another process for too long: `fuser -v {path}` tells which",
        path = path.display()
    )]
    Locked {
        /// The folder.
        path: PathBuf,
    },
}

fn has(driver: Option<&str>) -> String {
    driver.map_or(", which has no driver now".into(), |driver| {
        format!(", which {driver} has now")
    })
}

impl SriovError {
    pub(crate) fn record(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |error| Self::Record { path, error }
    }
}
