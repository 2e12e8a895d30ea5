//! Registers: enabling, disabling, shutting down.

use device::{Model, Reset};
use nvme::spec::status::Status;

use crate::machine::Machine;
use crate::queue_driver::{DATA, Driver, blocks, plain};

#[test]
fn registers_read_as_the_specification_has_them() {
    let mut m = Machine::new();
    let mut cap = [0; 8];
    m.call(|c, access| c.read(0, 0, &mut cap, access));
    assert_eq!(u64::from_le_bytes(cap), 0x20_1e01_03ff);
    assert_eq!(m.read(4), 0x20, "the high half alone");
    assert_eq!(m.read(8), 0x0001_0400);
    assert_eq!((m.read(0x14), m.read(0x1c)), (0, 0));
    assert_eq!(m.read(0x1000), 0, "doorbells are for writing");
    let mut other = [0xff; 4];
    m.call(|c, access| c.read(4, 0, &mut other, access));
    assert_eq!(other, [0; 4], "another BAR has none");
}

#[test]
fn admin_queue_registers_keep_what_can_be_written() {
    let mut m = Machine::new();
    m.write(0x24, 0xffff_ffff);
    m.write_wide(0x28, u64::MAX);
    m.write(0x30, 0x1234_5678);
    m.write(0x34, 0x9);
    assert_eq!(m.read(0x24), 0x0fff_0fff);
    assert_eq!((m.read(0x28), m.read(0x2c)), (0xffff_f000, 0xffff_ffff));
    assert_eq!((m.read(0x30), m.read(0x34)), (0x1234_5000, 9));
}

#[test]
fn what_cannot_be_enabled_is_fatal_until_it_is_disabled() {
    for (aqa, cc) in [
        (0x000f_0000, 1),
        (0x0000_000f, 1),
        (0x000f_000f, 0x0081),
        (0x000f_000f, 0x0011),
        (0x000f_000f, 0x0801),
    ] {
        let mut m = Machine::new();
        m.write(0x24, aqa);
        m.write(0x14, cc);
        assert_eq!(m.read(0x1c), 2, "AQA {aqa:#x} CC {cc:#x}");
        m.write(0x14, 0);
        assert_eq!(m.read(0x1c), 0);
        Driver::enable(&mut m);
    }
}

#[test]
fn disabling_forgets_queues_and_features_and_keeps_the_admin_registers() {
    let (mut m, mut driver) = Driver::up(2);
    driver.admin_ok(&mut m, plain(0x09, 0x06, 0));
    let cid = driver.submit(&m, 1, blocks(2, 0, 8, DATA));
    driver.ring(&mut m, 1);
    let admin = (m.read(0x24), m.read(0x28), m.read(0x30));
    m.write(0x14, 0x0046_0000);
    assert_eq!(m.read(0x1c), 0);
    m.settle();
    assert!(driver.take(&m, 1).is_empty(), "command {cid} was forgotten");
    assert_eq!((m.read(0x24), m.read(0x28), m.read(0x30)), admin);
    let state = m.controller.state();
    assert!(state.submission.iter().chain(&[]).all(Option::is_none));
    assert!(state.features.write_cache);
    let mut driver = Driver::enable(&mut m);
    driver.create_pair(&mut m, 1);
    driver.io_ok(&mut m, blocks(2, 0, 8, DATA));
}

#[test]
fn a_shutdown_is_complete_when_all_is_durable_and_no_sooner() {
    let (mut m, mut driver) = Driver::up(1);
    m.store(DATA, &[0xab; 512]);
    driver.io_ok(&mut m, blocks(1, 5, 1, DATA));
    assert_ne!(m.disks[0].content().durable[5 * 512], 0xab);
    m.write(0x14, 0x0046_4001);
    assert_eq!(m.read(0x1c), 1 | 1 << 2, "occurring");
    // Bus mastering is off by then on some systems.
    m.bus_master = false;
    m.settle();
    assert_eq!(m.read(0x1c), 1 | 2 << 2, "complete");
    assert_eq!(m.disks[0].content().durable[5 * 512], 0xab);
    assert_eq!(m.disks[1].content().flushes, 1);
    // No more commands until it is enabled again.
    m.bus_master = true;
    driver.submit(&m, 1, blocks(2, 0, 1, DATA));
    driver.ring(&mut m, 1);
    m.settle();
    assert!(driver.take(&m, 1).is_empty());
    m.write(0x14, 0);
    assert_eq!(m.read(0x1c), 0);
    Driver::enable(&mut m);
}

#[test]
fn queues_that_are_not_in_memory_are_fatal_and_a_reset_helps() {
    let mut m = Machine::new();
    m.write(0x24, 0x000f_000f);
    m.write_wide(0x28, 0x7000_0000);
    m.write(0x14, 0x0046_0001);
    m.write(0x1000, 1);
    m.settle();
    assert_eq!(m.read(0x1c), 3);
    Driver::enable(&mut m);
}

#[test]
fn both_resets_leave_a_controller_as_after_power_on() {
    for kind in [Reset::Bus, Reset::Function] {
        let (mut m, _) = Driver::up(2);
        m.controller.reset(kind);
        assert_eq!((m.read(0x14), m.read(0x1c), m.read(0x24)), (0, 0, 0));
        m.write(0x1000, 3);
        m.settle();
        let mut driver = Driver::enable(&mut m);
        let answer = driver.admin(&mut m, plain(0x99, 0, 0));
        assert_eq!(answer.status, Status::INVALID_OPCODE);
    }
}

#[test]
fn without_bus_mastering_commands_wait_in_their_queue() {
    let (mut m, mut driver) = Driver::up(1);
    m.bus_master = false;
    driver.submit(&m, 1, blocks(2, 0, 1, DATA));
    driver.ring(&mut m, 1);
    m.settle();
    assert!(driver.take(&m, 1).is_empty());
    m.bus_master = true;
    m.poll();
    m.settle();
    assert_eq!(driver.reap(&mut m, 1).len(), 1);
}
