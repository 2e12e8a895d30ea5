//! What a VM with a [keeper] is promised: the process that serves its devices can die.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lab::{Lab, progress_on_stderr};
use testbed::{Options, Programs, Testbed, kill_worker, kill_workers};

/// Kills of this bounded form; `cargo xtask kill-worker` has more.
const TIMES: u64 = 20;
/// How long a migration may take to begin to copy.
const BEGINS: Duration = Duration::from_secs(30);

#[test]
fn a_guest_under_load_outlives_the_process_that_serves_its_devices() -> Result<()> {
    let lab = Lab::ensure(&progress_on_stderr)?;
    let mut testbed = Testbed::start(
        lab,
        Programs::build()?,
        Options {
            deaths_per_minute: Some(1000),
            packets_per_second: 400,
            // So that there is time to die in the middle of it.
            max_bandwidth: Some(48 << 20),
            ..Options::default()
        },
    )?;
    let kills = kill_workers(&testbed, TIMES, 1)?;
    println!(
        "{} of {} kills survived: {kills:?}",
        kills.survived, kills.killed
    );
    assert_eq!(kills.faults, [""; 0], "{kills:?}");
    assert!(kills.tcp_bytes.iter().all(|bytes| *bytes > 0), "{kills:?}");

    // A migration dies with the process that has begun it, and the VM runs on with its devices.
    let there = testbed.next_host()?;
    thread::scope(|scope| {
        let migration = scope.spawn(|| testbed.run_migrate(&there));
        wait_for_precopy(&testbed)?;
        kill_worker(&testbed.host)?;
        let ended = migration.join().expect("it does not panic");
        assert!(ended.is_err(), "{ended:?}");
        anyhow::Ok(())
    })?;
    drop(there);
    testbed.wait_for_traffic()?;
    assert!(testbed.host.vm.qmp().run_status()?.running);
    assert_eq!(testbed.host.status()?.stage, "running");

    // The process that serves it now migrates it, to a host that has a keeper too.
    let migration = testbed.migrate()?;
    assert_eq!(migration.report.stale_pages, Some(0));
    let kills = kill_workers(&testbed, 3, 2)?;
    assert_eq!(kills.faults, [""; 0], "{kills:?}");
    Ok(())
}

fn wait_for_precopy(testbed: &Testbed) -> Result<()> {
    let deadline = Instant::now() + BEGINS;
    while !testbed.host.log().contains("dirty log opened") {
        ensure!(Instant::now() < deadline, "{}", testbed.host.log());
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
