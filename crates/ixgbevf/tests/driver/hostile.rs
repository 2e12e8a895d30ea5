//! Registers and descriptors as no sane driver writes them.

use device::{GuestMemory, Progress};
use proptest::prelude::*;

use crate::frames::{pattern, udp};
use crate::machine::{MEMORY_BASE, MEMORY_LEN, Machine};
use crate::ring_driver::{Driver, Options};

/// Register values that are likely to be trouble.
fn awkward() -> impl Strategy<Value = u32> {
    prop_oneof![
        Just(0),
        Just(1),
        Just(u32::MAX),
        Just(0x7fff_ffff),
        Just(0x8000_0000),
        Just(MEMORY_BASE as u32),
        Just((MEMORY_BASE as usize + MEMORY_LEN - 8) as u32),
        (0_u32..32).prop_map(|bit| 1 << bit),
        any::<u16>().prop_map(u32::from),
        any::<u32>(),
    ]
}

fn ring_register() -> impl Strategy<Value = u64> {
    let bases = prop_oneof![Just(0x1000_u64), Just(0x2000)];
    (bases, 0_u64..2, 0_u64..16).prop_map(|(base, queue, word)| base + 0x40 * queue + 4 * word)
}

proptest! {
    #[test]
    fn any_ring_registers_are_survived(
        writes in proptest::collection::vec((ring_register(), awkward()), 1..40)
    ) {
        let (mut m, mut driver) = Driver::up(Options::default());
        for (register, value) in writes {
            m.write(register, value);
            m.arrive(&udp(&pattern(200)));
            driver.send_plain(&mut m, 0, &udp(&pattern(100)));
            m.poll();
        }
        m.settle();
        // And a reset brings it all back.
        driver.close(&mut m);
        m.settle();
        driver.open(&mut m, Options::default());
        m.sent();
        m.arrive(&udp(&pattern(60)));
        driver.send_plain(&mut m, 0, &udp(&pattern(100)));
        m.settle();
        prop_assert_eq!(m.sent().len(), 1);
        prop_assert!((0..2).any(|queue| driver.receive(&mut m, queue).is_some()));
    }

    #[test]
    fn any_transmit_descriptors_are_survived(
        words in proptest::collection::vec([awkward(), awkward(), awkward(), awkward()], 1..60),
        types in proptest::collection::vec(0_u32..4, 60),
    ) {
        let (mut m, mut driver) = Driver::up(Options::default());
        let count = words.len() as u32;
        for ([low, high, command, info], kind) in words.into_iter().zip(types) {
            let command = command & !0x00f0_0000 | kind << 20 | 1 << 29;
            driver.put(&m, 0, [low, high, command, info]);
        }
        driver.kick(&mut m, 0);
        m.settle();
        let head = m.read(0x2010);
        prop_assert!(head <= count);
    }

    #[test]
    fn any_mailbox_message_is_answered(
        words in proptest::collection::vec(awkward(), 16), message in 0_u32..0x20, info in any::<u8>()
    ) {
        let (mut m, _) = Driver::up(Options::default());
        let mut words = words;
        words[0] = u32::from(info) << 16 | message;
        let answer = Driver::message(&mut m, &words)[0];
        prop_assert!(answer >> 30 != 0, "{answer:#x} is no verdict");
        Driver::reset(&mut m);
    }
}

#[test]
fn the_work_of_one_call_is_bounded_however_small_the_segments() {
    let (mut m, mut driver) = Driver::up(Options::default());
    // 60 descriptors of segmentation into single bytes: 240 000 frames in the end.
    let address = (MEMORY_BASE + 0x40_0000) as u32;
    let mut frame = udp(&pattern(4_000));
    frame[16..18].fill(0);
    m.memory.write(address.into(), &frame).unwrap();
    driver.put(&m, 0, [14 << 9 | 20, 0, 0x2020_0400, 1 << 16 | 8 << 8]);
    for _ in 0..60 {
        driver.put(&m, 0, [address, 0, 0xab30_0000 | frame.len() as u32, 0x380]);
    }
    driver.kick(&mut m, 0);
    let mut total = m.sent().len();
    assert!(total <= 256);
    while m.poll() == Progress::More {
        let sent = m.sent().len();
        assert!(sent <= 256, "{sent}");
        total += sent;
    }
    assert_eq!(total + m.sent().len(), 240_000);
    assert_eq!(driver.sent(&m, 0), 60);
}

#[test]
fn rings_outside_of_memory_are_counted_and_cost_nothing() {
    let (mut m, mut driver) = Driver::up(Options::default());
    for queue in [0x1000, 0x1040, 0x2000, 0x2040] {
        m.write(queue + 4, u32::MAX);
    }
    driver.send_plain(&mut m, 0, &udp(b"never read"));
    m.arrive(&udp(b"never written"));
    assert_eq!(m.poll(), Progress::Idle(None));
    let counters = m.vf.counters();
    assert!(counters.ring_dma_errors > 0);
    assert_eq!(counters.dropped.rx_dma, 1);
    assert_eq!((m.read(0x1010), m.read(0x2010)), (0, 0));
}

#[test]
fn tails_past_the_ring_and_rings_of_no_length_stand_still() {
    let (mut m, mut driver) = Driver::up(Options::default());
    driver.send_plain(&mut m, 0, &udp(b"one"));
    m.write(0x2018, 64);
    m.write(0x2018, 0xffff);
    m.write(0x2008, 0);
    m.write(0x2018, 0);
    m.settle();
    assert_eq!((m.read(0x2010), m.sent().len()), (2, 1));
    m.write(0x1008, u32::MAX);
    assert_eq!(m.read(0x1008), 0xf_ff80);
    m.write(0x1000, u32::MAX);
    assert_eq!(m.read(0x1000), 0xffff_ff80);
}

#[test]
fn an_untouched_function_is_at_rest() {
    let mut m = Machine::new();
    assert_eq!(m.poll(), Progress::Idle(None));
    for offset in (0..0x4000).step_by(4) {
        assert_ne!(m.read(offset), u32::MAX);
    }
}
