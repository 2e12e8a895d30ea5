//! The disk load and the journal as commands, on plain files.

use std::io::{Read, Seek, SeekFrom, Write};
use std::process::{Child, Command, Stdio};

use load_format::journal::{self, RECORD_LEN};
use load_format::{GuestReport, Rate};
use tempfile::NamedTempFile;

#[test]
fn the_disk_load_is_asked_like_any_other() {
    let file = disk(8);
    let control = format!("lab-guest-disk-{}", std::process::id());
    let mut load = Load(
        lab_guest(&["--control", &control, "disk", "--disk-mib-per-second", "0"])
            .arg(file.path())
            .spawn()
            .expect("our own binary"),
    );
    let ask = |what| output(lab_guest(&["--control", &control, what]));
    while !try_lab_guest(&["--control", &control, "report"]) {
        let ended = load.0.try_wait().expect("our child");
        assert!(ended.is_none(), "{ended:?}");
    }
    for pass in 1..=2 {
        let report: GuestReport = serde_json::from_str(&ask("verify")).expect("a report");
        let disk = report.disk.expect("asked for");
        assert_eq!((disk.workers, disk.verified_passes), (4, pass));
        assert_eq!((disk.wrong_blocks, disk.io_errors), (0, 0), "{disk:?}");
        assert!(disk.operations > 0 && disk.reads > 0, "{disk:?}");
        assert!(report.udp.is_none() && report.tcp.is_none() && report.dirty.is_none());
        assert_eq!(ask("reset"), "{}\n");
    }
    drop(load);
}

#[test]
fn a_rate_is_of_the_time_that_counts() {
    let file = disk(8);
    for options in [
        &["--depth", "4"][..],
        &["--kib", "1024", "--sequential", "--write"],
    ] {
        let mut command = lab_guest(&["disk-rate", "--warm-up-ms", "20", "--ms", "50"]);
        command.args(options).arg(file.path());
        let rate: Rate = serde_json::from_str(&output(command)).expect("a rate");
        assert!(rate.done > 0 && rate.failed == 0, "{rate:?}");
        assert!(rate.nanos >= 50_000_000, "{rate:?}");
    }
    let mut command = lab_guest(&["disk-rate", "--kib", "16384"]);
    assert!(
        !command
            .arg(file.path())
            .status()
            .expect("our own")
            .success()
    );
}

#[test]
fn what_the_journal_tells_is_there_and_a_lost_record_is_missed() {
    let mut file = disk(1);
    let arguments = ["journal", "--per-second", "0", "--batch", "4"];
    let mut command = lab_guest(&arguments);
    command.args(["--records", "400"]).arg(file.path());
    let told = output(command);
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(
        (lines.len(), lines[0], lines[99]),
        (100, "DURABLE 3", "DURABLE 399")
    );

    let check = || {
        let mut command = lab_guest(&["journal-check"]);
        command.arg(file.path());
        serde_json::from_str::<journal::State>(&output(command)).expect("a state")
    };
    assert!(check().holds(399) && check().damaged == 0);
    let slot = 380 % (1024 * 1024 / RECORD_LEN as u64);
    let mut image = file.reopen().expect("still there");
    image
        .seek(SeekFrom::Start(slot * RECORD_LEN as u64 + 700))
        .expect("inside");
    image.write_all(b"torn").expect("room");
    let state = check();
    assert_eq!((state.whole_to, state.damaged), (Some(379), 1));
    assert_eq!(state, journal::check(&mut file).expect("readable"));
}

#[test]
fn the_journal_tells_a_peer_or_a_file() {
    let file = disk(1);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let peer = listener.local_addr().expect("bound").to_string();
    let arguments = ["journal", "--per-second", "0", "--records", "2"];
    let mut command = lab_guest(&arguments);
    command.args(["--peer", &peer]).arg(file.path());
    let mut writer = command.spawn().expect("our own binary");
    let mut told = String::new();
    let (mut stream, _) = listener.accept().expect("it connects");
    stream.read_to_string(&mut told).expect("lines");
    assert!(writer.wait().expect("ends").success());
    assert_eq!(told, "DURABLE 0\nDURABLE 1\n");

    let tell = NamedTempFile::new().expect("a file");
    let mut command = lab_guest(&arguments);
    command.arg("--tell").arg(tell.path()).arg(file.path());
    assert_eq!(output(command), "");
    let told = std::fs::read_to_string(tell.path()).expect("lines");
    assert_eq!(told, "DURABLE 2\nDURABLE 3\n");
}

/// The running load, ended with the test.
struct Load(Child);

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn disk(mib: u64) -> NamedTempFile {
    let file = NamedTempFile::new().expect("a file");
    file.as_file().set_len(mib << 20).expect("room");
    file
}

fn lab_guest(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lab-guest"));
    command.args(arguments).stdin(Stdio::null());
    command
}

fn try_lab_guest(arguments: &[&str]) -> bool {
    let output = lab_guest(arguments).output().expect("our own binary");
    output.status.success()
}

fn output(mut command: Command) -> String {
    let output = command.output().expect("our own binary");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}
