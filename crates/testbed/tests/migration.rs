//! What a migration promises of the guest that moves, and that the tests would see it broken.

use anyhow::Result;
use lab::{Lab, progress_on_stderr};
use testbed::{Between, Options, Programs, Testbed, summarise};

/// The control run of the naive order loses what devices write in a few milliseconds: usually
/// something, and once in this many migrations almost surely.
const NAIVE_ATTEMPTS: usize = 5;

fn start(options: Options) -> Result<Testbed> {
    let lab = Lab::ensure(&progress_on_stderr)?;
    Testbed::start(lab, Programs::build()?, options)
}

#[test]
fn a_guest_under_load_arrives_whole_there_and_back() -> Result<()> {
    // So few that a guest on a busy machine drops none by itself: each one lost is the migration's.
    let mut testbed = start(Options {
        packets_per_second: 200,
        ..Options::default()
    })?;
    let migrations = [testbed.migrate()?, testbed.migrate()?];
    let summary = summarise(&testbed, &migrations)?;
    assert_eq!(summary.faults(), [""; 0], "{summary:#?}");
    assert_eq!(summary.round_trips, 1);
    assert_eq!(summary.stale_pages, Some(0));
    let network = summary.network.as_ref().expect("it has a NIC");
    assert!(summary.guest_alive && network.tcp_content_ok);
    assert_eq!(network.udp_lost_outside_outage, 0);
    assert_eq!(summary.interrupts.lost, 0);
    // The checks above had something to look at.
    assert!(summary.pages_marked > 0);
    assert!(network.tcp_bytes.iter().all(|bytes| *bytes > 0));
    assert!(network.udp_to_guest.sent > 0 && network.udp_from_guest.sent > 0);
    for migration in &migrations {
        assert!(migration.interrupts.raised > 0);
        assert!(migration.outage_ms().is_some());
    }
    Ok(())
}

/// The control link and QEMU's stream, with certificates of the lab's own.
#[test]
fn a_guest_goes_over_tls_and_no_log_tells_a_secret() -> Result<()> {
    let mut testbed = start(Options {
        packets_per_second: 200,
        between: Between::Tls,
        ..Options::default()
    })?;
    let source = testbed.host.config.clone();
    let migrations = [testbed.migrate()?];
    let summary = summarise(&testbed, &migrations)?;
    assert_eq!(summary.faults(), [""; 0], "{summary:#?}");
    assert_eq!(summary.stale_pages, Some(0));
    let qmp = testbed.host.vm.qmp();
    let parameters = qmp.execute("query-migrate-parameters", serde_json::json!({}))?;
    assert_eq!(parameters["tls-creds"], "vferry-tls");
    let there = testbed.host.log();
    assert!(there.contains("host.example"), "{there}");
    let here = std::fs::read_to_string(source.with_file_name("vferry.log"))?;
    for log in [&here, &there] {
        assert!(log.contains("phase"), "{log}");
        // As keys and what migrations are named by are written.
        let digits = log.split(|c: char| !c.is_ascii_hexdigit());
        let longest = digits.map(str::len).max().unwrap_or_default();
        assert!(longest < 32, "{log}");
        assert!(!log.contains("PRIVATE"), "{log}");
    }
    Ok(())
}

#[test]
fn a_migration_that_logs_no_device_writes_shows_stale_pages() -> Result<()> {
    let mut testbed = start(unsound("no-log"))?;
    assert!(stale_pages(&mut testbed)? > 0);
    Ok(())
}

#[test]
fn a_migration_that_marks_before_it_halts_shows_stale_pages() -> Result<()> {
    let mut testbed = start(unsound("naive-order"))?;
    for _ in 0..NAIVE_ATTEMPTS {
        if stale_pages(&mut testbed)? > 0 {
            return Ok(());
        }
    }
    panic!("no page was stale in {NAIVE_ATTEMPTS} migrations");
}

#[test]
fn a_guest_does_not_see_the_sidecar() -> Result<()> {
    let mut testbed = start(Options::default())?;
    for _ in 0..2 {
        let devices = testbed.shell("ls /sys/bus/pci/devices /sys/bus/virtio/devices")?;
        assert!(devices.contains("00:05.0"), "{devices}");
        assert!(!devices.contains("00:06") && !devices.contains("virtio0"));
        assert_eq!(testbed.migrate()?.report.stale_pages, Some(0));
    }
    Ok(())
}

/// As a configuration may have it: at function 0, with a driver in the guest that starts it.
#[test]
fn a_guest_that_has_a_driver_for_the_sidecar_arrives_whole() -> Result<()> {
    let mut testbed = start(Options {
        sidecar_address: "00:06.0".into(),
        ..Options::default()
    })?;
    let driver = "ls /sys/bus/virtio/drivers/virtiofs";
    assert!(testbed.shell(driver)?.contains("virtio0"));
    let migrations = [testbed.migrate()?, testbed.migrate()?];
    let summary = summarise(&testbed, &migrations)?;
    assert_eq!(summary.stale_pages, Some(0));
    assert!(summary.guest_alive && summary.pages_marked > 0);
    Ok(())
}

fn unsound(law: &str) -> Options {
    Options {
        unsound_control: Some(law.into()),
        ..Options::default()
    }
}

/// Moves the guest, whatever becomes of it, and returns what vferry reports.
fn stale_pages(testbed: &mut Testbed) -> Result<usize> {
    let next = testbed.next_host()?;
    let report = testbed.run_migrate(&next)?;
    testbed.host = next;
    let stale = report.stale_pages;
    stale.ok_or_else(|| anyhow::anyhow!("the migration was not verified: {report:?}"))
}
