//! Which kernel guests run, and where its files are.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};

/// Debian's kernels that the lab knows: of the cloud flavour, or of the generic one in hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kernel {
    /// Debian bookworm's.
    Linux6_1,
    /// Debian trixie's.
    Linux6_12,
    /// That of trixie-backports, which guests run unless told otherwise.
    #[default]
    Linux7_3,
}

/// One kernel, unpacked.
#[derive(Debug, Clone)]
pub(crate) struct KernelFiles {
    /// As `uname -r` prints it.
    pub(crate) version: String,
    pub(crate) image: PathBuf,
    /// The folder that has its modules' folder `kernel`.
    pub(crate) modules: PathBuf,
    /// Where modules for it can be built, if it came with what that needs.
    pub(crate) workshop: Option<PathBuf>,
}

impl Kernel {
    /// All, from the oldest to the newest.
    pub const ALL: [Self; 3] = [Self::Linux6_1, Self::Linux6_12, Self::Linux7_3];

    /// The first numbers of its version.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Linux6_1 => "6.1",
            Self::Linux6_12 => "6.12",
            Self::Linux7_3 => "7.3",
        }
    }

    /// The Debian suite that it comes from. A backports suite is newer than the names above from
    /// time to time; [`KernelFiles::find`] then says so.
    pub(crate) const fn suite(self) -> &'static str {
        match self {
            Self::Linux6_1 => "bookworm",
            Self::Linux6_12 => "trixie",
            Self::Linux7_3 => "trixie-backports",
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Linux {}", self.name())
    }
}

impl KernelFiles {
    /// The kernel whose image is unpacked below `root`.
    pub(crate) fn find(root: &Path) -> Result<Self> {
        // Before trixie, packages had the folder outside of /usr.
        let folders = ["usr/lib/modules", "lib/modules"];
        folders
            .iter()
            .find_map(|folder| Self::find_in(root, &root.join(folder)))
            .ok_or_else(|| anyhow!("the lab has no kernel image below {}", root.display()))
    }

    fn find_in(root: &Path, folder: &Path) -> Option<Self> {
        fs::read_dir(folder).ok()?.flatten().find_map(|entry| {
            let version = entry.file_name().into_string().ok()?;
            let modules = entry.path();
            let images = [
                modules.join("vmlinuz"),
                root.join(format!("boot/vmlinuz-{version}")),
            ];
            let image = images.into_iter().find(|image| image.is_file())?;
            Some(Self {
                version,
                image,
                modules,
                workshop: None,
            })
        })
    }

    /// As [`KernelFiles::find`], where the kernel must be `kernel` with headers of its own version.
    pub(crate) fn find_with_headers(root: &Path, kernel: Kernel) -> Result<Self> {
        let this = Self::find(root)?;
        let headers = this.headers(root);
        ensure!(
            headers.is_dir(),
            "the mirror has kernel {} but headers of another version; it may be in the middle of an \
             update, so try again later",
            this.version
        );
        let rest = this.version.strip_prefix(kernel.name());
        ensure!(
            rest.is_some_and(|rest| !rest.starts_with(|next: char| next.is_ascii_digit())),
            "{} has kernel {} now, not {}; name the kernel in crates/lab/src/kernel.rs anew",
            kernel.suite(),
            this.version,
            kernel.name()
        );
        Ok(Self {
            workshop: Some(root.to_owned()),
            ..this
        })
    }

    /// The headers' folder below `root`, where `root` may also be that of a chroot.
    pub(crate) fn headers(&self, root: &Path) -> PathBuf {
        root.join(format!("usr/src/linux-headers-{}", self.version))
    }

    /// Where modules are built.
    pub(crate) fn workshop(&self) -> Result<&Path> {
        self.workshop.as_deref().with_context(|| {
            format!(
                "the lab has kernel {} without its headers; choose a kernel by `Lab::with_kernel` to \
                 build modules",
                self.version
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root_with(folders: &[&str], files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for folder in folders {
            fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        for file in files {
            fs::write(root.path().join(file), "").unwrap();
        }
        root
    }

    #[test]
    fn old_and_new_places_of_a_kernel_are_found() {
        let old = root_with(
            &["lib/modules/6.1.0-50-cloud-amd64", "boot"],
            &["boot/vmlinuz-6.1.0-50-cloud-amd64"],
        );
        let found = KernelFiles::find(old.path()).unwrap();
        assert_eq!(found.version, "6.1.0-50-cloud-amd64");
        assert!(found.image.is_file() && found.modules.is_dir());
        assert!(found.workshop().is_err());

        let new = root_with(
            &["usr/lib/modules/7.3.4"],
            &["usr/lib/modules/7.3.4/vmlinuz"],
        );
        assert_eq!(KernelFiles::find(new.path()).unwrap().version, "7.3.4");
        // A folder of modules without an image, as headers bring along.
        let none = root_with(&["usr/lib/modules/7.3.4"], &[]);
        assert!(KernelFiles::find(none.path()).is_err());
    }

    #[test]
    fn headers_must_be_of_the_images_version_and_the_image_of_the_kernel() {
        let folders = ["lib/modules/6.12.1", "boot", "usr/src/linux-headers-6.12.1"];
        let root = root_with(&folders, &["boot/vmlinuz-6.12.1"]);
        let find = |kernel| KernelFiles::find_with_headers(root.path(), kernel);
        assert!(find(Kernel::Linux6_12).unwrap().workshop().is_ok());
        assert!(find(Kernel::Linux6_1).is_err());
        let root = root_with(&folders[..2], &["boot/vmlinuz-6.12.1"]);
        assert!(KernelFiles::find_with_headers(root.path(), Kernel::Linux6_12).is_err());
    }
}
