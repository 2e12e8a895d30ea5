//! What channels write.

use std::time::Duration;

use device::{GuestMemory, Model, Progress};
use proptest::prelude::*;
use stream_device::spec::registers::{
    CONTROL, CYCLIC, FAULT, HEAD, RATE, RING_HIGH, RUN, SEQUENCE_LOW, STATUS,
};
use stream_device::spec::{BAD_ADDRESS, BAD_DESCRIPTOR, Completion, WRITTEN, word};

use crate::machine::{DATA, Driver, MEMORY_BASE, Machine, unleash};

const LONG: Duration = Duration::from_secs(1);

#[test]
fn what_a_descriptor_names_is_filled_then_completed_and_signalled() {
    let mut m = Machine::new();
    let mut driver = Driver::start(&mut m, 0, (4, 0), 100);
    // Over the end of a page, and short.
    let pieces = [
        (DATA + 2048, 4096),
        (DATA + 0x3000, 8),
        (DATA + 0x4000, 16 << 10),
    ];
    for (address, len) in pieces {
        driver.post(&mut m, address, len);
    }
    assert!(m.device.needs_poll());
    m.pass(LONG);
    m.pass(LONG);
    assert_eq!(m.signals(), 1);
    for (sequence, (address, len)) in (100..).zip(pieces) {
        let count = u32::try_from(sequence - 99).unwrap();
        let status = WRITTEN;
        let expected = Completion {
            sequence,
            count,
            status,
        };
        assert_eq!(driver.take(&m), Some(expected));
        let len = u64::from(len);
        assert!(m.holds(address, len, sequence));
        assert_eq!((m.load(address - 8), m.load(address + len)), (0, 0));
    }
    assert_eq!(driver.take(&m), None);
    assert_eq!(m.read(driver.register(HEAD)), 3);
    assert!(!m.device.needs_poll());
}

#[test]
fn a_ring_goes_round_for_as_long_as_the_driver_goes_along() {
    let mut m = Machine::new();
    unleash(&mut m);
    let mut driver = Driver::start(&mut m, 1, (4, 0), 1);
    for round in 1..=1000 {
        driver.post(&mut m, DATA, 4096);
        m.pass(LONG);
        m.pass(LONG);
        assert_eq!(driver.take(&m).unwrap().sequence, round);
        assert!(m.holds(DATA, 4096, round));
    }
}

#[test]
fn a_descriptor_that_cannot_be_carried_out_is_completed_as_that() {
    let mut m = Machine::new();
    unleash(&mut m);
    let mut driver = Driver::start(&mut m, 0, (8, 0), 0);
    let bad = [
        (DATA + 4, 4096, BAD_DESCRIPTOR),
        (DATA, 12, BAD_DESCRIPTOR),
        (DATA, 0, BAD_DESCRIPTOR),
        (DATA, (16 << 10) + 8, BAD_DESCRIPTOR),
        (u64::MAX - 7, 4096, BAD_DESCRIPTOR),
        (MEMORY_BASE - 4096, 4096, BAD_ADDRESS),
        (DATA, 8, WRITTEN),
    ];
    for (address, len, _) in bad {
        driver.post(&mut m, address, len);
    }
    m.pass(LONG);
    m.pass(LONG);
    for (_, _, status) in bad {
        assert_eq!(driver.take(&m).unwrap().status, status);
    }
    assert_eq!(m.load(DATA + 8), 0);
}

#[test]
fn a_cyclic_channel_writes_for_ever_and_says_nothing() {
    let mut m = Machine::new();
    let mut driver = Driver::start(&mut m, 2, (4, CYCLIC), 10);
    for slot in 0..4 {
        driver.put(&m, slot, DATA + 4096 * u64::from(slot), 4096);
    }
    m.pass(LONG);
    for _ in 0..10 {
        m.pass(Duration::from_millis(1));
    }
    m.write(driver.register(CONTROL), 0);
    let next = u64::from(m.read(driver.register(SEQUENCE_LOW)));
    assert_eq!(next, 20, "10 ms at 1000 pages per second");
    m.pass(LONG);
    for (slot, last) in [(0, 18), (1, 19), (2, 16), (3, 17)] {
        assert!(m.holds(DATA + 4096 * slot, 4096, last), "{slot}");
    }
    assert_eq!((m.signals(), driver.take(&m)), (0, None));
}

#[test]
fn a_cyclic_channel_stops_at_what_it_cannot_do_and_so_does_one_without_a_ring() {
    let mut m = Machine::new();
    unleash(&mut m);
    let cyclic = Driver::start(&mut m, 0, (2, CYCLIC), 0);
    cyclic.put(&m, 0, DATA, 8);
    cyclic.put(&m, 1, DATA, 7);
    let mut lost = Driver::start(&mut m, 1, (2, 0), 0);
    m.write(lost.register(CONTROL), 0);
    m.write(lost.register(RING_HIGH), 1);
    m.write(lost.register(CONTROL), RUN);
    lost.post(&mut m, DATA, 8);
    m.pass(LONG);
    m.pass(LONG);
    for driver in [cyclic, lost] {
        assert_eq!(m.read(driver.register(CONTROL)) & RUN, 0);
        assert_eq!(m.read(driver.register(STATUS)), FAULT);
    }
    assert_eq!(m.poll(), Progress::Idle(None));
}

#[test]
fn channels_take_turns() {
    let mut m = Machine::new();
    m.write(RATE, 1000);
    let mut drivers: Vec<_> = (0..4)
        .map(|n| Driver::start(&mut m, n, (64, 0), 0))
        .collect();
    for driver in &mut drivers {
        (0..64).for_each(|_| driver.post(&mut m, DATA, 4096));
    }
    m.pass(LONG);
    for _ in 0..8 {
        m.pass(Duration::from_millis(1));
    }
    for driver in &mut drivers {
        assert_eq!(std::iter::from_fn(|| driver.take(&m)).count(), 2);
    }
}

#[test]
fn without_bus_mastering_nothing_is_written_or_saved_up() {
    let mut m = Machine::new();
    let mut driver = Driver::start(&mut m, 0, (64, 0), 0);
    (0..64).for_each(|_| driver.post(&mut m, DATA, 4096));
    m.pass(LONG);
    m.pass(Duration::from_millis(1));
    assert!(driver.take(&m).is_some(), "with bus mastering");
    m.bus_master = false;
    for _ in 0..3 {
        m.pass(LONG);
        assert_eq!(m.poll(), Progress::Idle(None));
    }
    m.bus_master = true;
    m.pass(LONG);
    assert_eq!(driver.take(&m), None, "time without bus mastering counted");
    m.pass(Duration::from_millis(1));
    assert!(driver.take(&m).is_some());
}

#[test]
fn a_channel_that_was_stopped_writes_nothing_more() {
    let mut m = Machine::new();
    unleash(&mut m);
    let mut driver = Driver::start(&mut m, 0, (64, 0), 0);
    m.pass(LONG);
    (0..64).for_each(|_| driver.post(&mut m, DATA, 4096));
    m.poll();
    m.write(driver.register(CONTROL), 0);
    let before = m.load(DATA);
    m.memory.write(DATA, &[0; 4096]).unwrap();
    m.pass(LONG);
    m.pass(LONG);
    assert_eq!(m.load(DATA), 0, "was {before:#x}");
}

#[test]
fn a_channel_that_is_started_again_begins_at_the_first_entry() {
    let mut m = Machine::new();
    unleash(&mut m);
    let mut first = Driver::start(&mut m, 0, (4, 0), 1);
    (0..3).for_each(|_| first.post(&mut m, DATA, 8));
    m.pass(LONG);
    m.pass(LONG);
    assert_eq!(m.read(first.register(HEAD)), 3);
    let mut again = Driver::start(&mut m, 0, (4, 0), 50);
    assert_eq!(m.read(again.register(HEAD)), 0);
    again.post(&mut m, DATA, 8);
    m.pass(LONG);
    m.pass(LONG);
    assert_eq!(again.take(&m).unwrap().sequence, 50);
}

proptest! {
    /// What makes a page of yesterday, or of elsewhere, visible.
    #[test]
    fn two_words_are_alike_only_with_number_and_address(
        a: (u64, u64), sequence: u64, address: u64
    ) {
        if sequence != a.0 {
            prop_assert_ne!(word(a.0, a.1), word(sequence, a.1));
        }
        if address != a.1 {
            prop_assert_ne!(word(a.0, a.1), word(a.0, address));
        }
    }
}
