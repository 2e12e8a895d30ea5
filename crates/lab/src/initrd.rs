//! The guest's file system: busybox, the init script, modules, and what the caller adds.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::Lab;
use crate::cpio::Archive;
use crate::dynamic;
use crate::modules::{self, Wanted};

const INIT: &str = include_str!("init.sh");
const FOLDERS: [&str; 10] = [
    "bin",
    "dev",
    "etc",
    "lib",
    "lib/modules",
    "proc",
    "root",
    "run",
    "sys",
    "tmp",
];

/// What goes into the guest beside busybox, which is always there with all its commands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Initrd {
    modules: Vec<Wanted>,
    files: Vec<(PathBuf, String)>,
    packaged: Vec<String>,
}

impl Initrd {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Loads a kernel module at boot, after those named before it, with all that it needs.
    #[must_use]
    pub fn module(mut self, name: &str) -> Self {
        self.modules.push(Wanted::Named(name.to_owned()));
        self
    }

    /// Loads the kernel module in this file of the host at boot, after those named before it, with
    /// all that it needs of the kernel's own, and with `parameters` as `insmod` takes them.
    #[must_use]
    pub fn module_file(mut self, path: impl Into<PathBuf>, parameters: &str) -> Self {
        self.modules
            .push(Wanted::File(path.into(), parameters.to_owned()));
        self
    }

    /// Puts a file of the host into the guest's `/bin`, executable. It must be a script, or
    /// statically linked.
    #[must_use]
    pub fn program(mut self, path: impl Into<PathBuf>, name: &str) -> Self {
        self.files.push((path.into(), name.to_owned()));
        self
    }

    /// Puts the program that the lab's packages install at `path` into the guest's `/bin`, and all
    /// libraries that it is linked with to where it finds them.
    #[must_use]
    pub fn packaged(mut self, path: &str) -> Self {
        self.packaged.push(path.to_owned());
        self
    }

    /// Builds the archive.
    ///
    /// # Errors
    ///
    /// If a module or a packaged program does not exist, or a file cannot be read.
    pub fn build(&self, lab: &Lab) -> Result<Vec<u8>> {
        let mut archive = Archive::default();
        for folder in FOLDERS {
            archive.folder(folder);
        }
        archive.file("init", 0o755, INIT.as_bytes());
        archive.file("bin/busybox", 0o755, &read(&lab.busybox())?);
        for command in busybox_commands(lab)? {
            archive.link(&format!("bin/{command}"), "busybox");
        }
        let mut order = String::new();
        for module in modules::load_order(lab, &self.modules)? {
            archive.file(
                &format!("lib/modules/{}.ko", module.name),
                0o644,
                &module.image,
            );
            order.extend([&*module.name, " ", &module.parameters, "\n"]);
        }
        archive.file("etc/modules", 0o644, order.as_bytes());
        for (path, name) in &self.files {
            ensure!(
                !name.is_empty() && !name.contains('/'),
                "`{name}` is not a program's name"
            );
            archive.file(&format!("bin/{name}"), 0o755, &read(path)?);
        }
        if !self.packaged.is_empty() {
            self.add_packaged(lab, &mut archive)?;
        }
        Ok(archive.into_bytes())
    }

    fn add_packaged(&self, lab: &Lab, archive: &mut Archive) -> Result<()> {
        let root = lab.root();
        // What several programs need is there once.
        let mut libraries = BTreeMap::new();
        for path in &self.packaged {
            let file = lab.file(path);
            let file = file.with_context(|| format!("the lab's packages have no {path}"))?;
            let name = path.rsplit('/').next().unwrap_or(path);
            archive.file(&format!("bin/{name}"), 0o755, &read(&file)?);
            libraries.extend(dynamic::needed(root, &file)?);
        }
        archive.folder("lib64");
        archive.file(dynamic::LOADER, 0o755, &read(&dynamic::loader(root))?);
        archive.folder(dynamic::LIBRARIES);
        for (name, file) in &libraries {
            archive.file(
                &format!("{}/{name}", dynamic::LIBRARIES),
                0o644,
                &read(file)?,
            );
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn busybox_commands(lab: &Lab) -> Result<Vec<String>> {
    let output = Command::new(lab.busybox())
        .arg("--list")
        .output()
        .context("cannot run the lab's busybox")?;
    let list = String::from_utf8_lossy(&output.stdout);
    Ok(list
        .lines()
        .filter(|name| *name != "busybox")
        .map(str::to_owned)
        .collect())
}
