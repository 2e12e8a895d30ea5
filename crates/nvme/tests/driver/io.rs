//! I/O commands.

use std::io::ErrorKind;

use nvme::spec::status::Status;

use crate::machine::DISK_LEN;
use crate::queue_driver::{Command, DATA, Driver, ENTRIES, blocks, plain};

const FLUSH: u8 = 0;
const WRITE: u8 = 1;
const READ: u8 = 2;
const COMPARE: u8 = 5;
const WRITE_ZEROES: u8 = 8;
const DSM: u8 = 9;
const FUA: u32 = 1 << 30;
const DEAC: u32 = 1 << 25;

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 512 + i * 7) as u8).collect()
}

fn with(mut command: Command, cdw12: u32) -> Command {
    command.cdw[2] |= cdw12;
    command
}

fn flush(nsid: u32) -> Command {
    Command {
        nsid,
        ..plain(FLUSH, 0, 0)
    }
}

#[test]
fn what_is_written_is_read_at_every_size_and_offset() {
    let (mut m, mut driver) = Driver::up(1);
    for (count, offset) in [
        (1, 0),
        (1, 0xe00),
        (8, 0),
        (9, 0xffc),
        (24, 0x200),
        (2048, 0),
        (2048, 4),
    ] {
        let data = pattern(512 * count);
        let slba = 3;
        m.store(DATA + offset, &data);
        driver.io_ok(&mut m, blocks(WRITE, slba, count as u32, DATA + offset));
        let at = 512 * slba as usize;
        assert!(m.disks[0].content().bytes[at..at + data.len()] == data[..]);
        m.store(DATA, &vec![0xee; (1 << 20) + 4096]);
        driver.io_ok(&mut m, blocks(READ, slba, count as u32, DATA + offset));
        assert!(
            m.load(DATA + offset, data.len()) == data,
            "{count} {offset:#x}"
        );
        let beyond = m.load(DATA + offset + data.len() as u64, 1);
        assert_eq!(beyond, [0xee], "no byte more");
        driver.io_ok(&mut m, blocks(COMPARE, slba, count as u32, DATA + offset));
    }
    let usage = m.controller.state().usage;
    assert_eq!((usage.reads, usage.writes), (14, 7));
}

#[test]
fn namespaces_have_their_own_blocks() {
    let (mut m, mut driver) = Driver::up(1);
    m.store(DATA, &[0x42; 4096]);
    let write = Command {
        nsid: 2,
        len: 4096,
        ..blocks(WRITE, 7, 1, DATA)
    };
    driver.io_ok(&mut m, write);
    assert_eq!(m.disks[1].content().bytes[7 * 4096..8 * 4096], [0x42; 4096]);
    assert!(m.disks[0].content().bytes.iter().all(|b| *b == 0));
    for nsid in [0, 3, u32::MAX] {
        let answer = driver.run(&mut m, 1, Command { nsid, ..write });
        assert_eq!(answer.status, Status::INVALID_NAMESPACE);
    }
}

#[test]
fn blocks_outside_are_refused_and_nothing_is_written() {
    let (mut m, mut driver) = Driver::up(1);
    let last = (DISK_LEN / 512) as u64;
    for (slba, count) in [
        (last, 1),
        (last - 1, 2),
        (u64::MAX, 2),
        (u64::MAX - 1, 1),
        (1 << 55, 1),
    ] {
        for opcode in [READ, WRITE, COMPARE, WRITE_ZEROES] {
            let answer = driver.run(&mut m, 1, blocks(opcode, slba, count, DATA));
            assert_eq!(answer.status, Status::LBA_OUT_OF_RANGE);
        }
    }
    driver.io_ok(&mut m, blocks(READ, last - 1, 1, DATA));
    // More than MDTS.
    let answer = driver.run(&mut m, 1, blocks(WRITE, 0, 2049, DATA));
    assert_eq!(answer.status, Status::INVALID_FIELD);
    assert_eq!(m.disks[0].content().writes, 0);
}

#[test]
fn data_that_is_not_in_memory_fails_its_command_only() {
    let (mut m, mut driver) = Driver::up(1);
    for opcode in [READ, WRITE, COMPARE] {
        let answer = driver.run(&mut m, 1, blocks(opcode, 0, 1, 0x7000_0000));
        assert_eq!(answer.status, Status::DATA_TRANSFER_ERROR);
        let answer = driver.run(&mut m, 1, blocks(opcode, 0, 1, DATA + 2));
        assert_eq!(answer.status, Status::PRP_OFFSET_INVALID);
    }
    assert_eq!(m.disks[0].content().writes, 0);
    driver.io_ok(&mut m, blocks(READ, 0, 1, DATA));
}

#[test]
fn flush_and_fua_make_durable_and_a_plain_write_does_not() {
    let (mut m, mut driver) = Driver::up(1);
    let durable =
        |m: &crate::machine::Machine, block: usize| m.disks[0].content().durable[512 * block];
    m.store(DATA, &[9; 1024]);
    driver.io_ok(&mut m, blocks(WRITE, 0, 1, DATA));
    assert_eq!(durable(&m, 0), 0);
    driver.io_ok(&mut m, flush(1));
    assert_eq!(durable(&m, 0), 9);
    driver.io_ok(&mut m, with(blocks(WRITE, 1, 1, DATA), FUA));
    assert_eq!(durable(&m, 1), 9);
    driver.io_ok(&mut m, with(blocks(WRITE_ZEROES, 1, 1, DATA), FUA));
    assert_eq!(durable(&m, 1), 0);
    driver.io_ok(&mut m, flush(u32::MAX));
    assert_eq!(m.disks[1].content().flushes, 1, "all namespaces");
    assert_eq!(
        driver.run(&mut m, 1, flush(9)).status,
        Status::INVALID_NAMESPACE
    );
}

#[test]
fn a_comparison_finds_one_wrong_byte() {
    let (mut m, mut driver) = Driver::up(1);
    m.store(DATA + 512 * 1000, &[1]);
    let answer = driver.run(&mut m, 1, blocks(COMPARE, 0, 1001, DATA));
    assert_eq!(answer.status, Status::COMPARE_FAILURE);
    driver.io_ok(&mut m, blocks(COMPARE, 0, 1000, DATA));
}

#[test]
fn zeros_are_written_with_and_without_the_disks_help() {
    for writes_zeros in [false, true] {
        for deallocate in [0, DEAC] {
            let (mut m, mut driver) = Driver::up(1);
            m.disks[0].content().bytes.fill(0x5a);
            m.disks[0].content().writes_zeros = writes_zeros;
            // Longer than a transfer may be.
            driver.io_ok(&mut m, with(blocks(WRITE_ZEROES, 2, 5000, 0), deallocate));
            let content = m.disks[0].content();
            assert!(
                content.bytes[1024..1024 + 512 * 5000]
                    .iter()
                    .all(|b| *b == 0)
            );
            assert_eq!(
                (content.bytes[1023], content.bytes[1024 + 512 * 5000]),
                (0x5a, 0x5a)
            );
            assert_eq!(
                content.given_back.len(),
                usize::from(!writes_zeros && deallocate != 0)
            );
        }
    }
}

fn ranges(m: &crate::machine::Machine, ranges: &[(u64, u32)]) -> Command {
    for (slot, (slba, blocks)) in (0..).zip(ranges) {
        m.store(DATA + 16 * slot + 4, &blocks.to_le_bytes());
        m.store(DATA + 16 * slot + 8, &slba.to_le_bytes());
    }
    Command {
        nsid: 1,
        data: DATA,
        len: 16 * ranges.len() as u64,
        ..plain(DSM, ranges.len() as u32 - 1, 4)
    }
}

#[test]
fn ranges_are_given_back_all_of_them() {
    let (mut m, mut driver) = Driver::up(1);
    let list: Vec<(u64, u32)> = (0..256).map(|i| (i * 4, 2)).collect();
    let command = ranges(&m, &list);
    driver.io_ok(&mut m, command);
    let expected: Vec<(u64, u64)> = (0..256).map(|i| (i * 2048, 1024)).collect();
    assert_eq!(m.disks[0].content().given_back, expected);
    // Other attributes are hints.
    driver.io_ok(
        &mut m,
        Command {
            cdw: [0, 3, 0, 0, 0, 0],
            ..command
        },
    );
    assert_eq!(m.disks[0].content().given_back.len(), 256);
    for bad in [(8192, 1), (0, u32::MAX), (u64::MAX, 1)] {
        let command = ranges(&m, &[bad]);
        let answer = driver.run(&mut m, 1, command);
        assert_eq!(answer.status, Status::LBA_OUT_OF_RANGE);
    }
}

#[test]
fn errors_of_the_disk_are_told_as_what_they_are() {
    let (mut m, mut driver) = Driver::up(1);
    m.disks[0].content().fails = Some(ErrorKind::Other);
    for (command, status) in [
        (blocks(READ, 0, 1, DATA), Status::UNRECOVERED_READ),
        (blocks(WRITE, 0, 1, DATA), Status::WRITE_FAULT),
        (blocks(WRITE_ZEROES, 0, 1, DATA), Status::WRITE_FAULT),
        (flush(1), Status::WRITE_FAULT),
    ] {
        assert_eq!(driver.run(&mut m, 1, command).status, status);
    }
    assert_eq!(m.controller.state().usage.media_errors, 4);
    m.disks[0].content().fails = Some(ErrorKind::StorageFull);
    let answer = driver.run(&mut m, 1, blocks(WRITE, 0, 1, DATA));
    assert_eq!(answer.status, Status::CAPACITY_EXCEEDED);
    m.disks[0].content().fails = None;
    driver.io_ok(&mut m, blocks(WRITE, 0, 1, DATA));
}

#[test]
fn a_full_completion_queue_takes_no_commands_and_loses_none() {
    let (mut m, mut driver) = Driver::up(2);
    let most = usize::from(ENTRIES) - 1;
    for _ in 0..most {
        driver.submit(&m, 1, blocks(READ, 0, 1, DATA));
    }
    driver.ring(&mut m, 1);
    m.settle();
    let first = driver.take(&m, 1);
    assert_eq!(first.len(), most);
    // The driver has not said that it has taken them.
    for _ in 0..5 {
        driver.submit(&m, 1, blocks(READ, 0, 1, DATA));
    }
    driver.ring(&mut m, 1);
    m.settle();
    assert!(driver.take(&m, 1).is_empty());
    assert_eq!(
        driver.run(&mut m, 2, blocks(READ, 0, 1, DATA)).status,
        Status::SUCCESS
    );
    m.write(0x100c, most as u32);
    m.settle();
    assert_eq!(driver.take(&m, 1).len(), 5);
}

/// A command that was taken will need room when it is done, not when it is taken.
#[test]
fn long_commands_are_taken_only_while_there_is_room_for_all_their_completions() {
    let (mut m, mut driver) = Driver::up(1);
    for _ in 0..13 {
        driver.submit(&m, 1, blocks(READ, 0, 1, DATA));
    }
    driver.ring(&mut m, 1);
    m.settle();
    assert_eq!(driver.take(&m, 1).len(), 13);
    for _ in 0..3 {
        driver.submit(&m, 1, blocks(READ, 0, 2048, DATA));
    }
    driver.ring(&mut m, 1);
    m.settle();
    assert_eq!(driver.take(&m, 1).len(), 2);
    assert_eq!(m.read(0x1c), 1, "all is well");
    m.write(0x100c, 13);
    m.settle();
    assert_eq!(driver.take(&m, 1).len(), 1);
}
