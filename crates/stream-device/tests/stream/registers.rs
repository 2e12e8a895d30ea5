//! What reads and writes of registers do.

use device::Model;
use device::Reset;
use stream_device::spec::registers::{
    CHANNELS, CONTROL, CYCLIC, DEFAULT_RATE, ENTRIES, FAULT, HEAD, MAGIC, MAX_RATE, RATE,
    RING_HIGH, RING_LOW, RUN, SEQUENCE_HIGH, SEQUENCE_LOW, STATUS, TAIL, VERSION,
};

use crate::machine::{DATA, Driver, Machine};

#[test]
fn the_device_says_what_it_is_and_takes_its_rate() {
    let mut m = Machine::new();
    assert_eq!(m.read(MAGIC).to_le_bytes(), *b"STRM");
    assert_eq!((m.read(VERSION), m.read(CHANNELS)), (0x0001_0000, 8));
    assert_eq!(m.read(RATE), DEFAULT_RATE);
    m.write(RATE, 5);
    assert_eq!(m.read(RATE), 5);
    m.write(RATE, u32::MAX);
    assert_eq!(m.read(RATE), MAX_RATE);
    m.write(MAGIC, 7);
    assert_eq!(m.read(MAGIC).to_le_bytes(), *b"STRM");
}

#[test]
fn accesses_of_another_width_or_place_read_ones_and_write_nothing() {
    let mut m = Machine::new();
    for (bar, offset, len) in [(0, 0, 8), (0, 0, 2), (0, 2, 4), (0, 4096, 4), (1, 0, 4)] {
        let mut data = vec![0; len];
        m.call(|d, access| d.read(bar, offset, &mut data, access));
        assert!(
            data.iter().all(|byte| *byte == 0xff),
            "{bar} {offset} {len}"
        );
    }
    let state = m.device.state().clone();
    for (bar, offset, len) in [(0, RATE, 8), (0, RATE, 2), (0, RATE + 2, 4), (2, RATE, 4)] {
        m.call(|d, access| d.write(bar, offset, &[9; 8][..len], access));
    }
    // Behind the last channel.
    m.write(0x300, 1);
    assert_eq!(m.read(0x300), 0);
    assert_eq!(*m.device.state(), state);
}

#[test]
fn a_channel_that_runs_keeps_its_rings() {
    let mut m = Machine::new();
    let driver = Driver::start(&mut m, 3, (8, 0), 0x77);
    let before = m.device.state().clone();
    for register in [
        RING_LOW,
        RING_HIGH,
        ENTRIES,
        SEQUENCE_LOW,
        SEQUENCE_HIGH,
        HEAD,
        STATUS,
    ] {
        m.write(driver.register(register), 0x1234_5678);
    }
    assert_eq!(*m.device.state(), before);
    assert_eq!(m.read(driver.register(SEQUENCE_LOW)), 0x77);
    m.write(driver.register(CONTROL), 0);
    m.write(driver.register(SEQUENCE_HIGH), 0x1234_5678);
    assert_eq!(
        m.device.state().channels[3].sequence,
        0x1234_5678 << 32 | 0x77
    );
}

#[test]
fn rings_that_are_none_fault_when_they_are_to_run() {
    for (register, value) in [(ENTRIES, 0), (ENTRIES, 3), (ENTRIES, 2048), (RING_LOW, 8)] {
        let mut m = Machine::new();
        let driver = Driver::start(&mut m, 0, (8, 0), 0);
        m.write(driver.register(CONTROL), 0);
        m.write(driver.register(register), value);
        m.write(driver.register(CONTROL), RUN);
        assert_eq!(m.read(driver.register(CONTROL)), 0, "{register:#x} {value}");
        assert_eq!(m.read(driver.register(STATUS)), FAULT);
    }
}

#[test]
fn a_tail_that_the_ring_has_no_room_for_is_dropped() {
    let mut m = Machine::new();
    let mut driver = Driver::start(&mut m, 0, (8, 0), 0);
    driver.post(&mut m, DATA, 4096);
    for tail in [9, 100, u32::MAX] {
        m.write(driver.register(TAIL), tail);
        assert_eq!(m.read(driver.register(TAIL)), 1);
    }
    m.write(driver.register(TAIL), 8);
    assert_eq!(m.read(driver.register(TAIL)), 8);
    m.write(driver.register(CONTROL), 0);
    m.write(driver.register(TAIL), 2);
    assert_eq!(m.read(driver.register(TAIL)), 8);
}

#[test]
fn a_reset_stops_all_and_forgets_all() {
    let mut m = Machine::new();
    m.write(RATE, 7);
    Driver::start(&mut m, 7, (8, CYCLIC), 5);
    m.device.reset(Reset::Function);
    assert_eq!(m.device.state(), Machine::new().device.state());
    assert!(!m.device.needs_poll());
}
