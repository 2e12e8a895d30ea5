//! What a process that serves has given up, as the kernel tells it of each of its threads.

mod common;
mod serving;

use std::fs;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{configuration, link};
use serving::Serving;

const VFERRY: &str = env!("CARGO_BIN_EXE_vferry");
/// How long it may take until a process serves.
const PATIENCE: Duration = Duration::from_secs(30);
/// The one capability that is kept: threads that have to be in time.
const SYS_NICE: u64 = 1 << 23;

impl Serving {
    fn start(folder: &Path, options: &[&str]) -> Self {
        let text = configuration(folder, &link(folder));
        fs::write(folder.join("vm.toml"), text).unwrap();
        let mut run = Command::new(VFERRY);
        run.arg("run").args(options).arg(folder.join("vm.toml"));
        let serving = Self(run.spawn().unwrap());
        let deadline = Instant::now() + PATIENCE;
        // Answered by a thread: by then all is given up.
        let status = || {
            let mut status = Command::new(VFERRY);
            let status = status.arg("status").arg(folder.join("vm.toml"));
            status.output().unwrap().status.success()
        };
        while UnixStream::connect(folder.join("control.sock")).is_err() || !status() {
            assert!(Instant::now() < deadline, "it does not serve");
            std::thread::sleep(Duration::from_millis(10));
        }
        serving
    }

    /// What each thread's status says of `key`, beside the thread's name.
    fn threads(&self, key: &str) -> Vec<(String, String)> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.0.id())).unwrap();
        let told = tasks.filter_map(|task| {
            let task = task.unwrap().path();
            // A thread may have ended meanwhile.
            let status = fs::read_to_string(task.join("status")).ok()?;
            let field = |key: &str| {
                let mut lines = status.lines();
                let line = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(":\t"));
                line.unwrap().to_owned()
            };
            Some((field("Name"), field(key)))
        });
        told.collect()
    }
}

#[test]
fn no_thread_that_serves_has_privileges_left() {
    let folder = tempfile::tempdir().unwrap();
    let _wire = UnixListener::bind(folder.path().join("wire.sock")).unwrap();
    let serving = Serving::start(folder.path(), &[]);
    let threads = serving.threads("CapEff");
    assert!(threads.len() > 4, "{threads:?}");
    for (thread, capabilities) in threads {
        let capabilities = u64::from_str_radix(&capabilities, 16).unwrap();
        assert_eq!(capabilities & !SYS_NICE, 0, "{thread}");
    }
    for (key, value) in [("NoNewPrivs", "1"), ("Seccomp", "2")] {
        for (thread, has) in serving.threads(key) {
            assert_eq!(has, value, "{key} of {thread}");
        }
    }
}

#[test]
fn privileges_are_kept_only_where_it_is_asked_for_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let _wire = UnixListener::bind(folder.path().join("wire.sock")).unwrap();
    let serving = Serving::start(folder.path(), &["--keep-privileges-for-debugging"]);
    for (thread, has) in serving.threads("NoNewPrivs") {
        assert_eq!(has, "0", "{thread}");
    }
}
