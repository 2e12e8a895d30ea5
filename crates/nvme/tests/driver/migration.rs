//! Saving, loading, and going on elsewhere.

use device::{Model, StateError, StateRecord};
use nvme::spec::status::Status;

use crate::disk::Disk;
use crate::machine::Machine;
use crate::queue_driver::{Command, DATA, Driver, blocks, plain};

const GOLDEN: &str = include_str!("../golden/nvme-v1.json");

/// The same guest on another host, which sees the same disks.
fn move_away(m: &Machine) -> Machine {
    let text = serde_json::to_string(&m.controller.save().unwrap()).unwrap();
    let record: StateRecord = serde_json::from_str(&text).unwrap();
    let mut there = Machine::with(m.memory.clone(), m.disks.clone());
    there.controller.load(&record).unwrap();
    assert_eq!(there.controller.save().unwrap(), record);
    there.resume();
    there
}

/// A controller in the middle of its work, with something in every part of its state.
fn busy() -> (Machine, Driver, u16) {
    let (mut m, mut driver) = Driver::up(2);
    driver.admin_ok(&mut m, plain(0x09, 0x0b, 0x100));
    driver.admin_ok(&mut m, plain(0x09, 0x09, 1 << 16 | 2));
    driver.admin(&mut m, plain(0x99, 0, 0));
    let event = driver.submit(&m, 0, plain(0x0c, 0, 0));
    driver.ring(&mut m, 0);
    m.settle();
    let data: Vec<u8> = (0..1_usize << 20).map(|i| (i / 4096 + i) as u8).collect();
    m.store(DATA, &data);
    for slba in [0, 2048, 4096] {
        driver.submit(&m, 1, blocks(1, slba, 2048, DATA));
    }
    driver.ring(&mut m, 1);
    m.poll();
    for late in m.late.clone().iter().cycle().take(3) {
        assert!(late.end_one());
        m.poll();
    }
    m.controller.drain().unwrap();
    (m, driver, event)
}

#[test]
fn a_state_of_version_1_loads_and_saves_as_it_was() {
    let golden: StateRecord = serde_json::from_str(GOLDEN).unwrap();
    assert_eq!((golden.name.as_str(), golden.version), ("nvme", 1));
    let mut m = Machine::new();
    m.controller.load(&golden).unwrap();
    let again = serde_json::to_string_pretty(&m.controller.save().unwrap()).unwrap();
    assert_eq!(again, GOLDEN.trim_end());
    // It holds what it says.
    assert_eq!((m.read(0x14), m.read(0x1c)), (0x0046_0001, 1));
    assert_eq!(m.controller.state().commands.iter().flatten().count(), 2);
    assert_eq!(m.controller.counters().reissued, 2);
}

#[test]
fn commands_under_way_are_completed_once_and_elsewhere() {
    let (m, mut driver, _) = busy();
    let under_way = m.controller.state().commands.iter().flatten();
    assert!(under_way.clone().any(|c| c.done != 0), "one is half done");
    let queue = m.controller.state().submission[1].unwrap();
    let waiting = usize::from(queue.tail - queue.head);
    assert_eq!(under_way.count() + waiting, 3);
    assert!(crate::LATE || waiting == 1, "one is still in its queue");
    let mut there = move_away(&m);
    there.settle();
    let answers = driver.reap(&mut there, 1);
    assert_eq!(answers.len(), 3);
    assert!(answers.iter().all(|a| a.status == Status::SUCCESS));
    let data = there.load(DATA, 1 << 20);
    let content = there.disks[0].content();
    for third in content.bytes[..3 << 20].chunks_exact(1 << 20) {
        assert!(third == data);
    }
    assert!(content.bytes[3 << 20..].iter().all(|b| *b == 0));
}

#[test]
fn commands_in_their_queue_and_completions_not_taken_are_neither_lost_nor_doubled() {
    let (mut m, mut driver) = Driver::up(1);
    let done = driver.submit(&m, 1, blocks(2, 0, 1, DATA));
    driver.ring(&mut m, 1);
    m.settle();
    m.bus_master = false;
    let waiting = driver.submit(&m, 1, blocks(2, 1, 1, DATA));
    driver.ring(&mut m, 1);
    m.settle();
    let mut there = move_away(&m);
    assert_eq!(
        there.signalled(),
        [1],
        "the message of the first may be lost"
    );
    there.settle();
    let cids: Vec<u16> = driver.reap(&mut there, 1).iter().map(|a| a.cid).collect();
    assert_eq!(cids, [done, waiting]);
    assert!(driver.reap(&mut there, 1).is_empty());
}

#[test]
fn outstanding_event_requests_are_carried_and_growth_is_an_event() {
    let (m, mut driver, event) = busy();
    m.disks[1].content().bytes.resize(8 << 20, 0);
    let mut there = move_away(&m);
    there.settle();
    let answers = driver.reap(&mut there, 0);
    assert_eq!((answers[0].cid, answers[0].result), (event, 0x4_0002));
    let log = Command {
        data: DATA,
        len: 4096,
        ..plain(0x02, 1023 << 16 | 4, 0)
    };
    driver.admin_ok(&mut there, log);
    assert_eq!(there.load(DATA, 8), [2, 0, 0, 0, 0, 0, 0, 0]);
    driver.admin_ok(&mut there, log);
    assert_eq!(there.load(DATA, 4), [0; 4], "read once");
    let namespace = there.controller.state().namespaces[1].unwrap();
    assert_eq!(namespace.blocks, 2048);
}

#[test]
fn who_the_controller_is_comes_with_the_state() {
    let (m, ..) = busy();
    let mut record = m.controller.save().unwrap();
    record.body["serial"][2] = b'2'.into();
    let mut there = Machine::with(m.memory.clone(), m.disks.clone());
    there.controller.load(&record).unwrap();
    let mut driver = Driver::enable(&mut there);
    let identify = Command {
        data: DATA,
        len: 4096,
        ..plain(0x06, 1, 0)
    };
    driver.admin_ok(&mut there, identify);
    assert_eq!(there.load(DATA + 4, 4), *b"vf2 ");
}

#[test]
fn a_smaller_file_is_refused_and_nothing_has_changed() {
    let (m, ..) = busy();
    let record = m.controller.save().unwrap();
    let disks = [m.disks[0].clone(), Disk::new(1 << 20)];
    let mut there = Machine::with(m.memory.clone(), disks);
    let before = *there.controller.state();
    let error = there.controller.load(&record).unwrap_err();
    assert!(matches!(error, StateError::Body { .. }));
    assert!(error.to_string().contains("namespace 2"), "{error}");
    assert!(*there.controller.state() == before);
}

#[test]
fn a_record_that_no_controller_can_have_made_is_refused() {
    type Damage = fn(&mut serde_json::Value);
    let damages: &[(&str, Damage)] = &[
        ("queues", |b| b["queues"] = 17.into()),
        ("serial", |b| b["serial"][0] = 7.into()),
        ("no namespaces", |b| b["namespaces"] = serde_json::json!([])),
        ("shift", |b| b["namespaces"][0]["block_shift"] = 64.into()),
        ("blocks", |b| b["namespaces"][0]["blocks"] = u64::MAX.into()),
        ("head", |b| b["submission"][1]["head"] = 16.into()),
        ("entries", |b| b["submission"][1]["entries"] = 0.into()),
        ("base", |b| b["submission"][1]["base"] = 1.into()),
        ("no completion queue", |b| {
            b["submission"][1]["completion"] = 4.into();
        }),
        ("on the admin queue", |b| {
            b["submission"][1]["completion"] = 0.into();
        }),
        ("twice", |b| b["submission"][2]["id"] = 1.into()),
        ("far", |b| b["completion"][2]["id"] = 600.into()),
        ("vector", |b| b["completion"][1]["vector"] = 17.into()),
        ("not enabled", |b| b["registers"]["cc"] = 0.into()),
        ("not ready", |b| b["registers"]["ready"] = false.into()),
        ("shutdown", |b| b["registers"]["shutdown"] = 3.into()),
        ("command of no queue", |b| b["commands"][0]["sq"] = 3.into()),
        ("done", |b| b["commands"][0]["done"] = u64::MAX.into()),
        ("no room", |b| {
            b["completion"][1]["tail"] = 14.into();
            b["completion"][1]["head"] = 0.into();
        }),
        ("requests", |b| {
            b["events"]["requests"] = serde_json::json!([1, 2, 3, 4, 5]);
        }),
        ("pending", |b| b["events"]["pending"] = 8.into()),
        ("unknown", |b| b["more"] = 1.into()),
    ];
    let (m, ..) = busy();
    let record = m.controller.save().unwrap();
    let mut there = Machine::with(m.memory.clone(), m.disks.clone());
    for (what, damage) in damages {
        let mut broken = record.clone();
        damage(&mut broken.body);
        assert_ne!(broken, record, "{what} is no damage");
        assert!(there.controller.load(&broken).is_err(), "{what}");
    }
    there.controller.load(&record).unwrap();
}
