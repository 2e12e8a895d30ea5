//! Virtual functions of real hosts, given to a guest by vferry, and migrated: emulated hardware, but
//! Linux's own VFIO, IOMMU and KVM, and the stock driver `igbvf`.

use anyhow::Result;
use ferry::Strategy;
use lab::{Lab, progress_on_stderr};
use testbed::{DriverRace, Help, Migration, Nested, NestedHost, NestedOptions, Programs};

fn start(options: NestedOptions) -> Result<Nested> {
    let lab = Lab::ensure(&progress_on_stderr)?.for_hosts(&progress_on_stderr)?;
    Nested::start(lab, &Programs::build()?, options)
}

fn arrived_by(strategy: Strategy, Migration { report, .. }: &Migration) {
    assert_eq!(report.stale_pages, Some(0), "{report:?}");
    let [device] = &report.devices[..] else {
        panic!("{report:?}");
    };
    assert_eq!(
        (device.strategy, &device.why, &device.fault),
        (strategy, &None, &None),
        "{report:?}"
    );
}

/// Nobody in the guest knows of vferry, and nobody knows what the function writes.
#[test]
fn a_stock_guest_recovers_the_function_of_another_host() -> Result<()> {
    DriverRace::past(stock_guest_recovers)
}

fn stock_guest_recovers() -> Result<()> {
    let mut nested = start(NestedOptions::default())?;
    // In between nobody of vferry's is needed.
    let before = nested.here().wake_ups()?;
    nested.wait_for_traffic()?;
    assert_eq!(nested.here().wake_ups()?, before);
    // A function that nobody has halted writes to the memory of a VM that stands still.
    assert!(nested.while_stopped(NestedHost::is_memory_written)?);
    nested.wait_for_traffic()?;
    assert!(!nested.there().has_mac()?, "nobody has set it there");
    let next = nested.prepare_next()?;
    it_is_told_beforehand(&nested)?;
    let migration = nested.leave_to(next, None)?;
    arrived_by(Strategy::Recovery, &migration);
    assert!(nested.here().has_mac()?, "it has followed");
    assert!(migration.report.compared.is_some(), "{migration:?}");
    assert!(!nested.there().is_memory_written()?, "it was halted");
    nested.there().end()?;
    nested.content_is_right()
}

/// How it will go, and that it would not to a host whose card is switched off.
fn it_is_told_beforehand(nested: &Nested) -> Result<()> {
    let there = nested.there();
    there.switch_card(false)?;
    let refused = nested.look().unwrap_err().to_string();
    let untouched = refused.contains("nothing was touched");
    let cause = refused.contains("at the destination") && refused.contains("eth0 is switched off");
    assert!(
        untouched && cause && refused.contains("`ip link set eth0 up`"),
        "{refused}"
    );
    there.switch_card(true)?;
    let prospect = nested.look()?;
    assert_eq!(prospect.strategy, Strategy::Recovery);
    let [device] = &prospect.devices[..] else {
        panic!("{prospect:?}");
    };
    assert_eq!(device.dirty_log, "comparison");
    Ok(())
}

/// The guest's table of DMA pages is all that tells what the function wrote.
#[test]
fn a_guest_with_the_module_stops_its_function_and_starts_that_of_another_host() -> Result<()> {
    DriverRace::past(module_stops_and_starts)
}

fn module_stops_and_starts() -> Result<()> {
    let mut nested = start(NestedOptions {
        guest: Help::Module("method=table".into()),
        compare: Some("never"),
        ..NestedOptions::default()
    })?;
    let migration = nested.migrate(None)?;
    arrived_by(Strategy::Cooperative, &migration);
    nested.content_is_right()
}
