//! What the keeper of a VM makes of processes that die, and what a monitoring system sees of that.

mod common;
mod serving;

use std::fs::{self, File};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use common::{configuration, link};
use rustix::process::{Pid, Signal, kill_process};
use serving::Serving;

const VFERRY: &str = env!("CARGO_BIN_EXE_vferry");
/// How long it may take until another process serves, or the keeper ends.
const PATIENCE: Duration = Duration::from_secs(30);
/// As the configuration has it.
const MOST: u64 = 3;

/// Which process serves, and how many have died, once `status` says.
fn status(folder: &Path) -> Option<(i32, u64)> {
    let mut status = Command::new(VFERRY);
    status
        .args(["status", "--json"])
        .arg(folder.join("vm.toml"));
    let output = status.output().unwrap();
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    let pid = i32::try_from(told["pid"].as_i64()?).ok()?;
    Some((pid, told["deaths"].as_u64()?))
}

fn wait<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(done) = done() {
            return done;
        }
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A `vferry run` whose `[keeper]` has these `settings`; what it says goes into a file.
fn serve(folder: &Path, settings: &str) -> Serving {
    let keeper = format!("[keeper]\n{settings}\n[migration]");
    let text = configuration(folder, &link(folder)).replace("[migration]", &keeper);
    fs::write(folder.join("vm.toml"), text).unwrap();
    let said = File::create(folder.join("said")).unwrap();
    let mut run = Command::new(VFERRY);
    run.arg("run").arg(folder.join("vm.toml")).stderr(said);
    Serving(run.spawn().unwrap())
}

/// A panic ends a process by this signal.
#[test]
fn deaths_are_counted_and_too_many_of_them_end_the_service_with_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let _wire = UnixListener::bind(folder.join("wire.sock")).unwrap();
    let mut serving = serve(folder, &format!("deaths-per-minute = {MOST}"));
    for deaths in 0..=MOST {
        let pid = wait("no process serves", || {
            status(folder).filter(|(_, died)| *died == deaths)
        });
        kill_process(Pid::from_raw(pid.0).unwrap(), Signal::ABORT).unwrap();
    }
    let ended: ExitStatus = wait("the keeper goes on", || serving.0.try_wait().unwrap());
    assert_eq!(ended.code(), Some(1));
    let said = fs::read_to_string(folder.join("said")).unwrap();
    let last = said.lines().last().unwrap();
    let why = format!("has died {} times", MOST + 1);
    assert!(last.contains(&why), "{said}");
    assert_eq!(said.matches("the worker has died").count() as u64, MOST + 2);
    assert_eq!(status(folder), None);
}

/// It answers nobody, and does not end either.
#[test]
fn one_that_hangs_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let _wire = UnixListener::bind(folder.join("wire.sock")).unwrap();
    let _serving = serve(folder, "hung-after-ms = 1000");
    let (hung, _) = wait("no process serves", || status(folder));
    kill_process(Pid::from_raw(hung).unwrap(), Signal::STOP).unwrap();
    // It may have answered once more before it stood still.
    let (pid, _) = wait("no other process serves", || {
        status(folder).filter(|(_, deaths)| *deaths == 1)
    });
    assert_ne!(pid, hung);
    let said = fs::read_to_string(folder.join("said")).unwrap();
    assert!(said.contains("the worker hangs"), "{said}");
}
