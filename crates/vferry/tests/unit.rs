//! `vferry run` as a unit of a service manager.

mod common;
mod serving;

use std::fs;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::process::Command;
use std::time::Duration;

use common::{configuration, link};
use serving::Serving;

const VFERRY: &str = env!("CARGO_BIN_EXE_vferry");
/// How long it may take until it serves.
const PATIENCE: Duration = Duration::from_secs(30);

/// Of `Type=notify`: the manager ends who does not say so.
#[test]
fn without_a_keeper_the_service_manager_hears_that_it_serves() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::write(folder.join("vm.toml"), configuration(folder, &link(folder))).unwrap();
    let _wire = UnixListener::bind(folder.join("wire.sock")).unwrap();
    let manager = UnixDatagram::bind(folder.join("notify.sock")).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut run = Command::new(VFERRY);
    run.arg("run").arg(folder.join("vm.toml"));
    run.env("NOTIFY_SOCKET", folder.join("notify.sock"));
    let _serving = Serving(run.spawn().unwrap());
    let mut told = [0; 4096];
    let len = manager.recv(&mut told).unwrap();
    let told = std::str::from_utf8(&told[..len]).unwrap();
    assert!(told.lines().any(|line| line == "READY=1"), "{told}");
    // And it does.
    let mut status = Command::new(VFERRY);
    status.arg("status").arg(folder.join("vm.toml"));
    assert!(status.output().unwrap().status.success());
}
