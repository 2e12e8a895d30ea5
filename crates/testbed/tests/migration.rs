//! What a migration promises of the guest that moves, and that the tests would see it broken.

use anyhow::Result;
use lab::{Lab, progress_on_stderr};
use testbed::{Options, Programs, Testbed, summarise};

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
    assert!(summary.guest_alive && summary.tcp_content_ok);
    assert_eq!(summary.udp_lost_outside_outage, 0);
    assert_eq!(summary.interrupts.lost, 0);
    // The checks above had something to look at.
    assert!(summary.pages_marked > 0);
    assert!(summary.tcp_bytes.iter().all(|bytes| *bytes > 0));
    assert!(summary.udp_to_guest.sent > 0 && summary.udp_from_guest.sent > 0);
    for migration in &migrations {
        assert!(migration.interrupts.raised > 0);
        assert!(migration.outage_ms().is_some());
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
fn a_guest_without_a_driver_for_the_sidecar_arrives_whole() -> Result<()> {
    let mut testbed = start(Options {
        append: "initcall_blacklist=virtio_fs_init".into(),
        ..Options::default()
    })?;
    // Seen by the bus driver, and by nobody else (`VIRTIO_CONFIG_S_ACKNOWLEDGE`).
    assert_eq!(sidecar_status(&testbed)?, "0x00000001");
    let migration = testbed.migrate()?;
    assert_eq!(migration.report.stale_pages, Some(0));
    assert!(
        migration
            .report
            .pages_marked
            .values()
            .all(|marks| marks.total() > 0)
    );
    // A driver that is loaded later must not find it running.
    assert_eq!(sidecar_status(&testbed)?, "0x00000001");
    // It can be started once more.
    assert_eq!(testbed.migrate()?.report.stale_pages, Some(0));
    assert!(summarise(&testbed, &[migration])?.guest_alive);
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

/// The virtio status of the one virtio device there is.
fn sidecar_status(testbed: &Testbed) -> Result<String> {
    let status = testbed.shell("cat /sys/bus/virtio/devices/virtio*/status")?;
    Ok(status.trim().to_owned())
}
