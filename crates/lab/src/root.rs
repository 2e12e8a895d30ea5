//! The lab's one build: made aside, stamped, and moved into place in one step.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::apt;
use crate::kernel::KernelFiles;
use crate::recipe::{self, Recipe, Stamp};
use crate::{Emulator, Kernel, libvfio_user, target_dir};

/// Told, in a few words, what takes longer than a second.
pub type Progress<'a> = &'a dyn Fn(&str);

/// Prints progress on standard error.
pub fn progress_on_stderr(step: &str) {
    eprintln!("lab: {step}");
}

/// A lab that is ready for use.
#[derive(Debug, Clone)]
pub struct Lab {
    pub(crate) folder: PathBuf,
    root: PathBuf,
    pub(crate) kernel: KernelFiles,
    emulator: Emulator,
    packages: BTreeMap<String, String>,
    /// Where the packages of hosts are unpacked, if there are to be any.
    host_root: Option<PathBuf>,
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
        let folder = target_dir()?.join("lab");
        // Built anew when it is asked for.
        remove(&folder.join(libvfio_user::PLACE))?;
        Self::ensure_in(&folder, true, progress)
    }

    fn ensure_in(folder: &Path, anew: bool, progress: Progress<'_>) -> Result<Self> {
        let host = Emulator::of_host()?;
        let recipe = Recipe::new(host.is_none());
        let root = folder.join("root");
        let whole = |root: &Path| KernelFiles::find(root).map(drop);
        let stamp = ensure_root(&recipe, folder, &root, anew, &whole, progress)?;
        let kernel = KernelFiles::find(&root)?;
        let emulator = host.unwrap_or_else(|| Emulator::Lab(root.clone()));
        Ok(Self {
            folder: folder.to_owned(),
            root,
            kernel,
            emulator,
            packages: stamp.versions,
            host_root: None,
        })
    }

    /// The same lab with a kernel of its own choice for its guests, for which modules can be built.
    /// Kernel, headers and compiler are unpacked now if they are not there yet.
    ///
    /// # Errors
    ///
    /// As [`Lab::ensure`].
    pub fn with_kernel(self, kernel: Kernel, progress: Progress<'_>) -> Result<Self> {
        self.kernel_from(kernel, false, progress)
    }

    /// The same lab with the kernel of hosts, which guests in them run as well, and for which modules
    /// can be built. It is unpacked now if it is not there yet.
    ///
    /// # Errors
    ///
    /// As [`Lab::ensure`].
    pub fn for_hosts(self, progress: Progress<'_>) -> Result<Self> {
        let root = self.folder.join("host");
        let whole = |root: &Path| {
            complete(root)?;
            make_mount_points(root, &["sys", "run", "tmp"])?;
            KernelFiles::find_with_headers(root, Kernel::default()).map(drop)
        };
        let recipe = Recipe::for_hosts();
        ensure_root(&recipe, &self.folder, &root, false, &whole, progress)?;
        Ok(Self {
            kernel: KernelFiles::find_with_headers(&root, Kernel::default())?,
            host_root: Some(root),
            ..self
        })
    }

    /// As [`Lab::with_kernel`], with the mirror's latest packages. What was built for the kernel
    /// is built anew, too.
    ///
    /// # Errors
    ///
    /// As [`Lab::ensure`].
    pub fn with_latest_kernel(self, kernel: Kernel, progress: Progress<'_>) -> Result<Self> {
        self.kernel_from(kernel, true, progress)
    }

    fn kernel_from(self, kernel: Kernel, anew: bool, progress: Progress<'_>) -> Result<Self> {
        let recipe = Recipe::for_kernel(kernel);
        let root = self.folder.join(format!("linux-{}", kernel.name()));
        let whole = |root: &Path| {
            complete(root)?;
            KernelFiles::find_with_headers(root, kernel).map(drop)
        };
        ensure_root(&recipe, &self.folder, &root, anew, &whole, progress)?;
        Ok(Self {
            kernel: KernelFiles::find_with_headers(&root, kernel)?,
            ..self
        })
    }

    /// The QEMU that runs its guests.
    pub fn emulator(&self) -> &Emulator {
        &self.emulator
    }

    /// The guest's kernel image.
    pub fn kernel(&self) -> PathBuf {
        self.kernel.image.clone()
    }

    /// The guest's kernel's own name, as `uname -r` prints it.
    pub fn kernel_version(&self) -> &str {
        &self.kernel.version
    }

    /// The kernel's modules and what belongs to them.
    pub(crate) fn modules(&self) -> &Path {
        &self.kernel.modules
    }

    /// A static busybox, which runs on the host as well as in the guest.
    pub(crate) fn busybox(&self) -> PathBuf {
        self.root.join("usr/bin/busybox")
    }

    /// Where its packages are unpacked.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Where the packages of hosts are unpacked.
    pub(crate) fn host_root(&self) -> Result<&Path> {
        let root = self.host_root.as_deref();
        root.context("this lab has no hosts; make it by `Lab::for_hosts`")
    }

    /// A file that its packages install at `path`, if they do.
    pub fn file(&self, path: &str) -> Option<PathBuf> {
        let file = self.root.join(path.trim_start_matches('/'));
        file.is_file().then_some(file)
    }

    /// Every Debian package in it and its version, those of a kernel chosen besides not among them.
    pub fn packages(&self) -> &BTreeMap<String, String> {
        &self.packages
    }
}

/// The stamp of `recipe`'s build in `place`, built now if it is not there yet, is an older recipe's,
/// or is wanted `anew`. `whole` has the last word on a new build.
fn ensure_root(
    recipe: &Recipe,
    folder: &Path,
    place: &Path,
    anew: bool,
    whole: &dyn Fn(&Path) -> Result<()>,
    progress: Progress<'_>,
) -> Result<Stamp> {
    if !anew && let Some(stamp) = usable(recipe, place) {
        return Ok(stamp);
    }
    fs::create_dir_all(folder)
        .with_context(|| format!("cannot create the lab's folder {}", folder.display()))?;
    let lock = lock(&folder.join("lock"), progress)?;
    // Another process may have built it while this one waited.
    if !anew && let Some(stamp) = usable(recipe, place) {
        return Ok(stamp);
    }
    build(recipe, folder, place, whole, &lock, progress)
}

/// What packages leave to the scripts that they run when they are installed.
fn complete(root: &Path) -> Result<()> {
    for (link, to) in [("bin/sh", "dash"), ("usr/bin/awk", "gawk")] {
        let link = root.join(link);
        if link.symlink_metadata().is_err() {
            symlink(to, &link).with_context(|| format!("cannot make {}", link.display()))?;
        }
    }
    make_mount_points(root, &["proc", "dev"])
}

fn make_mount_points(root: &Path, folders: &[&str]) -> Result<()> {
    for folder in folders {
        fs::create_dir_all(root.join(folder))?;
    }
    Ok(())
}

fn usable(recipe: &Recipe, place: &Path) -> Option<Stamp> {
    Stamp::read(place).filter(|stamp| recipe.is_covered_by(&stamp.recipe))
}

/// Held until it is dropped, or this process and those that inherited it have died.
pub(crate) fn lock(path: &Path, progress: Progress<'_>) -> Result<File> {
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
    whole: &dyn Fn(&Path) -> Result<()>,
    lock: &File,
    progress: Progress<'_>,
) -> Result<Stamp> {
    let aside = folder.join("building");
    remove(&aside)?;
    apt::unpack(recipe, &aside, lock, progress).context("the lab could not be built")?;
    let list = aside.join(apt::PACKAGE_LIST);
    let files =
        fs::read_to_string(&list).with_context(|| format!("{} is missing", list.display()))?;
    whole(&aside)?;
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

pub(crate) fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}
