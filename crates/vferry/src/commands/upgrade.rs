//! `vferry upgrade`.

use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::status::{self, connect};
use crate::config::Config;
use crate::control::{HandsOver, Reply, Request, Status};

/// How long another process may take to serve: twice what the next program is given, and QEMU waits.
const SERVES: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(5);

/// What came of it.
#[derive(Debug, Serialize)]
struct Upgrade {
    vm: String,
    before: Process,
    after: Process,
    /// How long no process answered.
    took_ms: f64,
    /// Why the next program does not serve, if the one before goes on.
    refused: Option<String>,
}

#[derive(Debug, Serialize)]
struct Process {
    version: String,
    pid: u32,
}

/// Has the VM's process make room for one of the program that lies where the keeper was started from, and sees
/// that one serve.
pub(super) fn upgrade(config: &Config, json: bool) -> anyhow::Result<()> {
    let mut control = connect(config)?;
    control.writer()?.send(&Request::Upgrade)?;
    let before = match control.receive()? {
        Some(Reply::HandsOver(before)) => before,
        Some(Reply::Failed { why }) => anyhow::bail!("{why}"),
        _ => anyhow::bail!("the VM's process did not answer: it goes on as it was"),
    };
    let began = Instant::now();
    let status = wait_for_another(config, before.pid)?;
    let upgrade = Upgrade::new(before, status, began.elapsed());
    if json {
        println!("{}", serde_json::to_string(&upgrade)?);
    } else if upgrade.refused.is_none() {
        let Upgrade {
            vm,
            before,
            after,
            took_ms,
            ..
        } = &upgrade;
        println!(
            "VM {vm}: vferry {} (process {}) serves it in the place of {} (process {}), after {took_ms:.0} ms",
            after.version, after.pid, before.version, before.pid
        );
    }
    if let Some(why) = &upgrade.refused {
        let Process { version, pid } = &upgrade.after;
        anyhow::bail!(
            "the next program does not serve VM `{}` ({why}), so vferry {version}, as it was, serves it again (process \
             {pid}), and nothing is lost. What the next program said is in the log of `vferry run`",
            upgrade.vm
        );
    }
    Ok(())
}

impl Upgrade {
    fn new(before: HandsOver, after: Status, took: Duration) -> Self {
        let refused = (after.upgrades.unwrap_or(0) <= before.upgrades).then(|| {
            let died = || "its process died, and that of the one before was started again".into();
            after.upgrade_refused.unwrap_or_else(died)
        });
        Self {
            vm: after.vm,
            before: Process {
                version: before.version,
                pid: before.pid,
            },
            after: Process {
                version: after.version,
                pid: after.pid,
            },
            took_ms: took.as_secs_f64() * 1e3,
            refused,
        }
    }
}

fn wait_for_another(config: &Config, before: u32) -> anyhow::Result<Status> {
    let deadline = Instant::now() + SERVES;
    loop {
        match status::ask(config) {
            Ok(status) if status.pid != before => return Ok(status),
            Err(error) if Instant::now() > deadline => {
                return Err(error.context(format!(
                    "process {before} has made room for another, and none serves the VM after {SERVES:?}: see the \
                     log of `vferry run` for why. A QEMU that has waited for an answer for 5 s may have \
                     no devices any more"
                )));
            }
            // It is on its way out, or the other on its way in.
            Ok(_) | Err(_) => thread::sleep(LOOK),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upgraded(upgrades: Option<u64>, refused: Option<&str>) -> Option<String> {
        let before = HandsOver {
            version: "1".into(),
            pid: 1,
            upgrades: 2,
        };
        let status = serde_json::json!({
            "vm": "web", "pid": 2, "version": "2", "upgrades": upgrades, "upgrade_refused": refused,
            "stage": "running", "migrating": false, "sidecar_connected": true, "devices": [],
            "pages_marked": 0,
        });
        let status = serde_json::from_value(status).unwrap();
        Upgrade::new(before, status, Duration::ZERO).refused
    }

    #[test]
    fn a_process_that_serves_is_of_the_next_program_only_where_it_says_so() {
        assert_eq!(upgraded(Some(3), None), None);
        assert_eq!(upgraded(Some(2), Some("no")).as_deref(), Some("no"));
        assert!(upgraded(Some(2), None).is_some());
        assert!(
            upgraded(None, None).is_some(),
            "of a version without upgrades"
        );
    }
}
