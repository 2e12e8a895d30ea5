//! A process dies at any moment, and another of the same host goes on with the controller.

use std::sync::Arc;

use device::{Access, Ledger, ManualClock, Model, Mortal, Writes};
use nvme::spec::status::Status;

use crate::machine::{Machine, Vectors};
use crate::queue_driver::{Answer, Command, DATA, Driver, ENTRIES, blocks, plain};

const FLUSH: u8 = 0;
const WRITE: u8 = 1;
const READ: u8 = 2;

/// A process that dies after `left` of what it does to memory and ledger, where its state is.
fn mortal(m: &Machine, left: usize) -> Mortal {
    let mortal = Mortal::new(Arc::clone(&m.memory), usize::MAX);
    put(&mortal, m);
    mortal.set_left(left);
    mortal
}

/// What its owner puts down after every call.
fn put(mortal: &Mortal, m: &Machine) {
    let mut state = Vec::new();
    assert!(m.controller.live(&mut state));
    mortal.put(&state, &Writes::default());
}

/// Polls until there is nothing to do, or the process is dead.
fn live_on(mortal: &Mortal, m: &mut Machine) {
    while mortal.left() > 0 {
        let access = Access {
            memory: Some(mortal),
            interrupts: &Vectors::default(),
            clock: &ManualClock::default(),
            ledger: Some(mortal),
        };
        let _ = m.controller.poll(&access);
        put(mortal, m);
        let ends = m.late.as_ref().is_some_and(super::late::Late::end_one);
        if !ends && m.controller.under_way() == 0 && !m.controller.needs_poll() {
            return;
        }
    }
}

/// Another process with what this one has left.
fn successor(mortal: &Mortal, m: &Machine) -> Machine {
    let mut there = Machine::with(Arc::clone(&m.memory), m.disks.clone());
    let left = mortal.entry().unwrap();
    there.controller.take_over(&left.state).unwrap();
    mortal.set_left(usize::MAX);
    left.writes.finish(mortal, left.stage, mortal).unwrap();
    there.resume();
    there
}

/// More than what is done to memory and ledger until all commands are completed.
const STEPS: usize = 90;

fn content(number: u8) -> Vec<u8> {
    (0..=255)
        .cycle()
        .take(1024)
        .map(|byte: u8| byte ^ number)
        .collect()
}

/// Where the data of a command is.
fn data(number: u8) -> u64 {
    DATA + 0x1000 * u64::from(number)
}

#[test]
fn each_command_is_answered_once_and_right_whenever_the_process_dies() {
    for left in 0..STEPS {
        // The driver takes what it finds before there is a successor, or after.
        for driver_is_fast in [true, false] {
            let (mut m, mut driver) = Driver::up(1);
            // Both phase tags are in the queue, and the next comes to its end.
            for number in 0..28 {
                driver.io_ok(&mut m, blocks(READ, number, 1, DATA));
            }
            let mut expected = Vec::new();
            for number in 0..4 {
                m.store(data(number), &content(number));
                let write = blocks(WRITE, 100 + 2 * u64::from(number), 2, data(number));
                expected.push(driver.submit(&m, 1, write));
            }
            for number in 4..7 {
                m.disks[0].content().bytes[0x4000 + 1024 * usize::from(number)..][..1024]
                    .copy_from_slice(&content(number));
                let read = blocks(READ, 32 + 2 * u64::from(number), 2, data(number));
                expected.push(driver.submit(&m, 1, read));
            }
            expected.push(driver.submit(&m, 1, blocks(FLUSH, 0, 1, 0)));
            driver.ring(&mut m, 1);
            let mortal = mortal(&m, left);
            live_on(&mortal, &mut m);
            assert!(
                left + 1 < STEPS || mortal.left() > 0,
                "all moments are tried"
            );
            let mut answers = Vec::new();
            if driver_is_fast {
                answers.extend(driver.take(&m, 1));
            }
            let mut there = successor(&mortal, &m);
            there.settle();
            answers.extend(driver.reap(&mut there, 1));
            let mut cids: Vec<u16> = answers.iter().map(|answer| answer.cid).collect();
            cids.sort_unstable();
            assert_eq!(cids, expected, "{left}");
            assert!(
                answers
                    .iter()
                    .all(|answer| answer.status == Status::SUCCESS)
            );
            for number in 0..4 {
                let at = 512 * (100 + 2 * usize::from(number));
                let bytes = &m.disks[0].content().bytes[at..at + 1024];
                assert!(bytes == content(number), "{left}: {number}");
            }
            for number in 4..7 {
                assert!(
                    there.load(data(number), 1024) == content(number),
                    "{left}: {number}"
                );
            }
            // Enough to come by every entry of the queues again.
            for number in 0..2 * u64::from(ENTRIES) {
                driver.io_ok(&mut there, blocks(READ, number, 1, DATA));
            }
        }
    }
}

/// The process dies with so many steps `left`, and another does what there is to do; with all that the driver is
/// told in the admin queue, before and after.
fn is_gone_on_with(left: usize, m: &mut Machine, driver: &mut Driver) -> (Machine, Vec<Answer>) {
    let mortal = mortal(m, left);
    live_on(&mortal, m);
    let mut answers = driver.take(m, 0);
    let mut there = successor(&mortal, m);
    there.settle();
    answers.extend(driver.reap(&mut there, 0));
    (there, answers)
}

#[test]
fn an_event_is_told_once_whenever_the_process_dies() {
    let request = plain(0x0c, 0, 0);
    for left in 0..12 {
        let (mut m, mut driver) = Driver::up(1);
        let requests = [0, 1].map(|_| driver.submit(&m, 0, request));
        driver.ring(&mut m, 0);
        m.settle();
        m.write(0x1008, ENTRIES.into());
        let (there, answers) = is_gone_on_with(left, &mut m, &mut driver);
        let event = Answer {
            cid: requests[0],
            result: 0x1_0100,
            status: Status::SUCCESS,
        };
        assert_eq!(answers, [event], "{left}");
        let waits = there.controller.state().events.requests;
        assert_eq!(waits.iter().flatten().collect::<Vec<_>>(), [&requests[1]]);
    }
}

#[test]
fn what_an_aborted_command_and_its_abort_are_told_holds_together() {
    for left in 0..12 {
        let (mut m, mut driver) = Driver::up(1);
        let waits = driver.submit(&m, 0, plain(0x0c, 0, 0));
        driver.ring(&mut m, 0);
        m.settle();
        let abort = driver.submit(&m, 0, plain(0x08, u32::from(waits) << 16, 0));
        driver.ring(&mut m, 0);
        let (_, answers) = is_gone_on_with(left, &mut m, &mut driver);
        let cids: Vec<u16> = answers.iter().map(|answer| answer.cid).collect();
        assert_eq!(cids, [waits, abort], "{left}");
        assert_eq!(answers[0].status, Status::ABORT_REQUESTED);
        assert_eq!((answers[1].status, answers[1].result), (Status::SUCCESS, 0));
    }
}

#[test]
fn an_interrupt_that_died_with_the_process_is_raised_again() {
    let (mut m, mut driver) = Driver::up(1);
    let mortal = mortal(&m, usize::MAX);
    driver.submit(&m, 1, blocks(READ, 0, 1, DATA));
    driver.ring(&mut m, 1);
    live_on(&mortal, &mut m);
    assert_eq!(successor(&mortal, &m).signalled(), [1]);
}

fn flush() -> Command {
    Command {
        nsid: 1,
        ..plain(FLUSH, 0, 0)
    }
}

/// The next flush says so, and the one after it does not.
fn is_told_once(there: &mut Machine, driver: &mut Driver) {
    assert!(there.controller.release("m1").is_err());
    assert_eq!(driver.run(there, 1, flush()).status, Status::WRITE_FAULT);
    assert_eq!(driver.run(there, 1, flush()).status, Status::SUCCESS);
    there.controller.release("m1").unwrap();
}

#[test]
fn a_failure_that_the_guest_has_yet_to_be_told_of_outlives_the_process() {
    let (mut m, mut driver) = Driver::up(1);
    m.disks[0].content().fails = Some(std::io::ErrorKind::Other);
    assert!(m.controller.release("m1").is_err());
    m.disks[0].content().fails = None;
    let mut there = successor(&mortal(&m, usize::MAX), &m);
    is_told_once(&mut there, &mut driver);
}

#[test]
fn a_failure_that_only_the_dead_process_was_told_of_is_told_to_the_guest() {
    let (m, mut driver) = Driver::up(1);
    m.disks[0].content().failed_unseen = true;
    let mut there = successor(&mortal(&m, usize::MAX), &m);
    is_told_once(&mut there, &mut driver);
}

#[test]
fn a_controller_waits_for_a_disk_that_was_not_left_to_it() {
    let (mut m, mut driver) = Driver::up(1);
    let cid = driver.submit(&m, 1, blocks(READ, 0, 1, DATA));
    driver.ring(&mut m, 1);
    let mortal = mortal(&m, usize::MAX);
    m.disks[0].content().is_nobodys = true;
    let mut there = successor(&mortal, &m);
    there.poll();
    assert!(driver.take(&there, 1).is_empty());
    m.disks[0].content().is_nobodys = false;
    there.controller.acquire(device::Claim::Start).unwrap();
    there.settle();
    assert_eq!(driver.reap(&mut there, 1)[0].cid, cid);
}

#[test]
fn what_another_version_or_another_vms_process_left_is_refused() {
    let (m, _) = Driver::up(1);
    let mut state = Vec::new();
    m.controller.live(&mut state);
    let mut there = Machine::with(Arc::clone(&m.memory), m.disks.clone());
    let before = *there.controller.state();
    state[0] ^= 1;
    assert!(there.controller.take_over(&state).is_err());
    assert!(*there.controller.state() == before);
}
