//! Loading and unloading, under traffic.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lab::{Accelerator, Kernel};
use testbed::Testbed;

use crate::{
    END_AT_WARNING, PATIENCE, STRICT, did_all, kernel_is_content, rehearse, start, with_module,
};

const MODULE: &str = "/lib/modules/vferry.ko";
/// In each of two tests of the newest kernel. One takes a second and more under emulation: all of
/// the ftrace records are gone over several times.
const CYCLES: u32 = 50;
/// On each of the older ones.
const CYCLES_ELSEWHERE: u32 = 10;
/// In one command, after which the guest is looked at.
const AT_ONCE: u32 = 10;
/// How often in the middle of a migration's steps.
const WHILE_TRACKING: u32 = 3;

/// Traffic that goes on through all of it, on one TCP connection.
fn goes_on(testbed: &Testbed) -> Result<()> {
    testbed.wait_for_traffic()?;
    let guest = testbed.guest_report()?;
    let tcp = guest.tcp.unwrap_or_default();
    ensure!(tcp.connected && tcp.wrong_bytes == 0, "{tcp:?}");
    kernel_is_content(testbed)
}

/// No device is tracked: it is loaded later than the NIC's driver.
fn comes_and_goes(cycles: u32, kernel: Kernel, checks: &str) -> Result<()> {
    let testbed = start(kernel, checks, with_module(""))?;
    testbed.shell("rmmod vferry")?;
    let began = Instant::now();
    for _ in 0..cycles / AT_ONCE {
        let command = format!(
            "for cycle in $(seq {AT_ONCE}); do insmod {MODULE} && rmmod vferry || exit 1; done"
        );
        testbed.host.vm.shell(&command, PATIENCE)?.success()?;
        goes_on(&testbed)?;
    }
    eprintln!("{kernel}: {cycles} times in {:.1?}", began.elapsed());
    // Unloading has left nothing of it: the next one works.
    testbed.shell(&format!("insmod {MODULE}"))?;
    bind_again(&testbed)?;
    let rehearsal = rehearse(&testbed)?;
    ensure!(did_all(&rehearsal), "{rehearsal:?}");
    goes_on(&testbed)
}

#[test]
fn linux_6_1_loads_and_unloads_it_10_times_under_traffic() -> Result<()> {
    comes_and_goes(CYCLES_ELSEWHERE, Kernel::Linux6_1, STRICT)
}

#[test]
fn linux_6_12_loads_and_unloads_it_10_times_under_traffic() -> Result<()> {
    comes_and_goes(CYCLES_ELSEWHERE, Kernel::Linux6_12, STRICT)
}

#[test]
fn linux_7_3_loads_and_unloads_it_50_times_under_traffic() -> Result<()> {
    comes_and_goes(CYCLES, Kernel::Linux7_3, STRICT)
}

/// Checked memory is slow memory: other races can be won without.
#[test]
fn linux_7_3_loads_and_unloads_it_50_more_times_at_its_usual_speed() -> Result<()> {
    comes_and_goes(CYCLES, Kernel::Linux7_3, END_AT_WARNING)
}

/// The NIC's driver anew, now under the module's eyes.
fn bind_again(testbed: &Testbed) -> Result<()> {
    testbed.shell(
        "cd /sys/bus/pci/drivers/ixgbevf && echo 0000:00:05.0 > unbind && \
         echo 0000:00:05.0 > bind",
    )?;
    testbed.bring_up()?;
    testbed.wait_for_traffic()
}

/// What the kernel says (`exc_int3`) of a breakpoint that nobody has set.
///
/// Where it changes code that others run, it lays one over it for a moment (`smp_text_poke_batch_finish`), and
/// has all processors serialise before and after. QEMU's translator throws away what it has of a page before the
/// store into it (`notdirty_write`), not after: another vCPU that translates the page between the two keeps the
/// breakpoint, which then stays until the next store into that page.
pub(crate) const STALE_BREAKPOINT: &str = "int3: 0000";

/// Its hooks are in the middle of the traffic when it goes.
#[test]
fn it_can_go_while_it_tracks() -> Result<()> {
    let go = || {
        let testbed = start(Kernel::default(), STRICT, with_module(""))?;
        let stale = || testbed.host.vm.console().contains(STALE_BREAKPOINT);
        let gone = goes_while_it_tracks(&testbed);
        Ok::<_, anyhow::Error>((
            Accelerator::detect() == Accelerator::Tcg && gone.is_err() && stale(),
            gone,
        ))
    };
    match go()? {
        (true, Err(error)) => {
            eprintln!("once more, as the translator ran a breakpoint that was gone: {error:#}");
            go()?.1
        }
        (_, gone) => gone,
    }
}

fn goes_while_it_tracks(testbed: &Testbed) -> Result<()> {
    testbed.shell("mount -t tracefs tracefs /sys/kernel/tracing")?;
    for _ in 0..WHILE_TRACKING {
        let mut rehearsal = testbed
            .host
            .command("rehearse")
            .args(["--hold-ms", "600000"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let deadline = Instant::now() + PATIENCE;
        while !tracks(testbed)? {
            ensure!(Instant::now() < deadline, "it does not begin to track");
            std::thread::sleep(Duration::from_millis(20));
        }
        testbed.wait_for_traffic()?;
        testbed.shell("rmmod vferry")?;
        ensure!(!tracks(testbed)?, "it has left its hooks");
        goes_on(testbed)?;
        rehearsal.kill()?;
        rehearsal.wait()?;
        testbed.shell(&format!("insmod {MODULE}"))?;
        bind_again(testbed)?;
    }
    let after = rehearse(testbed)?;
    ensure!(did_all(&after), "{after:?}");
    goes_on(testbed)
}

/// Whether the calls that packets take are hooked.
fn tracks(testbed: &Testbed) -> Result<bool> {
    let hooked = testbed.shell("cat /sys/kernel/tracing/enabled_functions")?;
    Ok(hooked.contains("sync_single_for_cpu"))
}
