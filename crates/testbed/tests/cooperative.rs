//! What a guest that helps promises, and what becomes of a migration where it does not.

use anyhow::Result;
use ferry::Strategy;
use lab::{Kernel, Lab, progress_on_stderr};
use testbed::{Help, Migration, Options, Programs, Testbed, summarise};

fn start(options: Options) -> Result<Testbed> {
    let lab = Lab::ensure(&progress_on_stderr)?;
    let lab = lab.with_kernel(Kernel::default(), &progress_on_stderr)?;
    // So few packets that a guest on a busy machine drops none by itself.
    let options = Options {
        packets_per_second: 200,
        ..options
    };
    Testbed::start(lab, Programs::build()?, options)
}

#[test]
fn a_guest_with_the_module_stops_its_device_and_starts_it_there_and_back() -> Result<()> {
    let mut testbed = start(Options {
        guest: Help::Module(String::new()),
        strategy: Some(Strategy::Cooperative),
        ..Options::default()
    })?;
    let migrations = [testbed.migrate()?, testbed.migrate()?];
    for migration in &migrations {
        left_to_its_driver(migration);
    }
    let summary = summarise(&testbed, &migrations)?;
    assert_eq!(summary.faults(), [""; 0], "{summary:#?}");
    assert_eq!(summary.stale_pages, Some(0));
    Ok(())
}

fn left_to_its_driver(migration: &Migration) {
    let [nic] = &migration.report.devices[..] else {
        panic!("one device, not {:?}", migration.report.devices);
    };
    assert_eq!(nic.strategy, Strategy::Cooperative, "{nic:?}");
    assert_eq!((&nic.why, &nic.fault), (&None, &None));
    assert!(
        nic.quiesce_ms.is_some() && nic.restart_ms.is_some(),
        "{nic:?}"
    );
}
