//! Causes, masks, vectors and throttling.

use std::time::Duration;

use device::{Model, Progress};

use crate::frames::{pattern, udp};
use crate::machine::Machine;
use crate::ring_driver::{Driver, Options};

const VTEICR: u64 = 0x0100;
const VTEICS: u64 = 0x0104;
const VTEIMS: u64 = 0x0108;
const VTEIMC: u64 = 0x010c;
const VTEIAC: u64 = 0x0110;
const VTEIAM: u64 = 0x0114;

fn up() -> Machine {
    Driver::up(Options::default()).0
}

#[test]
fn a_vector_fires_once_until_the_driver_enables_it_again() {
    let mut m = up();
    m.write(VTEICS, 1);
    assert_eq!(m.signalled(), [0]);
    assert_eq!(
        (m.read(VTEIMS), m.read(VTEICS)),
        (6, 0),
        "masked and cleared by itself"
    );
    m.write(VTEICS, 1);
    assert!(m.signalled().is_empty());
    m.write(VTEIMS, 1);
    assert_eq!(m.signalled(), [0], "the cause was kept");
    m.write(VTEIMS, 1);
    assert!(m.signalled().is_empty());
    let [first, second, _] = m.vf.counters().vectors;
    assert_eq!(
        (first.raised, first.rearmed, first.awaiting_rearm),
        (2, 2, false)
    );
    assert_eq!((second.raised, second.rearmed), (0, 0));
}

#[test]
fn a_vector_that_nobody_enables_again_shows() {
    let mut m = up();
    m.write(VTEICS, 7);
    assert_eq!(m.signalled(), [0, 1, 2]);
    m.write(VTEIMS, 4);
    m.write(VTEIMC, 2);
    let awaiting = m.vf.counters().vectors.map(|v| v.awaiting_rearm);
    assert_eq!(awaiting, [true, false, false]);
    assert_eq!(m.vf.inspect()["vectors"][0]["awaiting_rearm"], true);
}

#[test]
fn masked_vectors_keep_their_cause_and_reading_takes_it() {
    let mut m = up();
    m.write(VTEIMC, 7);
    m.write(VTEICS, 3);
    assert!(m.signalled().is_empty());
    assert_eq!(m.read(VTEICS), 3);
    assert_eq!(m.read(VTEICR), 3);
    assert_eq!(m.read(VTEICR), 0);
    m.write(VTEICS, 6);
    m.write(VTEICR, 2);
    m.write(VTEIMS, 7);
    assert_eq!(m.signalled(), [2]);
}

#[test]
fn without_auto_clear_and_auto_mask_each_cause_is_one_message() {
    let mut m = up();
    m.write(VTEIAC, 0);
    m.write(VTEIAM, 0);
    m.write(VTEICS, 1);
    m.settle();
    assert_eq!(m.signalled(), [0]);
    assert_eq!((m.read(VTEIMS), m.read(VTEICS)), (7, 1));
    m.write(VTEICS, 1);
    assert_eq!(m.signalled(), [0]);
}

#[test]
fn a_cause_that_stands_fires_again_when_it_is_unmasked() {
    let mut m = up();
    m.write(VTEIAC, 0);
    m.write(VTEICS, 1);
    assert_eq!(m.signalled(), [0]);
    m.settle();
    assert!(m.signalled().is_empty());
    m.write(VTEIMS, 1);
    assert_eq!(m.signalled(), [0]);
}

#[test]
fn causes_go_to_the_vectors_that_the_driver_chose() {
    let (mut m, mut driver) = Driver::up(Options::default());
    // Transmit 0 on vector 2, transmit 1 on one that there is not, receive 0 on vector 1, receive
    // 1 nowhere.
    m.write(0x0120, 0x8501_8281);
    m.write(0x0300, 0);
    driver.send_plain(&mut m, 0, &udp(&pattern(60)));
    assert_eq!(m.signalled(), [2]);
    driver.send_plain(&mut m, 1, &udp(&pattern(60)));
    assert!(m.signalled().is_empty());
    m.arrive(&udp(&pattern(60)));
    m.settle();
    assert_eq!(m.signalled(), [1]);
    m.write(0x1028, 0);
    m.arrive(&udp(&pattern(60)));
    m.settle();
    assert!(m.signalled().is_empty());
}

#[test]
fn a_throttled_vector_waits_for_its_interval() {
    let mut m = up();
    // As the driver writes 100 us: units of 2 us, from bit 3 on.
    m.write(0x0820, 0x8000_0000 | 50 << 3);
    m.write(VTEICS, 1);
    assert_eq!(m.signalled(), [0]);
    m.clock.advance(Duration::from_micros(40));
    m.write(VTEICS, 1);
    m.write(VTEIMS, 1);
    assert!(m.signalled().is_empty());
    assert!(m.vf.needs_poll(), "only a poll tells when");
    assert_eq!(m.poll(), Progress::Idle(Some(Duration::from_micros(60))));
    assert!(!m.vf.needs_poll());
    m.write(VTEICS, 2);
    assert_eq!(m.signalled(), [1], "the others are not held up");
    m.clock.advance(Duration::from_micros(59));
    assert_eq!(m.poll(), Progress::Idle(Some(Duration::from_micros(1))));
    assert!(m.signalled().is_empty());
    m.clock.advance(Duration::from_micros(1));
    assert_eq!(m.poll(), Progress::Idle(None));
    assert_eq!(m.signalled(), [0]);
}

#[test]
fn a_shorter_interval_counts_at_once_and_a_written_counter_ends_it() {
    let mut m = up();
    let raise = |m: &mut Machine| {
        m.write(VTEICS, 1);
        m.write(VTEIMS, 1);
        m.signalled()
    };
    m.write(0x0820, 0x8000_0000 | 500 << 3);
    assert_eq!(raise(&mut m), [0]);
    assert!(raise(&mut m).is_empty());
    m.write(0x0820, 0x8000_0000 | 5 << 3);
    assert!(m.vf.needs_poll());
    assert_eq!(m.poll(), Progress::Idle(Some(Duration::from_micros(10))));
    m.write(0x0820, 500 << 3);
    assert_eq!(m.signalled(), [0]);
    m.write(0x0820, 0x8000_0000);
    assert_eq!(raise(&mut m), [0], "no interval at all");
}

#[test]
fn many_frames_within_an_interval_are_one_interrupt() {
    let (mut m, mut driver) = Driver::up(Options::default());
    for vector in 0..2 {
        m.write(0x0820 + 4 * vector, 0x8000_0000 | 25 << 3);
    }
    let mut interrupts = 0;
    for number in 0..1_000_u64 {
        driver.send_plain(&mut m, 0, &udp(&pattern(60)));
        assert_eq!(driver.sent(&m, 0), 1);
        m.clock.advance(Duration::from_micros(1));
        m.poll();
        let raised = m.signalled();
        interrupts += raised.len();
        if !raised.is_empty() {
            m.write(VTEIMS, 1);
        }
        assert!(number < 10 || interrupts > 0);
    }
    assert!(
        (20..=21).contains(&interrupts),
        "{interrupts} in 1 ms at 50 us"
    );
}
