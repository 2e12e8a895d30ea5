//! What happens to operations that end late: at another time than their command, or never.

use device::{Model, Progress, Reset};
use nvme::engine::{Operation, PLACES};
use nvme::spec::status::Status;

use crate::late::Late;
use crate::machine::Machine;
use crate::queue_driver::{Command, DATA, Driver, blocks, create_sq, plain};

const FLUSH: u8 = 0;
const WRITE: u8 = 1;
const READ: u8 = 2;
const FUA: u32 = 1 << 30;

/// A controller with I/O queues, and nothing under way.
fn up(pairs: u16) -> (Machine, Driver, Late) {
    let mut m = Machine::late();
    let mut driver = Driver::enable(&mut m);
    for queue in 1..=pairs {
        driver.create_pair(&mut m, queue);
    }
    let late = m.late.clone().unwrap();
    late.hold(true);
    (m, driver, late)
}

fn begin(m: &mut Machine, driver: &mut Driver, command: Command) -> u16 {
    let cid = driver.submit(m, 1, command);
    driver.ring(m, 1);
    while m.poll() == Progress::More {}
    cid
}

fn end(m: &mut Machine, late: &Late) {
    late.end(0);
    while m.poll() == Progress::More {}
}

#[test]
fn commands_are_under_way_side_by_side_up_to_a_limit() {
    let (mut m, mut driver, late) = up(2);
    for queue in [1, 2] {
        for slba in 0..15 {
            driver.submit(&m, queue, blocks(READ, slba, 1, DATA));
        }
        driver.ring(&mut m, queue);
    }
    while m.poll() == Progress::More {}
    assert_eq!(late.begun().len(), PLACES);
    assert_eq!(m.controller.under_way(), PLACES);
    // The last first.
    late.end(PLACES - 1);
    m.poll();
    assert_eq!(driver.take(&m, 1).len() + driver.take(&m, 2).len(), 1);
    assert_eq!(late.begun().len(), PLACES, "the next has its place");
    late.hold(false);
    m.settle();
    assert_eq!(driver.take(&m, 1).len() + driver.take(&m, 2).len(), 29);
}

type Forget = fn(&mut Machine);

/// All that makes a controller forget its commands.
const FORGETS: [Forget; 3] = [
    |m| m.write(0x14, 0),
    |m| m.controller.reset(Reset::Function),
    |m| {
        let fresh = Machine::late().controller.save().unwrap();
        m.controller.load(&fresh).unwrap();
    },
];

#[test]
fn what_was_read_for_a_controller_before_its_reset_is_dropped() {
    for forget in FORGETS {
        let (mut m, mut driver, late) = up(1);
        m.disks[0].content().bytes.fill(0x22);
        m.disks[0].content().bytes[..512].fill(0x11);
        begin(&mut m, &mut driver, blocks(READ, 0, 1, DATA));
        forget(&mut m);
        assert_eq!(m.read(0x1c), 0);
        let mut driver = Driver::enable(&mut m);
        driver.create_pair(&mut m, 1);
        // Another command, in the same slot.
        m.store(DATA, &[0xee; 512]);
        let cid = begin(&mut m, &mut driver, blocks(READ, 7, 1, DATA));
        end(&mut m, &late);
        assert_eq!(
            m.load(DATA, 512),
            [0xee; 512],
            "the memory may be another's by now"
        );
        assert!(driver.reap(&mut m, 1).is_empty());
        end(&mut m, &late);
        let answers = driver.reap(&mut m, 1);
        assert_eq!((answers.len(), answers[0].cid), (1, cid));
        assert_eq!(m.load(DATA, 512), [0x22; 512]);
    }
}

#[test]
fn an_old_write_never_lies_over_a_newer_one() {
    for forget in FORGETS {
        let (mut m, mut driver, late) = up(1);
        m.store(DATA, &[1; 512]);
        begin(&mut m, &mut driver, blocks(WRITE, 0, 1, DATA));
        forget(&mut m);
        let mut driver = Driver::enable(&mut m);
        driver.create_pair(&mut m, 1);
        m.store(DATA, &[2; 512]);
        let command = begin(&mut m, &mut driver, blocks(WRITE, 0, 1, DATA));
        assert_eq!(late.begun().len(), 1, "the old one only");
        end(&mut m, &late);
        assert_eq!(m.disks[0].content().bytes[0], 1);
        assert_eq!(late.begun().len(), 1, "now the new one");
        end(&mut m, &late);
        assert_eq!(m.disks[0].content().bytes[0], 2);
        let answers = driver.reap(&mut m, 1);
        assert_eq!((answers.len(), answers[0].cid), (1, command));
    }
}

#[test]
fn a_queue_goes_when_its_last_operation_has_ended() {
    let (mut m, mut driver, late) = up(1);
    let long = begin(&mut m, &mut driver, blocks(WRITE, 0, 1024, DATA));
    let short = begin(&mut m, &mut driver, blocks(WRITE, 2000, 1, DATA));
    driver.submit(&m, 0, plain(0x00, 1, 0));
    driver.ring(&mut m, 0);
    // One more, which comes too late.
    begin(&mut m, &mut driver, blocks(WRITE, 3000, 1, DATA));
    assert!(driver.reap(&mut m, 0).is_empty());
    assert_eq!(late.begun().len(), 2);
    end(&mut m, &late);
    assert_eq!(late.begun().len(), 1, "the second half is not begun");
    assert!(driver.reap(&mut m, 0).is_empty());
    end(&mut m, &late);
    let answers = driver.take(&m, 1);
    assert_eq!(answers.len(), 2);
    assert_eq!(
        (answers[0].cid, answers[0].status),
        (long, Status::SQ_DELETED)
    );
    assert_eq!(
        (answers[1].cid, answers[1].status),
        (short, Status::SUCCESS)
    );
    let answers = driver.reap(&mut m, 0);
    assert_eq!((answers.len(), answers[0].status), (1, Status::SUCCESS));
    assert!(late.begun().is_empty());
    driver.admin_ok(&mut m, plain(0x04, 1, 0));
    driver.create_pair(&mut m, 1);
    m.settle();
    assert!(driver.take(&m, 1).is_empty());
    let answer = driver.admin(&mut m, create_sq(1, 1 << 16 | 1, DATA));
    assert_eq!(answer.status, Status::INVALID_QUEUE_ID, "it is there again");
}

#[test]
fn what_the_disk_does_is_not_aborted_and_what_waits_is() {
    let (mut m, mut driver, late) = up(2);
    let mut cids = Vec::new();
    for queue in [1, 2] {
        for slba in 0..10 {
            cids.push(driver.submit(&m, queue, blocks(READ, slba, 1, DATA)));
        }
        driver.ring(&mut m, queue);
        while m.poll() == Progress::More {}
    }
    let abort = |m: &mut Machine, driver: &mut Driver, queue: u16, cid: u16| {
        driver.submit(
            m,
            0,
            plain(0x08, u32::from(cid) << 16 | u32::from(queue), 0),
        );
        driver.ring(m, 0);
        while m.poll() == Progress::More {}
        let answers = driver.reap(m, 0);
        assert_eq!((answers.len(), answers[0].status), (1, Status::SUCCESS));
        answers[0].result
    };
    assert_eq!(abort(&mut m, &mut driver, 1, cids[0]), 1);
    assert!(driver.take(&m, 1).is_empty());
    assert_eq!(abort(&mut m, &mut driver, 2, cids[19]), 0);
    let answers = driver.take(&m, 2);
    assert_eq!((answers.len(), answers[0].cid), (1, cids[19]));
    assert_eq!(answers[0].status, Status::ABORT_REQUESTED);
    late.hold(false);
    m.settle();
    let (first, second) = (driver.take(&m, 1), driver.take(&m, 2));
    assert_eq!((first.len(), second.len()), (10, 9));
    assert!(
        first
            .iter()
            .chain(&second)
            .all(|a| a.status == Status::SUCCESS)
    );
    assert_eq!(late.seen().len(), 19);
}

#[test]
fn what_is_forced_is_made_durable_after_it_was_written_and_before_it_is_done() {
    let (mut m, mut driver, late) = up(1);
    let fua = |mut command: Command| {
        command.cdw[2] |= FUA;
        command
    };
    let zeroes = blocks(8, 0, 1, 0);
    let dsm = Command {
        nsid: 1,
        data: DATA,
        len: 16,
        ..plain(9, 0, 4)
    };
    for disabled in [false, true] {
        if disabled {
            driver.submit(&m, 0, plain(0x09, 6, 0));
            driver.ring(&mut m, 0);
            while m.poll() == Progress::More {}
            for disk in [0, 1] {
                assert!(
                    driver.reap(&mut m, 0).is_empty(),
                    "what was cached is not durable"
                );
                assert_eq!(late.seen(), [(disk, Operation::Flush)]);
                end(&mut m, &late);
            }
            assert_eq!(driver.reap(&mut m, 0).len(), 1);
        }
        let all = [
            (blocks(WRITE, 0, 1, DATA), disabled),
            (fua(blocks(WRITE, 0, 1, DATA)), true),
            (zeroes, disabled),
            (fua(zeroes), true),
            (dsm, disabled),
        ];
        for (command, durable) in all {
            m.store(DATA, &[1; 4]);
            begin(&mut m, &mut driver, command);
            let first = late.begun();
            assert_ne!(first, [Operation::Flush]);
            assert_eq!(first.len(), 1, "one after the other");
            end(&mut m, &late);
            if durable {
                assert_eq!(late.begun(), [Operation::Flush], "{command:?}");
                assert!(driver.reap(&mut m, 1).is_empty());
                end(&mut m, &late);
            }
            assert!(late.begun().is_empty());
            assert_eq!(driver.reap(&mut m, 1)[0].status, Status::SUCCESS);
        }
        late.seen();
    }
    // What is read by force is durable before it is read.
    begin(&mut m, &mut driver, fua(blocks(READ, 0, 1, DATA)));
    assert_eq!(late.begun(), [Operation::Flush]);
    end(&mut m, &late);
    assert_eq!(
        late.begun(),
        [Operation::Read {
            offset: 0,
            len: 512
        }]
    );
    end(&mut m, &late);
    assert_eq!(driver.reap(&mut m, 1).len(), 1);
}

#[test]
fn a_flush_is_begun_at_once_and_told_when_it_has_ended() {
    let (mut m, mut driver, late) = up(1);
    begin(&mut m, &mut driver, blocks(WRITE, 0, 1, DATA));
    let flush = Command {
        nsid: 1,
        ..plain(FLUSH, 0, 0)
    };
    let cid = begin(&mut m, &mut driver, flush);
    assert_eq!(
        late.begun()[1],
        Operation::Flush,
        "beside what is not completed"
    );
    late.end(1);
    while m.poll() == Progress::More {}
    assert_eq!(driver.reap(&mut m, 1)[0].cid, cid);
    end(&mut m, &late);
    assert_eq!(driver.reap(&mut m, 1).len(), 1);
}

#[test]
fn what_a_flush_could_not_make_durable_is_an_error() {
    let (mut m, mut driver, late) = up(1);
    let mut command = blocks(WRITE, 0, 1, DATA);
    command.cdw[2] |= FUA;
    begin(&mut m, &mut driver, command);
    end(&mut m, &late);
    m.disks[0].content().fails = Some(std::io::ErrorKind::Other);
    end(&mut m, &late);
    assert_eq!(driver.reap(&mut m, 1)[0].status, Status::WRITE_FAULT);
}

#[test]
fn what_ends_without_bus_mastering_waits_for_it() {
    let (mut m, mut driver, late) = up(1);
    m.disks[0].content().bytes.fill(0x11);
    begin(&mut m, &mut driver, blocks(READ, 0, 1, DATA));
    m.bus_master = false;
    end(&mut m, &late);
    assert!(driver.take(&m, 1).is_empty());
    assert_eq!(m.load(DATA, 1), [0]);
    m.bus_master = true;
    m.poll();
    assert_eq!(driver.reap(&mut m, 1).len(), 1);
    assert_eq!(m.load(DATA, 1), [0x11]);
}

#[test]
fn a_drained_controller_has_nothing_under_way_and_does_all_again() {
    let (mut m, mut driver, late) = up(1);
    m.disks[0].content().bytes.fill(0x11);
    m.store(DATA + 0x1000, &[9; 512]);
    let read = begin(&mut m, &mut driver, blocks(READ, 0, 1, DATA));
    let write = begin(&mut m, &mut driver, blocks(WRITE, 1, 1, DATA + 0x1000));
    m.bus_master = false;
    assert!(m.controller.save().is_err());
    m.controller.release("m1").unwrap_err();
    m.controller.drain().unwrap();
    assert!(late.begun().is_empty());
    let record = m.controller.save().unwrap();
    assert!(
        m.controller
            .state()
            .commands
            .iter()
            .flatten()
            .all(|c| c.done == 0)
    );
    assert_eq!(m.load(DATA, 1), [0], "nothing was written to guest memory");
    m.controller.release("m1").unwrap();
    let mut there = Machine::with(m.memory.clone(), m.disks.clone());
    there.controller.load(&record).unwrap();
    there.resume();
    there.settle();
    let mut cids: Vec<u16> = driver.reap(&mut there, 1).iter().map(|a| a.cid).collect();
    cids.sort_unstable();
    assert_eq!(cids, [read, write]);
    assert_eq!(there.load(DATA, 512), [0x11; 512]);
    assert_eq!(there.disks[0].content().bytes[512..1024], [9; 512]);
}

#[test]
fn a_disk_that_does_not_answer_is_named_and_the_guest_goes_on_when_it_does() {
    let (mut m, mut driver, late) = up(1);
    m.disks[0].content().bytes.fill(0x11);
    late.stick(true);
    begin(&mut m, &mut driver, blocks(READ, 0, 1, DATA));
    let error = m.controller.drain().unwrap_err().to_string();
    assert!(error.contains("test disk does not answer: 1 op"), "{error}");
    assert!(m.controller.save().is_err());
    late.stick(false);
    // Not moved after all: what ends now is dropped, and done again.
    m.poll();
    late.seen();
    end(&mut m, &late);
    assert_eq!(m.load(DATA, 1), [0]);
    assert_eq!(late.seen().len(), 1);
    end(&mut m, &late);
    assert_eq!(driver.reap(&mut m, 1).len(), 1);
    assert_eq!(m.load(DATA, 1), [0x11]);
}

#[test]
fn a_shutdown_waits_for_what_is_under_way_and_then_for_the_disks() {
    for bus_master in [true, false] {
        let (mut m, mut driver, late) = up(1);
        begin(&mut m, &mut driver, blocks(WRITE, 0, 1, DATA));
        m.write(0x14, 0x0046_4001);
        while m.poll() == Progress::More {}
        assert_eq!(late.begun().len(), 1);
        end(&mut m, &late);
        assert_eq!(driver.take(&m, 1).len(), 1);
        m.bus_master = bus_master;
        for _ in 0..2 {
            let progress = m.poll();
            // Nothing tells the owner without bus mastering.
            assert_eq!(progress == Progress::Idle(None), bus_master);
            assert_eq!(late.begun(), [Operation::Flush]);
            assert_eq!(m.read(0x1c), 1 | 1 << 2, "occurring");
            end(&mut m, &late);
        }
        assert_eq!(m.read(0x1c), 1 | 2 << 2, "complete");
    }
}

#[test]
fn a_shutdown_that_was_called_off_counts_for_no_other() {
    let (mut m, _, late) = up(1);
    m.write(0x14, 0x0046_4001);
    m.poll();
    late.end(0);
    m.write(0x14, 0x0046_0001);
    m.write(0x14, 0x0046_4001);
    m.poll();
    for disk in [0, 1] {
        assert_eq!(m.read(0x1c), 1 | 1 << 2);
        assert_eq!(late.seen().last(), Some(&(disk, Operation::Flush)));
        end(&mut m, &late);
    }
    assert_eq!(m.read(0x1c), 1 | 2 << 2);
}

#[test]
fn a_drained_controller_begins_nothing_before_the_guest_runs_again() {
    let (mut m, _, late) = up(1);
    m.write(0x14, 0x0046_4001);
    m.bus_master = false;
    m.poll();
    m.controller.drain().unwrap();
    m.poll();
    assert!(late.begun().is_empty());
    m.controller.save().unwrap();
    assert_eq!(m.read(0x1c), 1 | 1 << 2);
    late.hold(false);
    m.settle();
    assert_eq!(m.read(0x1c), 1 | 2 << 2);
}

fn flush(nsid: u32) -> Command {
    Command {
        nsid,
        ..plain(FLUSH, 0, 0)
    }
}

fn fails(m: &Machine, fails: bool) {
    m.disks[0].content().fails = fails.then_some(std::io::ErrorKind::Other);
}

fn refuses_to_let_go(m: &mut Machine) {
    let error = m.controller.release("m1").unwrap_err().to_string();
    assert!(error.contains("test disk has reported an error"), "{error}");
    assert!(error.contains("migrate again after the guest"), "{error}");
}

/// One command, whose operations end by themselves.
fn status(m: &mut Machine, driver: &mut Driver, late: &Late, command: Command) -> Status {
    late.hold(false);
    let status = driver.run(m, 1, command).status;
    late.hold(true);
    status
}

#[test]
fn a_failure_that_a_halt_hid_keeps_the_disk_here_until_the_guest_was_told() {
    for under_way in [flush(1), blocks(WRITE, 0, 1, DATA), blocks(8, 0, 1, 0)] {
        let (mut m, mut driver, late) = up(1);
        begin(&mut m, &mut driver, under_way);
        fails(&m, true);
        m.controller.drain().unwrap();
        // The system has told of it, and says no more.
        fails(&m, false);
        refuses_to_let_go(&mut m);
        refuses_to_let_go(&mut m);
        m.resume();
        late.hold(false);
        m.settle();
        let answers = driver.reap(&mut m, 1);
        assert_eq!(answers.len(), 1);
        if under_way.opcode == FLUSH {
            assert_eq!(answers[0].status, Status::WRITE_FAULT);
        } else {
            assert_eq!(answers[0].status, Status::SUCCESS, "it was done again");
            let told = status(&mut m, &mut driver, &late, flush(1));
            assert_eq!(told, Status::WRITE_FAULT);
        }
        let again = status(&mut m, &mut driver, &late, flush(1));
        assert_eq!(again, Status::SUCCESS, "told once");
        assert_eq!(m.controller.state().usage.media_errors, 1);
        m.controller.release("m1").unwrap();
    }
}

#[test]
fn a_failure_that_a_reset_hid_is_told_by_the_next_flush_of_its_namespace() {
    let forced = {
        let mut command = blocks(WRITE, 0, 1, DATA);
        command.cdw[2] |= FUA;
        command
    };
    for forget in FORGETS {
        for teller in [flush(1), flush(u32::MAX), forced] {
            let (mut m, mut driver, late) = up(1);
            begin(&mut m, &mut driver, flush(1));
            forget(&mut m);
            fails(&m, true);
            late.end(0);
            fails(&m, false);
            let mut driver = Driver::enable(&mut m);
            driver.create_pair(&mut m, 1);
            refuses_to_let_go(&mut m);
            let mut run = |command| status(&mut m, &mut driver, &late, command);
            assert_eq!(run(flush(2)), Status::SUCCESS, "another disk");
            assert_eq!(run(blocks(WRITE, 0, 1, DATA)), Status::SUCCESS);
            assert_eq!(run(teller), Status::WRITE_FAULT);
            assert_eq!(run(teller), Status::SUCCESS);
            m.controller.release("m1").unwrap();
        }
    }
}

#[test]
fn what_a_reset_hid_of_a_read_is_nobodys() {
    let (mut m, mut driver, late) = up(1);
    begin(&mut m, &mut driver, blocks(READ, 0, 1, DATA));
    fails(&m, true);
    m.controller.drain().unwrap();
    fails(&m, false);
    late.hold(false);
    m.controller.release("m1").unwrap();
}

#[test]
fn a_disk_that_cannot_be_made_durable_for_its_release_is_told_to_the_guest() {
    let (mut m, mut driver, late) = up(1);
    fails(&m, true);
    refuses_to_let_go(&mut m);
    fails(&m, false);
    refuses_to_let_go(&mut m);
    assert_eq!(
        status(&mut m, &mut driver, &late, flush(1)),
        Status::WRITE_FAULT
    );
    m.controller.release("m1").unwrap();
}

#[test]
fn a_shutdown_takes_note_of_a_failure_that_nobody_was_told() {
    let (mut m, _, late) = up(1);
    fails(&m, true);
    refuses_to_let_go(&mut m);
    fails(&m, false);
    late.hold(false);
    m.write(0x14, 0x0046_4001);
    m.settle();
    assert_eq!(m.read(0x1c), 1 | 2 << 2);
    assert_eq!(m.controller.state().usage.media_errors, 1);
    m.controller.release("m1").unwrap();
}
