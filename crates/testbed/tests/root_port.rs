//! A device behind a root port: on a bus to which the guest gives its number.

use anyhow::Result;
use ferry::Strategy;
use lab::{Kernel, Lab, progress_on_stderr};
use testbed::{Help, Options, Plug, Programs, Testbed, summarise};

fn start(options: Options) -> Result<Testbed> {
    let lab =
        Lab::ensure(&progress_on_stderr)?.with_kernel(Kernel::default(), &progress_on_stderr)?;
    let options = Options {
        packets_per_second: 200,
        plug: Plug::RootPort,
        ..options
    };
    let testbed = Testbed::start(lab, Programs::build()?, options)?;
    let nic = testbed.shell("readlink -f /sys/class/net/eth0/device")?;
    assert_eq!(
        nic.trim(),
        "/sys/devices/pci0000:00/0000:00:05.0/0000:01:00.0"
    );
    Ok(testbed)
}

/// In a way that needs the right bus number for BARs, MSI-X and Bus Master Enable.
fn there_and_back(testbed: &mut Testbed, strategy: Strategy) -> Result<()> {
    let migrations = [testbed.migrate()?, testbed.migrate()?];
    for migration in &migrations {
        let nic = &migration.report.devices[0];
        assert_eq!(nic.strategy, strategy, "{nic:?}");
    }
    let summary = summarise(testbed, &migrations)?;
    assert_eq!(summary.faults(), [""; 0], "{summary:#?}");
    assert_eq!(summary.stale_pages, Some(0));
    Ok(())
}

#[test]
fn it_arrives_there_and_back() -> Result<()> {
    let mut testbed = start(Options::default())?;
    there_and_back(&mut testbed, Strategy::Transparent)
}

/// The control device's list of devices names its bus.
#[test]
fn a_guest_finds_it_to_help() -> Result<()> {
    let mut testbed = start(Options {
        guest: Help::Module(String::new()),
        dirty_log_of_guest: true,
        compare: Some("never"),
        strategy: Some(Strategy::Cooperative),
        ..Options::default()
    })?;
    there_and_back(&mut testbed, Strategy::Cooperative)
}

/// So the bus behind the root port has no number, and the device no addresses.
#[test]
fn it_arrives_where_no_firmware_has_looked_at_it() -> Result<()> {
    // From the reset vector on, the guest jumps to where it is.
    let mut image = vec![0; 64 << 10];
    let reset_vector = image.len() - 16;
    image[reset_vector..][..2].copy_from_slice(&[0xeb, 0xfe]);
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(&file, image)?;
    let lab = Lab::ensure(&progress_on_stderr)?;
    let options = Options {
        plug: Plug::RootPort,
        firmware: Some(file.path().to_owned()),
        load: false,
        ..Options::default()
    };
    let mut testbed = Testbed::power_on(lab, Programs::build()?, options)?;
    testbed.move_on()?;
    let qmp = testbed.host.vm.qmp();
    let functions = qmp.pci_functions()?;
    let bridge = functions.iter().find_map(|function| function.bridge);
    assert_eq!(bridge.map(|bridge| bridge.secondary), Some(0));
    Ok(())
}
