//! Guests with a disk, which all hosts see and one writes.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ferry::Strategy;
use lab::{Lab, progress_on_stderr};
use testbed::{
    Devices, HostOptions, Migration, Options, Plug, Programs, Summary, Testbed, summarise,
};

/// How long a process may take to end.
const PATIENCE: Duration = Duration::from_mins(1);

/// A guest with a NIC and a disk.
fn start(strategy: Strategy) -> Result<Testbed> {
    let options = Options {
        packets_per_second: 200,
        devices: Devices::NicAndDisk,
        plug: if strategy == Strategy::Recovery {
            Plug::RootPort
        } else {
            Plug::MainBus
        },
        strategy: Some(strategy),
        ..Options::default()
    };
    Testbed::start(
        Lab::ensure(&progress_on_stderr)?,
        Programs::build()?,
        options,
    )
}

/// Nothing is lost, of all kinds of I/O there are.
fn arrived_whole(testbed: &Testbed, migrations: &[Migration]) -> Result<Summary> {
    let summary = summarise(testbed, migrations)?;
    assert_eq!(summary.faults(), [""; 0], "{summary:#?}");
    let load = &summary.disk.as_ref().context("it has a disk")?.load;
    let done = [
        load.reads,
        load.writes,
        load.durable_writes,
        load.flushes,
        load.checked_blocks,
    ];
    assert!(done.iter().all(|count| *count > 0), "{load:?}");
    Ok(summary)
}

fn goes_there_and_back(strategy: Strategy) -> Result<()> {
    let mut testbed = start(strategy)?;
    let migrations = [testbed.migrate()?, testbed.migrate()?];
    for migration in &migrations {
        let devices = &migration.report.devices;
        assert_eq!(devices.len(), 2, "{devices:?}");
        for device in devices {
            assert_eq!(device.strategy, strategy, "{device:?}");
            assert_eq!(device.fault, None, "{device:?}");
        }
    }
    let summary = arrived_whole(&testbed, &migrations)?;
    assert_eq!(summary.stale_pages, Some(0));
    Ok(())
}

#[test]
fn a_disk_and_a_nic_under_load_arrive_whole_there_and_back() -> Result<()> {
    goes_there_and_back(Strategy::Transparent)
}

#[test]
fn a_disk_and_a_nic_under_load_are_recovered_there_and_back() -> Result<()> {
    goes_there_and_back(Strategy::Recovery)
}

/// The source has let go of its disk when it turns out that the destination cannot have it.
#[test]
fn a_vm_whose_disk_the_destination_does_not_get_runs_on_at_the_source() -> Result<()> {
    let mut testbed = start(Strategy::Transparent)?;
    let options = testbed.next_host_options();
    let image = options.disk.as_ref().context("it has a disk")?;
    let copy = image.with_extension("copy");
    std::fs::copy(image, &copy)?;
    let elsewhere = HostOptions {
        disk: Some(copy),
        ..options
    };
    let next = testbed.another_host(&elsewhere, true)?;
    let error = testbed.run_migrate(&next).unwrap_err().to_string();
    assert!(error.contains("runs on here"), "{error}");
    assert!(error.contains("disk.copy"), "{error}");
    drop(next);
    testbed.wait_for_traffic()?;
    // That outage is nobody's migration.
    testbed.reset_counts()?;
    let migrations = [testbed.migrate()?];
    arrived_whole(&testbed, &migrations).map(drop)
}

#[test]
fn a_second_vm_with_the_same_disk_does_not_start() -> Result<()> {
    let mut testbed = start(Strategy::Transparent)?;
    let options = testbed.next_host_options();
    let second = testbed.another_host(&options, false)?;
    let ended = second.process().wait(Instant::now() + PATIENCE);
    let log = second.log();
    assert!(ended.is_some_and(|status| !status.success()), "{log}");
    assert!(log.contains("disk.img"), "{log}");
    drop(second);
    arrived_whole(&testbed, &[]).map(drop)
}
