//! Asynchronous events, aborting, and doorbells that are wrong.

use nvme::spec::status::Status;

use crate::machine::Machine;
use crate::queue_driver::{Command, DATA, Driver, ENTRIES, blocks, plain};

const REQUEST: Command = Command {
    opcode: 0x0c,
    nsid: 0,
    cdw: [0; 6],
    data: 0,
    len: 0,
};

fn request(m: &mut Machine, driver: &mut Driver) -> u16 {
    let cid = driver.submit(m, 0, REQUEST);
    driver.ring(m, 0);
    m.settle();
    cid
}

fn read_error_log(m: &mut Machine, driver: &mut Driver, retain: u32) {
    let page = Command {
        data: DATA,
        len: 64,
        ..plain(0x02, 15 << 16 | retain << 15 | 1, 0)
    };
    driver.admin_ok(m, page);
}

#[test]
fn a_wrong_doorbell_is_reported_once_until_the_log_is_read() {
    let (mut m, mut driver) = Driver::up(1);
    let first = request(&mut m, &mut driver);
    let second = request(&mut m, &mut driver);
    assert!(driver.reap(&mut m, 0).is_empty(), "requests wait");
    m.signalled();
    m.write(0x1008, ENTRIES.into());
    m.write(0x1008, ENTRIES.into());
    m.settle();
    let answers = driver.reap(&mut m, 0);
    assert_eq!(answers.len(), 1);
    assert_eq!((answers[0].cid, answers[0].result), (first, 0x1_0100));
    assert_eq!(m.signalled(), [0]);
    // Another kind of the same type is masked too.
    m.write(0x1000 + 8 * 4, 1);
    m.settle();
    assert!(driver.reap(&mut m, 0).is_empty());
    read_error_log(&mut m, &mut driver, 1);
    assert!(
        driver.reap(&mut m, 0).is_empty(),
        "the log was read without clearing"
    );
    read_error_log(&mut m, &mut driver, 0);
    assert_eq!(m.load(DATA, 1), [3], "three errors");
    assert_eq!(m.load(DATA + 8, 4), [0xff; 4], "of no command");
    m.write(0x1004 + 8 * 4, 1);
    m.settle();
    let answers = driver.reap(&mut m, 0);
    assert_eq!((answers[0].cid, answers[0].result), (second, 0x1_0000));
    // The queues are as they were.
    driver.io_ok(&mut m, blocks(2, 0, 1, DATA));
}

#[test]
fn an_event_waits_for_a_request() {
    let (mut m, mut driver) = Driver::up(1);
    m.write(0x100c, 3);
    m.settle();
    let cid = request(&mut m, &mut driver);
    let answers = driver.reap(&mut m, 0);
    assert_eq!((answers[0].cid, answers[0].result), (cid, 0x1_0100));
}

#[test]
fn requests_have_a_limit_and_can_be_aborted() {
    let (mut m, mut driver) = Driver::up(0);
    let cids: Vec<u16> = (0..4).map(|_| request(&mut m, &mut driver)).collect();
    let fifth = request(&mut m, &mut driver);
    let answers = driver.reap(&mut m, 0);
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0].cid, fifth);
    assert_eq!(answers[0].status, Status::EVENT_LIMIT_EXCEEDED);
    driver.submit(&m, 0, plain(0x08, u32::from(cids[2]) << 16, 0));
    driver.ring(&mut m, 0);
    m.settle();
    let answers = driver.reap(&mut m, 0);
    assert_eq!(
        (answers[0].cid, answers[0].status),
        (cids[2], Status::ABORT_REQUESTED)
    );
    assert_eq!((answers[1].result, answers[1].status), (0, Status::SUCCESS));
    // What is not there is not aborted.
    assert_eq!(driver.admin_ok(&mut m, plain(0x08, 0x4444_0000, 0)), 1);
    assert_eq!(driver.admin_ok(&mut m, plain(0x08, 0x0001_0003, 0)), 1);
}

#[test]
fn doorbells_before_the_controller_is_ready_are_nothing() {
    let mut m = Machine::new();
    m.write(0x1000, 0xffff_ffff);
    m.write(0x1ffc, 7);
    m.settle();
    assert_eq!(m.controller.state().errors.count, 0);
    let mut driver = Driver::enable(&mut m);
    request(&mut m, &mut driver);
    assert!(driver.reap(&mut m, 0).is_empty());
}
