//! What may come in the way of a migration, made to happen.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::process::Command as Process;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ferry::Phase;
use lab::Guarded;
use qemu::Qmp;
use qemu::migration::{MigrationSettings, MigrationStatus};
use qemu::system::RunState;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use testbed::{Host, HostOptions, Testbed};

use crate::command::Command;
use crate::{PATIENCE, let_go};

/// One of them.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Obstacle {
    NobodyListens,
    DestinationDoesNotWait,
    OtherMemory,
    OtherDevices,
    Postcopy,
    PausedVm,
    MemoryOfAnotherConfiguration,
    Cancel,
    DestinationsQemuDies,
    DestinationsVferryDies,
    DestinationDiesInComparison,
    NotAgreedOn,
}

impl Obstacle {
    pub(crate) const ALL: [Self; 12] = [
        Self::NobodyListens,
        Self::DestinationDoesNotWait,
        Self::OtherMemory,
        Self::OtherDevices,
        Self::Postcopy,
        Self::PausedVm,
        Self::MemoryOfAnotherConfiguration,
        Self::Cancel,
        Self::DestinationsQemuDies,
        Self::DestinationsVferryDies,
        Self::DestinationDiesInComparison,
        Self::NotAgreedOn,
    ];

    /// Tries to migrate, fails as it should, and clears the obstacle away.
    pub(crate) fn meet(self, testbed: &mut Testbed) -> Result<()> {
        match self {
            Self::NobodyListens => nobody_listens(testbed),
            Self::DestinationDoesNotWait => destination_does_not_wait(testbed),
            Self::OtherMemory => other_memory(testbed),
            Self::OtherDevices => other_devices(testbed),
            Self::Postcopy => postcopy(testbed),
            Self::PausedVm => paused_vm(testbed),
            Self::MemoryOfAnotherConfiguration => memory_of_another_configuration(testbed),
            Self::Cancel => cancel(testbed),
            Self::DestinationsQemuDies => destinations_qemu_dies(testbed),
            Self::DestinationsVferryDies => destinations_vferry_dies(testbed),
            Self::DestinationDiesInComparison => destination_dies_in_comparison(testbed),
            Self::NotAgreedOn => not_agreed_on(testbed),
        }
    }
}

const UNTOUCHED: &str = "refused, nothing was touched";
const RUNS_ON: &str = "the VM runs on here";

fn nobody_listens(testbed: &Testbed) -> Result<()> {
    let link = format!("{}.absent", testbed.host.link);
    let outcome = Command::migrate(&testbed.host, &link)?.wait()?;
    outcome.refused(&[
        "no vferry answers at",
        &link,
        "is `vferry run` started there?",
    ])
}

fn destination_does_not_wait(testbed: &mut Testbed) -> Result<()> {
    let options = testbed.next_host_options();
    let destination = testbed.another_host(&options, false)?;
    let outcome = Command::migrate(&testbed.host, &destination.link)?.wait()?;
    outcome.refused(&[UNTOUCHED, "not waiting for a VM", "`-incoming defer`"])?;
    ensure!(destination.vm.qmp().run_status()?.status == RunState::Running);
    Ok(())
}

fn other_memory(testbed: &mut Testbed) -> Result<()> {
    let options = testbed.next_host_options();
    let options = HostOptions {
        memory: options.memory / 2,
        ..options
    };
    refused_untouched(
        testbed,
        &options,
        &["the memory is not the same: 512 MiB", "256 MiB"],
    )
}

fn other_devices(testbed: &mut Testbed) -> Result<()> {
    let options = testbed.next_host_options();
    let options = HostOptions {
        nic_address: "00:07.0".into(),
        ..options
    };
    refused_untouched(
        testbed,
        &options,
        &["the devices are not the same", "00:05.0", "00:07.0"],
    )
}

/// Refused because of the destination or the source; both are as before.
fn refused_untouched(testbed: &mut Testbed, options: &HostOptions, words: &[&str]) -> Result<()> {
    let destination = testbed.another_host(options, true)?;
    let look = Command::look(&testbed.host, &destination.link)?.wait()?;
    let outcome = Command::migrate(&testbed.host, &destination.link)?.wait()?;
    for outcome in [look, outcome] {
        outcome.refused(words)?;
        outcome.refused(&[UNTOUCHED])?;
    }
    let qmp = destination.vm.qmp();
    ensure!(qmp.run_status()?.status == RunState::InMigrate);
    ensure!(qmp.migration()?.status == MigrationStatus::None);
    ensure!(
        destination.status()?.stage == "running",
        "its devices were touched"
    );
    Ok(())
}

fn postcopy(testbed: &mut Testbed) -> Result<()> {
    set_postcopy(testbed.host.vm.qmp(), true)?;
    let options = testbed.next_host_options();
    let result = refused_untouched(testbed, &options, &["postcopy-ram", "before its memory"]);
    set_postcopy(testbed.host.vm.qmp(), false)?;
    result
}

fn set_postcopy(qmp: &Qmp, on: bool) -> Result<()> {
    let capabilities = json!({"capabilities": [{"capability": "postcopy-ram", "state": on}]});
    qmp.execute("migrate-set-capabilities", capabilities)?;
    Ok(())
}

fn paused_vm(testbed: &mut Testbed) -> Result<()> {
    testbed.host.vm.qmp().stop()?;
    let options = testbed.next_host_options();
    let result = refused_untouched(testbed, &options, &["the VM is paused", "QMP `cont`"]);
    testbed.host.vm.qmp().cont()?;
    result
}

/// A second vferry with a configuration that says other than what QEMU has.
fn memory_of_another_configuration(testbed: &Testbed) -> Result<()> {
    let folder = testbed
        .host
        .config
        .parent()
        .context("a file is in a folder")?;
    let mut text = fs::read_to_string(&testbed.host.config)?;
    for name in ["control", "sidecar", "link", "incoming", "net0"] {
        text = text.replace(&format!("/{name}.sock"), &format!("/other-{name}.sock"));
    }
    let config = folder.join("other.toml");
    fs::write(&config, text.replace("\"512M\"", "\"256M\""))?;
    let program = testbed.host.command("run").get_program().to_owned();
    let mut run = Process::new(&program);
    run.arg("run").arg(&config);
    let _other = Guarded::spawn(run, &File::create(folder.join("other.log"))?)?;
    wait_for("the other vferry", || {
        Ok(UnixStream::connect(folder.join("other-control.sock")).is_ok())
    })?;
    let mut migrate = Process::new(&program);
    migrate.arg("migrate").arg(&config);
    migrate.args(["--json", "--to", &testbed.host.link]);
    let line = format!("{}:3: ", config.display());
    let outcome = Command::spawn(migrate)?.wait()?;
    outcome.refused(&[
        &line,
        "says 256 MiB",
        "QEMU has 512 MiB",
        "write instead: memory = \"512M\"",
    ])
}

fn cancel(testbed: &mut Testbed) -> Result<()> {
    let destination = testbed.next_host()?;
    let migration = in_precopy(testbed, &destination)?;
    migration.interrupt()?;
    migration.wait()?.refused(&["cancelled", RUNS_ON])?;
    // What it had received is no VM.
    let ended = destination.process().wait(Instant::now() + PATIENCE);
    ensure!(
        ended.is_some_and(|status| status.success()),
        "{ended:?}: {}",
        destination.log()
    );
    Ok(())
}

fn destinations_qemu_dies(testbed: &mut Testbed) -> Result<()> {
    let destination = testbed.next_host()?;
    let migration = in_precopy(testbed, &destination)?;
    kill(destination.vm.pid())?;
    migration
        .wait()?
        .refused(&["failed in phase precopy", RUNS_ON])
}

/// The destination's QEMU would go on receiving, and find at the end that nobody takes the state:
/// in minutes, at this rate.
fn destinations_vferry_dies(testbed: &mut Testbed) -> Result<()> {
    let destination = testbed.next_host()?;
    let migration = in_precopy(testbed, &destination)?;
    kill(destination.process().id())?;
    migration.wait()?.refused(&[
        "failed in phase precopy",
        "closed the control link",
        RUNS_ON,
    ])
}

/// The source's QEMU has completed, and lets the VM run again.
fn destination_dies_in_comparison(testbed: &mut Testbed) -> Result<()> {
    let destination = testbed.next_host()?;
    let mut command = testbed.host.command("migrate");
    command.args(["--json", "--compare", "always", "--to", &destination.link]);
    let mut migration = Command::spawn(command)?;
    migration.wait_precopy(testbed.host.vm.qmp())?;
    let_go(&testbed.host)?;
    migration.wait_phase(Phase::Compare)?;
    kill(destination.process().id())?;
    migration
        .wait()?
        .refused(&["failed in phase compare", RUNS_ON])
}

/// A migration that somebody started with QMP, past vferry.
fn not_agreed_on(testbed: &mut Testbed) -> Result<()> {
    let destination = testbed.next_host()?;
    let settings = MigrationSettings {
        max_bandwidth: Some(0),
        downtime_limit: Some(Duration::from_millis(100)),
        ..MigrationSettings::default()
    };
    let uri = destination.link.replace("link.sock", "plain.sock");
    let (from, to) = (testbed.host.vm.qmp(), destination.vm.qmp());
    to.prepare_migration(&settings)?;
    to.migrate_incoming(&uri)?;
    from.prepare_migration(&settings)?;
    from.migrate(&uri)?;
    wait_for("the end of the migration", || {
        Ok(from.migration()?.status.is_over())
    })?;
    let info = from.migration()?;
    ensure!(info.status == MigrationStatus::Failed, "{info:?}");
    wait_for("the VM to run on", || Ok(from.run_status()?.running))?;
    // The source refuses to SAVE what it did not halt; the destination would refuse the LOAD.
    let log = testbed.host.log();
    ensure!(log.contains("start it with `vferry migrate`"), "{log}");
    Ok(())
}

fn in_precopy(testbed: &Testbed, destination: &Host) -> Result<Command> {
    let mut migration = Command::migrate(&testbed.host, &destination.link)?;
    migration.wait_precopy(testbed.host.vm.qmp())?;
    Ok(migration)
}

fn kill(pid: u32) -> Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    Ok(kill_process(
        pid.context("a process has an id")?,
        Signal::KILL,
    )?)
}

fn wait_for(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !done()? {
        ensure!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
