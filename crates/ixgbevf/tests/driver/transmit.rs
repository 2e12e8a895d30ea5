//! Frames on their way out.

use device::{GuestMemory, Model, Progress};
use ixgbevf::Vf;

use crate::frames::{pattern, udp};
use crate::machine::{MEMORY_BASE, Machine};
use crate::ring_driver::{Driver, Options, Order};

#[test]
fn a_frame_is_sent_at_once_and_reported_done() {
    let (mut m, mut driver) = Driver::up(Options::default());
    let frame = udp(&pattern(100));
    driver.send_plain(&mut m, 0, &frame);
    assert_eq!(m.sent(), std::slice::from_ref(&frame));
    assert_eq!(driver.sent(&m, 0), 1);
    assert_eq!((m.read(0x2010), m.read(0x2018)), (2, 2));
    assert_eq!(m.signalled(), [0]);
    driver.send_plain(&mut m, 1, &frame);
    assert_eq!((m.sent(), m.signalled()), (vec![frame.clone()], vec![1]));
    assert_eq!(m.read(0x201c), 2);
    assert_eq!(m.read(0x2020), 2 * (frame.len() as u32 + 4), "with FCS");
}

#[test]
fn frames_of_a_row_of_doorbells_are_handed_on_together() {
    let (mut m, mut driver) = Driver::up(Options::default());
    m.settle();
    let before = m.cable().flushes;
    for _ in 0..3 {
        driver.send_plain(&mut m, 0, &udp(&pattern(100)));
        assert!(!m.vf.needs_poll(), "nobody else has to be woken for it");
    }
    assert_eq!((m.sent().len(), m.cable().flushes), (3, before));
    for _ in 0..2 {
        m.call(Vf::after_writes);
        assert_eq!(m.cable().flushes, before + 1);
    }
}

#[test]
fn a_frame_of_several_buffers_is_put_together_and_only_its_last_descriptor_reported() {
    let (mut m, mut driver) = Driver::up(Options::default());
    let frame = udp(&pattern(8_000));
    let order = Order {
        parts: vec![
            &frame[..14],
            &frame[14..15],
            &[],
            &frame[15..4_000],
            &frame[4_000..],
        ],
        ..Order::default()
    };
    driver.send(&mut m, 0, &order);
    assert_eq!(m.sent(), [frame]);
    for index in 0..4 {
        let mut status = [0; 4];
        m.memory
            .read(Driver::tx_descriptor(0, index) + 12, &mut status)
            .unwrap();
        assert_ne!(u32::from_le_bytes(status), 1, "descriptor {index}");
    }
    assert_eq!(driver.sent(&m, 0), 1);
}

#[test]
fn a_short_frame_is_padded() {
    let (mut m, mut driver) = Driver::up(Options::default());
    let frame = udp(b"x");
    assert!(frame.len() < 60);
    driver.send_plain(&mut m, 0, &frame);
    let sent = m.sent().remove(0);
    assert_eq!(sent.len(), 60);
    assert_eq!(sent[..frame.len()], frame);
    assert!(sent[frame.len()..].iter().all(|b| *b == 0));
}

#[test]
fn rings_go_round() {
    let (mut m, mut driver) = Driver::up(Options::default());
    for number in 0..1_000_u32 {
        let frame = udp(&[&number.to_le_bytes()[..], &pattern(60)].concat());
        driver.send_plain(&mut m, (number % 2) as usize, &frame);
        assert_eq!(m.sent(), [frame]);
        assert_eq!(driver.sent(&m, (number % 2) as usize), 1);
    }
}

#[test]
fn a_full_link_keeps_the_frame_waiting_in_the_ring() {
    use device::Model;
    let (mut m, mut driver) = Driver::up(Options::default());
    m.cable().room = Some(1);
    let frames = [udp(&pattern(100)), udp(&pattern(200)), udp(&pattern(300))];
    for frame in &frames {
        driver.send_plain(&mut m, 0, frame);
    }
    assert_eq!(driver.sent(&m, 0), 1);
    assert!(m.vf.poll_write() && m.vf.needs_poll());
    assert_eq!(
        m.poll(),
        Progress::Idle(None),
        "nothing to do before the link is writable"
    );
    m.cable().room = None;
    m.settle();
    assert_eq!(m.sent(), frames);
    assert_eq!(driver.sent(&m, 0), 2);
    assert!(!m.vf.poll_write() && !m.vf.needs_poll());
}

#[test]
fn without_memory_nothing_moves_and_with_it_all_does() {
    use device::Model;
    let (mut m, mut driver) = Driver::up(Options::default());
    m.bus_master = false;
    let frame = udp(&pattern(100));
    driver.send_plain(&mut m, 0, &frame);
    m.arrive(&udp(b"to the guest"));
    m.settle();
    assert_eq!(
        (m.sent().len(), m.read(0x2010), driver.sent(&m, 0)),
        (0, 0, 0)
    );
    assert!(!m.vf.poll_read(), "or the owner would spin");
    m.bus_master = true;
    m.settle();
    assert!(m.vf.poll_read());
    assert_eq!(m.sent(), [frame]);
    assert!((0..2).any(|queue| driver.receive(&mut m, queue).is_some()));
}

#[test]
fn what_a_budget_leaves_is_sent_by_poll() {
    use device::Model;
    let (mut m, mut driver) = Driver::up(Options::default());
    // A ring of its own, large enough to exceed a call's budget.
    m.write(0x2028, 0);
    m.write(0x2000, (MEMORY_BASE + 0x60_0000) as u32);
    m.write(0x2008, 1024 * 16);
    m.memory
        .write(MEMORY_BASE + 0x70_0000, &udp(&pattern(60)))
        .unwrap();
    for index in 0..1023_u64 {
        let words = [(MEMORY_BASE + 0x70_0000) as u32, 0, 0x2b30_0000 | 102, 0];
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        m.memory
            .write(MEMORY_BASE + 0x60_0000 + index * 16, &bytes)
            .unwrap();
    }
    m.write(0x2010, 0);
    m.write(0x2028, 1 << 25);
    m.write(0x2018, 1023);
    let first = m.sent().len();
    assert!(first > 0 && first <= 256, "{first}");
    assert!(m.vf.needs_poll());
    assert_eq!(m.poll(), Progress::More);
    m.settle();
    assert_eq!(first + m.sent().len(), 1023);
    assert_eq!(driver.sent(&m, 0), 0);
}

#[test]
fn the_head_is_written_to_memory_when_asked_for() {
    let (mut m, mut driver) = Driver::up(Options::default());
    let place = MEMORY_BASE + 0x7000;
    m.write(0x203c, 0);
    m.write(0x2038, place as u32 | 1);
    driver.send_plain(&mut m, 0, &udp(&pattern(100)));
    let mut head = [0; 4];
    m.memory.read(place, &mut head).unwrap();
    assert_eq!(u32::from_le_bytes(head), 2);
    assert_eq!(driver.sent(&m, 0), 0, "instead of the descriptor's status");
}

#[test]
fn a_frame_whose_end_is_not_there_yet_waits() {
    let (mut m, mut driver) = Driver::up(Options::default());
    let frame = udp(&pattern(100));
    let order = Order {
        parts: vec![&frame[..50], &frame[50..]],
        ..Order::default()
    };
    driver.queue(&m, 0, &order);
    m.write(0x2018, 1);
    m.settle();
    assert_eq!((m.sent().len(), m.read(0x2010)), (0, 0));
    driver.kick(&mut m, 0);
    assert_eq!(m.sent(), [frame]);
}

#[test]
fn frames_that_make_no_sense_are_given_back_and_counted() {
    let (mut m, mut driver) = Driver::up(Options::default());
    let good = udp(&pattern(100));
    let address = (MEMORY_BASE + 0x40_0000) as u32;
    m.memory.write(address.into(), &good).unwrap();
    // Legacy; too short; too long; outside of memory; a context in the middle.
    driver.put(&m, 0, [address, 0, 0x0b00_0064, 0]);
    driver.put(&m, 0, [address, 0, 0x2b30_000d, 0]);
    driver.put(&m, 0, [address, 0, 0x2b30_4000, 0]);
    driver.put(&m, 0, [0, 0x4000_0000, 0x2b30_0064, 0]);
    driver.put(&m, 0, [address, 0, 0x2230_0064, 0]);
    driver.put(&m, 0, [14 << 9, 0, 0x2020_0000, 0]);
    driver.kick(&mut m, 0);
    m.settle();
    assert!(m.sent().is_empty());
    let dropped = m.vf.counters().dropped;
    assert_eq!(
        (dropped.tx_malformed, dropped.tx_oversize, dropped.tx_dma),
        (3, 1, 1)
    );
    assert_eq!(m.read(0x2010), 6, "the ring goes on");
    driver.send_plain(&mut m, 0, &good);
    assert_eq!(m.sent(), [good]);
}

#[test]
fn a_frame_without_end_is_dropped_up_to_its_end() {
    let (mut m, _) = Driver::up(Options::default());
    m.write(0x2008, 1024 * 16);
    let address = (MEMORY_BASE + 0x40_0000) as u32;
    let ring = Driver::tx_descriptor(0, 0);
    let put = |index: u64, command: u32| {
        let words = [address, 0, command, 0];
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        m.memory.write(ring + index * 16, &bytes).unwrap();
    };
    (0..150).for_each(|index| put(index, 0x2230_0010));
    put(150, 0x2b30_0010);
    put(151, 0x2b30_0040);
    m.write(0x2018, 152);
    m.settle();
    assert_eq!(m.sent().len(), 1, "only the frame after it");
    assert_eq!(m.vf.counters().dropped.tx_malformed, 1);
    assert_eq!(m.read(0x2010), 152);
}

#[test]
fn a_queue_beyond_those_offered_does_nothing() {
    let mut m = Machine::new();
    Driver::probe(&mut m);
    m.write(0x2080, (MEMORY_BASE + 0x8000) as u32);
    m.write(0x2088, 1024);
    m.write(0x20a8, 1 << 25);
    m.write(0x2098, 5);
    m.settle();
    assert_eq!((m.read(0x2090), m.read(0x20a8)), (0, 1 << 25));
}
