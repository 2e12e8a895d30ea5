//! A process that has no descriptor left. In a test binary of its own: the limit is the process's.

mod common;

use std::fs;

use common::{Event, Log, Script, Served};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sidecar::LogStart;

#[test]
fn what_qemu_sends_is_taken_with_hardly_a_descriptor_left() {
    for left in 0..3 {
        takes_all_with(left);
    }
}

/// With so many left. QEMU sends three.
fn takes_all_with(left: u64) {
    let served = Served::new(Script {
        marks: vec![7],
        ..Script::default()
    });
    let mut qemu = served.qemu();
    let log = Log::new(256);
    let was = getrlimit(Resource::Nofile);
    let none = Rlimit {
        current: Some(lowest_free() + left),
        ..was
    };
    setrlimit(Resource::Nofile, none).expect("a limit may be lowered");
    if left == 0 {
        assert!(fs::File::open("/dev/null").is_err(), "there is none");
    }

    qemu.start();
    qemu.give_log(&log);
    qemu.set_log_all(true);
    served.expect(&[Event::LogStarted(LogStart::Fresh)]);
    qemu.stop();
    served.expect(&[Event::Stopping { logged: true }]);
    assert_eq!(log.pages(), [7]);
    setrlimit(Resource::Nofile, was).expect("it was so");
}

/// The number that the next descriptor would have.
fn lowest_free() -> u64 {
    let one = fs::File::open("/dev/null").expect("it is there");
    let number = std::os::fd::AsRawFd::as_raw_fd(&one);
    u64::try_from(number).expect("not negative")
}
