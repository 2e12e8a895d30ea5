//! All kinds of commands on a file, by every engine that there is.

use std::os::unix::fs::FileExt;

use device::{Claim, Model as _};
use nvme::engine::{Engine, Ring, Synchronous};
use nvme::spec::status::Status;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::machine::{DISK_LEN, Machine};
use crate::queue_driver::{Command, DATA, Driver, blocks, plain};

const FLUSH: u8 = 0;
const WRITE: u8 = 1;
const READ: u8 = 2;
const COMPARE: u8 = 5;
const WRITE_ZEROES: u8 = 8;
const DSM: u8 = 9;
const FUA: u32 = 1 << 30;

/// Rings where the system allows them; what follows is tested once without.
fn engines() -> Vec<Box<dyn Engine>> {
    let mut engines: Vec<Box<dyn Engine>> = vec![Box::new(Synchronous::default())];
    if let Ok(ring) = Ring::new() {
        engines.push(Box::new(ring));
    }
    engines
}

fn each_engine(test: impl Fn(&mut Machine, &mut Driver, &std::fs::File)) {
    for engine in engines() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        std::fs::write(&path, vec![0; DISK_LEN]).unwrap();
        let mut m = Machine::on(&path, engine);
        let mut driver = Driver::enable(&mut m);
        driver.create_pair(&mut m, 1);
        test(&mut m, &mut driver, &std::fs::File::open(&path).unwrap());
    }
}

fn at(file: &std::fs::File, offset: u64, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    file.read_exact_at(&mut data, offset).unwrap();
    data
}

#[test]
fn commands_side_by_side_do_what_they_would_do_alone() {
    each_engine(|m, driver, file| {
        // Each of 14 has a page of memory and its own blocks; one has 1 MiB.
        let mut expected = vec![0; DISK_LEN];
        for round in 0..8_usize {
            let long: Vec<u8> = (0..1 << 20).map(|i| (i / 4096 + i + round) as u8).collect();
            m.store(DATA, &long);
            for slot in 0..14 {
                let from = (slot + round) * 4096;
                let block = ((slot * 37 + round * 14) % 500) as u64 * 8;
                let opcode = if (slot + round).is_multiple_of(5) {
                    WRITE_ZEROES
                } else {
                    WRITE
                };
                let mut command = blocks(opcode, block, 8, DATA + from as u64);
                command.cdw[2] |= if slot == 3 { FUA } else { 0 };
                driver.submit(m, 1, command);
                let target = &mut expected[block as usize * 512..][..4096];
                match opcode {
                    WRITE => target.copy_from_slice(&long[from..from + 4096]),
                    _ => target.fill(0),
                }
            }
            driver.submit(m, 1, blocks(WRITE, 6000, 2048, DATA));
            expected[6000 * 512..][..1 << 20].copy_from_slice(&long);
            driver.ring(m, 1);
            m.settle();
            let answers = driver.reap(m, 1);
            assert_eq!(answers.len(), 15);
            assert!(
                answers.iter().all(|a| a.status == Status::SUCCESS),
                "{answers:?}"
            );
            assert!(at(file, 0, DISK_LEN) == expected);
            for opcode in [COMPARE, READ] {
                driver.io_ok(m, blocks(opcode, 6000, 2048, DATA));
            }
            assert!(m.load(DATA, 1 << 20) == long);
        }
        let counters = m.controller.counters();
        assert_eq!(counters.flushes, 8);
        assert_eq!(counters.errors, 0);
        assert!(counters.bytes_written > 8 << 20);
    });
}

#[test]
fn flushes_ranges_and_shutdowns_come_to_their_end() {
    each_engine(|m, driver, file| {
        m.store(DATA, &vec![0x5a; 1 << 16]);
        driver.io_ok(m, blocks(WRITE, 0, 128, DATA));
        for nsid in [1, u32::MAX] {
            driver.io_ok(
                m,
                Command {
                    nsid,
                    ..plain(FLUSH, 0, 0)
                },
            );
        }
        // One range of no blocks, and one of eight.
        m.store(DATA, &[0; 32]);
        m.store(DATA + 16 + 4, &[8]);
        m.store(DATA + 16 + 8, &[16]);
        driver.io_ok(
            m,
            Command {
                nsid: 1,
                data: DATA,
                len: 32,
                ..plain(DSM, 1, 4)
            },
        );
        assert!(at(file, 16 * 512, 4096).iter().all(|b| *b == 0));
        assert_eq!(
            (at(file, 15 * 512, 1), at(file, 24 * 512, 1)),
            (vec![0x5a], vec![0x5a])
        );
        driver.admin_ok(m, plain(0x09, 6, 0));
        driver.io_ok(m, blocks(WRITE, 0, 1, DATA));
        assert_eq!(m.controller.counters().flushes, 4);
        for bus_master in [true, false] {
            m.bus_master = bus_master;
            m.write(0x14, 0x0046_0001);
            m.write(0x14, 0x0046_4001);
            while m.read(0x1c) != 1 | 2 << 2 {
                m.poll();
            }
        }
        assert_eq!(m.controller.counters().flushes, 6);
    });
}

#[test]
fn a_file_that_was_cut_short_fails_its_commands_only() {
    each_engine(|m, driver, file| {
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file));
        let writable = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        writable.set_len(4096).unwrap();
        let answer = driver.run(m, 1, blocks(READ, 4, 8, DATA));
        assert_eq!(answer.status, Status::UNRECOVERED_READ);
        driver.io_ok(m, blocks(READ, 0, 8, DATA));
        assert_eq!(m.controller.state().usage.media_errors, 1);
    });
}

#[test]
fn a_controller_that_goes_in_the_middle_of_its_work_leaves_nothing_behind() {
    each_engine(|m, driver, _| {
        for slba in 0..15 {
            driver.submit(m, 1, blocks(WRITE, slba * 64, 64, DATA));
        }
        driver.ring(m, 1);
        m.poll();
        m.controller.drain().unwrap();
        assert_eq!(m.controller.under_way(), 0);
        let engine = match m.controller.poll_fd() {
            Some(_) => "io_uring",
            None => "synchronous",
        };
        assert_eq!(m.controller.inspect()["engine"], engine);
        m.controller.save().unwrap();
        assert!(m.controller.poll_read());
        m.controller.release("m1").unwrap();
        assert!(!m.controller.poll_read(), "or the owner would spin");
        m.poll();
        if let Some(fd) = m.controller.poll_fd() {
            let fds = &mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
            assert_eq!(poll(fds, Some(&Timespec::default())), Ok(0));
        }
        m.controller.acquire(Claim::TakeBack("m1")).unwrap();
        m.settle();
        assert_eq!(driver.reap(m, 1).len(), 15);
    });
}
