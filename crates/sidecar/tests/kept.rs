//! What a keeper holds of the sidecar's connection.

mod common;

use std::sync::Arc;

use common::{Event, Served};
use keeper::{Held, KeeperHere};

#[test]
fn what_is_held_of_a_connection_is_let_go_of_when_that_ends() {
    let keeper = KeeperHere::new();
    let worker = Arc::new(keeper.worker().unwrap());
    let served = Served::kept(&worker, &mut Held::new());
    for _ in 0..2 {
        let mut qemu = served.qemu();
        qemu.start();
        let held = keeper.held(&worker).unwrap();
        assert!(held.contains_key("sidecar/socket"), "{held:?}");
        // Memory, kick and call.
        let fds = held.keys().filter(|name| name.starts_with("sidecar/fd/"));
        assert_eq!(fds.count(), 3, "{held:?}");
        drop(qemu);
        served.expect(&[Event::Disconnected { error: false }]);
        let held = keeper.held(&worker).unwrap();
        assert!(held.is_empty(), "{held:?}");
    }
}

#[test]
fn a_successor_lets_go_of_what_nobody_has_said_and_goes_on_with_the_rest() {
    let keeper = KeeperHere::new();
    let worker = Arc::new(keeper.worker().unwrap());
    let served = Served::kept(&worker, &mut Held::new());
    let mut qemu = served.qemu();
    qemu.start();
    let before = keeper.held(&worker).unwrap();
    // The process died after that, and before what it came with was in force.
    let unsaid = std::fs::File::open("/dev/null").unwrap();
    worker.hold("sidecar/fd/99", &unsaid).unwrap();
    worker.hold("another", &unsaid).unwrap();
    // As good as dead: what is held outlives what it does now.
    std::mem::forget(served);
    let mut held = keeper.held(&worker).unwrap();
    let successor = Served::kept(&worker, &mut held);
    successor.expect(&[Event::Connected]);
    assert_eq!(held.keys().collect::<Vec<_>>(), ["another"]);
    let mut now = keeper.held(&worker).unwrap();
    assert!(now.remove("another").is_some());
    assert!(now.keys().eq(before.keys()), "{now:?}");
}
