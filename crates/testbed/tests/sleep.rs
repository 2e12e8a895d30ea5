//! The `sleep` strategy with the stock guest: nothing of vferry is in it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ferry::{Phase, Strategy};
use lab::{Lab, progress_on_stderr};
use qemu::system::RunState;
use testbed::{Migration, Options, Programs, Testbed, summarise};

/// How long anything may take that takes seconds on an idle machine.
const PATIENCE: Duration = Duration::from_mins(1);
const ROUND_TRIPS: usize = 5;
/// How often the guest's kernel has slept.
const SLEPT: &str = "cat /sys/power/suspend_stats/success";
/// What an owner has set up: more than the driver finds by itself.
const SET_UP: &str = "ip addr add 10.78.0.2/24 dev eth0 && vconfig add eth0 5 && \
     ip addr add 10.79.0.2/24 dev eth0.5 && ip link set eth0.5 up && ip route add 10.80.0.0/16 via 10.79.0.9";
const CONFIGURATION: &str = "ip addr show dev eth0; ip addr show dev eth0.5; ip route";

fn start(options: Options) -> Result<Testbed> {
    let lab = Lab::ensure(&progress_on_stderr)?;
    Testbed::start(
        lab,
        Programs::build()?,
        Options {
            strategy: Some(Strategy::Sleep),
            packets_per_second: 200,
            ..options
        },
    )
}

fn slept(testbed: &Testbed) -> Result<usize> {
    Ok(testbed.shell(SLEPT)?.trim().parse()?)
}

/// How often the guest's kernel has heard its power button.
const POWER_BUTTON: &str = "awk '{ print $1 }' /sys/firmware/acpi/interrupts/ff_pwr_btn";

#[test]
fn a_guest_sleeps_its_way_there_and_back_five_times() -> Result<()> {
    let mut testbed = start(Options::default())?;
    testbed.listen_to_sleep_key()?;
    testbed.shell(SET_UP)?;
    let configuration = testbed.settled(CONFIGURATION)?;
    let mut migrations = Vec::new();
    for moves in 1..=2 * ROUND_TRIPS {
        let migration = testbed.migrate()?;
        let report = &migration.report;
        assert_eq!(report.stale_pages, Some(0), "{report:?}");
        assert_eq!(report.strategy, Strategy::Sleep);
        for device in &report.devices {
            assert_eq!((device.strategy, &device.fault), (Strategy::Sleep, &None));
        }
        assert!(report.phases_ms.contains_key(&Phase::Suspend), "{report:?}");
        assert_eq!(slept(&testbed)?, moves);
        assert_eq!(testbed.settled(CONFIGURATION)?, configuration);
        migrations.push(migration);
    }
    assert!(
        hears_its_power_button(&testbed)?,
        "its chipset is not what it was"
    );
    alive_and_right(&testbed, &migrations)
}

fn hears_its_power_button(testbed: &Testbed) -> Result<bool> {
    let before = testbed.shell(POWER_BUTTON)?;
    let qmp = testbed.host.vm.qmp();
    qmp.execute("system_powerdown", serde_json::json!({}))?;
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if testbed.shell(POWER_BUTTON)? != before {
            return Ok(true);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(false)
}

fn alive_and_right(testbed: &Testbed, migrations: &[Migration]) -> Result<()> {
    let summary = summarise(testbed, migrations)?;
    let network = summary.network.as_ref().context("it has a NIC")?;
    assert!(
        summary.guest_alive && network.tcp_content_ok,
        "{summary:#?}"
    );
    assert!(network.tcp_bytes.iter().all(|bytes| *bytes > 0));
    Ok(())
}

#[test]
fn a_guest_that_does_not_react_stays_where_it_is() -> Result<()> {
    let mut testbed = start(Options::default())?;
    let next = testbed.next_host()?;
    let error = testbed
        .run_migrate(&next)
        .expect_err("nobody listens to the key");
    let error = format!("{error:#}");
    assert!(
        error.contains("did not suspend itself within 30s") && error.contains("runs on here"),
        "{error}"
    );
    assert!(testbed.host.vm.qmp().run_status()?.running);
    testbed.wait_for_traffic()?;
    assert_eq!(slept(&testbed)?, 0);
    Ok(())
}

/// A guest that sleeps by its own wish is moved as it is, and is not woken.
#[test]
fn a_guest_that_sleeps_is_moved_asleep() -> Result<()> {
    let mut testbed = start(Options::default())?;
    testbed.shell(SET_UP)?;
    let configuration = testbed.settled(CONFIGURATION)?;
    testbed.fall_asleep()?;
    let next = testbed.next_host()?;
    let report = testbed.run_migrate(&next)?;
    assert_eq!(report.stale_pages, Some(0), "{report:?}");
    testbed.host = next;
    let qmp = testbed.host.vm.qmp();
    assert_eq!(qmp.run_status()?.status, RunState::Suspended);
    qmp.wake_up()?;
    testbed.wait_for_traffic()?;
    assert_eq!(slept(&testbed)?, 1);
    assert_eq!(testbed.settled(CONFIGURATION)?, configuration);
    alive_and_right(&testbed, &[])
}
