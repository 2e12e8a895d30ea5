//! What the host was: written before each change, so that any end can be followed by giving back.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::rand::GetRandomFlags;
use serde::{Deserialize, Serialize};

use crate::{Address, Setting, SriovError};

/// Of this form of the file.
const VERSION: u32 = 1;
/// A VM has a handful of devices, and each a handful of settings.
const LARGEST: u64 = 256 << 10;
/// Changes with each boot, which undoes all that is changed here.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// One change: what was, and what was made of it. Written down before it is made, so it may not
/// have been.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Change {
    /// How many virtual functions there are. There were none.
    Count {
        /// Of this physical function.
        physical: Address,
        /// How many were made.
        is: u16,
    },
    /// Which driver has a function.
    Driver {
        /// The function.
        function: Address,
        /// The driver that had it.
        was: Option<String>,
        /// The one driver that was allowed to.
        was_override: Option<String>,
        /// The driver that has it, and alone may.
        is: String,
    },
    /// A setting of a virtual function.
    Port {
        /// Its physical function.
        physical: Address,
        /// Its number.
        number: u16,
        /// What it was.
        was: Setting,
        /// What it is.
        is: Setting,
    },
}

/// The file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    version: u32,
    boot: String,
    /// Whose changes these are: not those of who comes after.
    owner: String,
    changes: Vec<Change>,
}

/// The changes that were made for one VM, and the file that they are in, if there are any.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    owner: String,
    changes: Vec<Change>,
}

impl Ledger {
    /// A new one, with nothing in it, of an owner that is like no other.
    ///
    /// # Errors
    /// When there is one at `path`: it is to be given back first.
    pub fn begin(path: &Path) -> Result<Self, SriovError> {
        let mut random = [0_u8; 16];
        let begun = read(path).and_then(|record| {
            if record.is_some() {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            rustix::rand::getrandom(&mut random, GetRandomFlags::empty())?;
            Ok(())
        });
        begun.map_err(SriovError::record(path))?;
        Ok(Self {
            path: path.into(),
            owner: format!("{:032x}", u128::from_ne_bytes(random)),
            changes: Vec::new(),
        })
    }

    /// What is written at `path`: nothing if there is no file, or it is from before the host was
    /// booted.
    ///
    /// # Errors
    /// When it cannot be read, or is not this user's alone: who can write it has the host changed.
    pub fn open(path: &Path) -> Result<Self, SriovError> {
        let record = read(path).map_err(SriovError::record(path))?;
        let (owner, changes) =
            record.map_or_else(Default::default, |record| (record.owner, record.changes));
        Ok(Self {
            path: path.into(),
            owner,
            changes,
        })
    }

    /// Whose it is.
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// What was changed, in order.
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// The functions that another driver has than had them before.
    pub fn functions(&self) -> impl Iterator<Item = &Address> {
        self.changes.iter().filter_map(|change| match change {
            Change::Driver { function, .. } => Some(function),
            Change::Count { .. } | Change::Port { .. } => None,
        })
    }

    /// Writes down what is about to be changed.
    pub(crate) fn will(&mut self, change: Change) -> Result<(), SriovError> {
        self.changes.push(change);
        self.store()
    }

    /// What could not be given back stays; if that is nothing, the file goes.
    pub(crate) fn keep(&mut self, changes: Vec<Change>) -> Result<(), SriovError> {
        self.changes = changes;
        self.store()
    }

    /// The file is whole and durable at every moment.
    fn store(&self) -> Result<(), SriovError> {
        let stored = if self.changes.is_empty() {
            match fs::remove_file(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => sync_folder(&self.path),
            }
        } else {
            self.write()
        };
        stored.map_err(SriovError::record(&self.path))
    }

    fn write(&self) -> io::Result<()> {
        let record = Record {
            version: VERSION,
            boot: boot()?,
            owner: self.owner.clone(),
            changes: self.changes.clone(),
        };
        replace(&self.path, &serde_json::to_vec_pretty(&record)?)
    }
}

impl Record {
    fn drivers(&self) -> impl Iterator<Item = &String> {
        let names = self.changes.iter().map(|change| match change {
            Change::Driver {
                was,
                was_override,
                is,
                ..
            } => [was.as_ref(), was_override.as_ref(), Some(is)],
            Change::Count { .. } | Change::Port { .. } => [None; 3],
        });
        names.flatten().flatten()
    }
}

/// Which boot of the host this is.
pub(crate) fn boot() -> io::Result<String> {
    Ok(fs::read_to_string(BOOT_ID)?.trim().into())
}

/// Whatever is at `path` is replaced as a whole, by a file that is this user's alone.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(folder(path)?)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    sync_folder(path)
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(folder(path)?)?.sync_all()
}

fn folder(path: &Path) -> io::Result<&Path> {
    let folder = path.parent();
    folder.ok_or_else(|| io::Error::other("it is in no folder"))
}

/// `None` if there is none, or it is from before the host was booted.
fn read(path: &Path) -> io::Result<Option<Record>> {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed());
    let file = match options.open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let about = file.metadata()?;
    let ours = about.uid() == rustix::process::geteuid().as_raw() && about.mode() & 0o022 == 0;
    if !about.is_file() || !ours {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "it is not a file that only this user can write, so it is not followed: look who has put \
             it there, and delete it",
        ));
    }
    let mut text = String::new();
    file.take(LARGEST).read_to_string(&mut text)?;
    let record: Record = serde_json::from_str(&text)?;
    if record.version != VERSION {
        let version = record.version;
        return Err(io::Error::other(format!(
            "it has form {version}, and this vferry knows {VERSION}: use the vferry that has written it"
        )));
    }
    // An address is none with a slash in it, either.
    if record.drivers().any(|driver| driver.contains('/')) {
        return Err(io::Error::other("the name of a driver in it is a path"));
    }
    Ok((record.boot == boot()?).then_some(record))
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;
    use crate::Mac;

    fn changes() -> [Change; 3] {
        let physical: Address = "0000:01:00.0".parse().unwrap();
        [
            Change::Count {
                physical: physical.clone(),
                is: 2,
            },
            Change::Driver {
                function: "0000:01:10.0".parse().unwrap(),
                was: Some("igbvf".into()),
                was_override: None,
                is: "vfio-pci".into(),
            },
            Change::Port {
                physical,
                number: 0,
                was: Setting::Mac(Mac([0; 6])),
                is: Setting::Mac(Mac([2, 0, 0, 0, 0, 1])),
            },
        ]
    }

    #[test]
    fn what_is_written_is_read_by_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vm.host");
        let mut ledger = Ledger::begin(&path).unwrap();
        assert_eq!(ledger.changes(), []);
        for change in changes() {
            ledger.will(change).unwrap();
            let read = Ledger::open(&path).unwrap();
            assert_eq!(read.changes(), ledger.changes());
            assert_eq!(read.owner(), ledger.owner());
            assert!(Ledger::begin(&path).is_err(), "it is given back first");
        }
        assert_eq!(ledger.functions().count(), 1);
        ledger.keep(Vec::new()).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_boot_undoes_everything() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vm.host");
        let mut ledger = Ledger::begin(&path).unwrap();
        ledger.keep(changes().to_vec()).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace(&boot().unwrap(), "another")).unwrap();
        assert_eq!(Ledger::open(&path).unwrap().changes(), []);
    }

    #[test]
    fn what_others_have_written_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vm.host");
        let mut ledger = Ledger::begin(&path).unwrap();
        ledger.keep(changes().to_vec()).unwrap();
        assert!(Ledger::open(&path).is_ok());
        fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
        let error = Ledger::open(&path).unwrap_err().to_string();
        assert!(error.contains("only this user"), "{error}");
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        let link = folder.path().join("link");
        symlink(&path, &link).unwrap();
        assert!(Ledger::open(&link).is_err());
        // And no name in it is a path.
        let text = fs::read_to_string(&path).unwrap();
        for (name, path_like) in [
            ("0000:01:10.0", "../0000:01:10.0"),
            ("igbvf", "../../igbvf"),
        ] {
            fs::write(&path, text.replace(name, path_like)).unwrap();
            assert!(Ledger::open(&path).is_err(), "{path_like}");
        }
        fs::write(&path, "{").unwrap();
        assert!(Ledger::open(&path).is_err());
    }
}
