//! A guest with a stock driver and nothing of vferry's in it, whose kernel recovers its device.

use anyhow::Result;
use ferry::Strategy;
use lab::{Kernel, Lab, progress_on_stderr};
use testbed::{Help, Options, Plug, Programs, Testbed, summarise};

/// Has the kernel tell how long it waits for a link.
const TELL: &str = "dyndbg=\"file drivers/pci/pci.c +p\"";

/// Packets from ever other ports, so that each of the guest's queues has one now and then: what waits in
/// one since its driver was stopped stays there until another packet comes (see
/// `docs/ARCHITECTURE.md`), and a socket that has filled its buffer sends none.
const EVERY_QUEUE: &str = "(while :; do timeout 1 nslookup lab 10.77.0.1; usleep 200000; done) \
     > /dev/null 2>&1 &";

fn options() -> Options {
    Options {
        packets_per_second: 200,
        plug: Plug::RootPort,
        strategy: Some(Strategy::Recovery),
        ..Options::default()
    }
}

fn start(kernel: Kernel, append: &str) -> Result<Testbed> {
    let lab = Lab::ensure(&progress_on_stderr)?.with_kernel(kernel, &progress_on_stderr)?;
    let append = append.into();
    Testbed::start(
        lab,
        Programs::build()?,
        Options {
            append,
            ..options()
        },
    )
}

fn recovers(kernel: Kernel) -> Result<()> {
    let mut testbed = start(kernel, TELL)?;
    testbed.shell(EVERY_QUEUE)?;
    let before = testbed.network_configuration()?;
    let migrations = [testbed.migrate()?, testbed.migrate()?];
    for migration in &migrations {
        let [nic] = &migration.report.devices[..] else {
            panic!("one device, not {:?}", migration.report.devices);
        };
        eprintln!("{kernel}: {nic:?}, outage {:?} ms", migration.outage_ms());
        assert_eq!(nic.strategy, Strategy::Recovery);
        assert_eq!(nic.fault, None);
        let times = nic.recovered.expect("it was recovered");
        assert!(times.worked_ms.is_some(), "{times:?}");
    }
    // What the guest had heard of its neighbour, it hears again.
    let said_again = testbed.host.status()?.devices[0].model["said_again"].as_u64();
    assert!(said_again > Some(0), "{said_again:?}");
    let summary = summarise(&testbed, &migrations)?;
    assert_eq!(summary.faults(), [""; 0], "{summary:#?}");
    assert_eq!(summary.stale_pages, Some(0));
    assert_eq!(testbed.network_configuration()?, before);
    // It waits for a device that has yet to be programmed, as the ACPI table says.
    let waits = testbed.shell("dmesg | grep -c 'waiting 1 ms for downstream link' || true")?;
    assert_eq!(waits.trim(), "2");
    let errors = testbed.shell("dmesg | grep -i 'acpi.*error' || true")?;
    assert_eq!(errors, "");
    Ok(())
}

#[test]
fn linux_7_3_recovers_its_nic_there_and_back() -> Result<()> {
    recovers(Kernel::Linux7_3)
}

#[test]
fn linux_6_12_recovers_its_nic_there_and_back() -> Result<()> {
    recovers(Kernel::Linux6_12)
}

#[test]
fn linux_6_1_recovers_its_nic_there_and_back() -> Result<()> {
    recovers(Kernel::Linux6_1)
}

/// Memory is compared, and the device goes over as any other.
#[test]
fn a_device_of_which_nobody_knows_what_it_writes_is_recovered() -> Result<()> {
    let lab = Lab::ensure(&progress_on_stderr)?;
    let options = Options {
        dirty_log_of_guest: true,
        guest: Help::NoDriver,
        ..options()
    };
    let mut testbed = Testbed::start(lab, Programs::build()?, options)?;
    let migration = testbed.migrate()?;
    let [nic] = &migration.report.devices[..] else {
        panic!("one device, not {:?}", migration.report.devices);
    };
    assert_eq!((nic.strategy, &nic.fault), (Strategy::Recovery, &None));
    assert!(nic.recovered.is_some());
    assert!(migration.report.compared.expect("it was compared").pages > 0);
    let summary = summarise(&testbed, &[migration])?;
    assert_eq!(summary.faults(), [""; 0], "{summary:#?}");
    assert_eq!(summary.stale_pages, Some(0));
    Ok(())
}

/// Its root port has reported an error, which a guest that wakes may have cleared since.
#[test]
fn a_guest_that_has_recovered_and_slept_moves_on() -> Result<()> {
    let mut testbed = start(Kernel::default(), "")?;
    testbed.shell(EVERY_QUEUE)?;
    testbed.migrate()?;
    testbed.fall_asleep()?;
    testbed.host.vm.qmp().wake_up()?;
    testbed.wait_for_traffic()?;
    let next = testbed.next_host()?;
    let report = testbed.run_migrate_by(&next, Some(Strategy::Transparent))?;
    assert_eq!(report.stale_pages, Some(0), "{report:?}");
    testbed.host = next;
    testbed.wait_for_traffic()
}

/// It would lose its device.
#[test]
fn a_guest_that_does_not_own_error_reporting_stays_where_it_is() -> Result<()> {
    let mut testbed = start(Kernel::Linux7_3, "pci=noaer")?;
    let next = testbed.next_host()?;
    let error = testbed.run_migrate(&next).unwrap_err().to_string();
    assert!(error.contains("does not handle errors"), "{error}");
    testbed.wait_for_traffic()
}
