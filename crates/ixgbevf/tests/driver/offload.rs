//! What the function does to frames on their way out, judged by `etherparse`.

use device::{Offloads, TxOffload};
use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TcpHeaderSlice, TransportSlice};

use crate::frames::{PEER, ones_sum, pattern, udp};
use crate::machine::MAC;
use crate::ring_driver::{Driver, Options, Order};

const TSE: u32 = 1 << 31;
const VLE: u32 = 1 << 30;
const IXSM: u32 = 1 << 8;
const TXSM: u32 = 1 << 9;
const IPV4: u32 = 1 << 10;
const TCP: u32 = 1 << 11;
const SCTP: u32 = 1 << 12;

/// A TCP frame as the stack hands it to a driver: `seed` in the checksum field.
fn tcp_frame(ipv6: bool, payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(MAC, PEER);
    let builder = if ipv6 {
        builder.ipv6([0xfd; 16], [0xfe; 16], 64)
    } else {
        builder.ipv4([10, 9, 0, 2], [10, 9, 0, 1], 64)
    };
    let builder = builder
        .tcp(1000, 2000, u32::MAX - 2_000, 5_000)
        .ack(9)
        .psh()
        .fin()
        .cwr();
    let mut frame = Vec::new();
    builder
        .write(&mut frame, &payload[..payload.len().min(60_000)])
        .unwrap();
    frame.extend(&payload[payload.len().min(60_000)..]);
    frame
}

/// Replaces the transport checksum with the pseudo header's sum, with or without a length.
fn seed(frame: &mut [u8], l4: usize, field: usize, protocol: u8, with_len: bool) {
    let addresses = if frame[12] == 0x86 { 22..54 } else { 26..34 };
    let len = if with_len { frame.len() - l4 } else { 0 };
    let rest = [0, protocol, (len >> 8) as u8, len as u8];
    let sum = ones_sum(&[&frame[addresses], &rest]);
    frame[l4 + field..l4 + field + 2].copy_from_slice(&sum.to_be_bytes());
}

fn context(ip_len: u32, vlan: u32, flags: u32, l4_len: u32, mss: u32) -> [u32; 3] {
    [
        vlan << 16 | 14 << 9 | ip_len,
        flags,
        mss << 16 | l4_len << 8,
    ]
}

/// A TCP segment whose checksums are right.
struct Segment {
    sequence: u32,
    flags: u8,
    ip_id: u16,
    vlan: Option<u16>,
    payload: Vec<u8>,
}

fn judge(frame: &[u8]) -> Segment {
    let sliced = SlicedPacket::from_ethernet(frame).unwrap();
    let vlan = sliced.vlan_ids().first().map(|vid| vid.value());
    let Some(TransportSlice::Tcp(tcp)) = sliced.transport else {
        panic!("no TCP");
    };
    let ip_id = match &sliced.net {
        Some(NetSlice::Ipv4(ip)) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            let right = tcp
                .calc_checksum_ipv4(header.source, header.destination)
                .unwrap();
            assert_eq!(tcp.checksum(), right);
            header.identification
        }
        Some(NetSlice::Ipv6(ip)) => {
            let header = ip.header().to_header();
            let right = tcp
                .calc_checksum_ipv6(header.source, header.destination)
                .unwrap();
            assert_eq!(tcp.checksum(), right);
            0
        }
        other => panic!("no IP: {other:?}"),
    };
    Segment {
        sequence: tcp.sequence_number(),
        flags: tcp.slice()[13],
        ip_id,
        vlan,
        payload: tcp.payload().to_vec(),
    }
}

pub(crate) fn check_segments(
    sent: &[Vec<u8>],
    payload: &[u8],
    mss: usize,
    vlan: Option<u16>,
    ipv6: bool,
) {
    assert_eq!(sent.len(), payload.len().div_ceil(mss));
    let mut got = Vec::new();
    let first_id = judge(&sent[0]).ip_id;
    for (index, frame) in sent.iter().enumerate() {
        let segment = judge(frame);
        assert_eq!(
            segment.sequence,
            (u32::MAX - 2_000).wrapping_add(got.len() as u32)
        );
        assert_eq!(segment.vlan, vlan);
        let last = index + 1 == sent.len();
        assert_eq!(
            segment.flags & 0x09 != 0,
            last,
            "FIN and PSH belong to the last"
        );
        assert_eq!(
            segment.flags & 0x80 != 0,
            index == 0,
            "CWR belongs to the first"
        );
        assert_eq!(segment.flags & 0x10, 0x10, "ACK to all");
        if !ipv6 {
            assert_eq!(segment.ip_id, first_id.wrapping_add(index as u16));
        }
        assert!(last || segment.payload.len() == mss);
        got.extend(segment.payload);
    }
    assert_eq!(got, payload);
}

/// A large send as the stack hands it to a driver; the order lacks the parts.
pub(crate) fn tso(
    ipv6: bool,
    vlan: Option<u16>,
    len: usize,
    mss: usize,
) -> (Vec<u8>, Order<'static>) {
    let mut frame = tcp_frame(ipv6, &pattern(len));
    let l4 = if ipv6 { 54 } else { 34 };
    if ipv6 {
        frame[18..20].fill(0);
    } else {
        frame[16..18].fill(0);
        frame[24..26].fill(0);
        frame[18..20].copy_from_slice(&0xfffe_u16.to_be_bytes());
    }
    seed(&mut frame, l4, 16, 6, false);
    let flags = TCP | if ipv6 { 0 } else { IPV4 };
    let order = Order {
        parts: Vec::new(),
        context: Some(context(
            l4 as u32 - 14,
            vlan.unwrap_or(0).into(),
            flags,
            20,
            mss as u32,
        )),
        command: TSE | if vlan.is_some() { VLE } else { 0 },
        options: TXSM | if ipv6 { 0 } else { IXSM },
    };
    (frame, order)
}

#[test]
fn large_sends_are_cut_into_right_segments() {
    for (ipv6, vlan, len, mss) in [
        (false, None, 20_000, 1448),
        (false, Some(77), 2_896, 1448),
        (true, None, 20_001, 1428),
        (true, Some(4095), 64_000, 8_948),
        (false, None, 100, 1448),
    ] {
        let (mut m, mut driver) = Driver::up(Options::default());
        let (frame, mut order) = tso(ipv6, vlan, len, mss);
        order.parts = frame.chunks(16_000).collect();
        driver.send(&mut m, 0, &order);
        m.settle();
        check_segments(&m.sent(), &pattern(len), mss, vlan, ipv6);
        assert_eq!(driver.sent(&m, 0), 1);
        assert_eq!(m.read(0x201c) as usize, len.div_ceil(mss));
    }
}

#[test]
fn a_large_send_goes_on_where_the_link_was_full() {
    let (mut m, mut driver) = Driver::up(Options::default());
    let (frame, mut order) = tso(false, None, 20_000, 1448);
    order.parts = frame.chunks(16_000).collect();
    m.cable().room = Some(5);
    driver.send(&mut m, 0, &order);
    m.settle();
    assert_eq!(driver.sent(&m, 0), 0, "not done before the last segment");
    m.cable().room = Some(3);
    m.settle();
    m.cable().room = None;
    m.settle();
    check_segments(&m.sent(), &pattern(20_000), 1448, None, false);
    assert_eq!(driver.sent(&m, 0), 1);
}

#[test]
fn a_link_that_segments_gets_the_whole() {
    let (mut m, mut driver) = Driver::up(Options::default());
    m.cable().offloads = Offloads {
        checksum: true,
        tcp_segments: true,
    };
    for ipv6 in [false, true] {
        let (frame, mut order) = tso(ipv6, None, 20_000, 1448);
        order.parts = frame.chunks(16_000).collect();
        driver.send(&mut m, 0, &order);
        let (sent, offload) = m.cable().from_guest.remove(0);
        let l4: u16 = if ipv6 { 54 } else { 34 };
        let expected = TxOffload::TcpSegments {
            ipv6,
            header_len: l4 + 20,
            mss: 1448,
            start: l4,
        };
        assert_eq!(offload, expected);
        // All but the checksum is right: with the seed's sum taken in, that is too.
        let mut whole = sent.clone();
        let sum = ones_sum(&[&whole[l4.into()..]]);
        whole[usize::from(l4) + 16..][..2].copy_from_slice(&(!sum).to_be_bytes());
        assert_eq!(judge(&whole).payload, pattern(20_000));
    }
    assert_eq!(m.read(0x201c), 2 * 14, "segments count, whoever cuts them");
}

#[test]
fn udp_is_segmented_too() {
    let (mut m, mut driver) = Driver::up(Options::default());
    let payload = pattern(3_000);
    let mut frame = udp(&payload);
    frame[16..18].fill(0);
    frame[24..26].fill(0);
    seed(&mut frame, 34, 6, 17, false);
    let order = Order {
        parts: vec![&frame],
        context: Some(context(20, 0, IPV4, 8, 1_000)),
        command: TSE,
        options: IXSM | TXSM,
    };
    driver.send(&mut m, 0, &order);
    let sent = m.sent();
    let mut got = Vec::new();
    for frame in &sent {
        got.extend(judge_udp(frame));
    }
    assert_eq!((sent.len(), got), (3, payload));
}

fn judge_udp(frame: &[u8]) -> Vec<u8> {
    let sliced = SlicedPacket::from_ethernet(frame).unwrap();
    let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Udp(udp))) = (sliced.net, sliced.transport)
    else {
        panic!("no UDP");
    };
    let header = ip.header().to_header();
    assert_eq!(header.header_checksum, header.calc_header_checksum());
    let right = udp
        .to_header()
        .calc_checksum_ipv4(&header, udp.payload())
        .unwrap();
    assert_eq!(udp.checksum(), right);
    assert_eq!(usize::from(udp.length()), udp.payload().len() + 8);
    udp.payload().to_vec()
}

#[test]
fn checksums_are_inserted_unless_the_link_does_it() {
    for by_link in [false, true] {
        let (mut m, mut driver) = Driver::up(Options::default());
        m.cable().offloads.checksum = by_link;
        let whole = tcp_frame(false, &pattern(501));
        let mut frame = whole.clone();
        seed(&mut frame, 34, 16, 6, true);
        let order = Order {
            parts: vec![&frame],
            context: Some(context(20, 0, IPV4 | TCP, 0, 0)),
            command: 0,
            options: TXSM,
        };
        driver.send(&mut m, 0, &order);
        let (sent, offload) = m.cable().from_guest.remove(0);
        if by_link {
            assert_eq!(
                (offload, sent),
                (
                    TxOffload::Checksum {
                        start: 34,
                        offset: 16
                    },
                    frame
                )
            );
        } else {
            assert_eq!((offload, sent), (TxOffload::None, whole));
        }
    }
}

#[test]
fn a_udp_checksum_of_zero_is_sent_as_ones() {
    let (mut m, mut driver) = Driver::up(Options::default());
    // The two last bytes make the sum come out as all ones.
    let mut frame = udp(&[0; 40]);
    let sum = u16::from_be_bytes([frame[40], frame[41]]);
    frame[80..82].copy_from_slice(&sum.to_be_bytes());
    seed(&mut frame, 34, 6, 17, true);
    let order = Order {
        parts: vec![&frame],
        context: Some(context(20, 0, IPV4, 0, 0)),
        command: 0,
        options: TXSM,
    };
    driver.send(&mut m, 0, &order);
    let sent = m.sent().remove(0);
    assert_eq!(sent[40..42], [0xff, 0xff]);
    judge_udp(&sent);
}

#[test]
fn an_ip_checksum_and_an_sctp_checksum_are_inserted() {
    let (mut m, mut driver) = Driver::up(Options::default());
    let mut frame = PEER.to_vec();
    frame.extend(MAC);
    frame.extend([0x08, 0x00]);
    frame.extend([
        0x45, 0, 0, 48, 0, 0, 0, 0, 64, 132, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
    ]);
    frame.extend([0x13, 0x88, 0x13, 0x88, 0, 0, 0, 0, 0, 0, 0, 0]);
    frame.extend([14, 0, 0, 4, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    let order = Order {
        parts: vec![&frame],
        context: Some(context(20, 0, IPV4 | SCTP, 0, 0)),
        command: 0,
        options: IXSM | TXSM,
    };
    driver.send(&mut m, 0, &order);
    let sent = m.sent().remove(0);
    assert_eq!(ones_sum(&[&sent[14..34]]), 0xffff);
    assert_ne!(sent[42..46], [0; 4]);
    // What it sends, it verifies.
    let mut back = sent;
    back[..6].copy_from_slice(&MAC);
    m.arrive(&back);
    m.settle();
    let got = (0..2)
        .find_map(|queue| driver.receive(&mut m, queue))
        .unwrap();
    assert_eq!(got.status & 0x60, 0x60);
    assert_eq!(got.status >> 20, 0);
}

#[test]
fn a_tag_is_inserted_where_asked_for() {
    let (mut m, mut driver) = Driver::up(Options::default());
    let frame = udp(&pattern(100));
    let order = Order {
        parts: vec![&frame],
        context: Some(context(20, 0x6005, 0, 0, 0)),
        command: VLE,
        options: 0,
    };
    driver.send(&mut m, 0, &order);
    assert_eq!(m.sent(), [crate::frames::tagged(&frame, 0x6005)]);
}

#[test]
fn offloads_that_do_not_fit_their_frame_drop_it() {
    let frame = tcp_frame(false, &pattern(100));
    let cases = [
        (context(20, 0, IPV4 | TCP, 20, 0), TSE, 0),
        (context(20, 0, IPV4 | TCP, 19, 100), TSE, 0),
        (context(19, 0, IPV4 | TCP, 20, 100), TSE, 0),
        (context(20, 0, IPV4 | TCP, 20, 0xffff), TSE, 0),
        (context(511, 0, IPV4 | TCP, 255, 100), TSE, 0),
        (context(20, 0, IPV4 | SCTP, 20, 100), TSE, 0),
        (context(20, 0, IPV4 | TCP | SCTP, 20, 100), 0, TXSM),
        (context(140, 0, IPV4 | TCP, 20, 100), 0, TXSM),
        (context(511, 0, IPV4, 0, 0), 0, IXSM),
        (context(4, 0, IPV4, 0, 0), 0, IXSM),
    ];
    for (number, (context, command, options)) in cases.into_iter().enumerate() {
        let (mut m, mut driver) = Driver::up(Options::default());
        let order = Order {
            parts: vec![&frame],
            context: Some(context),
            command,
            options,
        };
        driver.send(&mut m, 0, &order);
        assert!(m.sent().is_empty(), "case {number}");
        assert_eq!(m.vf.counters().dropped.tx_malformed, 1, "case {number}");
        assert_eq!(driver.sent(&m, 0), 1, "case {number}");
    }
}

#[test]
fn a_tunnel_header_is_left_to_the_driver_but_for_what_its_outer_header_says() {
    // GSO_PARTIAL: "IP" of the context spans outer IP, GRE and inner IP; the driver has put into
    // the checksum field what makes the outer header's sum right.
    let (mut m, mut driver) = Driver::up(Options::default());
    m.cable().offloads.tcp_segments = true;
    let inner = tcp_frame(false, &pattern(2_000));
    let mut frame = inner[..14].to_vec();
    frame.extend([
        0x45, 0, 0, 0, 0, 7, 0, 0, 64, 47, 0, 0, 10, 1, 0, 1, 10, 1, 0, 2,
    ]);
    frame.extend([0, 0, 0x08, 0x00]);
    let mut inner_ip = inner[14..34].to_vec();
    inner_ip[2..4].copy_from_slice(&1_040_u16.to_be_bytes());
    inner_ip[10..12].fill(0);
    let sum = ones_sum(&[&inner_ip]);
    inner_ip[10..12].copy_from_slice(&(!sum).to_be_bytes());
    frame.extend(inner_ip);
    frame.extend(&inner[34..]);
    let cancel = !ones_sum(&[&frame[34..58]]);
    frame[24..26].copy_from_slice(&cancel.to_be_bytes());
    let pseudo = ones_sum(&[&frame[50..58], &[0, 6, 0, 0]]);
    frame[74..76].copy_from_slice(&pseudo.to_be_bytes());
    let order = Order {
        parts: vec![&frame],
        context: Some(context(44, 0, IPV4 | TCP, 20, 1_000)),
        command: TSE,
        options: IXSM | TXSM,
    };
    driver.send(&mut m, 0, &order);
    let sent = m.sent();
    assert_eq!(sent.len(), 2);
    for (index, frame) in sent.iter().enumerate() {
        assert_eq!(ones_sum(&[&frame[14..34]]), 0xffff, "outer header");
        assert_eq!(ones_sum(&[&frame[38..58]]), 0xffff, "inner header");
        assert_eq!(frame[16..18], 1_064_u16.to_be_bytes());
        let len = [0, 6, 0x03, 0xfc];
        assert_eq!(
            ones_sum(&[&frame[50..58], &len, &frame[58..]]),
            0xffff,
            "TCP"
        );
        assert!(TcpHeaderSlice::from_slice(&frame[58..]).is_ok());
        assert_eq!(frame[78..], pattern(2_000)[index * 1_000..][..1_000]);
    }
}
