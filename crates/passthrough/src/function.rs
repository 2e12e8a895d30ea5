//! Which function of the host it is, and whether it can be passed through, as sysfs tells
//! (`Documentation/ABI/testing/sysfs-bus-pci`, `sysfs-kernel-iommu_groups`).

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::iommufd::{self, IOMMU};
use crate::kernel::{Kernel, Linux};

/// The driver that gives any function to processes. Others do so for one kind of device; all make
/// the folder.
const VFIO: &str = "vfio-pci";
const VFIO_FOLDER: &str = "vfio-dev";
/// The host's drivers beside whose functions others of the group may be given away (`driver_managed_dma` of
/// `struct pci_driver`): one that does nothing, and that of ports, which pass transactions on.
const HARMLESS: [&str; 2] = ["pci-stub", "pcieport"];

/// A function that can be passed through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// `DOMAIN:BUS:DEVICE.FUNCTION`, as sysfs has it.
    pub address: String,
    /// Its folder in sysfs.
    pub folder: PathBuf,
    /// Number of its IOMMU group.
    pub group: u32,
    /// Vendor and device ID.
    pub id: (u16, u16),
}

/// Why a function cannot be passed through, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum NotUsable {
    /// There is none.
    #[error("there is no PCI function {0} on this host: `lspci -D` lists them")]
    Absent(String),
    /// No IOMMU, or none in use.
    #[error(
        "PCI function {0} is in no IOMMU group, so nothing would keep it to its guest's memory: switch \
         the IOMMU on in the firmware, and boot the kernel with intel_iommu=on where it is Intel's"
    )]
    NoIommu(String),
    /// It has no driver.
    #[error(
        "PCI function {0} has no driver: bind it to vfio-pci (`modprobe vfio-pci; echo vfio-pci > \
         /sys/bus/pci/devices/{0}/driver_override; echo {0} > /sys/bus/pci/drivers_probe`)"
    )]
    NoDriver(String),
    /// The host uses it.
    #[error(
        "PCI function {address} belongs to the host's driver {driver}: take it from it (`echo {address} > \
         /sys/bus/pci/devices/{address}/driver/unbind`) and bind it to vfio-pci (`echo vfio-pci > \
         /sys/bus/pci/devices/{address}/driver_override; echo {address} > /sys/bus/pci/drivers_probe`)"
    )]
    OtherDriver {
        /// The function.
        address: String,
        /// The driver.
        driver: String,
    },
    /// The host uses what the IOMMU cannot tell from it.
    #[error(
        "PCI function {address} shares its IOMMU group {group} with {} of the host's drivers: the IOMMU \
         cannot tell them apart, so bind those to vfio-pci as well, or use a slot with a group of its own",
        others.join(", ")
    )]
    SharedGroup {
        /// The function.
        address: String,
        /// The group.
        group: u32,
        /// The others, each with its driver.
        others: Vec<String>,
    },
    /// The kernel has no VFIO.
    #[error(
        "{path}: {error}: load the module vfio-pci, and give this user the device of the IOMMU group"
    )]
    NoVfio {
        /// What could not be opened.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Sysfs is not as it should be.
    #[error("cannot read {path}: {error}")]
    Sysfs {
        /// What.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

impl Function {
    /// Function `address` of this host, if it can be passed through.
    ///
    /// # Errors
    /// [`NotUsable`] says why not, and what to do.
    pub fn find(address: &str) -> Result<Self, NotUsable> {
        let function = Self::find_in(Path::new("/sys"), address)?;
        let own = function.own_file();
        if own.is_some_and(|path| path.exists() && Path::new(IOMMU).exists()) {
            return Ok(function);
        }
        for path in [
            PathBuf::from("/dev/vfio/vfio"),
            Path::new("/dev/vfio").join(function.group.to_string()),
        ] {
            // A group can be opened once only, and not before it is in use: looked at, no more.
            fs::metadata(&path).map_err(|error| NotUsable::NoVfio { path, error })?;
        }
        Ok(function)
    }

    /// The file by which a kernel with iommufd gives it away without its group, if this one does.
    pub(crate) fn own_file(&self) -> Option<PathBuf> {
        own_file(&self.folder)
    }

    fn find_in(sys: &Path, address: &str) -> Result<Self, NotUsable> {
        let folder = sys.join("bus/pci/devices").join(address);
        let is_name = address.starts_with(char::is_alphanumeric) && !address.contains('/');
        if !is_name || !folder.exists() {
            return Err(NotUsable::Absent(address.into()));
        }
        let group = link(&folder.join("iommu_group"))?;
        let group = group.and_then(|group| group.parse().ok());
        let group = group.ok_or_else(|| NotUsable::NoIommu(address.into()))?;
        match link(&folder.join("driver"))? {
            Some(driver) if is_vfio(&folder, &driver) => {}
            None => return Err(NotUsable::NoDriver(address.into())),
            Some(driver) => {
                let address = address.into();
                return Err(NotUsable::OtherDriver { address, driver });
            }
        }
        let others = of_host(&folder.join("iommu_group/devices"))?;
        if !others.is_empty() {
            return Err(NotUsable::SharedGroup {
                address: address.into(),
                group,
                others,
            });
        }
        Ok(Self {
            address: address.into(),
            group,
            id: (
                number(&folder.join("vendor"))?,
                number(&folder.join("device"))?,
            ),
            folder,
        })
    }
}

impl NotUsable {
    /// Whether it is all but bound to the driver that would give it away.
    pub fn is_of_binding(&self) -> bool {
        matches!(self, Self::NoDriver(_) | Self::OtherDriver { .. })
    }
}

fn own_file(folder: &Path) -> Option<PathBuf> {
    let mut entries = fs::read_dir(folder.join(VFIO_FOLDER)).ok()?;
    let name = entries.next()?.ok()?.file_name();
    Some(Path::new("/dev/vfio/devices").join(name))
}

/// Whether a process has function `address`, or another of its IOMMU group. To have a function is to have
/// its group open, which one process at a time may (`vfio_group_fops_open`); and a group is open for
/// as long as one of its functions is (`vfio_device_open_file` holds it). A kernel without groups gives each
/// function to one opener (`vfio_df_device_first_open`).
pub fn is_held(address: &str) -> bool {
    let folder = Path::new("/sys/bus/pci/devices").join(address);
    let Ok(Some(group)) = link(&folder.join("iommu_group")) else {
        return false;
    };
    let group = File::options()
        .read(true)
        .write(true)
        .open(Path::new("/dev/vfio").join(group));
    match group {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let path = own_file(&folder).filter(|path| path.exists());
            path.is_some_and(|path| is_bound(&(Arc::new(Linux) as _), &path))
        }
        group => group.is_err_and(|error| error.kind() == io::ErrorKind::ResourceBusy),
    }
}

/// Whether another process has the function whose own file is `path`.
fn is_bound(kernel: &Arc<dyn Kernel>, path: &Path) -> bool {
    let opened = iommufd::open(kernel, path);
    let errno = opened.err().and_then(|error| error.raw_os_error());
    matches!(errno, Some(libc::EINVAL | libc::EBUSY))
}

fn is_vfio(folder: &Path, driver: &str) -> bool {
    driver == VFIO || folder.join(VFIO_FOLDER).is_dir()
}

/// Those of a group's functions that the host's own drivers use, with these.
fn of_host(folder: &Path) -> Result<Vec<String>, NotUsable> {
    let mut others = Vec::new();
    let entries = fs::read_dir(folder).map_err(|error| unreadable(folder, error))?;
    for entry in entries {
        let function = entry.map_err(|error| unreadable(folder, error))?.path();
        match link(&function.join("driver"))? {
            Some(driver) if !is_vfio(&function, &driver) && !HARMLESS.contains(&&*driver) => {
                let name = function.file_name().unwrap_or_default().to_string_lossy();
                others.push(format!("{name} ({driver})"));
            }
            _ => {}
        }
    }
    others.sort();
    Ok(others)
}

/// The name of what a link leads to; `None` if there is no such link.
fn link(path: &Path) -> Result<Option<String>, NotUsable> {
    match fs::read_link(path) {
        Ok(to) => Ok(to
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unreadable(path, error)),
    }
}

fn read(path: &Path) -> Result<String, NotUsable> {
    fs::read_to_string(path).map_err(|error| unreadable(path, error))
}

/// `0x8086`
fn number(path: &Path) -> Result<u16, NotUsable> {
    let text = read(path)?;
    let digits = text.trim().trim_start_matches("0x");
    u16::from_str_radix(digits, 16).map_err(|error| unreadable(path, io::Error::other(error)))
}

fn unreadable(path: &Path, error: io::Error) -> NotUsable {
    let path = path.to_owned();
    NotUsable::Sysfs { path, error }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const ADDRESS: &str = "0000:01:10.0";

    /// A sysfs with these functions: address, class, driver. All are in group 7.
    fn sysfs(functions: &[(&str, &str, Option<&str>)]) -> tempfile::TempDir {
        let sys = tempfile::tempdir().unwrap();
        let group = sys.path().join("kernel/iommu_groups/7/devices");
        fs::create_dir_all(&group).unwrap();
        for (address, class, driver) in functions {
            let folder = sys.path().join("bus/pci/devices").join(address);
            fs::create_dir_all(&folder).unwrap();
            for (file, text) in [
                ("class", *class),
                ("vendor", "0x8086"),
                ("device", "0x10ca"),
            ] {
                fs::write(folder.join(file), format!("{text}\n")).unwrap();
            }
            if let Some(driver) = driver {
                symlink(format!("../../drivers/{driver}"), folder.join("driver")).unwrap();
            }
            symlink(&folder, group.join(address)).unwrap();
            symlink(group.parent().unwrap(), folder.join("iommu_group")).unwrap();
        }
        sys
    }

    fn why(functions: &[(&str, &str, Option<&str>)]) -> String {
        let sys = sysfs(functions);
        let error = Function::find_in(sys.path(), ADDRESS).unwrap_err();
        error.to_string()
    }

    #[test]
    fn a_function_that_vfio_has_is_found() {
        let sys = sysfs(&[
            (ADDRESS, "0x020000", Some("vfio-pci")),
            ("0000:01:10.1", "0x020000", Some("vfio-pci")),
            ("0000:01:10.2", "0x020000", None),
            ("0000:01:10.3", "0x020000", Some("pci-stub")),
            ("0000:00:01.0", "0x060400", Some("pcieport")),
        ]);
        let function = Function::find_in(sys.path(), ADDRESS).unwrap();
        assert_eq!((function.group, function.id), (7, (0x8086, 0x10ca)));
        // By a driver of its own for VFIO.
        let sys = sysfs(&[(ADDRESS, "0x020000", Some("mlx5_vfio_pci"))]);
        assert!(Function::find_in(sys.path(), ADDRESS).is_err());
        let folder = sys.path().join("bus/pci/devices").join(ADDRESS);
        fs::create_dir(folder.join("vfio-dev")).unwrap();
        let function = Function::find_in(sys.path(), ADDRESS).unwrap();
        assert_eq!(function.own_file(), None);
        fs::create_dir(folder.join("vfio-dev/vfio3")).unwrap();
        let path = function.own_file().unwrap();
        assert_eq!(path, Path::new("/dev/vfio/devices/vfio3"));
    }

    #[test]
    fn each_refusal_says_what_to_do() {
        let network = |driver| (ADDRESS, "0x020000", driver);
        assert!(why(&[]).contains("`lspci -D`"));
        assert!(why(&[network(None)]).contains("drivers_probe"));
        let used = why(&[network(Some("igbvf"))]);
        assert!(used.contains("igbvf") && used.contains("unbind"), "{used}");
        let shared = why(&[
            network(Some("vfio-pci")),
            ("0000:01:00.0", "0x010802", Some("nvme")),
        ]);
        assert!(shared.contains("0000:01:00.0 (nvme)"), "{shared}");
        // A bridge to other buses, but its driver is no port's.
        let shared = why(&[
            network(Some("vfio-pci")),
            ("0000:00:1f.0", "0x060100", Some("lpc_ich")),
        ]);
        assert!(shared.contains("0000:00:1f.0 (lpc_ich)"), "{shared}");
        let sys = sysfs(&[network(Some("vfio-pci"))]);
        let folder = sys.path().join("bus/pci/devices").join(ADDRESS);
        fs::remove_file(folder.join("iommu_group")).unwrap();
        let error = Function::find_in(sys.path(), ADDRESS).unwrap_err();
        assert!(error.to_string().contains("intel_iommu=on"), "{error}");
    }

    #[test]
    fn what_is_no_address_is_no_path() {
        let sys = sysfs(&[(ADDRESS, "0x020000", Some("vfio-pci"))]);
        for name in ["../devices/0000:01:10.0", "", ".", ".."] {
            let error = Function::find_in(sys.path(), name).unwrap_err();
            assert!(matches!(error, NotUsable::Absent(_)), "{name}: {error}");
        }
    }
}
