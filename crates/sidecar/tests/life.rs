//! The whole life of the device, with the `vhost` crate's front-end in QEMU's part.

mod common;

use std::sync::mpsc;
use std::time::Duration;

use common::{Event, PAGE, Qemu, Script, Served};
use sidecar::{LogStart, Stopped, Tally};
use vhost::vhost_user::VhostUserFrontend;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};

#[test]
fn a_migration_carries_marks_and_state() {
    let source = Served::new(Script {
        marks: vec![7, 70],
        state: b"rings and registers".to_vec(),
        ..Script::default()
    });
    let mut qemu = source.qemu();
    qemu.start();
    assert!(!source.log.with(|_| panic!("there is no log yet")));

    let log = qemu.open_log(256);
    source.expect(&[Event::LogStarted(LogStart::Fresh)]);
    assert!(source.log.with(|m| m.mark_words(64, &[0b11])));
    assert_eq!(log.pages(), [64, 65]);

    qemu.stop();
    source.expect(&[Event::Stopping { logged: true }]);
    assert_eq!(log.pages(), [7, 64, 65, 70]);
    assert!(!source.log.with(|_| panic!("the stop ended the log")));
    let all = Tally {
        newly_marked: 4,
        missed: 0,
    };
    assert_eq!(source.log.totals(), all);

    let blob = qemu.save().expect("nobody objects");
    source.expect(&[Event::Save(Stopped::Logged)]);

    let destination = Served::new(Script::default());
    let mut incoming = destination.qemu();
    incoming.load(&blob).expect("nobody objects");
    destination.expect(&[Event::Load(b"rings and registers".to_vec())]);
    incoming.start();
    // The first start is no restart.
    destination.expect_silence();

    drop(qemu);
    source.expect(&[Event::Disconnected { error: false }]);
}

#[test]
fn the_log_has_started_when_qemu_gets_its_answer() {
    let served = Served::new(Script::default());
    let mut qemu = served.qemu();
    qemu.start();
    served.expect_silence();
    qemu.set_log_base(64);
    // `set_log_base` returns with the answer; the hook must have been called before.
    served.expect(&[Event::LogStarted(LogStart::Fresh)]);
}

/// Either first message of a stop is held until the hook returns, and the second is not another.
#[test]
fn the_stop_hook_holds_qemu() {
    type FirstMessage = fn(&mut Qemu);
    let by_enable: FirstMessage = |qemu| qemu.front.set_vring_enable(0, false).expect("a ring");
    let by_base: FirstMessage = |qemu| {
        qemu.front.get_vring_base(1).expect("a ring");
    };
    for first in [by_enable, by_base] {
        let (open, gate) = mpsc::channel();
        let served = Served::new(Script {
            gate: Some(gate),
            marks: vec![5],
            ..Script::default()
        });
        let mut qemu = served.qemu();
        qemu.start();
        let log = qemu.open_log(64);
        served.expect(&[Event::LogStarted(LogStart::Fresh)]);

        let (answered, answer) = mpsc::channel();
        std::thread::scope(|scope| {
            let qemu = &mut qemu;
            scope.spawn(move || {
                first(qemu);
                answered.send(()).expect("the test waits");
            });
            served.expect(&[Event::Stopping { logged: true }]);
            let early = answer.recv_timeout(Duration::from_millis(100));
            assert_eq!(early, Err(mpsc::RecvTimeoutError::Timeout));
            // Others may mark side by side with the hook.
            assert!(served.log.with(|m| m.mark_page(9 * PAGE)));
            open.send(()).expect("the hook waits");
            answer.recv_timeout(common::PATIENCE).expect("QEMU goes on");
        });
        assert_eq!(log.pages(), [5, 9]);
        qemu.stop();
        served.expect_silence();
    }
}

#[test]
fn a_veto_at_the_stop_refuses_the_save_until_the_rings_run_again() {
    let served = Served::new(Script {
        veto_stop: true,
        ..Script::default()
    });
    let mut qemu = served.qemu();
    qemu.start();
    qemu.open_log(64);
    qemu.stop();
    assert_eq!(qemu.save(), Err(()));
    served.expect(&[
        Event::LogStarted(LogStart::Fresh),
        Event::Stopping { logged: true },
        Event::Refused("no".into()),
    ]);

    qemu.start();
    served.expect(&[Event::Restarted]);
    qemu.open_log(64);
    qemu.stop();
    assert!(qemu.save().is_ok());
    served.expect(&[
        Event::LogStarted(LogStart::Fresh),
        Event::Stopping { logged: true },
        Event::Save(Stopped::Logged),
    ]);
}

#[test]
fn a_veto_at_save_or_load_reaches_qemu_and_the_device_lives_on() {
    let served = Served::new(Script {
        veto_save: true,
        veto_load: true,
        ..Script::default()
    });
    let mut qemu = served.qemu();
    assert_eq!(qemu.save(), Err(()));
    served.expect(&[Event::Save(Stopped::Never), Event::Refused("no".into())]);
    let good = {
        let other = Served::new(Script::default());
        other.qemu().save().expect("nobody objects")
    };
    assert_eq!(qemu.load(&good), Err(()));
    served.expect(&[Event::Load(Vec::new()), Event::Refused("no".into())]);
    qemu.start();
    qemu.open_log(64);
    served.expect(&[Event::LogStarted(LogStart::Fresh)]);
}

#[test]
fn a_pause_without_a_migration_is_undone_by_the_restart() {
    let served = Served::new(Script::default());
    let mut qemu = served.qemu();
    qemu.start();
    for _ in 0..2 {
        qemu.stop();
        served.expect(&[Event::Stopping { logged: false }]);
        qemu.start();
        served.expect(&[Event::Restarted]);
    }
    qemu.stop();
    served.expect(&[Event::Stopping { logged: false }]);
    assert!(qemu.save().is_ok());
    served.expect(&[Event::Save(Stopped::Unlogged)]);
}

/// A device without rings, as a driverless start leaves it: only `SET_VRING_ENABLE` tells of it.
#[test]
fn a_device_without_rings_is_started_logged_and_stopped() {
    let served = Served::new(Script::default());
    let mut qemu = served.qemu();
    qemu.enable(true);
    let log = qemu.set_log_base(64);
    assert!(served.log.with(|m| m.mark_page(3 * PAGE)));
    qemu.enable(false);
    served.expect(&[
        Event::LogStarted(LogStart::Fresh),
        Event::Stopping { logged: true },
    ]);
    assert_eq!(log.pages(), [3]);
}

#[test]
fn a_log_that_comes_with_the_start_is_told_from_a_fresh_one() {
    let served = Served::new(Script::default());
    let mut qemu = served.qemu();
    qemu.start();
    qemu.open_log(64);
    qemu.stop();
    served.expect(&[
        Event::LogStarted(LogStart::Fresh),
        Event::Stopping { logged: true },
    ]);
    // The guest rebooted in the middle of a migration: its driver starts the device again.
    qemu.prepare(true);
    qemu.set_log_base(64);
    qemu.enable(true);
    served.expect(&[Event::LogStarted(LogStart::MidMigration), Event::Restarted]);
    assert!(served.log.with(|m| m.mark_page(0)));
}

/// The order that QEMU 11.1 was seen to have after a veto on either side.
#[test]
fn a_migration_that_fails_at_the_switch_over_ends_with_the_log_closed() {
    let served = Served::new(Script {
        veto_save: true,
        ..Script::default()
    });
    let mut qemu = served.qemu();
    qemu.start();
    qemu.open_log(64);
    qemu.stop();
    assert_eq!(qemu.save(), Err(()));
    qemu.prepare(true);
    qemu.set_log_base(64);
    qemu.enable(true);
    qemu.set_log_all(false);
    served.expect(&[
        Event::LogStarted(LogStart::Fresh),
        Event::Stopping { logged: true },
        Event::Save(Stopped::Logged),
        Event::Refused("no".into()),
        Event::LogStarted(LogStart::MidMigration),
        Event::Restarted,
        Event::LogStopped,
    ]);
    assert!(!served.log.with(|_| panic!("the log is closed")));
}

#[test]
fn a_log_replaced_for_more_memory_is_marked_from_then_on() {
    let served = Served::new(Script::default());
    let mut qemu = served.qemu();
    qemu.start();
    let small = qemu.open_log(64);
    served.expect(&[Event::LogStarted(LogStart::Fresh)]);
    assert!(served.log.with(|m| m.mark_page(PAGE)));
    let more = common::memfd(common::MEMORY_LEN);
    let region = VhostUserMemoryRegionInfo {
        guest_phys_addr: 1 << 32,
        userspace_addr: common::USER_BASE + (1 << 32),
        mmap_handle: std::os::fd::AsRawFd::as_raw_fd(&more),
        ..qemu.region()
    };
    qemu.front.add_mem_region(&region).expect("a good region");
    let large = qemu.set_log_base(2 << 20);
    assert!(served.log.with(|m| m.mark_page(1 << 32)));
    assert_eq!(small.pages(), [1]);
    assert_eq!(large.pages(), [1 << 20]);
    qemu.front.remove_mem_region(&region).expect("it was added");
    served.expect_silence();
}

#[test]
fn a_cancelled_migration_closes_the_log() {
    let served = Served::new(Script::default());
    let mut qemu = served.qemu();
    qemu.start();
    let log = qemu.open_log(64);
    qemu.set_log_all(false);
    qemu.set_ring_address(false);
    served.expect(&[Event::LogStarted(LogStart::Fresh), Event::LogStopped]);
    assert!(!served.log.with(|m| m.mark_page(0)));
    assert_eq!(log.pages(), [0; 0]);
    // The next migration begins afresh.
    qemu.open_log(64);
    served.expect(&[Event::LogStarted(LogStart::Fresh)]);
}

#[test]
fn a_page_that_cannot_be_marked_refuses_the_save() {
    let served = Served::new(Script::default());
    let mut qemu = served.qemu();
    qemu.start();
    qemu.open_log(64);
    assert!(served.log.with(|m| m.mark_page(64 * PAGE)));
    assert_eq!(served.log.totals().missed, 1);
    qemu.stop();
    assert_eq!(qemu.save(), Err(()));
    served.expect(&[
        Event::LogStarted(LogStart::Fresh),
        Event::Stopping { logged: true },
    ]);
    assert!(matches!(served.event(), Event::Refused(why) if why.contains("1 pages")));
    // The failed migration's count does not burden the next one.
    qemu.start();
    qemu.open_log(64);
    qemu.stop();
    assert!(qemu.save().is_ok());
}
