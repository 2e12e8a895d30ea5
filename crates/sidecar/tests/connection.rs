//! QEMU that comes, goes, comes twice, stops half-way through a message; and the end of serving.

mod common;

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use common::{Event, PATIENCE, Qemu, Script, Served};
use rustix::event::{PollFd, PollFlags};
use rustix::net::sockopt::set_socket_send_buffer_size;
use sidecar::{Config, Error, Sidecar};
use vhost::vhost_user::message::VhostTransferStateDirection as Direction;

/// Each step brings the device into another state.
const STEPS: [fn(&mut Qemu); 6] = [
    |qemu| qemu.prepare(false),
    |qemu| qemu.enable(true),
    |qemu| drop(qemu.open_log(64)),
    |qemu| qemu.enable(false),
    |qemu| {
        let (_read, write) = std::io::pipe().expect("a pipe");
        qemu.transfer(Direction::SAVE, write.into())
            .expect("nobody objects");
    },
    |qemu| {
        let (read, write) = std::io::pipe().expect("a pipe");
        qemu.transfer(Direction::LOAD, read.into())
            .expect("nobody objects");
        std::mem::forget(write);
    },
];

#[test]
fn qemu_may_leave_in_every_state_and_the_next_one_starts_afresh() {
    let served = Served::new(Script::default());
    for steps in 0..=STEPS.len() {
        let mut qemu = served.qemu();
        for step in &STEPS[..steps] {
            step(&mut qemu);
        }
        drop(qemu);
        while served.event() != (Event::Disconnected { error: false }) {}
        assert!(!served.log.with(|_| panic!("the log outlived its QEMU")));
    }
}

#[test]
fn serving_can_be_stopped_in_every_state() {
    for steps in 0..=STEPS.len() {
        let mut served = Served::new(Script::default());
        let mut qemu = served.qemu();
        for step in &STEPS[..steps] {
            step(&mut qemu);
        }
        served.stop().expect("a stop is no error");
        while served.event() != (Event::Disconnected { error: false }) {}
    }
    let mut idle = Served::new(Script::default());
    idle.stop().expect("a stop is no error");
}

#[test]
fn serving_can_be_stopped_half_way_through_a_message() {
    let mut served = Served::new(Script::default());
    let mut raw = UnixStream::connect(&served.path).expect("it listens");
    // So small a buffer that it has room again only when most of the bytes were read: from then
    // on the sidecar is waiting for the rest of the header.
    set_socket_send_buffer_size(&raw, 1).expect("a socket");
    for byte in [1, 0, 0, 0, 1] {
        raw.write_all(&[byte]).expect("it reads");
    }
    let mut room = [PollFd::new(&raw, PollFlags::OUT)];
    rustix::event::poll(&mut room, None).expect("a socket");
    served.expect(&[Event::Connected]);
    served.stop().expect("a stop is no error");
    served.expect(&[Event::Disconnected { error: false }]);
}

#[test]
fn serving_can_be_stopped_while_qemu_waits_for_a_state() {
    use vhost::vhost_user::VhostUserFrontend;

    let mut served = Served::new(Script::default());
    let mut qemu = served.qemu();
    let (read, _write) = std::io::pipe().expect("a pipe");
    qemu.transfer(Direction::LOAD, read.into())
        .expect("nobody objects");
    std::thread::scope(|scope| {
        scope.spawn(|| assert!(qemu.front.check_device_state().is_err()));
        served.stop().expect("a stop is no error");
    });
}

#[test]
fn a_second_qemu_is_turned_away_and_the_first_goes_on() {
    let served = Served::new(Script::default());
    let mut first = served.qemu();
    let mut second = UnixStream::connect(&served.path).expect("it listens");
    second.set_read_timeout(Some(PATIENCE)).expect("a socket");
    assert_eq!(second.read(&mut [0]).expect("it is closed"), 0);
    first.start();
    drop(first);
    served.expect(&[Event::Disconnected { error: false }]);
    served.qemu();
}

#[test]
fn a_message_that_makes_no_sense_ends_only_its_connection() {
    let served = Served::new(Script::default());
    let mut raw = UnixStream::connect(&served.path).expect("it listens");
    // GET_FEATURES of version 3, with a size of 4 GiB.
    raw.write_all(&[1, 0, 0, 0, 3, 0, 0, 0, 0xff, 0xff, 0xff, 0xff])
        .expect("it reads");
    served.expect(&[Event::Connected, Event::Disconnected { error: true }]);
    served.qemu().start();
}

#[test]
fn a_socket_that_is_in_use_or_no_socket_is_not_taken() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("s");
    let first = Sidecar::bind(&path, Config::default()).expect("the path is free");
    let second = Sidecar::bind(&path, Config::default());
    assert!(matches!(second, Err(Error::InUse(_))));
    drop(first);
    assert!(!path.exists());

    // A process that was killed leaves its socket behind.
    drop(UnixListener::bind(&path).expect("the path is free"));
    drop(Sidecar::bind(&path, Config::default()).expect("nobody serves it"));

    std::fs::write(&path, "precious").expect("the folder is ours");
    let file = Sidecar::bind(&path, Config::default());
    assert!(matches!(file, Err(Error::NoSocket(_))));
    assert!(path.exists());
    let nowhere = Sidecar::bind(dir.path().join("no/folder"), Config::default());
    assert!(matches!(nowhere, Err(Error::Bind { .. })));
}
