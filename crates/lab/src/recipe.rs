//! What the lab is made of, and the stamp that says a build of it is whole.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::Kernel;

/// Raise it when the same packages are to be put together differently.
const REVISION: u32 = 1;

/// The suite that has QEMU 11.1 and the kernel that goes with it.
const SUITE: &str = "trixie-backports";
const BACKPORTS: &str = "-backports";

const GUEST_PACKAGES: [&str; 4] = [
    "busybox-static",
    "linux-image-cloud-amd64",
    "nvme-cli",
    "ovmf",
];
const QEMU_PACKAGE: &str = "qemu-system-x86";
/// A kernel with drivers for what hosts have, its headers with the compiler that they depend on, and
/// what hosts run.
const HOST_PACKAGES: [&str; 5] = [
    "base-files",
    "linux-image-amd64",
    "linux-headers-amd64",
    "iproute2",
    QEMU_PACKAGE,
];
/// A kernel for guests, and its headers with the compiler that they depend on.
const KERNEL_PACKAGES: [&str; 2] = ["linux-image-cloud-amd64", "linux-headers-cloud-amd64"];
/// What the kernel's build system calls besides.
const BUILD_PACKAGES: [&str; 13] = [
    "bash",
    "binutils",
    "coreutils",
    "dash",
    "diffutils",
    "findutils",
    "gawk",
    "grep",
    "kmod",
    "make",
    "perl",
    "sed",
    "tar",
];

/// What decides whether a lab that was built earlier still fits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Recipe {
    revision: u32,
    suite: String,
    pub(crate) packages: Vec<String>,
}

impl Recipe {
    /// With QEMU from Debian, or without where the host's own is used.
    pub(crate) fn new(with_qemu: bool) -> Self {
        let qemu = with_qemu.then_some(QEMU_PACKAGE);
        Self::of(SUITE, GUEST_PACKAGES.into_iter().chain(qemu))
    }

    /// For hosts that run guests of their own, and to build modules for both.
    pub(crate) fn for_hosts() -> Self {
        Self::of(SUITE, HOST_PACKAGES.into_iter().chain(BUILD_PACKAGES))
    }

    /// A kernel for guests, and all that it takes to build modules for it.
    pub(crate) fn for_kernel(kernel: Kernel) -> Self {
        let packages = KERNEL_PACKAGES.into_iter().chain(BUILD_PACKAGES);
        Self::of(kernel.suite(), packages)
    }

    fn of(suite: &str, packages: impl IntoIterator<Item = &'static str>) -> Self {
        Self {
            revision: REVISION,
            suite: suite.to_owned(),
            packages: packages.into_iter().map(str::to_owned).collect(),
        }
    }

    /// The release that its packages come from.
    pub(crate) fn release(&self) -> &str {
        self.suite.strip_suffix(BACKPORTS).unwrap_or(&self.suite)
    }

    /// The suite with backports to that release, if it takes packages from there too.
    pub(crate) fn backports(&self) -> Option<&str> {
        Some(&*self.suite).filter(|suite| suite.ends_with(BACKPORTS))
    }

    /// Whether a lab made by `built` has all that this recipe asks for.
    pub(crate) fn is_covered_by(&self, built: &Self) -> bool {
        self.revision == built.revision
            && self.suite == built.suite
            && self
                .packages
                .iter()
                .all(|package| built.packages.contains(package))
    }
}

/// Written last into a build, so that a build with it is whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    pub(crate) recipe: Recipe,
    /// Every package in it and its version.
    pub(crate) versions: BTreeMap<String, String>,
}

impl Stamp {
    const FILE: &str = "stamp.json";

    /// The stamp of the build in `folder`; `None` if there is no whole build in it.
    pub(crate) fn read(folder: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(folder.join(Self::FILE)).ok()?).ok()
    }

    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join(Self::FILE);
        fs::write(&path, serde_json::to_vec_pretty(self)?)
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Package and version from the names of downloaded packages, `NAME_VERSION_ARCHITECTURE.deb`,
/// where apt writes the colon of an epoch as `%3a`.
pub(crate) fn versions(files: &str) -> BTreeMap<String, String> {
    files
        .lines()
        .filter_map(|file| {
            let mut parts = file.strip_suffix(".deb")?.split('_');
            let (name, version) = (parts.next()?, parts.next()?);
            Some((name.to_owned(), version.replace("%3a", ":")))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lab_with_qemu_serves_those_who_need_none_but_not_the_reverse() {
        let (with, without) = (Recipe::new(true), Recipe::new(false));
        assert!(without.is_covered_by(&with));
        assert!(!with.is_covered_by(&without));
        let older = Recipe {
            revision: 0,
            ..with.clone()
        };
        assert!(!with.is_covered_by(&older));
        let mut lacking = with.clone();
        lacking.packages.retain(|package| package != "nvme-cli");
        assert!(!with.is_covered_by(&lacking));
        assert!(!with.is_covered_by(&Recipe::for_kernel(Kernel::default())));
    }

    #[test]
    fn backports_come_with_the_release_they_are_for() {
        let sources = |kernel| {
            let recipe = Recipe::for_kernel(kernel);
            (
                recipe.release().to_owned(),
                recipe.backports().map(str::to_owned),
            )
        };
        assert_eq!(sources(Kernel::Linux6_1), ("bookworm".into(), None));
        assert_eq!(
            sources(Kernel::Linux7_3),
            ("trixie".into(), Some("trixie-backports".into()))
        );
    }

    #[test]
    fn a_folder_without_a_whole_stamp_is_no_build() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Stamp::read(folder.path()), None);
        let stamp = Stamp {
            recipe: Recipe::new(true),
            versions: BTreeMap::new(),
        };
        stamp.write(folder.path()).unwrap();
        assert_eq!(Stamp::read(folder.path()), Some(stamp));
        let path = folder.path().join(Stamp::FILE);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        assert_eq!(Stamp::read(folder.path()), None);
    }

    #[test]
    fn versions_come_from_the_packages_names() {
        let files =
            "busybox-static_1%3a1.37.0-6+b9_amd64.deb\nlock\npartial\nkmod_34.2-2_amd64.deb";
        let versions: Vec<_> = versions(files).into_iter().collect();
        let expected = [("busybox-static", "1:1.37.0-6+b9"), ("kmod", "34.2-2")];
        assert_eq!(
            versions,
            expected.map(|(name, version)| (name.to_owned(), version.to_owned()))
        );
    }
}
