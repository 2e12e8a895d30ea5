//! Debian packages, fetched and verified by apt.
//!
//! The mirror and the proxy are the machine's own: whatever apt is configured to use here, the lab
//! uses too.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::Progress;
use crate::recipe::Recipe;

/// Written into the root by mmdebstrap while the packages' files are still there.
pub(crate) const PACKAGE_LIST: &str = "packages.txt";

/// How the file's name ends that has a package's sources without Debian's changes.
pub(crate) const RELEASED: &str = ".orig.tar.xz";

const TOOL: &str = "mmdebstrap";
/// Not used itself, but its presence says that the keyring is new enough to have the suite's keys.
const SUITE_KEY: &str = "/usr/share/keyrings/debian-archive-trixie-stable";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring";

/// Unpacks `recipe`'s packages and all they depend on into the new folder `root`, which `lock` guards. The
/// programs that write there inherit the lock, so that it holds even if only this process is killed.
pub(crate) fn unpack(
    recipe: &Recipe,
    root: &Path,
    lock: &File,
    progress: Progress<'_>,
) -> Result<()> {
    let archive = Archive::find(progress)?;
    let sources = root.with_extension("list");
    let line = |suite| archive.line("deb", suite);
    let backports = recipe.backports();
    fs::write(
        &sources,
        line(recipe.release()) + &backports.map(line).unwrap_or_default(),
    )
    .with_context(|| format!("cannot write {}", sources.display()))?;

    progress("downloading and unpacking Debian packages (about a minute on a slow line)");
    let mut command = Command::new(TOOL);
    command
        .args(["--variant=extract", "--architectures=amd64"])
        .args(backports.map(|suite| format!("--aptopt=APT::Default-Release \"{suite}\"")))
        .arg("--aptopt=APT::Install-Recommends \"false\"")
        .args(
            host_transport()?
                .iter()
                .map(|option| format!("--aptopt={option}")),
        )
        .arg(format!("--include={}", recipe.packages.join(",")))
        .arg(format!(
            "--extract-hook=ls \"$1/var/cache/apt/archives\" > \"$1/{PACKAGE_LIST}\""
        ))
        .arg(recipe.release())
        .args([root, &sources])
        .stdin(lock.try_clone().context("cannot hand on the lab's lock")?);
    let unpacked = run_shown(&mut command, progress);
    // The next attempt writes it anew.
    let _ = fs::remove_file(&sources);
    unpacked
}

/// Fetches the sources of `package` as their authors released them, an archive of tar, into the folder `into`;
/// whatever else apt fetches for that stays there, too.
pub(crate) fn source(
    package: &str,
    suite: &str,
    into: &Path,
    progress: Progress<'_>,
) -> Result<PathBuf> {
    let archive = Archive::find(progress)?;
    let (sources, lists, cache) = (
        into.join("apt.list"),
        into.join("lists"),
        into.join("cache"),
    );
    // Where a folder is not below apt's own, it does not make this itself.
    for partial in [lists.join("partial"), cache.join("archives/partial")] {
        fs::create_dir_all(&partial)
            .with_context(|| format!("cannot make {}", partial.display()))?;
    }
    fs::write(&sources, archive.line("deb-src", suite))
        .with_context(|| format!("cannot write {}", sources.display()))?;
    let options = [
        format!("Dir::Etc::sourcelist={}", sources.display()),
        "Dir::Etc::sourceparts=-".to_owned(),
        format!("Dir::State::lists={}", lists.display()),
        format!("Dir::Cache={}", cache.display()),
        // Or it becomes a user who may not write here.
        "APT::Sandbox::User=root".to_owned(),
    ];
    let apt = || {
        let mut command = Command::new("apt-get");
        command.current_dir(into);
        command.args(options.iter().map(|option| format!("--option={option}")));
        command
    };
    progress(&format!("downloading Debian's sources of {package}"));
    run_quiet(apt().arg("update"))?;
    run_quiet(apt().args(["source", "--download-only", package]))?;
    let released = fs::read_dir(into)
        .with_context(|| format!("cannot look into {}", into.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.to_string_lossy().ends_with(RELEASED));
    released.with_context(|| format!("Debian's sources of {package} have no *{RELEASED}"))
}

/// Debian's, and the keys that it is signed with.
struct Archive {
    mirror: String,
    keyring: PathBuf,
}

impl Archive {
    /// With all that it takes to unpack from it.
    fn find(progress: Progress<'_>) -> Result<Self> {
        let mirror = mirror(progress)?;
        if !is_installed(TOOL) || keyring_file(SUITE_KEY).is_none() {
            progress("installing mmdebstrap");
            install(&[TOOL, "debian-archive-keyring"], progress)?;
        }
        let keyring = keyring_file(KEYRING).context("Debian's archive keyring is not installed")?;
        Ok(Self { mirror, keyring })
    }

    /// Of apt's sources.
    fn line(&self, kind: &str, suite: &str) -> String {
        format!(
            "{kind} [signed-by={}] {} {suite} main\n",
            self.keyring.display(),
            self.mirror
        )
    }
}

/// The machine's own Debian mirror.
fn mirror(progress: Progress<'_>) -> Result<String> {
    if let Some(mirror) = configured_mirror()? {
        return Ok(mirror);
    }
    // A fresh machine has no package lists, and only they say whose a mirror is.
    progress("updating apt's package lists");
    run_quiet(Command::new("apt-get").arg("update"))?;
    configured_mirror()?.context(
        "apt knows no Debian mirror on this machine; the lab is built from Debian packages, so add \
         one to apt's sources and try again",
    )
}

fn configured_mirror() -> Result<Option<String>> {
    let format = "$(ORIGIN)|$(LABEL)|$(REPO_URI)";
    let output = Command::new("apt-get")
        .args(["indextargets", "--format", format])
        .output()
        .context("cannot run apt-get; the lab needs Debian or a system with apt")?;
    ensure!(
        output.status.success(),
        "apt-get indextargets failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(debian_archive(&String::from_utf8_lossy(&output.stdout)))
}

/// The first whose release file says that it is Debian's main archive, which also holds backports;
/// the security archive has another label.
fn debian_archive(targets: &str) -> Option<String> {
    let repository = targets
        .lines()
        .find_map(|line| line.strip_prefix("Debian|Debian|"))?;
    (!repository.is_empty()).then(|| repository.to_owned())
}

/// How this machine's apt reaches mirrors: proxies, certificates.
fn host_transport() -> Result<Vec<String>> {
    let output = Command::new("apt-config")
        .args(["dump", "--no-empty", "Acquire"])
        .output()
        .context("cannot run apt-config")?;
    let dump = String::from_utf8_lossy(&output.stdout);
    let http = |line: &&str| line.starts_with("Acquire::http");
    Ok(dump
        .lines()
        .filter(http)
        .map(|line| line.trim_end_matches(';').to_owned())
        .collect())
}

fn is_installed(tool: &str) -> bool {
    Command::new(tool)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok()
}

/// Debian renames its keyrings from `.gpg` to `.pgp`.
fn keyring_file(stem: &str) -> Option<PathBuf> {
    ["gpg", "pgp"]
        .iter()
        .map(|end| PathBuf::from(format!("{stem}.{end}")))
        .find(|path| path.exists())
}

pub(crate) fn install(packages: &[&str], progress: Progress<'_>) -> Result<()> {
    let attempt = || {
        let mut command = Command::new("apt-get");
        command
            .args(["install", "-y", "--no-install-recommends"])
            .args(packages);
        run_quiet(command.env("DEBIAN_FRONTEND", "noninteractive"))
    };
    if attempt().is_ok() {
        return Ok(());
    }
    // The lists may be absent, or older than the packages on the mirror.
    progress("updating apt's package lists");
    run_quiet(Command::new("apt-get").arg("update"))?;
    attempt().with_context(|| {
        format!(
            "cannot install {}; the lab is built as root, or install it by hand",
            packages.join(", ")
        )
    })
}

pub(crate) fn run_quiet(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {name}"))?;
    if !output.status.success() {
        bail!(
            "{name} failed ({}):\n{}",
            output.status,
            last_lines(&output.stderr)
        );
    }
    Ok(())
}

/// Shows what the program prints on standard error as it comes, and quotes the end of it if the
/// program fails.
fn run_shown(command: &mut Command, progress: Progress<'_>) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {name}"))?;
    let mut log = Vec::new();
    let stderr = child
        .stderr
        .take()
        .expect("standard error was asked to be a pipe");
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        if let Some(step) = line
            .strip_prefix("I: ")
            .filter(|step| step.ends_with("..."))
        {
            progress(&format!("{name}: {}", step.trim_end_matches('.')));
        }
        log.extend_from_slice(line.as_bytes());
        log.push(b'\n');
    }
    let status = child
        .wait()
        .with_context(|| format!("cannot wait for {name}"))?;
    ensure!(
        status.success(),
        "{name} failed ({status}):\n{}",
        last_lines(&log)
    );
    Ok(())
}

fn last_lines(log: &[u8]) -> String {
    let log = String::from_utf8_lossy(log);
    let lines: Vec<_> = log.trim_end().lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_the_main_archive_not_security_nor_another_vendor() {
        let targets = "Docker|Docker CE|https://docker.example/\n\
                       Debian|Debian-Security|https://mirror.example/debian-security/\n\
                       Debian|Debian|https://mirror.example/debian/\n\
                       Debian|Debian|https://other.example/debian/\n";
        assert_eq!(
            debian_archive(targets).as_deref(),
            Some("https://mirror.example/debian/")
        );
        assert_eq!(debian_archive("||https://mirror.example/debian/"), None);
        assert_eq!(debian_archive(""), None);
    }

    #[test]
    fn a_failing_program_is_quoted() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo I: unpacking... >&2; echo E: broken >&2; exit 3"]);
        let steps = std::cell::RefCell::new(Vec::new());
        let error = run_shown(&mut command, &|step| {
            steps.borrow_mut().push(step.to_owned());
        });
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("E: broken") && error.contains('3'),
            "{error}"
        );
        assert_eq!(*steps.borrow(), ["sh: unpacking"]);
    }
}
