//! What a guest and its owner do with a NIC, as data.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use qemu::system::RunState;
use serde_json::json;
use testbed::{Testbed, wait_until};

use crate::PATIENCE;

/// The NIC, as `vm.toml` of the testbed places it.
const FUNCTION: &str = "/sys/bus/pci/devices/0000:00:05.0";

/// Something that happens to a NIC in the course of its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Nothing.
    Nothing,
    /// The interface goes down and up again.
    DownAndUp,
    /// The driver's module is removed and loaded again.
    ReloadModule,
    /// A function-level reset, asked for through sysfs.
    FunctionReset,
    /// The guest suspends to RAM and is woken up.
    Suspend,
    /// The guest moves to another host.
    Migrate,
}

impl Action {
    /// All, with the move at the end.
    pub(crate) const ALL: [Self; 6] = [
        Self::Nothing,
        Self::DownAndUp,
        Self::ReloadModule,
        Self::FunctionReset,
        Self::Suspend,
        Self::Migrate,
    ];

    /// Does it.
    pub(crate) fn run(self, testbed: &mut Testbed) -> Result<()> {
        match self {
            Self::Nothing => Ok(()),
            Self::DownAndUp => testbed
                .shell("ip link set eth0 down && ip link set eth0 up")
                .map(drop),
            Self::ReloadModule => reload_module(testbed),
            Self::FunctionReset => function_reset(testbed),
            Self::Suspend => suspend(testbed),
            Self::Migrate => migrate(testbed),
        }
    }
}

fn reload_module(testbed: &Testbed) -> Result<()> {
    let index = |command: &str| testbed.shell(command);
    let before = index("cat /sys/class/net/eth0/ifindex")?;
    testbed.shell("rmmod ixgbevf && ! [ -e /sys/class/net/eth0 ]")?;
    testbed.shell("insmod /lib/modules/ixgbevf.ko")?;
    let after = index("cat /sys/class/net/eth0/ifindex")?;
    ensure!(before != after, "the interface is still the old one");
    testbed.bring_up()
}

fn function_reset(testbed: &Testbed) -> Result<()> {
    let methods = testbed.shell(&format!("cat {FUNCTION}/reset_method"))?;
    ensure!(
        methods.split_whitespace().any(|method| method == "flr"),
        "the kernel knows only these resets: {methods}"
    );
    testbed
        .shell(&format!(
            "ip link set eth0 down && cd {FUNCTION} && echo flr > reset_method && echo 1 > reset \
             && ip link set eth0 up"
        ))
        .map(drop)
}

/// The guest answers to the command that suspends it only after it was woken. Its kernel counts the
/// times that it slept; one that wakes by itself, as happens, has slept too.
fn suspend(testbed: &Testbed) -> Result<()> {
    let slept = || testbed.shell("cat /sys/power/suspend_stats/success");
    let before = slept()?;
    let vm = &testbed.host.vm;
    std::thread::scope(|scope| {
        let asleep = scope.spawn(|| testbed.shell("echo mem > /sys/power/state"));
        let wake = || -> Result<()> {
            wait_until("the guest suspends", PATIENCE, || {
                let suspended = vm.qmp().run_status()?.status == RunState::Suspended;
                Ok(suspended || asleep.is_finished())
            })?;
            if !asleep.is_finished() {
                vm.qmp().execute("system_wakeup", json!({}))?;
            }
            Ok(())
        };
        let woken = wake();
        match asleep.join() {
            // What the guest says of it says more than that it is awake.
            Ok(asleep) => asleep.map(drop).and(woken),
            Err(_) => bail!("the thread that suspends panicked"),
        }
    })
    .context("suspend to RAM")?;
    let after = slept()?;
    ensure!(
        before != after,
        "the guest did not sleep: {before} before, {after} after"
    );
    Ok(())
}

fn migrate(testbed: &mut Testbed) -> Result<()> {
    let migration = testbed.migrate()?;
    ensure!(
        migration.report.stale_pages == Some(0),
        "{:?}",
        migration.report
    );
    ensure!(migration.interrupts.lost == 0, "{:?}", migration.interrupts);
    Ok(())
}

/// How long an action and its check took, for a test's output.
pub(crate) fn told(action: Action, took: Duration) {
    println!("{action:?}: {:.1} s", took.as_secs_f64());
}
