//! What a VM with a [keeper] is promised: the process that serves its devices can die, or make room for one of
//! another program.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferry::Strategy;
use lab::{Kernel, Lab, progress_on_stderr};
use rustix::process::Signal;
use testbed::{
    Devices, Help, Manager, Options, Plug, Programs, Testbed, kill_worker, kill_workers,
    restart_unit, upgrade, upgrade_workers, wait_until,
};

/// Kills of this bounded form; `cargo xtask kill-worker` has more.
const TIMES: u64 = 20;
/// How often the keeper ends, in each of two ways.
const RESTARTS: u64 = 10;
/// Programs that follow one another.
const UPGRADES: u64 = 20;
/// How long a migration may take to begin to copy, or a guest to do what it is asked for.
const BEGINS: Duration = Duration::from_secs(30);
/// How long a guest is left as it was asked to be: until the test is over.
const LONG_MS: &str = "600000";

#[test]
fn a_guest_under_load_outlives_the_process_that_serves_its_devices() -> Result<()> {
    let lab = Lab::ensure(&progress_on_stderr)?;
    let mut testbed = Testbed::start(
        lab,
        Programs::build()?,
        Options {
            // So that there is time to die in the middle of it.
            max_bandwidth: Some(48 << 20),
            ..options()
        },
    )?;
    let kills = kill_workers(&testbed, TIMES, 1, &|_| ())?;
    println!(
        "{} of {} kills survived: {kills:?}",
        kills.survived, kills.killed
    );
    assert_eq!(kills.faults, [""; 0], "{kills:?}");
    assert!(kills.tcp_bytes.iter().all(|bytes| *bytes > 0), "{kills:?}");

    // A migration dies with the process that has begun it, and the VM runs on with its devices.
    let there = testbed.next_host()?;
    thread::scope(|scope| {
        let migration = scope.spawn(|| testbed.run_migrate(&there));
        wait_for_precopy(&testbed)?;
        let vferry = testbed.host.vferry();
        let refused = upgrade(&testbed.host, vferry).unwrap_err().to_string();
        ensure!(
            refused.contains("a migration of this VM is under way"),
            "{refused}"
        );
        kill_worker(&testbed.host)?;
        let ended = migration.join().expect("it does not panic");
        assert!(ended.is_err(), "{ended:?}");
        anyhow::Ok(())
    })?;
    drop(there);
    testbed.wait_for_traffic()?;
    assert!(testbed.host.vm.qmp().run_status()?.running);
    assert_eq!(testbed.host.status()?.stage, "running");

    // The process that serves it now migrates it, to a host that has a keeper too.
    let migration = testbed.migrate()?;
    assert_eq!(migration.report.stale_pages, Some(0));
    let kills = kill_workers(&testbed, 3, 2, &|_| ())?;
    assert_eq!(kills.faults, [""; 0], "{kills:?}");
    Ok(())
}

#[test]
fn a_new_program_takes_over_under_a_guest_under_load_and_one_that_cannot_does_no_harm() -> Result<()>
{
    let lab = Lab::ensure(&progress_on_stderr)?;
    let mut programs = Programs::build()?;
    let folder = tempfile::tempdir()?;
    let (built, installed) = (programs.vferry.clone(), folder.path().join("vferry"));
    programs.vferry.clone_from(&installed);
    let install = || replace_file(&built, &installed);
    install()?;
    let behind_root_ports = Options {
        plug: Plug::RootPort,
        ..options()
    };
    let testbed = Testbed::start(lab, programs, behind_root_ports)?;
    let upgrades = upgrade_workers(&testbed, UPGRADES, 3, &built, &install)?;
    println!("{UPGRADES} upgrades: {upgrades:?}");
    assert_eq!(upgrades.faults, [""; 0], "{upgrades:?}");
    let status = testbed.host.status()?;
    assert_eq!((status.upgrades, status.deaths), (Some(UPGRADES), Some(0)));
    assert!(is_of(status.pid, &installed)?, "the next program serves");

    // One that cannot: the one before goes on, also where it dies later.
    replace_file(Path::new("/bin/false"), &installed)?;
    let refused = upgrade(&testbed.host, &built).unwrap_err().to_string();
    assert!(refused.contains("exit status: 1"), "{refused}");
    assert!(refused.contains("nothing is lost"), "{refused}");
    testbed.wait_for_traffic()?;
    install()?;
    let status = testbed.host.status()?;
    assert_eq!(status.upgrades, Some(UPGRADES));
    assert_eq!(status.upgrade_refused.as_deref(), Some("exit status: 1"));
    let kills = kill_workers(&testbed, 3, 4, &|_| ())?;
    assert_eq!(kills.faults, [""; 0], "{kills:?}");
    assert!(!is_of(testbed.host.status()?.pid, &installed)?);
    let upgrades = upgrade_workers(&testbed, 1, 5, &built, &install)?;
    assert_eq!(upgrades.faults, [""; 0], "{upgrades:?}");
    let status = testbed.host.status()?;
    assert_eq!((status.upgrade_refused, status.deaths), (None, Some(3)));
    Ok(())
}

#[test]
fn a_guest_under_load_outlives_the_keeper_where_a_service_manager_holds_what_it_holds() -> Result<()>
{
    let lab = Lab::ensure(&progress_on_stderr)?;
    let folder = tempfile::tempdir()?;
    let manager = Manager::start(folder.path())?;
    let options = Options {
        notify: Some(manager.socket.clone()),
        ..options()
    };
    let testbed = Testbed::start(lab, Programs::build()?, options)?;
    assert_eq!(manager.status(), "serving");
    let (killed, process) = restart_unit(&testbed, &manager, None, Signal::KILL, RESTARTS, 6)?;
    println!("the keeper killed: {killed:?}");
    assert_eq!(killed.faults, [""; 0], "{killed:?}");
    assert!(
        manager
            .status()
            .contains("1 processes that served have died")
    );
    let held = manager.stored();
    // As `systemctl restart` does.
    let process = Some(process);
    let (ended, _process) = restart_unit(&testbed, &manager, process, Signal::TERM, RESTARTS, 7)?;
    println!("the unit restarted: {ended:?}");
    assert_eq!(ended.faults, [""; 0], "{ended:?}");
    assert_eq!(manager.stored(), held, "nothing is held that is not needed");
    Ok(())
}

/// Who has asked it for help is gone: it is told that it is over, whatever it was asked for, and helps the next.
#[test]
fn a_guest_that_was_asked_for_help_goes_on_when_the_process_that_asked_dies() -> Result<()> {
    let lab =
        Lab::ensure(&progress_on_stderr)?.with_kernel(Kernel::default(), &progress_on_stderr)?;
    let helping = Options {
        devices: Devices::Nic,
        guest: Help::Module(String::new()),
        strategy: Some(Strategy::Cooperative),
        ..options()
    };
    let mut testbed = Testbed::start(lab, Programs::build()?, helping)?;
    for (command, held) in [("track", "--hold-ms"), ("quiesce", "--stopped-ms")] {
        let mut asking = testbed
            .host
            .command("rehearse")
            .args([held, LONG_MS])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        // It has done so, and waits for the end of it.
        wait_until(command, BEGINS, || is_done(&testbed, command))?;
        kill_worker(&testbed.host)?;
        ensure!(
            !asking.wait()?.success(),
            "nobody is left to say how it went"
        );
        testbed.wait_for_traffic().context(command)?;
        wait_until("end", BEGINS, || is_done(&testbed, "end"))?;
    }
    let migration = testbed.migrate()?;
    let [nic] = &migration.report.devices[..] else {
        panic!("one device, not {:?}", migration.report.devices);
    };
    assert_eq!((nic.strategy, &nic.fault), (Strategy::Cooperative, &None));
    assert_eq!(migration.report.stale_pages, Some(0));
    let kills = kill_workers(&testbed, 3, 8, &|_| ())?;
    assert_eq!(kills.faults, [""; 0], "{kills:?}");
    Ok(())
}

/// Whether that is what the guest was asked for last, and it has answered for its one device.
fn is_done(testbed: &Testbed, command: &str) -> Result<bool> {
    let devices = testbed.host.status()?.devices;
    let control = devices.iter().map(|device| &device.model);
    let mut control = control.filter(|model| model["command"].is_string());
    let control = control.next().context("there is no control device")?;
    Ok(control["command"] == command && control["devices_answered"] == 1)
}

fn options() -> Options {
    Options {
        deaths_per_minute: Some(1000),
        packets_per_second: 400,
        devices: Devices::NicAndDisk,
        ..Options::default()
    }
}

/// As a package manager does: what is open stays what it is.
fn replace_file(by: &Path, at: &Path) -> Result<()> {
    let beside = at.with_extension("new");
    fs::copy(by, &beside)?;
    Ok(fs::rename(beside, at)?)
}

/// Whether a process runs that file, not one that was in its place.
fn is_of(pid: u32, file: &Path) -> Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    let [runs, lies] = [Path::new(&format!("/proc/{pid}/exe")), file].map(fs::metadata);
    let (runs, lies) = (runs?, lies?);
    Ok((runs.dev(), runs.ino()) == (lies.dev(), lies.ino()))
}

fn wait_for_precopy(testbed: &Testbed) -> Result<()> {
    wait_until("it copies", BEGINS, || {
        Ok(testbed.host.log().contains("dirty log opened"))
    })
    .with_context(|| testbed.host.log())
}
