//! The lab's one build: made aside, stamped, and moved into place in one step.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};

use crate::apt;
use crate::recipe::{self, Recipe, Stamp};
use crate::{Emulator, target_dir};

/// Told, in a few words, what takes longer than a second.
pub type Progress<'a> = &'a dyn Fn(&str);

/// Prints progress on standard error.
pub fn progress_on_stderr(step: &str) {
    eprintln!("lab: {step}");
}

/// A lab that is ready for use.
#[derive(Debug, Clone)]
pub struct Lab {
    root: PathBuf,
    kernel_version: String,
    emulator: Emulator,
    packages: BTreeMap<String, String>,
}

impl Lab {
    /// The lab, built now if it is not there yet or is an older recipe's. Once built this costs
    /// milliseconds. Of several processes that ask at once, one builds and the others wait.
    ///
    /// # Errors
    ///
    /// If it cannot be built: no Debian mirror, no network, no permission to install mmdebstrap.
    /// What was built before is then still there.
    pub fn ensure(progress: Progress<'_>) -> Result<Self> {
        Self::ensure_in(&target_dir()?.join("lab"), false, progress)
    }

    /// The lab, built anew from the mirror's latest packages.
    ///
    /// # Errors
    ///
    /// As [`Lab::ensure`].
    pub fn rebuild(progress: Progress<'_>) -> Result<Self> {
        Self::ensure_in(&target_dir()?.join("lab"), true, progress)
    }

    fn ensure_in(folder: &Path, anew: bool, progress: Progress<'_>) -> Result<Self> {
        let host = Emulator::of_host()?;
        let recipe = Recipe::new(host.is_none());
        let place = folder.join("root");
        if !anew && let Some(stamp) = usable(&recipe, &place) {
            return Self::open(place, stamp, host);
        }
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot create the lab's folder {}", folder.display()))?;
        let lock = lock(&folder.join("lock"), progress)?;
        // Another process may have built it while this one waited.
        if !anew && let Some(stamp) = usable(&recipe, &place) {
            return Self::open(place, stamp, host);
        }
        let stamp = build(&recipe, folder, &place, &lock, progress)?;
        Self::open(place, stamp, host)
    }

    fn open(root: PathBuf, stamp: Stamp, host: Option<Emulator>) -> Result<Self> {
        let kernel_version = kernel_version(&root)?;
        let emulator = host.unwrap_or_else(|| Emulator::Lab(root.clone()));
        Ok(Self {
            root,
            kernel_version,
            emulator,
            packages: stamp.versions,
        })
    }

    /// The QEMU that runs its guests.
    pub fn emulator(&self) -> &Emulator {
        &self.emulator
    }

    /// The guest's kernel image.
    pub fn kernel(&self) -> PathBuf {
        self.modules().join("vmlinuz")
    }

    /// The guest's kernel's own name, as `uname -r` prints it.
    pub fn kernel_version(&self) -> &str {
        &self.kernel_version
    }

    /// The kernel's modules and what belongs to them.
    pub(crate) fn modules(&self) -> PathBuf {
        self.root.join("usr/lib/modules").join(&self.kernel_version)
    }

    /// A static busybox, which runs on the host as well as in the guest.
    pub(crate) fn busybox(&self) -> PathBuf {
        self.root.join("usr/bin/busybox")
    }

    /// Every Debian package in it and its version.
    pub fn packages(&self) -> &BTreeMap<String, String> {
        &self.packages
    }
}

fn usable(recipe: &Recipe, place: &Path) -> Option<Stamp> {
    Stamp::read(place).filter(|stamp| recipe.is_covered_by(&stamp.recipe))
}

/// Held until it is dropped, or this process and those that inherited it have died.
fn lock(path: &Path, progress: Progress<'_>) -> Result<File> {
    let context = || format!("cannot lock {}", path.display());
    let file = File::options()
        .create(true)
        .write(true)
        .truncate(false)
        .open(path)
        .with_context(context)?;
    if file.try_lock().is_err() {
        progress("waiting for another process that is building the lab");
        file.lock().with_context(context)?;
    }
    Ok(file)
}

fn build(
    recipe: &Recipe,
    folder: &Path,
    place: &Path,
    lock: &File,
    progress: Progress<'_>,
) -> Result<Stamp> {
    let aside = folder.join("building");
    remove(&aside)?;
    apt::unpack(&recipe.packages, &aside, lock, progress).context("the lab could not be built")?;
    let list = aside.join(apt::PACKAGE_LIST);
    let files =
        fs::read_to_string(&list).with_context(|| format!("{} is missing", list.display()))?;
    kernel_version(&aside)?;
    let stamp = Stamp {
        recipe: recipe.clone(),
        versions: recipe::versions(&files),
    };
    stamp.write(&aside)?;
    remove(place)?;
    fs::rename(&aside, place).context("cannot move the new lab into place")?;
    progress("ready");
    Ok(stamp)
}

fn kernel_version(root: &Path) -> Result<String> {
    let modules = root.join("usr/lib/modules");
    let folders = fs::read_dir(&modules)
        .with_context(|| format!("the lab has no kernel in {}", modules.display()))?;
    folders
        .flatten()
        .find(|folder| folder.path().join("vmlinuz").is_file())
        .map(|folder| folder.file_name().to_string_lossy().into_owned())
        .ok_or_else(|| anyhow!("no kernel image below {}", modules.display()))
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}
