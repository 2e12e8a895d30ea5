//! What a guest and its owner do with an `NVMe` controller, as data.
//!
//! Suspend to idle is not among it: no alarm of their clock wakes the lab's guests from it, with or
//! without a disk, for their power button they have no driver, and their kernels lack the test mode
//! that needs no waking (`CONFIG_PM_DEBUG`). The driver does the same for suspend to RAM: it disables
//! a controller that has no power states of its own (`nvme_suspend`).

use anyhow::{Context, Result, bail, ensure};
use qemu::system::RunState;
use serde_json::json;
use testbed::wait_until;

use crate::PATIENCE;
use crate::guest::Guest;

/// The controller, as `vm.toml` of the testbed places it.
const FUNCTION: &str = "/sys/bus/pci/devices/0000:00:09.0";
const DRIVER: &str = "/sys/bus/pci/drivers/nvme";
const PROCESSOR: &str = "/sys/devices/system/cpu/cpu1/online";

/// Something that happens to a controller in the course of its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Nothing.
    Nothing,
    /// The driver resets the controller.
    ControllerReset,
    /// A function-level reset, asked for through sysfs; the driver is told before and after.
    FunctionReset,
    /// A processor goes, with the interrupts of its queues, and comes again.
    ProcessorOffAndOn,
    /// The guest suspends to RAM and is woken up.
    Suspend,
    /// The driver lets go of the controller and takes it again.
    Rebind,
    /// A function-level reset while there is no driver.
    FunctionResetUnbound,
    /// The kernel forgets the function and finds it again.
    RemoveAndRescan,
}

impl Action {
    /// What programs that use the disk do not notice.
    pub(crate) const UNDER_LOAD: [Self; 5] = [
        Self::Nothing,
        Self::ControllerReset,
        Self::FunctionReset,
        Self::ProcessorOffAndOn,
        Self::Suspend,
    ];
    /// What takes the disk away for some time.
    pub(crate) const WITHOUT_LOAD: [Self; 3] = [
        Self::Rebind,
        Self::FunctionResetUnbound,
        Self::RemoveAndRescan,
    ];

    /// How often the driver starts the controller in its course.
    pub(crate) fn starts(self) -> usize {
        match self {
            Self::Nothing | Self::ProcessorOffAndOn => 0,
            Self::ControllerReset
            | Self::FunctionReset
            | Self::Suspend
            | Self::Rebind
            | Self::FunctionResetUnbound
            | Self::RemoveAndRescan => 1,
        }
    }

    /// Does it.
    pub(crate) fn run(self, guest: &Guest) -> Result<()> {
        match self {
            Self::Nothing => Ok(()),
            Self::ControllerReset => guest
                .shell("echo 1 > /sys/class/nvme/nvme0/reset_controller")
                .map(drop),
            Self::FunctionReset => function_reset(guest),
            Self::ProcessorOffAndOn => processor_off_and_on(guest),
            Self::Suspend => suspend(guest),
            Self::Rebind => {
                unbind(guest)?;
                bind(guest)
            }
            Self::FunctionResetUnbound => {
                unbind(guest)?;
                function_reset(guest)?;
                bind(guest)
            }
            Self::RemoveAndRescan => remove_and_rescan(guest),
        }
    }
}

fn function_reset(guest: &Guest) -> Result<()> {
    let methods = guest.shell(&format!("cat {FUNCTION}/reset_method"))?;
    ensure!(
        methods.trim() == "flr",
        "the kernel knows these resets: {methods}"
    );
    guest
        .shell(&format!("echo 1 > {FUNCTION}/reset"))
        .context("function-level reset")
        .map(drop)
}

/// I/O goes on meanwhile, over the queues of the processor that is left.
fn processor_off_and_on(guest: &Guest) -> Result<()> {
    guest
        .shell(&format!("echo 0 > {PROCESSOR}"))
        .context("the processor does not go")?;
    guest
        .wait_for_load()
        .context("without the second processor")?;
    guest
        .shell(&format!("echo 1 > {PROCESSOR}"))
        .context("the processor does not come")
        .map(drop)
}

/// The guest answers to the command that suspends it only after it was woken. Its kernel counts the
/// times that it slept; one that wakes by itself, as happens, has slept too.
fn suspend(guest: &Guest) -> Result<()> {
    let slept = || guest.shell("cat /sys/power/suspend_stats/success");
    let before = slept()?;
    let qmp = guest.host.vm.qmp();
    std::thread::scope(|scope| {
        let asleep = scope.spawn(|| guest.shell("echo mem > /sys/power/state"));
        let wake = || -> Result<()> {
            wait_until("the guest suspends", PATIENCE, || {
                let suspended = qmp.run_status()?.status == RunState::Suspended;
                Ok(suspended || asleep.is_finished())
            })?;
            if !asleep.is_finished() {
                qmp.execute("system_wakeup", json!({}))?;
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

fn unbind(guest: &Guest) -> Result<()> {
    guest
        .shell(&format!(
            "echo 0000:00:09.0 > {DRIVER}/unbind && ! [ -e {FUNCTION}/driver ] && \
             ! [ -e /sys/class/nvme/nvme0 ]"
        ))
        .context("the driver does not let go")
        .map(drop)
}

fn bind(guest: &Guest) -> Result<()> {
    guest
        .shell(&format!("echo 0000:00:09.0 > {DRIVER}/bind"))
        .context("the driver does not take it")?;
    wait_for_disk(guest)
}

fn remove_and_rescan(guest: &Guest) -> Result<()> {
    guest
        .shell(&format!(
            "echo 1 > {FUNCTION}/remove && ! [ -e {FUNCTION} ] && echo 1 > /sys/bus/pci/rescan && \
             [ -e {FUNCTION} ]"
        ))
        .context("the function is not found again")?;
    wait_for_disk(guest)
}

/// The driver looks for namespaces after it has taken the controller.
fn wait_for_disk(guest: &Guest) -> Result<()> {
    guest
        .shell("until [ -b /dev/nvme0n1 ]; do usleep 20000; done")
        .context("the disk does not appear")
        .map(drop)
}
