//! Which QEMU the lab runs, and with which accelerator.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::dynamic;

/// Set it to `own` to have the lab's QEMU where the host's would do.
const CHOICE: &str = "VFERRY_LAB_QEMU";

const PROGRAM: &str = "qemu-system-x86_64";
const OLDEST: (u32, u32) = qemu::machine::OLDEST_SUPPORTED;
/// A distributor may have left these out.
const NEEDED_DEVICES: [&str; 2] = ["\"vfio-user-pci\"", "\"vhost-user-fs-pci\""];

/// For a guest's kernel command line: it is to have one CPU, however many the machine has.
pub const ONE_CPU: &str = "maxcpus=1 CPUS=1";

/// A QEMU that can be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Emulator {
    /// The host's own.
    Host(PathBuf),
    /// The lab's, unpacked below this folder.
    Lab(PathBuf),
}

/// What executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// The processor.
    Kvm,
    /// QEMU's translator, one thread per vCPU.
    Tcg,
}

impl Emulator {
    /// The host's own QEMU, if it is new enough and has the devices that vferry works with.
    pub(crate) fn of_host() -> Result<Option<Self>> {
        match std::env::var(CHOICE) {
            Err(_) => {}
            Ok(choice) if choice.is_empty() => {}
            Ok(choice) if choice == "own" => return Ok(None),
            Ok(choice) => bail!("{CHOICE}={choice}: the only choice is `own`; unset it otherwise"),
        }
        let folders = std::env::var_os("PATH").unwrap_or_default();
        let found = std::env::split_paths(&folders)
            .map(|folder| folder.join(PROGRAM))
            .find(|path| path.is_file());
        Ok(found.map(Self::Host).filter(Self::is_good_enough))
    }

    fn is_good_enough(&self) -> bool {
        let Ok(version) = self.version() else {
            return false;
        };
        let Ok(output) = self.command().args(["-device", "help"]).output() else {
            return false;
        };
        let devices = String::from_utf8_lossy(&output.stdout);
        let new_enough = parse_version(&version).is_some_and(|version| version >= OLDEST);
        new_enough && NEEDED_DEVICES.iter().all(|device| devices.contains(device))
    }

    /// What it calls itself, as `QEMU emulator version 11.1.3 (...)`.
    ///
    /// # Errors
    ///
    /// If it does not run.
    pub fn version(&self) -> Result<String> {
        let output = self
            .command()
            .arg("--version")
            .output()
            .context("cannot run QEMU")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let line = text.lines().next().filter(|line| line.contains("version"));
        line.map(str::to_owned).with_context(|| {
            let stderr = String::from_utf8_lossy(&output.stderr);
            format!("QEMU does not tell its version: {}", stderr.trim())
        })
    }

    /// A command that runs it, to which arguments can be added.
    pub fn command(&self) -> Command {
        match self {
            Self::Host(program) => Command::new(program),
            // By the loader of the unpacked system, so that no library comes from the host.
            Self::Lab(root) => {
                let mut command = dynamic::command(root, &root.join("usr/bin").join(PROGRAM));
                for firmware in ["usr/share/qemu", "usr/share/seabios"] {
                    command.arg("-L").arg(root.join(firmware));
                }
                command.env("QEMU_MODULE_DIR", dynamic::libraries(root).join("qemu"));
                command
            }
        }
    }
}

impl Accelerator {
    /// KVM only where the processor virtualises. A `/dev/kvm` alone proves nothing: without these
    /// flags it may interpret instructions, and stop at one that it does not know.
    pub fn detect() -> Self {
        let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        if virtualises(&processor) && opens(Path::new("/dev/kvm")) {
            Self::Kvm
        } else {
            Self::Tcg
        }
    }

    /// QEMU's arguments for it. The processor's own CPU where it executes; where instructions are
    /// translated, a plain one: each feature of a rich one (memory protection keys, SMAP, five
    /// levels of page tables) costs the translator time, most of all when it starts anew with
    /// nothing translated, as at the destination of a migration.
    pub const fn args(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Self::Tcg => ["-accel", "tcg,thread=multi", "-cpu", "qemu64"],
        }
    }

    /// For the guest kernel's command line. A translated CPU has no speculation to guard against,
    /// and the guards (indirect jumps through thunks) are what a translator is slowest at. The rest
    /// is what runs all the time for its own ends, and must be translated anew at a destination:
    /// pressure statistics, security modules, access sampling, the lockup detector.
    ///
    /// And it boots with one CPU; `init.sh` switches the others on. While it boots, the kernel changes its own
    /// code time and again. It lays a breakpoint over what it changes (`smp_text_poke_batch_finish`), and QEMU's
    /// translator throws away what it has of a page before the store that lifts it (`notdirty_write`), not after:
    /// another CPU that translates the page between the two keeps the breakpoint, and the kernel dies of it
    /// (`Oops: int3`).
    pub const fn kernel_parameters(self) -> &'static str {
        match self {
            Self::Kvm => "",
            Self::Tcg => {
                "mitigations=off psi=0 lsm=capability damon_stat.enabled=N nowatchdog \
                 maxcpus=1 noreplace-smp"
            }
        }
    }
}

fn virtualises(processor: &str) -> bool {
    processor
        .lines()
        .filter_map(|line| line.strip_prefix("flags")?.split_once(':'))
        .any(|(_, flags)| {
            flags
                .split_whitespace()
                .any(|flag| matches!(flag, "vmx" | "svm"))
        })
}

fn opens(device: &Path) -> bool {
    File::options().read(true).write(true).open(device).is_ok()
}

/// `QEMU emulator version 11.1.3 (Debian ...)`
fn parse_version(line: &str) -> Option<(u32, u32)> {
    let (_, rest) = line.split_once("version ")?;
    let mut numbers = rest.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_numbers_not_text() {
        let version = |text| parse_version(text).unwrap();
        assert_eq!(
            version("QEMU emulator version 11.1.3 (Debian 1:11.1.3+ds-1)"),
            (11, 1)
        );
        assert_eq!(version("QEMU emulator version 12.0.50"), (12, 0));
        assert!(version("QEMU emulator version 9.2.1") < OLDEST);
        assert_eq!(parse_version("command not found"), None);
    }

    #[test]
    fn only_the_processors_flags_count() {
        assert!(virtualises("model name : x\nflags\t\t: fpu svm sse\n"));
        assert!(!virtualises(
            "model name : svm vmx\nflags : fpu svm_lock\nbugs : vmx\n"
        ));
    }
}
