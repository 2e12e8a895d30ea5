//! What the module does for a migration.

use anyhow::{Result, ensure};
use ferry::Strategy;
use lab::Kernel;
use testbed::{Options, Testbed, summarise};

use crate::{STRICT, did_all, kernel_is_content, rehearse, start, with_module};

/// Only the guest knows what its NIC writes, by the table or by touching; and it stops and starts
/// the NIC, without a migration and in one.
fn helps(kernel: Kernel, parameters: &str) -> Result<()> {
    let mut testbed = start(
        kernel,
        STRICT,
        Options {
            strategy: Some(Strategy::Cooperative),
            dirty_log_of_guest: true,
            compare: Some("never"),
            ..with_module(parameters)
        },
    )?;
    let kernel_runs = testbed.shell("uname -r")?;
    ensure!(kernel_runs.starts_with(kernel.name()), "{kernel_runs}");
    let before = testbed.network_configuration()?;
    for _ in 0..3 {
        let rehearsal = rehearse(&testbed)?;
        eprintln!("{kernel}: {rehearsal:?}");
        ensure!(did_all(&rehearsal), "{rehearsal:?}");
        testbed.wait_for_traffic()?;
    }
    testbed.reset_counts()?;
    let migration = testbed.migrate()?;
    let [nic] = &migration.report.devices[..] else {
        panic!("one device, not {:?}", migration.report.devices);
    };
    assert_eq!(nic.strategy, Strategy::Cooperative, "{nic:?}");
    assert_eq!((&nic.why, &nic.fault), (&None, &None));
    let summary = summarise(&testbed, &[migration])?;
    assert_eq!(summary.faults(), [""; 0], "{summary:#?}");
    assert_eq!(summary.stale_pages, Some(0));
    assert_eq!(testbed.network_configuration()?, before);
    kernel_is_content(&testbed)
}

/// Has the kernel record how often a CPU asks for what a device wrote. It goes on doing so: to stop it would be to
/// change code that CPUs run, for which see [`STALE_BREAKPOINT`](crate::load::STALE_BREAKPOINT).
fn record_sync_calls(testbed: &Testbed) -> Result<()> {
    testbed.shell(
        "mount -t tracefs tracefs /sys/kernel/tracing && cd /sys/kernel/tracing && \
         echo __dma_sync_single_for_cpu > set_ftrace_filter && echo function > current_tracer",
    )?;
    Ok(())
}

/// How often one does, in a second under load.
fn sync_calls(testbed: &Testbed) -> Result<u64> {
    let calls = testbed.shell(
        "cd /sys/kernel/tracing && echo > trace && sleep 1 && grep -c single_for_cpu trace || true",
    )?;
    Ok(calls.trim().parse()?)
}

/// The kernel leaves them out for a device that needs none, and a NIC needs some for each packet.
#[test]
fn linux_7_3_goes_on_leaving_sync_calls_out_before_it_tracks() -> Result<()> {
    let testbed = start(Kernel::Linux7_3, STRICT, with_module(""))?;
    record_sync_calls(&testbed)?;
    testbed.wait_for_traffic()?;
    assert_eq!(sync_calls(&testbed)?, 0);
    let rehearsal = rehearse(&testbed)?;
    ensure!(did_all(&rehearsal), "{rehearsal:?}");
    testbed.wait_for_traffic()?;
    assert_ne!(sync_calls(&testbed)?, 0, "they are not seen");
    kernel_is_content(&testbed)
}

#[test]
fn linux_6_1_helps_by_the_table() -> Result<()> {
    helps(Kernel::Linux6_1, "method=table")
}

#[test]
fn linux_6_1_helps_by_touching() -> Result<()> {
    helps(Kernel::Linux6_1, "method=touch")
}

#[test]
fn linux_6_12_helps_by_the_table() -> Result<()> {
    helps(Kernel::Linux6_12, "method=table")
}

#[test]
fn linux_6_12_helps_by_touching() -> Result<()> {
    helps(Kernel::Linux6_12, "method=touch")
}

#[test]
fn linux_7_3_helps_by_the_table() -> Result<()> {
    helps(Kernel::Linux7_3, "method=table")
}

#[test]
fn linux_7_3_helps_by_touching() -> Result<()> {
    helps(Kernel::Linux7_3, "method=touch")
}

#[test]
fn a_table_that_is_always_complete_needs_no_answer() -> Result<()> {
    helps(Kernel::Linux7_3, "always=1")
}
