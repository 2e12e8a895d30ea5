//! What a guest that helps promises, and what becomes of a migration where it does not.

mod rogue;
mod tracking;

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ferry::report::{DeviceReport, Progress};
use ferry::{Phase, Strategy};
use lab::{Kernel, Lab, progress_on_stderr};
use testbed::{Help, Migration, Options, Programs, Testbed, summarise};
use vferry::control::Reply;

/// How long anything may take that takes seconds on an idle machine.
const PATIENCE: Duration = Duration::from_mins(2);

pub(crate) fn start(options: Options) -> Result<Testbed> {
    let lab = Lab::ensure(&progress_on_stderr)?;
    let lab = lab.with_kernel(Kernel::default(), &progress_on_stderr)?;
    // So few packets that a guest on a busy machine drops none by itself.
    let options = Options {
        packets_per_second: 200,
        ..options
    };
    Testbed::start(lab, Programs::build()?, options)
}

fn cooperative() -> Options {
    Options {
        guest: Help::Module(String::new()),
        strategy: Some(Strategy::Cooperative),
        ..Options::default()
    }
}

/// The report of the device of this name.
pub(crate) fn device<'a>(migration: &'a Migration, name: &str) -> &'a DeviceReport {
    let devices = &migration.report.devices;
    let found = devices.iter().find(|device| device.name == name);
    found.unwrap_or_else(|| panic!("no device `{name}` in {devices:?}"))
}

/// It was stopped by the guest, and works.
pub(crate) fn left_to_its_driver(device: &DeviceReport) {
    assert_eq!(device.strategy, Strategy::Cooperative, "{device:?}");
    assert_eq!((&device.why, &device.fault), (&None, &None), "{device:?}");
    assert!(
        device.quiesce_ms.is_some() && device.restart_ms.is_some(),
        "{device:?}"
    );
}

/// It went over by its state, for this reason.
pub(crate) fn fell_back(device: &DeviceReport, why: &str) {
    assert_eq!(device.strategy, Strategy::Transparent, "{device:?}");
    let said = device.why.as_deref().unwrap_or_default();
    assert!(said.contains(why), "{device:?}");
    assert_eq!(device.fault, None, "{device:?}");
}

fn arrived_whole(testbed: &Testbed, migrations: &[Migration]) -> Result<()> {
    let summary = summarise(testbed, migrations)?;
    assert_eq!(summary.faults(), [""; 0], "{summary:#?}");
    assert_eq!(summary.stale_pages, Some(0));
    Ok(())
}

#[test]
fn a_guest_with_the_module_stops_its_device_and_starts_it_there_and_back() -> Result<()> {
    let mut testbed = start(cooperative())?;
    // What a network manager has set must be there afterwards.
    testbed.shell(
        "ifconfig eth0 txqueuelen 500 && ip addr add 10.88.0.1/24 dev eth0 && \
         ip route add 10.99.0.0/16 via 10.77.0.1 && \
         ip link add link eth0 name eth0.7 type vlan id 7 && ip link set eth0.7 up",
    )?;
    let settings =
        "ip -o link show eth0; ip -o -4 addr show eth0; ip route; ip -o link show eth0.7";
    let before = testbed.settled(settings)?;
    // Packets that this has cost are nobody's migration.
    testbed.reset_counts()?;
    let migrations = [testbed.migrate()?, testbed.migrate()?];
    for migration in &migrations {
        left_to_its_driver(device(migration, "net0"));
    }
    assert_eq!(testbed.settled(settings)?, before);
    arrived_whole(&testbed, &migrations)
}

/// One device is stopped by its driver, the other has none.
#[test]
fn a_device_without_a_driver_goes_over_by_its_state_beside_one_with() -> Result<()> {
    let mut testbed = start(Options {
        stream: Some(String::new()),
        ..cooperative()
    })?;
    testbed.shell("rmmod stream")?;
    let migrations = [testbed.migrate()?];
    left_to_its_driver(device(&migrations[0], "net0"));
    fell_back(device(&migrations[0], "stream0"), "no driver");
    arrived_whole(&testbed, &migrations)
}

#[test]
fn a_guest_that_hangs_is_not_waited_for() -> Result<()> {
    let mut testbed = start(Options {
        append: "panic=0".into(),
        // Its memory is still: what changes in it, devices write.
        dirty: (0, 0),
        ..cooperative()
    })?;
    testbed.shell("(sleep 1; echo c > /proc/sysrq-trigger) > /dev/null 2>&1 &")?;
    let deadline = Instant::now() + PATIENCE;
    while !testbed.host.vm.console().contains("end Kernel panic") {
        ensure!(Instant::now() < deadline, "the guest does not panic");
        std::thread::sleep(Duration::from_millis(50));
    }
    let next = testbed.next_host()?;
    let report = testbed.run_migrate(&next)?;
    assert_eq!(report.stale_pages, Some(0));
    fell_back(&report.devices[0], "did not stop it within");
    ensure!(next.vm.qmp().run_status()?.running);
    Ok(())
}

/// The guest has stopped its device already when the other side dies.
#[test]
fn a_migration_that_fails_after_the_guest_stopped_its_device_has_it_start_it_again() -> Result<()> {
    let mut testbed = start(cooperative())?;
    let next = testbed.next_host()?;
    let mut command = testbed.host.command("migrate");
    command.args(["--json", "--strategy", "cooperative", "--to", &next.link]);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let lines = BufReader::new(child.stdout.take().context("stdout is piped")?).lines();
    let mut next = Some(next);
    let mut quiesced = false;
    for line in lines {
        if let Reply::Progress(Progress::Phase { phase }) = serde_json::from_str(&line?)? {
            quiesced |= phase == Phase::Quiesce;
            if phase == Phase::Quiesce {
                // Both of its processes.
                next = None;
            }
        }
    }
    assert!(quiesced && !child.wait()?.success());
    drop(next);
    let log = testbed.host.log();
    let asked = log
        .lines()
        .find(|line| line.contains("guest asked to stop its devices"));
    assert!(
        asked.is_some_and(|line| line.contains("value: Verified")),
        "{log}"
    );
    testbed.wait_for_traffic()?;
    // That outage is nobody's migration.
    testbed.reset_counts()?;
    let migrations = [testbed.migrate()?];
    left_to_its_driver(device(&migrations[0], "net0"));
    arrived_whole(&testbed, &migrations)
}

/// Programs go on to read what there is of the interface, and its link is not gone for them: the
/// driver has freed what its counters were in, and has taken its carrier down.
#[test]
fn nobody_in_the_guest_notices_that_its_device_stops() -> Result<()> {
    let testbed = start(cooperative())?;
    testbed.shell(
        "(while [ ! -e /tmp/enough ]; do read -r carrier < /sys/class/net/eth0/carrier; \
         read -r state < /sys/class/net/eth0/operstate; \
         read -r packets < /sys/class/net/eth0/statistics/rx_packets; \
         echo $carrier $state $packets; done > /tmp/seen 2>&1; touch /tmp/done) \
         > /dev/null 2>&1 &",
    )?;
    let output = testbed
        .host
        .command("rehearse")
        .args(["--stopped-ms", "2000"])
        .output()?;
    ensure!(
        output.status.success(),
        "{} in {}",
        String::from_utf8_lossy(&output.stderr),
        testbed.host.vm.evidence()
    );
    testbed.wait_for_traffic()?;
    testbed.shell("touch /tmp/enough; while [ ! -e /tmp/done ]; do usleep 20000; done")?;
    let states = testbed.shell("cut -d' ' -f2 /tmp/seen | sort -u")?;
    assert_eq!(states, "up\n");
    // Without a carrier for two seconds: what was seen most often then, and its counters before.
    let most = testbed.shell("grep '^0 ' /tmp/seen | sort | uniq -c | sort -n | tail -n 1")?;
    let before = testbed.shell("grep -B1 -m1 '^0 ' /tmp/seen | head -n 1")?;
    let packets = |line: &str| line.split_whitespace().next_back()?.parse::<u64>().ok();
    let (stopped, running) = (packets(&most), packets(&before));
    // But for the packets of the moment when they were kept; without that they are 0.
    let kept = stopped.zip(running).map(|(a, b)| a > b / 2 && b > 0);
    assert_eq!(kept, Some(true), "before {before:?}, then {most:?}");
    Ok(())
}
