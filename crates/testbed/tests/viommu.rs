//! Devices behind a virtual IOMMU, by which the guest gives them addresses of its own choice.

use std::collections::BTreeMap;

use anyhow::Result;
use ferry::Strategy;
use lab::{Kernel, Lab, progress_on_stderr};
use qemu::Iommu;
use testbed::{Devices, Help, Options, Plug, Programs, Testbed, summarise};

type Marks = BTreeMap<String, ferry::report::Marks>;

/// What a distribution's session manager does with the key, by busybox's `acpid`: event type, name,
/// code and value, then the event's name, for which there is an action.
const REACT_TO_KEY: &str = "mkdir -p /etc/acpi && \
     echo 'EV_KEY 1 KEY_SLEEP 142 1 button/sleep SLPB' > /etc/acpid.map && \
     echo 'SLPB sleep' > /etc/acpid.conf && \
     printf '#!/bin/sh\\necho mem > /sys/power/state\\n' > /etc/acpi/sleep && \
     chmod 755 /etc/acpi/sleep && \
     (acpid -d -c /etc/acpi -a /etc/acpid.conf -M /etc/acpid.map > /tmp/acpid.log 2>&1 &)";

fn start(iommu: Iommu, options: Options) -> Result<Testbed> {
    let mut lab = Lab::ensure(&progress_on_stderr)?;
    if options.guest != Help::NoDevice {
        lab = lab.with_kernel(Kernel::default(), &progress_on_stderr)?;
    }
    let mut modules = options.modules.clone();
    let mut append = options.append.clone();
    match iommu {
        Iommu::Virtio => modules.push("virtio_iommu".into()),
        // A guest on a busy machine misses ticks that its kernel looks for at boot, and panics where
        // the IOMMU remaps interrupts (`check_timer`).
        Iommu::Intel => append += " intel_iommu=on no_timer_check",
    }
    let options = Options {
        iommu: Some(iommu),
        packets_per_second: 200,
        modules,
        append,
        ..options
    };
    Testbed::start(lab, Programs::build()?, options)
}

/// What the guest's kernel does with a device's addresses: `DMA`, `DMA-FQ` or `identity`.
fn domain(testbed: &Testbed, device: &str) -> Result<String> {
    let group = format!("cat /sys/class/{device}/device/iommu_group/type");
    Ok(testbed.shell(&group)?.trim().to_owned())
}

/// It keeps no log, and nobody tells what it writes nor compares memory.
fn without_log() -> Options {
    Options {
        dirty_log_of_guest: true,
        compare: Some("never"),
        ..Options::default()
    }
}

/// With a load on its device, of whose writes `knows` is to know. Returns the marks of each migration.
fn there_and_back(testbed: &mut Testbed, strategy: Strategy, knows: &str) -> Result<[Marks; 2]> {
    let migrations = [testbed.migrate()?, testbed.migrate()?];
    for migration in &migrations {
        for device in &migration.report.devices {
            assert_eq!((device.strategy, &device.fault), (strategy, &None));
            assert_eq!(device.dirty_log, knows);
        }
        assert_eq!(migration.report.compared, None);
    }
    let summary = summarise(testbed, &migrations)?;
    assert_eq!(summary.faults(), [""; 0], "{summary:#?}");
    assert_eq!(summary.stale_pages, Some(0));
    Ok(migrations.map(|migration| migration.report.pages_marked))
}

/// Each page that a device writes is known by its address in memory, not by the device's.
fn by_its_log(iommu: Iommu) -> Result<()> {
    let mut testbed = start(iommu, Options::default())?;
    assert!(domain(&testbed, "net/eth0")?.starts_with("DMA"));
    for marks in there_and_back(&mut testbed, Strategy::Transparent, "device")? {
        assert!(marks["device-log"].total() > 0, "{marks:?}");
        assert!(!marks.contains_key("iommu"), "{marks:?}");
    }
    Ok(())
}

#[test]
fn it_arrives_there_and_back_behind_virtio_iommu() -> Result<()> {
    by_its_log(Iommu::Virtio)
}

#[test]
fn it_arrives_there_and_back_behind_intel_iommu() -> Result<()> {
    by_its_log(Iommu::Intel)
}

/// What is mapped for a device is all that it can have written.
fn by_what_is_mapped(iommu: Iommu, devices: Devices) -> Result<()> {
    let options = Options {
        devices,
        ..without_log()
    };
    let mut testbed = start(iommu, options)?;
    for marks in there_and_back(&mut testbed, Strategy::Transparent, "iommu")? {
        assert_eq!(marks["device-log"].total(), 0, "{marks:?}");
        assert!(marks["iommu"].at_halt > 0, "{marks:?}");
        assert!(marks["iommu"].at_halt < 512 << 20 >> 14, "{marks:?}");
    }
    Ok(())
}

#[test]
fn what_virtio_iommu_maps_is_enough_for_a_nic_without_a_log() -> Result<()> {
    by_what_is_mapped(Iommu::Virtio, Devices::Nic)
}

#[test]
fn what_intel_iommu_maps_is_enough_for_a_disk_without_a_log() -> Result<()> {
    by_what_is_mapped(Iommu::Intel, Devices::Disk)
}

#[test]
fn what_is_mapped_and_not_marked_shows_stale_pages() -> Result<()> {
    let options = Options {
        unsound_control: Some("no-log".into()),
        ..without_log()
    };
    let testbed = &mut start(Iommu::Virtio, options)?;
    let next = testbed.next_host()?;
    let report = testbed.run_migrate(&next)?;
    assert!(report.stale_pages > Some(0), "{report:?}");
    assert!(!report.pages_marked.contains_key("iommu"));
    Ok(())
}

/// All of memory is mapped for it then.
#[test]
fn a_guest_that_passes_its_iommu_by_is_refused_or_its_memory_compared() -> Result<()> {
    let append = "iommu.passthrough=1".to_owned();
    let options = Options {
        append,
        ..without_log()
    };
    let mut testbed = start(Iommu::Virtio, options)?;
    assert_eq!(domain(&testbed, "net/eth0")?, "identity");
    let next = testbed.next_host()?;
    let refused = testbed.run_migrate(&next).unwrap_err().to_string();
    assert!(refused.contains("without iommu=pt"), "{refused}");
    testbed.wait_for_traffic()?;
    drop(next);
    testbed.set_compare(None);
    let report = testbed.migrate()?.report;
    assert_eq!(report.stale_pages, Some(0));
    assert!(report.compared.expect("it was compared").pages > 0);
    Ok(())
}

/// No DMA message reaches the table any more when the destination has loaded the VM.
#[test]
fn what_a_guest_changes_of_its_interrupts_meanwhile_arrives() -> Result<()> {
    let mut testbed = start(Iommu::Virtio, Options::default())?;
    testbed.shell(
        "(while :; do for cpu in 1 2; do for irq in $(grep eth0 /proc/interrupts | cut -d: -f1); do \
         echo $cpu > /proc/irq/$irq/smp_affinity; done; usleep 20000; done; done) \
         > /dev/null 2>&1 &",
    )?;
    let mut corrected = 0;
    let mut migrations = Vec::new();
    while corrected == 0 && migrations.len() < 6 {
        let migration = testbed.migrate()?;
        corrected += migration.report.functions_corrected;
        migrations.push(migration);
    }
    assert!(corrected > 0);
    let summary = summarise(&testbed, &migrations)?;
    assert_eq!(summary.faults(), [""; 0], "{summary:#?}");
    assert_eq!(summary.interrupts.lost, 0);
    Ok(())
}

/// Its kernel programs the device anew, and a root port has a bus of its own.
#[test]
fn a_guest_recovers_its_device_behind_an_iommu() -> Result<()> {
    let options = Options {
        plug: Plug::RootPort,
        strategy: Some(Strategy::Recovery),
        ..without_log()
    };
    let mut testbed = start(Iommu::Virtio, options)?;
    for marks in there_and_back(&mut testbed, Strategy::Recovery, "iommu")? {
        assert!(marks["iommu"].at_halt > 0, "{marks:?}");
    }
    Ok(())
}

/// Its module tracks nothing behind an IOMMU, and stops the device all the same.
#[test]
fn a_guest_stops_its_device_behind_an_iommu() -> Result<()> {
    let options = Options {
        guest: Help::Module(String::new()),
        strategy: Some(Strategy::Cooperative),
        ..without_log()
    };
    let mut testbed = start(Iommu::Virtio, options)?;
    there_and_back(&mut testbed, Strategy::Cooperative, "iommu").map(drop)
}

fn to_sleep(iommu: Iommu) -> Result<Testbed> {
    let options = Options {
        strategy: Some(Strategy::Sleep),
        ..Options::default()
    };
    let testbed = start(iommu, options)?;
    testbed.shell(REACT_TO_KEY)?;
    Ok(testbed)
}

#[test]
fn a_guest_sleeps_its_way_there_and_back_behind_intel_iommu() -> Result<()> {
    let mut testbed = to_sleep(Iommu::Intel)?;
    for _ in 0..2 {
        let report = testbed.migrate()?.report;
        assert_eq!(report.stale_pages, Some(0), "{report:?}");
        assert_eq!(report.devices[0].strategy, Strategy::Sleep);
    }
    testbed.wait_for_traffic()
}

/// Linux would not set it up again.
#[test]
fn no_guest_is_sent_to_sleep_behind_virtio_iommu() -> Result<()> {
    let mut testbed = to_sleep(Iommu::Virtio)?;
    let next = testbed.next_host()?;
    let refused = testbed.run_migrate(&next).unwrap_err().to_string();
    assert!(
        refused.contains("does not set its virtio-iommu up again"),
        "{refused}"
    );
    testbed.wait_for_traffic()
}
