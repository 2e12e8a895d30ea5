//! What a command says may be read by nobody, or go to a disk that is full: it ends as it would.

use std::fs::{self, File};
use std::process::Command;

const VFERRY: &str = env!("CARGO_BIN_EXE_vferry");

#[test]
fn what_nobody_reads_changes_no_outcome() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let text = format!(
        "[vm]\nname = \"web\"\nmemory = \"64M\"\n[qemu]\nqmp = \"{}\"\n[control]\nsocket = \"{}\"\n\
         [sidecar]\nsocket = \"{}\"\naddress = \"00:06.0\"\n\
         [migration]\nlink = \"unix:{}\"\nincoming = \"unix:{}\"\n\
         [[device]]\nname = \"net0\"\nmodel = \"ixgbevf\"\nsocket = \"{}\"\naddress = \"00:05.0\"\n\
         mac = \"02:00:00:00:00:01\"\nuplink = \"wire:{}\"\n",
        at("qmp.sock"),
        at("control.sock"),
        at("sidecar.sock"),
        at("link.sock"),
        at("incoming.sock"),
        at("net0.sock"),
        at("no-wire.sock"),
    );
    fs::write(at("vm.toml"), text).unwrap();
    fs::write(at("wrong.toml"), "[vm]\n").unwrap();
    for (command, file, code) in [
        ("status", "vm.toml", 1),
        ("run", "vm.toml", 1),
        ("status", "wrong.toml", 2),
    ] {
        let mut vferry = Command::new(VFERRY);
        vferry.arg(command).arg(at(file));
        let said = vferry.output().unwrap();
        assert_eq!(said.status.code(), Some(code), "{said:?}");
        assert!(!said.stderr.is_empty() && !said.stderr.contains(&0x1b));
        let full = File::options().write(true).open("/dev/full").unwrap();
        let unread = vferry.stderr(full).status().unwrap();
        assert_eq!(unread.code(), Some(code), "{command} {file}");
    }
}
