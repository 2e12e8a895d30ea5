//! That the guest's word alone is enough, for devices that keep no log of what they write: a NIC
//! with its stock driver, and a device that writes in all the ways in which drivers map memory.

use anyhow::Result;
use ferry::{Phase, Strategy};
use testbed::{Help, Options};

use crate::{device, left_to_its_driver, start};

fn without_log(guest: Help) -> Options {
    Options {
        guest,
        stream: Some(String::new()),
        dirty_log_of_guest: true,
        compare: Some("never"),
        ..Options::default()
    }
}

fn there_and_back(parameters: &str, table: bool) -> Result<()> {
    let mut testbed = start(Options {
        strategy: Some(Strategy::Cooperative),
        ..without_log(Help::Module(parameters.into()))
    })?;
    let began = testbed.stream_count("received")?;
    for _ in 0..2 {
        let migration = testbed.migrate()?;
        let report = &migration.report;
        assert_eq!(report.stale_pages, Some(0), "{report:#?}");
        left_to_its_driver(device(&migration, "net0"));
        left_to_its_driver(device(&migration, "stream0"));
        // Nobody else knew.
        assert_eq!(report.pages_marked["device-log"].total(), 0);
        assert_eq!(report.pages_marked.contains_key("guest-table"), table);
    }
    assert!(testbed.stream_count("received")? > began);
    assert_eq!(testbed.stream_count("wrong")?, Some(0));
    Ok(())
}

#[test]
fn the_guests_table_alone_is_enough() -> Result<()> {
    there_and_back("method=table", true)
}

#[test]
fn the_guests_dummy_writes_alone_are_enough() -> Result<()> {
    there_and_back("method=touch", false)
}

/// The state goes over, and nobody needs to stop anything: the table is complete at every moment.
#[test]
fn a_table_that_is_always_kept_is_enough_for_devices_that_run() -> Result<()> {
    let mut testbed = start(without_log(Help::Module("always=1".into())))?;
    let migration = testbed.migrate()?;
    let report = &migration.report;
    assert_eq!(report.stale_pages, Some(0), "{report:#?}");
    assert_eq!(report.pages_marked["device-log"].total(), 0);
    assert!(report.pages_marked["guest-table"].total() > 0);
    assert_eq!(device(&migration, "net0").strategy, Strategy::Transparent);
    assert_eq!(device(&migration, "net0").quiesce_ms, None);
    assert_eq!(testbed.stream_count("wrong")?, Some(0));
    Ok(())
}

/// Nobody says anything of what the devices write: both sides find it out.
#[test]
fn memory_that_is_compared_is_enough_for_devices_of_which_nobody_tells() -> Result<()> {
    let mut testbed = start(Options {
        compare: None,
        ..without_log(Help::NoDriver)
    })?;
    for _ in 0..2 {
        let migration = testbed.migrate()?;
        let report = &migration.report;
        assert_eq!(report.stale_pages, Some(0), "{report:#?}");
        assert_eq!(report.pages_marked["device-log"].total(), 0);
        let compared = report.compared.expect("it was compared");
        assert!(compared.pages > 0);
        assert!(report.phases_ms[&Phase::Compare] > 0.0);
        assert_eq!(device(&migration, "net0").strategy, Strategy::Transparent);
    }
    assert_eq!(testbed.stream_count("wrong")?.unwrap_or(0), 0);
    Ok(())
}

/// The log is lost on purpose, and it shows that it would have been needed.
#[test]
fn memory_that_is_compared_needs_no_log() -> Result<()> {
    let mut testbed = start(Options {
        unsound_control: Some("no-log".into()),
        compare: Some("always"),
        ..Options::default()
    })?;
    let migration = testbed.migrate()?;
    assert_eq!(migration.report.stale_pages, Some(0));
    assert!(migration.report.compared.expect("it was compared").pages > 0);
    Ok(())
}

#[test]
fn with_neither_it_is_refused_or_pages_are_stale() -> Result<()> {
    let mut testbed = start(Options {
        ..without_log(Help::NoDriver)
    })?;
    let next = testbed.next_host()?;
    let refused = testbed.run_migrate(&next).unwrap_err().to_string();
    assert!(refused.contains("keeps no log"), "{refused}");
    assert!(refused.contains("no driver of the guest"), "{refused}");
    testbed.wait_for_traffic()?;
    drop((next, testbed));

    let mut testbed = start(Options {
        unsound_control: Some("no-log".into()),
        stream: None,
        ..without_log(Help::NoDriver)
    })?;
    let next = testbed.next_host()?;
    let stale = testbed.run_migrate(&next)?.stale_pages;
    assert!(stale > Some(0), "{stale:?}");
    Ok(())
}
