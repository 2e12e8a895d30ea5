//! Frames on their way in.

use device::GuestMemory;

use crate::frames::{PEER, ones_sum, pattern, tagged, udp, udp_to};
use crate::machine::{MAC, MEMORY_BASE, Machine};
use crate::ring_driver::{Driver, ENTRIES, Options, Received};

const EOP: u32 = 2;
const VP: u32 = 8;
const L4CS: u32 = 0x20;
const IPCS: u32 = 0x40;
const TCPE: u32 = 1 << 30;
const IPE: u32 = 1 << 31;

const ONE_QUEUE: Options = Options {
    max_frame: 1518,
    buffer_kib: 2,
    strip_vlan: true,
    queues: 1,
};

fn receive(m: &mut Machine, driver: &mut Driver, frame: &[u8]) -> Option<Received> {
    m.arrive(frame);
    m.settle();
    (0..driver.queues).find_map(|queue| driver.receive(m, queue))
}

#[test]
fn a_frame_arrives_as_it_was_sent() {
    let (mut m, mut driver) = Driver::up(ONE_QUEUE);
    let frame = udp(&pattern(1_000));
    let got = receive(&mut m, &mut driver, &frame).unwrap();
    assert_eq!((got.bytes, got.descriptors), (frame.clone(), 1));
    assert_eq!(got.status, 1 | EOP | L4CS | IPCS);
    assert_eq!(got.packet_info, 0x210, "IPv4 and UDP, no RSS hash");
    assert_eq!(m.signalled(), [0]);
    assert_eq!(m.read(0x1010), 1);
    assert_eq!(
        (m.read(0x101c), m.read(0x1020)),
        (1, frame.len() as u32 + 4)
    );
    assert_eq!(m.read(0x1034), 0);
    assert_eq!(m.vf.counters().received.bytes, frame.len() as u64);
}

#[test]
fn a_short_frame_is_padded_to_sixty_bytes() {
    let (mut m, mut driver) = Driver::up(ONE_QUEUE);
    let frame = udp(b"ab");
    let got = receive(&mut m, &mut driver, &frame).unwrap();
    assert_eq!(got.bytes.len(), 60);
    assert_eq!(got.bytes[..frame.len()], frame);
    assert!(got.bytes[frame.len()..].iter().all(|b| *b == 0));
    assert_eq!(
        got.status & (L4CS | TCPE),
        L4CS,
        "padding is no part of the packet"
    );
}

#[test]
fn a_jumbo_frame_spans_descriptors() {
    for (buffer_kib, descriptors) in [(1, 9), (2, 5), (3, 3), (16, 1)] {
        let options = Options {
            max_frame: 9_018,
            buffer_kib,
            ..ONE_QUEUE
        };
        let (mut m, mut driver) = Driver::up(options);
        let frame = udp(&pattern(9_000 - 28));
        assert_eq!(frame.len(), 9_014);
        for _ in 0..50 {
            let got = receive(&mut m, &mut driver, &frame).unwrap();
            assert_eq!((&got.bytes, got.descriptors), (&frame, descriptors));
            assert_eq!(got.status, 1 | EOP | L4CS | IPCS);
        }
    }
}

#[test]
fn frames_that_are_too_long_are_dropped_and_the_limit_is_the_drivers() {
    let (mut m, mut driver) = Driver::up(ONE_QUEUE);
    let fits = udp(&pattern(1_472));
    let too_long = udp(&pattern(1_473));
    assert!(receive(&mut m, &mut driver, &fits).is_some());
    assert!(receive(&mut m, &mut driver, &too_long).is_none());
    Driver::granted(&mut m, &[0x0001_0004, 5]);
    assert!(receive(&mut m, &mut driver, &tagged(&fits, 5)).is_some());
    assert!(receive(&mut m, &mut driver, &tagged(&too_long, 5)).is_none());
    assert_eq!(m.vf.counters().dropped.rx_oversize, 2);
}

#[test]
fn a_full_ring_leaves_frames_in_the_link_and_a_tail_write_fetches_them() {
    use device::Model;
    let (mut m, mut driver) = Driver::up(ONE_QUEUE);
    let frames: Vec<_> = (0..100_u32)
        .map(|n| udp(&[&n.to_le_bytes()[..], &pattern(80)].concat()))
        .collect();
    for frame in &frames {
        m.arrive(frame);
    }
    assert!(m.vf.poll_read());
    m.settle();
    assert_eq!(m.read(0x1010), u32::from(ENTRIES) - 1, "up to the tail");
    assert!(!m.vf.poll_read(), "no wish for more");
    let mut got = Vec::new();
    while let Some(received) = driver.receive(&mut m, 0) {
        got.push(received.bytes);
    }
    assert_eq!(got, frames, "all of them in order, without a poll");
    m.settle();
    assert!(m.vf.poll_read());
    assert_eq!(m.vf.counters().received.frames, 100);
}

#[test]
fn a_frame_waits_until_all_its_descriptors_are_there() {
    let options = Options {
        max_frame: 9_018,
        ..ONE_QUEUE
    };
    let (mut m, mut driver) = Driver::up(options);
    m.write(0x1018, 3);
    let frame = udp(&pattern(8_000));
    m.arrive(&frame);
    m.settle();
    assert_eq!((m.read(0x1010), driver.take(&m, 0)), (0, None));
    m.write(0x1018, 4);
    assert_eq!(driver.take(&m, 0).unwrap().bytes, frame);
}

#[test]
fn with_no_queue_enabled_frames_are_dropped() {
    let mut m = Machine::new();
    let mut driver = Driver::probe(&mut m);
    (0..1_000).for_each(|_| m.arrive(&udp(b"nobody home")));
    m.settle();
    assert_eq!(m.vf.counters().dropped.rx_no_queue, 1_000);
    driver.open(&mut m, ONE_QUEUE);
    assert!(receive(&mut m, &mut driver, &udp(b"somebody")).is_some());
}

#[test]
fn disabling_the_last_queue_lets_go_of_what_waits_for_it() {
    let (mut m, _) = Driver::up(ONE_QUEUE);
    (0..70).for_each(|_| m.arrive(&udp(b"more than the ring holds")));
    m.settle();
    m.write(0x1028, 0);
    m.settle();
    let counters = m.vf.counters();
    assert_eq!(
        (counters.received.frames, counters.dropped.rx_no_queue),
        (63, 7)
    );
}

#[test]
fn frames_that_can_never_fit_are_dropped() {
    // No length, no buffers, another descriptor type, and a ring too small for the frame.
    for (register, value) in [(0x1008, 0), (0x1014, 1 << 25), (0x1014, 2), (0x1008, 0x80)] {
        let options = Options {
            max_frame: 9_728,
            buffer_kib: 1,
            ..ONE_QUEUE
        };
        let (mut m, mut driver) = Driver::up(options);
        m.write(register, value);
        m.write(0x1018, 7);
        assert!(receive(&mut m, &mut driver, &udp(&pattern(9_000))).is_none());
        assert_eq!(
            m.vf.counters().dropped.rx_never_fits,
            1,
            "{register:#x} = {value:#x}"
        );
    }
}

#[test]
fn a_buffer_outside_of_memory_costs_the_frame_and_nothing_else() {
    let (mut m, mut driver) = Driver::up(ONE_QUEUE);
    m.memory
        .write(Driver::rx_descriptor(0, 0), &u64::MAX.to_le_bytes())
        .unwrap();
    assert!(receive(&mut m, &mut driver, &udp(b"lost")).is_none());
    assert_eq!((m.vf.counters().dropped.rx_dma, m.read(0x1010)), (1, 0));
    m.memory
        .write(
            Driver::rx_descriptor(0, 0),
            &(MEMORY_BASE + 0x10_0000).to_le_bytes(),
        )
        .unwrap();
    assert!(receive(&mut m, &mut driver, &udp(b"found")).is_some());
}

#[test]
fn checksums_are_reported_as_they_are() {
    let (mut m, mut driver) = Driver::up(ONE_QUEUE);
    let mut status = |frame: &[u8]| {
        let got = receive(&mut m, &mut driver, frame).unwrap();
        got.status & (L4CS | IPCS | TCPE | IPE)
    };
    let good = udp(&pattern(101));
    assert_eq!(status(&good), L4CS | IPCS);
    let mut bad_payload = good.clone();
    bad_payload[90] ^= 1;
    assert_eq!(status(&bad_payload), L4CS | IPCS | TCPE);
    let mut bad_ip = good.clone();
    bad_ip[22] ^= 1;
    assert_eq!(status(&bad_ip), L4CS | IPCS | IPE);
    let mut unchecked = good.clone();
    unchecked[40..42].fill(0);
    assert_eq!(status(&unchecked), IPCS, "UDP without a checksum");
    let mut fragment = good.clone();
    fragment[20] = 0x20;
    fragment[24..26].fill(0);
    let sum = ones_sum(&[&fragment[14..34]]);
    fragment[24..26].copy_from_slice(&(!sum).to_be_bytes());
    assert_eq!(status(&fragment), IPCS, "a fragment");
    let truncated = &good[..100];
    assert_eq!(status(truncated), IPCS, "a packet that is not all there");
    let mut arp = good.clone();
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    assert_eq!(status(&arp), 0);

    for (checksum, expected) in [(None, L4CS), (Some(0x1234), L4CS | TCPE)] {
        let mut v6 = Vec::new();
        let builder = etherparse::PacketBuilder::ethernet2(PEER, MAC).ipv6([1; 16], [2; 16], 9);
        builder
            .tcp(5, 6, 7, 8)
            .write(&mut v6, &pattern(333))
            .unwrap();
        if let Some(wrong) = checksum {
            v6[70..72].copy_from_slice(&u16::to_be_bytes(wrong));
        }
        assert_eq!(status(&v6), expected);
    }
}

#[test]
fn a_link_that_vouches_is_believed() {
    let (mut m, mut driver) = Driver::up(ONE_QUEUE);
    let mut partial = udp(&pattern(100));
    partial[40..42].copy_from_slice(&[1, 2]);
    m.cable().to_guest.push_back((partial, true));
    m.settle();
    let got = driver.receive(&mut m, 0).unwrap();
    assert_eq!(got.status, 1 | EOP | L4CS | IPCS);
}

#[test]
fn tags_are_taken_out_when_asked_for() {
    let frame = udp(&pattern(100));
    for strip_vlan in [true, false] {
        let (mut m, mut driver) = Driver::up(Options {
            strip_vlan,
            ..ONE_QUEUE
        });
        Driver::granted(&mut m, &[0x0001_0004, 100]);
        let tagged = tagged(&frame, 0xa064);
        let got = receive(&mut m, &mut driver, &tagged).unwrap();
        let seen = (got.bytes, got.vlan, got.status & VP);
        let expected = if strip_vlan {
            (frame.clone(), 0xa064, VP)
        } else {
            (tagged, 0, 0)
        };
        assert_eq!(seen, expected);
        assert_eq!(
            got.status & (L4CS | IPCS | TCPE | IPE),
            L4CS | IPCS,
            "behind the tag"
        );
    }
}

#[test]
fn only_joined_vlans_are_received() {
    let (mut m, mut driver) = Driver::up(ONE_QUEUE);
    let frame = udp(&pattern(100));
    let mut sees = |m: &mut Machine, tci| receive(m, &mut driver, &tagged(&frame, tci)).is_some();
    assert!(sees(&mut m, 0xe000), "priority only");
    assert!(!sees(&mut m, 100));
    Driver::granted(&mut m, &[0x0001_0004, 100]);
    assert!(sees(&mut m, 100) && sees(&mut m, 0x7064) && !sees(&mut m, 101));
    Driver::granted(&mut m, &[0x0004, 100]);
    assert!(!sees(&mut m, 100));
    Driver::set_xcast(&mut m, 3);
    assert!(sees(&mut m, 101), "promiscuous");
}

#[test]
fn each_mode_receives_what_it_says() {
    let (mut m, mut driver) = Driver::up(ONE_QUEUE);
    let other = [0x02, 0, 0, 0, 0, 9];
    let macvlan = [0x02, 0, 0, 0, 0, 7];
    let asked = [0x01, 0x00, 0x5e, 0, 0, 1];
    let unasked = [0x01, 0x00, 0x5e, 0, 0x10, 2];
    Driver::granted(&mut m, &[0x0001_0003, 0x0010]);
    Driver::granted(&mut m, &[0x0001_0006, 0x0000_0002, 0x0700]);
    let destinations = [MAC, [0xff; 6], macvlan, asked, unasked, other];
    for (mode, expected) in [
        (0, [true, true, true, false, false, false]),
        (1, [true, true, true, true, false, false]),
        (2, [true, true, true, true, true, false]),
        (3, [true, true, true, true, true, true]),
    ] {
        Driver::set_xcast(&mut m, mode);
        let seen = destinations
            .map(|to| receive(&mut m, &mut driver, &udp_to(to, 1, &pattern(60))).is_some());
        assert_eq!(seen, expected, "mode {mode}");
    }
    assert_eq!(
        m.read(0x1034),
        5,
        "multicast frames, broadcast not among them"
    );
    Driver::set_xcast(&mut m, 1);
    Driver::granted(&mut m, &[0x0006, 0, 0]);
    assert!(receive(&mut m, &mut driver, &udp_to(macvlan, 1, b"")).is_none());
    Driver::granted(&mut m, &[0x0000_0003]);
    assert!(receive(&mut m, &mut driver, &udp_to(asked, 1, b"")).is_none());
}

#[test]
fn a_mailbox_reset_forgets_the_filters() {
    let (mut m, _) = Driver::up(ONE_QUEUE);
    Driver::granted(&mut m, &[0x0001_0004, 100]);
    Driver::granted(&mut m, &[0x0001_0003, 0x0010]);
    Driver::granted(&mut m, &[0x0001_0006, 0x0000_0002, 0x0700]);
    Driver::set_xcast(&mut m, 3);
    Driver::reset(&mut m);
    assert_eq!(m.vf.state().filter, ixgbevf::state::Filter::default());
}

#[test]
fn flows_keep_to_a_queue_and_both_queues_get_some() {
    let (mut m, mut driver) = Driver::up(Options::default());
    let mut flows = [0_u32; 2];
    for port in 0..64 {
        let mut last = None;
        for number in 0..4_u8 {
            m.arrive(&udp_to(MAC, port, &[number; 60]));
            m.settle();
            let queue = (0..2)
                .find(|q| driver.receive(&mut m, *q).is_some())
                .unwrap();
            assert!(
                last.is_none_or(|last| last == queue),
                "flow {port} changed its queue"
            );
            last = Some(queue);
        }
        flows[last.unwrap()] += 1;
    }
    assert!(flows[0] >= 16 && flows[1] >= 16, "{flows:?}");
}

#[test]
fn without_several_queues_asked_for_all_goes_to_the_first() {
    let (mut m, mut driver) = Driver::up(Options::default());
    m.write(0x0300, 0x1330);
    for port in 0..64 {
        m.arrive(&udp_to(MAC, port, b"one"));
        m.settle();
        assert!(driver.receive(&mut m, 0).is_some());
    }
    m.write(0x1028, 0);
    m.arrive(&udp(b"the only one left"));
    m.settle();
    assert!(driver.receive(&mut m, 1).is_some());
}

#[test]
fn a_burst_is_received_within_a_budget_and_raises_one_interrupt() {
    use device::Progress;
    let (mut m, _) = Driver::up(ONE_QUEUE);
    (0..60).for_each(|_| m.arrive(&udp(&pattern(60))));
    assert_eq!(m.poll(), Progress::Idle(None));
    assert_eq!(m.signalled(), [0]);
    Driver::reset(&mut m);
    (0..300).for_each(|_| m.arrive(&udp(&pattern(60))));
    assert_eq!(m.poll(), Progress::More);
    assert_eq!(m.vf.counters().dropped.rx_no_queue, 256);
}
