//! Kernel modules from sources, built against Debian's own headers for the kernel that guests run.
//!
//! Headers, compiler and all that the kernel's build system calls are unpacked beside the kernel's
//! image; make runs in there by `chroot`, in a mount namespace of its own, so that nothing of it is
//! installed on the host or stays mounted. What was built is kept under a hash of all that went in.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail, ensure};

use crate::root::{self, Progress};
use crate::{Lab, target};

/// Of a root, where modules are built and kept.
const MODULES: &str = "modules";

/// Process-wide things are left as they are: the mounts are seen by make alone.
const ENTER: &str = r#"set -e
root=$1
shift
mount --rbind /proc "$root/proc"
mount --rbind /dev "$root/dev"
exec chroot "$root" "$@""#;

/// A kernel module that was built from sources, for one of the lab's kernels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelModule {
    path: PathBuf,
    /// Names the build, and its folder.
    key: String,
}

impl KernelModule {
    /// The `.ko` file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Lab {
    /// vferry's module for Linux guests (`guest/linux`), built for this lab's kernel.
    ///
    /// # Errors
    ///
    /// As [`Lab::build_module`].
    pub fn guest_module(&self, progress: Progress<'_>) -> Result<KernelModule> {
        self.build_module(&target::workspace().join("guest/linux"), &[], progress)
    }

    /// Builds the one module whose sources and `Kbuild` are in `sources`, with all of the kernel's
    /// extra warnings (`W=1`), none of which it may cause. It may include headers from the sources
    /// of the modules in `needs`, and use what they export. Costs milliseconds if that was built
    /// before.
    ///
    /// # Errors
    ///
    /// If this lab's kernel was not chosen by [`Lab::with_kernel`], the module does not build, or
    /// this user may neither mount nor make user namespaces.
    pub fn build_module(
        &self,
        sources: &Path,
        needs: &[&KernelModule],
        progress: Progress<'_>,
    ) -> Result<KernelModule> {
        let workshop = self.kernel.workshop()?;
        let files = Sources::read(sources)?;
        let key = files.key(needs);
        let place = workshop.join(MODULES).join(&key);
        if !place.is_dir() {
            let _lock = root::lock(&self.folder.join("lock"), progress)?;
            // Another process may have built it while this one waited.
            if !place.is_dir() {
                progress(&format!(
                    "building {} for {}",
                    sources.display(),
                    self.kernel_version()
                ));
                let aside = workshop.join(MODULES).join("building");
                root::remove(&aside)?;
                files.write(&aside)?;
                self.make(workshop, needs).with_context(|| {
                    format!("{} for {}", sources.display(), self.kernel_version())
                })?;
                the_module_in(&aside)?;
                fs::rename(&aside, &place).context("cannot move the new module into place")?;
            }
        }
        Ok(KernelModule {
            path: the_module_in(&place)?,
            key,
        })
    }

    fn make(&self, workshop: &Path, needs: &[&KernelModule]) -> Result<()> {
        let inside = |module: &KernelModule| format!("/{MODULES}/{}", module.key);
        let each = |what: &dyn Fn(&KernelModule) -> String| {
            let words: Vec<_> = needs.iter().map(|module| what(module)).collect();
            words.join(" ")
        };
        let includes = each(&|module| format!("-I{}", inside(module)));
        let symbols = each(&|module| format!("{}/Module.symvers", inside(module)));
        let jobs = thread::available_parallelism().map_or(1, usize::from);
        let mut command = Command::new("unshare");
        command.arg("--mount");
        if !rustix::process::geteuid().is_root() {
            command.arg("--map-root-user");
        }
        command
            .args(["sh", "-c", ENTER, "sh"])
            .arg(workshop)
            .args(["make", "--silent", "--directory"])
            .arg(self.kernel.headers(Path::new("/")))
            .args([
                &format!("--jobs={jobs}"),
                &format!("M=/{MODULES}/building"),
                "W=1",
                &format!("KCFLAGS=-Werror {includes}"),
                &format!("KBUILD_EXTRA_SYMBOLS={symbols}"),
                "modules",
            ])
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LC_ALL", "C")
            .stdin(Stdio::null());
        let output = command.output().context("cannot run unshare")?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        ensure!(
            output.status.success(),
            "the module does not build ({}):\n{said}",
            output.status
        );
        // The compiler's were errors; these are of the tools that come after it.
        let warned = said.to_ascii_lowercase().contains("warning");
        ensure!(!warned, "the module builds with warnings:\n{said}");
        Ok(())
    }
}

/// What a module is made from, each file with its path in its folder, in order.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Sources(Vec<(PathBuf, Vec<u8>)>);

impl Sources {
    fn read(folder: &Path) -> Result<Self> {
        let mut files = Vec::new();
        collect(folder, Path::new(""), &mut files)?;
        files.sort();
        ensure!(
            !files.is_empty(),
            "{} has no sources of a kernel module",
            folder.display()
        );
        Ok(Self(files))
    }

    fn key(&self, needs: &[&KernelModule]) -> String {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        for module in needs {
            module.key.hash(&mut hasher);
        }
        format!("{:016x}", hasher.finish())
    }

    fn write(&self, folder: &Path) -> Result<()> {
        for (path, content) in &self.0 {
            let path = folder.join(path);
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::write(&path, content)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}

/// Only what make reads: what it makes has other names.
fn collect(folder: &Path, below: &Path, files: &mut Vec<(PathBuf, Vec<u8>)>) -> Result<()> {
    let here = folder.join(below);
    let context = || format!("cannot read {}", here.display());
    for entry in fs::read_dir(&here).with_context(context)? {
        let path = entry.with_context(context)?.path();
        let Some(name) = path.file_name() else {
            continue;
        };
        let relative = below.join(name);
        if path.is_dir() {
            collect(folder, &relative, files)?;
        } else if is_source(&path) {
            let bytes =
                fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            files.push((relative, bytes));
        }
    }
    Ok(())
}

fn is_source(path: &Path) -> bool {
    let kbuild = path.file_name().is_some_and(|name| name == "Kbuild");
    let generated = path.to_str().is_none_or(|path| path.ends_with(".mod.c"));
    kbuild || !generated && path.extension().is_some_and(|end| end == "c" || end == "h")
}

fn the_module_in(folder: &Path) -> Result<PathBuf> {
    let mut modules: Vec<_> = fs::read_dir(folder)
        .with_context(|| format!("cannot read {}", folder.display()))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "ko"))
        .collect();
    match (modules.pop(), modules.pop()) {
        (Some(module), None) => Ok(module),
        (None, _) => bail!("nothing was built: has the Kbuild an `obj-m`?"),
        (Some(_), Some(_)) => bail!("several modules in one folder; the lab builds one"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_what_make_reads_and_their_key_is_of_their_content() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        assert!(Sources::read(folder.path()).is_err());
        write("Kbuild", "obj-m := a.o\n");
        write("a.c", "int a;\n");
        fs::create_dir(folder.path().join("include")).unwrap();
        write("include/a.h", "\n");
        let first = Sources::read(folder.path()).unwrap();
        assert_eq!(first.0.len(), 3);
        for made in ["a.o", "a.ko", "a.mod", "a.mod.c", "README.md"] {
            write(made, "made\n");
        }
        assert_eq!(Sources::read(folder.path()).unwrap(), first);
        write("include/a.h", "extern int a;\n");
        let second = Sources::read(folder.path()).unwrap();
        assert_ne!(second.key(&[]), first.key(&[]));
        let needed = KernelModule {
            path: PathBuf::new(),
            key: "1".to_owned(),
        };
        assert_ne!(second.key(&[&needed]), second.key(&[]));
    }
}
