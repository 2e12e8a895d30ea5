//! The host, as far as virtual functions go.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use crate::port::{Netlink, Ports};
use crate::sysfs::{Interface, Linux, Pci};
use crate::{Address, Port, SriovError, Which, record};

/// Where all vferry processes of a host find each other. Not durable: a boot undoes what is changed.
const SHARED: &str = "/run/vferry-sriov";
/// How long another may change the host. Making many virtual functions takes seconds.
const PATIENCE: Duration = Duration::from_secs(30);
const AGAIN: Duration = Duration::from_millis(20);

/// The host.
#[derive(Debug)]
pub struct Host {
    pub(crate) pci: Pci,
    pub(crate) ports: Box<dyn Ports>,
    pub(crate) driver: String,
    shared: PathBuf,
}

/// Held while the host is changed: what one VM leaves, another may be about to take.
#[derive(Debug)]
pub(crate) struct Lock {
    folder: PathBuf,
    _locked: File,
}

impl Host {
    /// This host, on which `driver` gives functions to processes.
    pub fn new(driver: &str) -> Self {
        let pci = Pci::new("/sys".into(), Box::new(Linux));
        Self::with(pci, Box::new(Netlink), driver, SHARED.into())
    }

    pub(crate) fn with(pci: Pci, ports: Box<dyn Ports>, driver: &str, shared: PathBuf) -> Self {
        Self {
            pci,
            ports,
            driver: driver.into(),
            shared,
        }
    }

    /// The address of a function.
    ///
    /// # Errors
    /// When there is none such.
    pub fn address(&self, which: &Which) -> Result<Address, SriovError> {
        let (physical, number) = match which {
            Which::Function(address) if self.pci.exists(address) => return Ok(address.clone()),
            Which::Function(address) => return Err(SriovError::Absent(address.clone())),
            Which::Virtual { physical, number } => (physical, *number),
        };
        let count = self.pci.count(physical)?;
        if let Some(address) = self.pci.virtual_of(physical, number)? {
            return Ok(address);
        }
        let physical = physical.clone();
        Err(match count {
            0 => SriovError::NoneYet { physical, number },
            count => SriovError::TooFew {
                physical,
                count,
                number,
            },
        })
    }

    /// How the traffic of `function` is treated; `None` if it is no virtual function of a network card
    /// whose interface this process sees.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn port(&self, function: &Address) -> Result<Option<Port>, SriovError> {
        let Some((interface, _, number)) = self.place(function)? else {
            return Ok(None);
        };
        self.read(&interface, number).map(Some)
    }

    /// Why no frame reaches `function`, if none does, and what to do.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn fault(&self, function: &Address) -> Result<Option<String>, SriovError> {
        match self.place(function)? {
            Some((interface, ..)) => interface.fault(),
            None => Ok(None),
        }
    }

    pub(crate) fn place(
        &self,
        function: &Address,
    ) -> Result<Option<(Interface, Address, u16)>, SriovError> {
        let Some((physical, number)) = self.pci.number_of(function)? else {
            return Ok(None);
        };
        let interface = self.pci.interface(&physical)?;
        Ok(interface.map(|interface| (interface, physical, number)))
    }

    pub(crate) fn read(&self, interface: &Interface, number: u16) -> Result<Port, SriovError> {
        let port = self.ports.read(interface.index, number);
        port.map_err(|error| SriovError::Unreadable {
            interface: interface.name.clone(),
            error,
        })
    }

    /// Waits for whoever else changes the host.
    pub(crate) fn lock(&self) -> Result<Lock, SriovError> {
        let folder = &self.shared;
        let made = DirBuilder::new().mode(0o700).recursive(true).create(folder);
        let opened = made.and_then(|()| File::open(folder));
        let file = opened.map_err(SriovError::record(folder))?;
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
            if error != rustix::io::Errno::WOULDBLOCK {
                return Err(SriovError::record(folder)(error.into()));
            }
            if Instant::now() > deadline {
                return Err(SriovError::Locked {
                    path: folder.clone(),
                });
            }
            thread::sleep(AGAIN);
        }
        Ok(Lock {
            folder: folder.clone(),
            _locked: file,
        })
    }
}

/// Whose a physical function's virtual ones are: a file tells, for each, that a vferry has made them,
/// so that the last one to use them removes them.
impl Lock {
    pub(crate) fn made_by_us(&self, physical: &Address, count: u16) -> bool {
        let expected = record::boot().map(|boot| content(&boot, count));
        let found = fs::read_to_string(self.file(physical));
        matches!((expected, found), (Ok(expected), Ok(found)) if expected == found)
    }

    pub(crate) fn will_make(&self, physical: &Address, count: u16) -> Result<(), SriovError> {
        let path = self.file(physical);
        let written = record::boot()
            .and_then(|boot| record::replace(&path, content(&boot, count).as_bytes()));
        written.map_err(SriovError::record(path))
    }

    pub(crate) fn removed(&self, physical: &Address) -> Result<(), SriovError> {
        let path = self.file(physical);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(SriovError::record(path)(error))
            }
            _ => Ok(()),
        }
    }

    fn file(&self, physical: &Address) -> PathBuf {
        Path::new(&self.folder).join(physical.as_str())
    }
}

fn content(boot: &str, count: u16) -> String {
    format!("{boot} {count}\n")
}
