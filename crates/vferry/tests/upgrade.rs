//! What `vferry upgrade` says where it cannot be.

mod serving;

use std::fs;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serving::Serving;

const VFERRY: &str = env!("CARGO_BIN_EXE_vferry");
/// How long it may take until a process serves.
const PATIENCE: Duration = Duration::from_secs(30);

impl Serving {
    fn start(folder: &Path) -> Self {
        let mut run = Command::new(VFERRY);
        let child = run.arg("run").arg(folder.join("vm.toml")).spawn().unwrap();
        let serving = Self(child);
        let deadline = Instant::now() + PATIENCE;
        while UnixStream::connect(folder.join("control.sock")).is_err() {
            assert!(Instant::now() < deadline, "it does not serve");
            std::thread::sleep(Duration::from_millis(10));
        }
        serving
    }
}

fn configure(folder: &Path, more: &str) {
    let at = |name: &str| folder.join(name).display().to_string();
    let text = format!(
        "[vm]\nname = \"web\"\nmemory = \"64M\"\n[qemu]\nqmp = \"{}\"\n[control]\nsocket = \"{}\"\n\
         [sidecar]\nsocket = \"{}\"\naddress = \"00:06.0\"\n\
         [migration]\nlink = \"unix:{}\"\nincoming = \"unix:{}\"\n\
         [[device]]\nname = \"net0\"\nmodel = \"ixgbevf\"\nsocket = \"{}\"\naddress = \"00:05.0\"\n\
         mac = \"02:00:00:00:00:01\"\nuplink = \"wire:{}\"\n{more}",
        at("qmp.sock"),
        at("control.sock"),
        at("sidecar.sock"),
        at("link.sock"),
        at("incoming.sock"),
        at("net0.sock"),
        at("wire.sock"),
    );
    fs::write(at("vm.toml"), text).unwrap();
}

fn upgrade(folder: &Path) -> Output {
    let mut upgrade = Command::new(VFERRY);
    upgrade
        .args(["upgrade", "--json"])
        .arg(folder.join("vm.toml"));
    upgrade.output().unwrap()
}

#[test]
fn a_vm_that_nobody_can_go_on_with_is_not_upgraded_and_goes_on() {
    for (more, why) in [
        ("", "no keeper holds"),
        ("[keeper]\n", "QEMU is not connected"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let _wire = UnixListener::bind(folder.path().join("wire.sock")).unwrap();
        configure(folder.path(), more);
        let said = upgrade(folder.path());
        let text = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(text.contains("is not served on this host"), "{text}");

        let mut serving = Serving::start(folder.path());
        let said = upgrade(folder.path());
        assert_eq!((said.status.code(), &said.stdout[..]), (Some(1), &b""[..]));
        let text = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(text.contains(why), "{text}");
        assert!(serving.0.try_wait().unwrap().is_none());
    }
}
