//! What a process that serves a VM has given up, also while it migrates.

use std::fs;

use anyhow::{Context, Result, ensure};

/// The one capability that may be left: threads that have to be in time.
const SYS_NICE: u64 = 1 << 23;
/// As the kernel calls a filter (`SECCOMP_MODE_FILTER`).
const FILTER: &str = "2";

/// None of its threads can get more than it has, and all have next to nothing.
pub(super) fn are_given_up(pid: u32) -> Result<()> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))?;
    for task in tasks {
        // A thread may have ended meanwhile.
        let Ok(status) = fs::read_to_string(task?.path().join("status")) else {
            continue;
        };
        let field = |key: &str| {
            let mut lines = status.lines();
            let line = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(":\t"));
            line.with_context(|| format!("no `{key}` in {status}"))
        };
        let name = field("Name")?;
        for (key, right) in [("NoNewPrivs", "1"), ("Seccomp", FILTER)] {
            let is = field(key)?;
            ensure!(is == right, "thread `{name}` of vferry has {key} {is}");
        }
        for key in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
            let has = u64::from_str_radix(field(key)?, 16)?;
            ensure!(
                has & !SYS_NICE == 0,
                "thread `{name}` of vferry has {key} {has:#x}"
            );
        }
    }
    Ok(())
}
