//! Guests that cannot help a migration, or do not know of one: each goes over by `transparent`, then
//! by `recovery`, and is on the other side what it was before.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferry::Strategy;
use ferry::report::DeviceReport;
use lab::{Kernel, Lab, progress_on_stderr};
use qemu::monitor::Width;
use qemu::system::RunState;
use serde_json::json;
use testbed::{Boot, Options, PEER_IP, Plug, Programs, Testbed, kill_worker, wait_until};

/// How long anything may take that takes seconds on an idle machine.
const PATIENCE: Duration = Duration::from_mins(2);
/// How long a guest may not answer that is taken for stuck.
const SILENT: Duration = Duration::from_secs(3);

/// Firmware waits for half a minute whether somebody wants its boot menu.
const MENU: [&str; 2] = ["-boot", "menu=on,splash-time=30000"];

fn options() -> Options {
    Options {
        // The stuck guest's memory is still: what changes in it, devices write.
        dirty: (0, 0),
        plug: Plug::RootPort,
        packets_per_second: 200,
        ..Options::default()
    }
}

fn idle() -> Options {
    Options {
        load: false,
        ..options()
    }
}

fn lab() -> Result<Lab> {
    Lab::ensure(&progress_on_stderr)
}

fn start(options: Options) -> Result<Testbed> {
    Testbed::start(lab()?, Programs::build()?, options)
}

fn power_on(options: Options) -> Result<Testbed> {
    Testbed::power_on(lab()?, Programs::build()?, options)
}

/// By both strategies; no page is stale, and the VM runs or sleeps as before. Returns what is told of
/// the NIC by `recovery`.
fn move_by_both(testbed: &mut Testbed) -> Result<DeviceReport> {
    testbed.move_on_by(Some(Strategy::Transparent))?;
    let report = testbed.move_on_by(Some(Strategy::Recovery))?;
    let [nic] = &report.devices[..] else {
        panic!("one device, not {:?}", report.devices);
    };
    Ok(nic.clone())
}

/// A device that no driver uses has nothing to recover.
fn went_by_its_state(nic: &DeviceReport) {
    let how = (nic.strategy, &nic.fault);
    assert_eq!(how, (Strategy::Transparent, &None), "{nic:?}");
}

/// The guest has not heard of the error yet.
fn is_yet_to_recover(nic: &DeviceReport) {
    assert_eq!(nic.strategy, Strategy::Recovery, "{nic:?}");
    let fault = nic.fault.as_deref().unwrap_or_default();
    assert!(fault.contains("did not reset it"), "{nic:?}");
}

fn reaches_its_peer(testbed: &Testbed) -> Result<()> {
    testbed.bring_up()?;
    let ping = format!("ping -q -c 3 {PEER_IP}");
    testbed.shell(&ping).map(drop)
}

/// A guest that spins with its interrupts off, until it is [let go on](let_go_on).
fn spinning(options: Options) -> Result<Testbed> {
    let lab = lab()?.with_kernel(Kernel::default(), &progress_on_stderr)?;
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("linux");
    let spin = lab.build_module(&sources, &[], &progress_on_stderr)?;
    let options = Options {
        files: vec![(spin.path().to_owned(), "spin.ko".into())],
        ..options
    };
    let testbed = Testbed::start(lab, Programs::build()?, options)?;
    testbed.shell("(sleep 1; insmod /bin/spin.ko) > /dev/null 2>&1 &")?;
    wait_until("the guest does not spin", PATIENCE, || {
        Ok(testbed.host.vm.shell("true", SILENT).is_err())
    })?;
    Ok(testbed)
}

fn let_go_on(testbed: &Testbed) -> Result<()> {
    ensure!(
        testbed.host.vm.shell("true", SILENT).is_err(),
        "it spins no more"
    );
    // The index is what the guest writes there all the time (see linux/spin.c).
    testbed.host.vm.qmp().write_port(0x70, Width::Byte, 0x50)?;
    testbed.host.vm.qmp().write_port(0x71, Width::Byte, 1)?;
    testbed.shell("true")?;
    testbed.wait_for_traffic()
}

/// It goes on when it is let, and finds its NIC as it left it: after `recovery`, too, though vferry
/// has long stopped to wait for that.
#[test]
fn a_guest_that_spins_with_its_interrupts_off() -> Result<()> {
    let mut testbed = spinning(options())?;
    let nic = move_by_both(&mut testbed)?;
    is_yet_to_recover(&nic);
    let_go_on(&testbed)
}

/// The process that has taken it in dies before it goes on. The next one knows what is to be programmed
/// when the guest resets its NIC.
#[test]
fn a_guest_that_recovers_after_the_process_that_has_taken_it_in_has_died() -> Result<()> {
    let mut testbed = spinning(Options {
        deaths_per_minute: Some(10),
        ..options()
    })?;
    let report = testbed.move_on_by(Some(Strategy::Recovery))?;
    is_yet_to_recover(&report.devices[0]);
    kill_worker(&testbed.host)?;
    kill_worker(&testbed.host)?;
    let_go_on(&testbed)
}

/// No driver answers, one vCPU has its interrupts off, and frames go on to arrive in its rings.
#[test]
fn a_guest_that_has_panicked() -> Result<()> {
    let mut testbed = start(Options {
        append: "panic=0".into(),
        ..options()
    })?;
    testbed.shell("(sleep 1; echo c > /proc/sysrq-trigger) > /dev/null 2>&1 &")?;
    wait_until("the guest does not panic", PATIENCE, || {
        Ok(testbed.host.vm.console().contains("end Kernel panic"))
    })?;
    let nic = move_by_both(&mut testbed)?;
    is_yet_to_recover(&nic);
    Ok(())
}

#[test]
fn a_guest_that_is_suspended_to_ram() -> Result<()> {
    let mut testbed = start(options())?;
    testbed.shell("(sleep 1; echo mem > /sys/power/state) > /dev/null 2>&1 &")?;
    wait_until("the guest does not sleep", PATIENCE, || {
        let status = testbed.host.vm.qmp().run_status()?;
        Ok(status.status == RunState::Suspended)
    })?;
    let nic = move_by_both(&mut testbed)?;
    went_by_its_state(&nic);
    let qmp = testbed.host.vm.qmp();
    assert_eq!(qmp.run_status()?.status, RunState::Suspended);
    qmp.wake_up()?;
    testbed.wait_for_traffic()?;
    let slept = testbed.shell("cat /sys/power/suspend_stats/success")?;
    assert_eq!(slept.trim(), "1");
    Ok(())
}

/// To QEMU it is a guest like others.
#[test]
fn a_guest_that_is_suspended_to_idle() -> Result<()> {
    let mut testbed = start(Options {
        modules: vec!["button".into()],
        ..options()
    })?;
    testbed.shell("(sleep 1; echo freeze > /sys/power/state) > /dev/null 2>&1 &")?;
    wait_until("the guest does not sleep", PATIENCE, || {
        Ok(testbed.host.vm.shell("true", SILENT).is_err())
    })?;
    let nic = move_by_both(&mut testbed)?;
    went_by_its_state(&nic);
    ensure!(
        testbed.host.vm.shell("true", SILENT).is_err(),
        "it is awake"
    );
    // Its power button.
    let qmp = testbed.host.vm.qmp();
    qmp.execute("system_powerdown", json!({}))?;
    testbed.wait_for_traffic()?;
    let slept = testbed.shell("cat /sys/power/suspend_stats/success")?;
    assert_eq!(slept.trim(), "1");
    Ok(())
}

/// A NIC that nobody drives is moved as well, and can be driven afterwards.
#[test]
fn a_guest_that_has_unloaded_its_driver() -> Result<()> {
    let mut testbed = start(idle())?;
    testbed.shell("rmmod ixgbevf")?;
    let nic = move_by_both(&mut testbed)?;
    went_by_its_state(&nic);
    testbed.shell("insmod /lib/modules/ixgbevf.ko")?;
    reaches_its_peer(&testbed)
}

/// It waits for a disk that does not come, and has not loaded a driver.
#[test]
fn a_guest_that_has_halted_while_it_booted() -> Result<()> {
    let mut testbed = power_on(Options {
        append: "rdinit=/none root=/dev/none rootwait loglevel=7".into(),
        ..idle()
    })?;
    wait_until("the guest does not come so far", PATIENCE, || {
        let console = testbed.host.vm.console();
        Ok(console.contains("Waiting for root device"))
    })?;
    let nic = move_by_both(&mut testbed)?;
    went_by_its_state(&nic);
    Ok(())
}

/// In its boot menu, from which it goes on to boot at the destination.
#[test]
fn a_guest_in_seabios() -> Result<()> {
    let mut testbed = power_on(Options {
        args: MENU.map(Into::into).into(),
        append: "loglevel=7".into(),
        ..idle()
    })?;
    let boots = |testbed: &Testbed| testbed.host.vm.console().contains("Linux version");
    let nic = move_by_both(&mut testbed)?;
    went_by_its_state(&nic);
    ensure!(!boots(&testbed), "it boots already");
    testbed.host.vm.expect_boot();
    testbed.host.vm.wait_ready(PATIENCE)?;
    ensure!(boots(&testbed), "it has booted elsewhere");
    reaches_its_peer(&testbed)
}

/// In its boot menu, which would not hold it up if there were a kernel; it goes on to look for
/// something to boot.
#[test]
fn a_guest_in_ovmf() -> Result<()> {
    let lab = lab()?;
    let firmware = lab.file("/usr/share/ovmf/OVMF.fd");
    let options = Options {
        firmware: Some(firmware.context("the lab has no OVMF")?),
        boot: Boot::Firmware,
        args: MENU.map(Into::into).into(),
        ..idle()
    };
    let mut testbed = Testbed::power_on(lab, Programs::build()?, options)?;
    let nic = move_by_both(&mut testbed)?;
    went_by_its_state(&nic);
    let goes_on = |testbed: &Testbed| testbed.host.vm.console().contains("BdsDxe: loading Boot");
    ensure!(!goes_on(&testbed), "it has gone on already");
    wait_until("it does not go on", PATIENCE, || Ok(goes_on(&testbed)))
}
