//! What a command says may be read by nobody, or go to a disk that is full: it ends as it would.

mod common;

use std::fs::{self, File};
use std::process::Command;

use common::{configuration, link};

const VFERRY: &str = env!("CARGO_BIN_EXE_vferry");

#[test]
fn what_nobody_reads_changes_no_outcome() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let text = configuration(folder.path(), &link(folder.path()));
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
