//! Guests that cannot help a migration, or do not know of one: each is on the other side what it
//! was before.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lab::{Lab, progress_on_stderr};
use testbed::{Options, Programs, Testbed};

/// How long anything may take that takes seconds on an idle machine.
const PATIENCE: Duration = Duration::from_mins(2);

fn options() -> Options {
    Options {
        // The stuck guest's memory is still: what changes in it, devices write.
        dirty: (0, 0),
        ..Options::default()
    }
}

fn lab() -> Result<Lab> {
    Lab::ensure(&progress_on_stderr)
}

/// No driver answers, one vCPU has its interrupts off, and frames go on to arrive in its rings.
#[test]
fn a_guest_that_has_panicked_arrives_whole_there_and_back() -> Result<()> {
    let mut testbed = Testbed::start(
        lab()?,
        Programs::build()?,
        Options {
            append: "panic=0".into(),
            ..options()
        },
    )?;
    testbed.shell("(sleep 1; echo c > /proc/sysrq-trigger) > /dev/null 2>&1 &")?;
    let deadline = Instant::now() + PATIENCE;
    while !testbed.host.vm.console().contains("end Kernel panic") {
        ensure!(Instant::now() < deadline, "the guest does not panic");
        std::thread::sleep(Duration::from_millis(50));
    }
    testbed.move_on()?;
    testbed.move_on().map(drop)
}

/// A NIC that nobody drives is moved as well, and can be driven afterwards.
#[test]
fn a_guest_without_the_nics_driver_arrives_and_loads_it_there() -> Result<()> {
    let mut testbed = Testbed::start(
        lab()?,
        Programs::build()?,
        Options {
            load: false,
            ..options()
        },
    )?;
    testbed.shell("rmmod ixgbevf")?;
    testbed.move_on()?;
    testbed.shell("insmod /lib/modules/ixgbevf.ko")?;
    testbed.bring_up()?;
    testbed.shell(&format!("ping -q -c 3 {}", testbed::PEER_IP))?;
    Ok(())
}

/// In firmware or on its way out of it: no driver has seen a device yet.
#[test]
fn a_guest_that_has_only_begun_to_boot_boots_at_the_destination() -> Result<()> {
    let mut testbed = Testbed::power_on(lab()?, Programs::build()?, options())?;
    testbed.move_on()?;
    testbed.host.vm.expect_boot();
    testbed.host.vm.wait_ready(PATIENCE)?;
    testbed.bring_up()?;
    testbed.shell(&format!("ping -q -c 3 {}", testbed::PEER_IP))?;
    Ok(())
}
