//! Whatever comes in the way of a migration: the VM runs on at the source, with a working device,
//! and migrates later.

mod command;
mod obstacle;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ferry::Strategy;
use lab::{Lab, progress_on_stderr};
use qemu::migration::{MigrationSettings, MigrationStatus};
use qemu::system::RunState;
use rustix::process::{Pid, Signal, kill_process};
use testbed::{GUEST_IP, Host, HostOptions, Options, PEER_IP, Programs, Testbed};
use uplink::{Peer, PeerConfig};
use vferry::control::Reply;

use command::Command;
use obstacle::Obstacle;

/// How long anything may take that takes seconds on an idle machine.
const PATIENCE: Duration = Duration::from_mins(2);
/// So slow that a precopy lasts for a minute, unless it is let go.
const SLOW: u64 = 1 << 20;

#[test]
fn the_vm_runs_on_after_every_obstacle_and_migrates_later() -> Result<()> {
    let lab = Lab::ensure(&progress_on_stderr)?;
    let options = Options {
        max_bandwidth: Some(SLOW),
        ..Options::default()
    };
    let mut testbed = Testbed::start(lab, Programs::build()?, options)?;
    for obstacle in Obstacle::ALL {
        let began = Instant::now();
        obstacle
            .meet(&mut testbed)
            .and_then(|()| runs_here(&testbed))
            .with_context(|| format!("{obstacle:?}; vferry said:\n{}", testbed.host.log()))?;
        eprintln!("{obstacle:?}: {:.1} s", began.elapsed().as_secs_f64());
    }
    let next = testbed.next_host()?;
    a_look_touches_nothing(&testbed, &next)?;
    let mut migration = Command::migrate(&testbed.host, &next.link)?;
    migration.wait_precopy(testbed.host.vm.qmp())?;
    let_go(&testbed.host)?;
    let outcome = migration.wait()?;
    ensure!(outcome.status.success(), "{outcome:?}");
    let Some(Reply::Done { report }) = outcome.last else {
        anyhow::bail!("{outcome:?}")
    };
    assert_eq!(report.stale_pages, Some(0));
    testbed.host = next;
    runs_here(&testbed)
}

#[test]
fn vferry_ends_with_its_qemu_and_leaves_no_socket() -> Result<()> {
    let scene = Scene::set()?;
    let host = scene.host()?;
    let config = host.config.clone();
    ensure!(!sockets(&config)?.is_empty());
    host.end(PATIENCE)?;
    assert_eq!(sockets(&config)?, [""; 0]);
    Ok(())
}

#[test]
fn vferry_ends_in_order_when_told_to() -> Result<()> {
    let scene = Scene::set()?;
    let host = scene.host()?;
    let pid = i32::try_from(host.process().id())
        .ok()
        .and_then(Pid::from_raw);
    kill_process(pid.context("a process has an id")?, Signal::TERM)?;
    let status = host.process().wait(Instant::now() + PATIENCE);
    ensure!(
        status.is_some_and(|status| status.success()),
        "{status:?}; vferry said:\n{}",
        host.log()
    );
    assert_eq!(sockets(&host.config)?, [""; 0]);
    Ok(())
}

/// `vferry check` tells what would be done, and both hosts are as they were.
fn a_look_touches_nothing(testbed: &Testbed, next: &Host) -> Result<()> {
    let outcome = Command::look(&testbed.host, &next.link)?.wait()?;
    let Some(Reply::Prospect(prospect)) = &outcome.last else {
        anyhow::bail!("{outcome:?}")
    };
    ensure!(outcome.status.success(), "{outcome:?}");
    assert_eq!(prospect.strategy, Strategy::Transparent);
    let known_by = prospect.devices.iter().map(|device| &*device.dirty_log);
    assert_eq!(known_by.collect::<Vec<_>>(), ["device"]);
    let waiting = next.vm.qmp().run_status()?.status;
    assert_eq!(waiting, RunState::InMigrate);
    let migration = testbed.host.vm.qmp().migration()?;
    assert_ne!(migration.status, MigrationStatus::Active);
    runs_here(testbed)
}

/// The vCPUs run, the devices run, all traffic flows, and nothing is under way.
fn runs_here(testbed: &Testbed) -> Result<()> {
    let running = testbed.host.vm.qmp().run_status()?;
    ensure!(running.running, "QEMU says {running:?}");
    let status = testbed.host.status()?;
    ensure!(
        status.stage == "running",
        "the devices are {}",
        status.stage
    );
    ensure!(!status.migrating, "a migration is under way");
    testbed.wait_for_traffic()
}

/// Takes the source's limit off the migration under way.
fn let_go(host: &Host) -> Result<()> {
    let settings = MigrationSettings {
        max_bandwidth: Some(0),
        ..MigrationSettings::default()
    };
    Ok(host.vm.qmp().set_migration_parameters(&settings)?)
}

/// The sockets that vferry, not QEMU, makes beside the configuration file.
fn sockets(config: &Path) -> Result<Vec<String>> {
    let folder = config.parent().context("a file is in a folder")?;
    let names = fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().into_string()));
    let names: Vec<_> = names.collect::<Result<_>>()?;
    let own = |name: &String| {
        let socket = Path::new(name).extension().is_some_and(|end| end == "sock");
        socket && !name.contains("qmp")
    };
    Ok(names.into_iter().flatten().filter(own).collect())
}

/// What a host needs that boots no guest.
struct Scene {
    lab: Lab,
    programs: Programs,
    folder: tempfile::TempDir,
    _peer: Peer,
}

impl Scene {
    fn set() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("vferry-").tempdir()?;
        let wire = folder.path().join("wire.sock");
        Ok(Self {
            lab: Lab::ensure(&progress_on_stderr)?,
            programs: Programs::build()?,
            _peer: Peer::start(PeerConfig::new(wire, PEER_IP, GUEST_IP))?,
            folder,
        })
    }

    fn host(&self) -> Result<Host> {
        let wire = self.folder.path().join("wire.sock");
        let options = HostOptions::new(256 << 20, wire);
        let folder = self.folder.path();
        let host = Host::start(&self.lab, &self.programs, folder, "1", &options, true)?;
        let deadline = Instant::now() + PATIENCE;
        while !host.status()?.devices.iter().all(|device| device.connected) {
            ensure!(Instant::now() < deadline, "QEMU did not connect");
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(host)
    }
}
