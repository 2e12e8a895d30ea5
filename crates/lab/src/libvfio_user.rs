//! libvfio-user's sample device, a peer of benchmarks, from a checkout or from the sources that Debian builds QEMU
//! from, which have the library with them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::root::{Progress, lock, remove};
use crate::{Lab, apt};

/// The release that the sources are from.
const SUITE: &str = "trixie";
const SOURCE: &str = "qemu";
/// What it needs beside a C library, and where Debian has that one's headers.
const JSON: &str = "libjson-c-dev";
const JSON_HEADERS: &str = "/usr/include/json-c";

/// Of the lab, and what is kept there.
pub(crate) const PLACE: &str = "libvfio-user";
const PROGRAM: &str = "gpio-pci-idio-16";
const ORIGIN: &str = "origin";

const SAMPLE: &str = "samples/gpio-pci-idio-16.c";
/// As its `lib/meson.build` has them, without what is for fuzzing it (`tran_pipe.c`).
const LIBRARY: [&str; 8] = [
    "lib/dma.c",
    "lib/irq.c",
    "lib/libvfio-user.c",
    "lib/migration.c",
    "lib/pci.c",
    "lib/pci_caps.c",
    "lib/tran.c",
    "lib/tran_sock.c",
];

/// The sample device, built.
#[derive(Debug, Clone)]
pub struct LibvfioUser {
    /// The program, which takes the path of the socket to listen at.
    pub program: PathBuf,
    /// Where its sources are from.
    pub origin: String,
}

impl Lab {
    /// The program `gpio-pci-idio-16` of libvfio-user in Debian's sources of QEMU, fetched and built now if it is
    /// not there yet.
    ///
    /// # Errors
    ///
    /// If Debian's mirror does not have it, what it needs cannot be installed, or it does not build.
    pub fn libvfio_user(&self, progress: Progress<'_>) -> Result<LibvfioUser> {
        let _lock = lock(&self.folder.join(format!("{PLACE}.lock")), progress)?;
        let place = self.folder.join(PLACE);
        let (program, origin) = (place.join(PROGRAM), place.join(ORIGIN));
        if !(program.is_file() && origin.is_file()) {
            let aside = self.folder.join(format!("{PLACE}.building"));
            remove(&aside)?;
            fs::create_dir_all(&aside)
                .with_context(|| format!("cannot make {}", aside.display()))?;
            fetch_and_build(&aside, progress)?;
            remove(&place)?;
            fs::rename(&aside, &place).context("cannot move libvfio-user into place")?;
        }
        let origin = fs::read_to_string(&origin)
            .with_context(|| format!("cannot read {}", origin.display()))?;
        Ok(LibvfioUser { program, origin })
    }
}

fn fetch_and_build(folder: &Path, progress: Progress<'_>) -> Result<()> {
    let sources = folder.join("sources");
    fs::create_dir(&sources).with_context(|| format!("cannot make {}", sources.display()))?;
    let archive = apt::source(SOURCE, SUITE, &sources, progress)?;
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--file"]).arg(&archive);
    tar.arg("--directory").arg(&sources);
    tar.args(["--strip-components=3", "--wildcards"]);
    apt::run_quiet(tar.arg("*/subprojects/libvfio-user/*"))?;
    build(&sources, &folder.join(PROGRAM), progress)?;
    let name = archive.file_name().unwrap_or_default().to_string_lossy();
    let origin = name.trim_end_matches(apt::RELEASED);
    fs::write(folder.join(ORIGIN), origin).context("cannot say where libvfio-user is from")?;
    // It is all of QEMU's.
    remove(&sources)
}

/// Builds the program `gpio-pci-idio-16` of libvfio-user from a checkout, in which nothing changes.
///
/// # Errors
///
/// If this is no checkout of it, what it needs cannot be installed, or it does not build.
pub fn libvfio_user_from(
    checkout: &Path,
    program: &Path,
    progress: Progress<'_>,
) -> Result<LibvfioUser> {
    ensure!(
        checkout.join(SAMPLE).is_file(),
        "{} is no checkout of libvfio-user: there is no {SAMPLE} in it",
        checkout.display()
    );
    build(checkout, program, progress)?;
    Ok(LibvfioUser {
        program: program.to_owned(),
        origin: checkout.display().to_string(),
    })
}

/// Optimised, and without what its own build adds to look for faults.
fn build(sources: &Path, program: &Path, progress: Progress<'_>) -> Result<()> {
    if !Path::new(JSON_HEADERS).is_dir() {
        progress(&format!("installing {JSON}"));
        apt::install(&[JSON], progress)?;
    }
    progress("building libvfio-user's sample device");
    let mut compiler = Command::new("cc");
    compiler.current_dir(sources).args([
        "-O2",
        "-std=gnu99",
        "-D_GNU_SOURCE",
        "-Iinclude",
        "-Ilib",
        "-I",
        JSON_HEADERS,
    ]);
    compiler.arg(SAMPLE).args(LIBRARY).arg("-ljson-c");
    apt::run_quiet(compiler.arg("-o").arg(program))
}
