//! The device state through QEMU's pipe, where it goes wrong.

mod common;

use std::io::Write;
use std::time::Duration;

use common::{Event, Script, Served};
use sidecar::{Config, Stopped};
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostTransferStateDirection as Direction;

fn refusal(served: &Served) -> String {
    match served.event() {
        Event::Refused(why) => why,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[test]
fn a_state_that_was_cut_short_never_reaches_the_hook() {
    let source = Served::new(Script {
        state: vec![7; 100_000],
        ..Script::default()
    });
    let blob = source.qemu().save().expect("nobody objects");
    let destination = Served::new(Script::default());
    let mut qemu = destination.qemu();
    for len in [0, 10, 24, blob.len() - 1] {
        assert_eq!(qemu.load(&blob[..len]), Err(()));
        assert!(refusal(&destination).contains("cut short"));
    }
    assert_eq!(qemu.load(b"some other daemon's idea of state"), Err(()));
    assert!(refusal(&destination).contains("not vferry's"));
    qemu.load(&blob).expect("the whole is taken still");
    destination.expect(&[Event::Load(vec![7; 100_000])]);
}

#[test]
fn states_beyond_the_limit_are_refused_in_both_directions() {
    let config = Config {
        max_state: 1 << 20,
        ..Config::default()
    };
    let script = || Script {
        state: vec![1; (1 << 20) + 1],
        ..Script::default()
    };
    let small = Served::with(script(), config);
    let mut qemu = small.qemu();
    assert_eq!(qemu.save(), Err(()));
    small.expect(&[Event::Save(Stopped::Never)]);
    assert!(refusal(&small).contains("1048576"));
    let large = Served::new(script());
    let blob = large.qemu().save().expect("it is below 16 MiB");
    assert_eq!(qemu.load(&blob), Err(()));
    assert!(refusal(&small).contains("1048576"));
}

#[test]
fn what_is_out_of_order_is_refused_and_survived() {
    let served = Served::new(Script::default());
    let mut qemu = served.qemu();
    assert!(qemu.front.check_device_state().is_err());
    refusal(&served);
    qemu.start();
    assert_eq!(qemu.save(), Err(()));
    assert!(refusal(&served).contains("runs"));
    let (read, _write) = std::io::pipe().expect("a pipe");
    assert_eq!(qemu.transfer(Direction::LOAD, read.into()), Err(()));
    assert!(refusal(&served).contains("runs"));
    qemu.stop();
    served.expect(&[Event::Stopping { logged: false }]);
    assert!(qemu.save().is_ok());
    served.expect(&[Event::Save(Stopped::Unlogged)]);
    assert!(qemu.front.check_device_state().is_err());
    refusal(&served);
}

#[test]
fn a_transfer_that_qemu_gives_up_makes_room_for_the_next() {
    let served = Served::new(Script {
        state: vec![3; 1 << 20],
        ..Script::default()
    });
    let mut qemu = served.qemu();
    let (read, write) = std::io::pipe().expect("a pipe");
    qemu.transfer(Direction::SAVE, write.into())
        .expect("nobody objects");
    drop(read);
    let blob = qemu.save().expect("nobody objects");
    assert!(blob.len() > 1 << 20);
}

#[test]
fn a_load_that_stalls_is_refused_after_the_deadline() {
    let config = Config {
        stall: Duration::from_millis(50),
        ..Config::default()
    };
    let served = Served::with(Script::default(), config);
    let mut qemu = served.qemu();
    let (read, mut write) = std::io::pipe().expect("a pipe");
    qemu.transfer(Direction::LOAD, read.into())
        .expect("it starts");
    write.write_all(b"vfer").expect("a reader is there");
    assert!(qemu.front.check_device_state().is_err());
    assert!(refusal(&served).contains("moved nothing"));
}
