//! What a keeper has no room for.

use keeper::{KeeperHere, MAX_HELD};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

#[test]
fn a_worker_hears_of_what_is_not_held_until_it_is() {
    let limit = getrlimit(Resource::Nofile);
    // Both are this process.
    let all = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, all).unwrap();
    let keeper = KeeperHere::new();
    let worker = keeper.worker().unwrap();
    let file = std::fs::File::open("/dev/null").unwrap();
    for number in 0..MAX_HELD {
        worker.hold(&format!("irq/{number}"), &file).unwrap();
    }
    assert_eq!(worker.unheld().unwrap(), 0);
    for name in ["memory", "journal"] {
        worker.hold(name, &file).unwrap();
    }
    assert_eq!(worker.unheld().unwrap(), 2);
    assert!(!keeper.held(&worker).unwrap().contains_key("memory"));
    // It is not needed any more, or there is room by now.
    worker.let_go("journal").unwrap();
    assert_eq!(worker.unheld().unwrap(), 1);
    worker.let_go("irq/0").unwrap();
    worker.hold("memory", &file).unwrap();
    assert_eq!(worker.unheld().unwrap(), 0);
    assert!(keeper.held(&worker).unwrap().contains_key("memory"));
}
