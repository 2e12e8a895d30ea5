//! What the kernel tells of PCI functions in files, and takes by them
//! (`Documentation/ABI/testing/sysfs-bus-pci`).

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::{Address, SriovError};

/// How sysfs is written to. Tests have a kernel of their own behind it.
pub(crate) trait Kernel: std::fmt::Debug + Send + Sync {
    fn write(&self, path: &Path, text: &str) -> io::Result<()>;
}

/// The kernel there is.
#[derive(Debug)]
pub(crate) struct Linux;

impl Kernel for Linux {
    /// In one piece, as one `write` is one command, and into what is there only.
    fn write(&self, path: &Path, text: &str) -> io::Result<()> {
        OpenOptions::new()
            .write(true)
            .open(path)?
            .write_all(text.as_bytes())
    }
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Interface {
    pub(crate) name: String,
    pub(crate) index: u32,
    folder: PathBuf,
}

/// Flag of an interface that is switched on (`include/uapi/linux/if.h`).
const IFF_UP: u32 = 1;
/// What `driver_override` says when there is none.
const NO_OVERRIDE: &str = "(null)";

/// The PCI functions of the host.
#[derive(Debug)]
pub(crate) struct Pci {
    root: PathBuf,
    kernel: Box<dyn Kernel>,
}

impl Pci {
    pub(crate) fn new(root: PathBuf, kernel: Box<dyn Kernel>) -> Self {
        Self { root, kernel }
    }

    pub(crate) fn exists(&self, function: &Address) -> bool {
        self.folder(function).exists()
    }

    /// The driver that has the function.
    pub(crate) fn driver(&self, function: &Address) -> Result<Option<String>, SriovError> {
        link(&self.file(function, "driver"))
    }

    pub(crate) fn is_loaded(&self, driver: &str) -> bool {
        self.drivers(driver).is_dir()
    }

    /// The one driver that may take the function, whatever it is for.
    pub(crate) fn driver_override(&self, function: &Address) -> Result<Option<String>, SriovError> {
        let text = read(&self.file(function, "driver_override"))?;
        let driver = text.trim();
        Ok((!driver.is_empty() && driver != NO_OVERRIDE).then(|| driver.into()))
    }

    /// An empty line is none (`driver_set_override`).
    pub(crate) fn set_driver_override(
        &self,
        function: &Address,
        driver: Option<&str>,
    ) -> Result<(), SriovError> {
        let line = format!("{}\n", driver.unwrap_or_default());
        self.write(&self.file(function, "driver_override"), &line)
    }

    /// Takes the function from its driver. Waits for whoever has it open by that driver.
    pub(crate) fn unbind(&self, function: &Address) -> Result<(), SriovError> {
        self.write(&self.file(function, "driver/unbind"), function.as_str())
    }

    /// Has the kernel look for a driver.
    pub(crate) fn probe(&self, function: &Address) -> Result<(), SriovError> {
        let path = self.root.join("bus/pci/drivers_probe");
        self.write(&path, function.as_str())
    }

    pub(crate) fn bind(&self, function: &Address, driver: &str) -> Result<(), SriovError> {
        self.write(&self.drivers(driver).join("bind"), function.as_str())
    }

    /// The physical function that `function` is a virtual one of.
    pub(crate) fn physical_of(&self, function: &Address) -> Result<Option<Address>, SriovError> {
        let path = self.file(function, "physfn");
        Ok(match link(&path)? {
            Some(name) => Some(parse(&path, &name)?),
            None => None,
        })
    }

    /// Which of its physical function's virtual ones it is, and that.
    pub(crate) fn number_of(
        &self,
        function: &Address,
    ) -> Result<Option<(Address, u16)>, SriovError> {
        let Some(physical) = self.physical_of(function)? else {
            return Ok(None);
        };
        for number in 0..self.count(&physical)? {
            if self.virtual_of(&physical, number)?.as_ref() == Some(function) {
                return Ok(Some((physical, number)));
            }
        }
        Ok(None)
    }

    pub(crate) fn virtual_of(
        &self,
        physical: &Address,
        number: u16,
    ) -> Result<Option<Address>, SriovError> {
        let path = self.file(physical, &format!("virtfn{number}"));
        Ok(match link(&path)? {
            Some(name) => Some(parse(&path, &name)?),
            None => None,
        })
    }

    /// How many virtual functions there are.
    pub(crate) fn count(&self, physical: &Address) -> Result<u16, SriovError> {
        self.number(physical, "sriov_numvfs")
    }

    /// How many there can be.
    pub(crate) fn total(&self, physical: &Address) -> Result<u16, SriovError> {
        self.number(physical, "sriov_totalvfs")
    }

    pub(crate) fn set_count(&self, physical: &Address, count: u16) -> io::Result<()> {
        let path = self.file(physical, "sriov_numvfs");
        self.kernel.write(&path, &count.to_string())
    }

    /// The physical function's own interface; representors of virtual ones, which are in the same folder,
    /// have names as `pf0vf1` (`devlink_port_phys_port_name_get`).
    pub(crate) fn interface(&self, physical: &Address) -> Result<Option<Interface>, SriovError> {
        let folder = self.file(physical, "net");
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unreadable(&folder, error)),
        };
        let mut interfaces = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| unreadable(&folder, error))?;
            let folder = entry.path();
            let port = fs::read_to_string(folder.join("phys_port_name")).unwrap_or_default();
            if port.starts_with("pf") && port.contains("vf") {
                continue;
            }
            interfaces.push(Interface {
                name: entry.file_name().to_string_lossy().into_owned(),
                index: decimal(&folder.join("ifindex"))?,
                folder,
            });
        }
        interfaces.sort_by_key(|interface| interface.index);
        Ok(interfaces.into_iter().next())
    }

    fn number(&self, physical: &Address, name: &str) -> Result<u16, SriovError> {
        if !self.exists(physical) {
            return Err(SriovError::Absent(physical.clone()));
        }
        let path = self.file(physical, name);
        if !path.exists() {
            return Err(SriovError::NotPhysical(physical.clone()));
        }
        decimal(&path)
    }

    fn folder(&self, function: &Address) -> PathBuf {
        self.root.join("bus/pci/devices").join(function.as_str())
    }

    fn file(&self, function: &Address, name: &str) -> PathBuf {
        self.folder(function).join(name)
    }

    fn drivers(&self, driver: &str) -> PathBuf {
        self.root.join("bus/pci/drivers").join(driver)
    }

    fn write(&self, path: &Path, text: &str) -> Result<(), SriovError> {
        let written = self.kernel.write(path, text);
        written.map_err(|error| unreadable(path, error))
    }
}

impl Interface {
    /// Why no frame passes, if none does (`Documentation/networking/operstates.rst`).
    pub(crate) fn fault(&self) -> Result<Option<String>, SriovError> {
        let name = &self.name;
        let path = self.folder.join("flags");
        let text = read(&path)?;
        let flags = u32::from_str_radix(text.trim().trim_start_matches("0x"), 16)
            .map_err(|error| unreadable(&path, io::Error::other(error)))?;
        if flags & IFF_UP == 0 {
            return Ok(Some(format!(
                "{name} is switched off, and with it all of its virtual functions: `ip link set {name} up`"
            )));
        }
        let state = read(&self.folder.join("operstate"))?;
        Ok(match state.trim() {
            "down" | "lowerlayerdown" | "notpresent" => Some(format!(
                "{name} has no link, nor has any of its virtual functions: look at its cable and at the \
                 switch's port (`ethtool {name}`)"
            )),
            _ => None,
        })
    }
}

/// The name of what a link leads to; `None` if there is no such link.
fn link(path: &Path) -> Result<Option<String>, SriovError> {
    match fs::read_link(path) {
        Ok(to) => Ok(to
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unreadable(path, error)),
    }
}

fn parse(path: &Path, name: &str) -> Result<Address, SriovError> {
    name.parse()
        .map_err(|error| unreadable(path, io::Error::other(error)))
}

fn decimal<T: std::str::FromStr>(path: &Path) -> Result<T, SriovError>
where
    T::Err: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let number = read(path)?.trim().parse();
    number.map_err(|error: T::Err| unreadable(path, io::Error::other(error)))
}

fn read(path: &Path) -> Result<String, SriovError> {
    fs::read_to_string(path).map_err(|error| unreadable(path, error))
}

fn unreadable(path: &Path, error: io::Error) -> SriovError {
    let path = path.to_owned();
    SriovError::Sysfs { path, error }
}
