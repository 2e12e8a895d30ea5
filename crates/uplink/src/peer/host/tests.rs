use std::net::Ipv4Addr;

use load_format::Seen;
use proptest::prelude::*;
use smoltcp::wire::TcpPacket;

use super::*;
use crate::far_side::bytes_to_the_peer;

const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const GUEST_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const PEER_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

fn config() -> PeerConfig {
    PeerConfig::new("", PEER_IP, GUEST_IP)
}

fn from_guest() -> Route {
    Route {
        from_mac: GUEST_MAC,
        from_ip: GUEST_IP,
        to_mac: config().mac,
        to_ip: PEER_IP,
    }
}

fn udp_from_guest(number: u64) -> Vec<u8> {
    let mut frames = Frames::default();
    let seen = Some(Seen {
        number: 0,
        age_nanos: 0,
    });
    let packet = Numbered {
        stream: 1,
        number,
        sent_nanos: 0,
        seen,
    };
    from_guest().udp(&mut frames, (7000, 7000), 100, |payload| {
        packet.write(payload);
    });
    frames.at(0).expect("just built").to_vec()
}

fn arp_from_guest() -> Vec<u8> {
    let mut frames = Frames::default();
    Route {
        to_mac: [0xff; 6],
        ..from_guest()
    }
    .arp(&mut frames, ArpOperation::Request);
    frames.at(0).expect("just built").to_vec()
}

fn ipv4_from_guest(protocol: u8, body: &[u8]) -> Vec<u8> {
    let mut frames = Frames::default();
    from_guest().ipv4(&mut frames, protocol.into(), body.len(), |bytes| {
        bytes.copy_from_slice(body);
    });
    frames.at(0).expect("just built").to_vec()
}

/// Segments to the peer's TCP port with any flags, numbers and options, checksum right.
fn tcp_like() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 20..80).prop_map(|mut bytes| {
        bytes[2..4].copy_from_slice(&config().tcp_port.to_be_bytes());
        bytes[12] = bytes[12] % 3 * 16 + 0x50;
        let mut packet = TcpPacket::new_unchecked(&mut bytes[..]);
        packet.fill_checksum(&GUEST_IP.into(), &PEER_IP.into());
        bytes
    })
}

fn drained(host: &mut Host) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    host.drain(|frame| frames.push(frame.to_vec()));
    frames
}

#[test]
fn it_asks_for_the_guest_answers_its_question_and_then_sends() {
    let mut host = Host::new(config(), 0);
    let mut ledger = Ledger::new(0);
    host.advance(0, &mut ledger);
    let [question] = &drained(&mut host)[..] else {
        panic!("one question, nothing else")
    };
    assert_eq!(
        (&question[..6], &question[12..14]),
        (&[0xff; 6][..], &[8, 6][..])
    );

    host.receive(&arp_from_guest(), 0, &mut ledger);
    let [answer] = &drained(&mut host)[..] else {
        panic!("one answer")
    };
    let answer = EthernetFrame::new_checked(answer).expect("a frame");
    assert_eq!(answer.dst_addr().0, GUEST_MAC);
    let arp = ArpRepr::parse(&ArpPacket::new_checked(answer.payload()).expect("whole"));
    let ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr,
        source_protocol_addr,
        ..
    } = arp.expect("an ARP packet")
    else {
        panic!("IPv4 over Ethernet")
    };
    assert_eq!(operation, ArpOperation::Reply);
    assert_eq!(
        (source_hardware_addr.0, source_protocol_addr),
        (config().mac, PEER_IP)
    );

    host.advance(10_000_000, &mut ledger);
    let sent = drained(&mut host);
    let of = |protocol: u8| sent.iter().filter(|frame| frame[23] == protocol).count();
    assert_eq!(
        (of(17), of(1), sent.len()),
        (21, 11, 32),
        "2000 and 1000 per second"
    );
}

#[test]
fn a_silent_host_answers_and_asks_nothing() {
    let (mut host, mut ledger) = (Host::new(config(), 0), Ledger::new(0));
    host.receive(&arp_from_guest(), 0, &mut ledger);
    drained(&mut host);
    host.set_silent(true);
    host.advance(10_000_000, &mut ledger);
    assert!(drained(&mut host).is_empty());
    assert_eq!(host.next_due(), u64::MAX, "it has nothing to wake up for");
    host.receive(&arp_from_guest(), 0, &mut ledger);
    assert_eq!(drained(&mut host).len(), 1, "the answer");
    host.set_silent(false);
    assert!(host.next_due() <= 10_000_000, "it is late");
    host.advance(10_000_000, &mut ledger);
    assert!(!drained(&mut host).is_empty());
}

#[test]
fn an_echo_request_is_answered_with_its_own_data() {
    let mut host = Host::new(config(), 0);
    let mut ledger = Ledger::new(0);
    let mut frames = Frames::default();
    let request = Icmpv4Repr::EchoRequest {
        ident: 5,
        seq_no: 6,
        data: b"what the guest sent",
    };
    from_guest().echo(&mut frames, &request);
    host.receive(frames.at(0).expect("just built"), 0, &mut ledger);
    let [answer] = &drained(&mut host)[..] else {
        panic!("one answer")
    };
    let packet = Icmpv4Packet::new_checked(&answer[34..]).expect("whole");
    assert_eq!(
        Icmpv4Repr::parse(&packet, &ChecksumCapabilities::default()),
        Ok(Icmpv4Repr::EchoReply {
            ident: 5,
            seq_no: 6,
            data: b"what the guest sent"
        })
    );
}

#[test]
fn a_flood_takes_the_place_of_what_is_counted_and_knows_its_bounds() {
    let (mut host, mut ledger) = (Host::new(config(), 0), Ledger::new(0));
    let load = |flood| Load {
        flood: Some(flood),
        ..Load::default()
    };
    host.set_load(load(18), 0);
    host.flood();
    assert!(!host.floods() && drained(&mut host).is_empty(), "to whom?");
    host.receive(&arp_from_guest(), 0, &mut ledger);
    drained(&mut host);
    host.advance(1_000_000_000, &mut ledger);
    assert!(drained(&mut host).is_empty(), "only the flood is left");
    assert!(host.floods());
    host.flood();
    let frames = drained(&mut host);
    assert!(frames.len() == FLOOD_BURST && frames.iter().all(|frame| frame.len() == 60));
    host.set_load(load(usize::MAX), 0);
    host.flood();
    let frames = drained(&mut host);
    assert!(frames.len() < FLOOD_BURST && frames.iter().all(|frame| frame.len() == 9014));
    host.set_load(Load::default(), 0);
    assert!(!host.floods());
}

#[test]
fn its_own_echoes_are_matched_with_their_answers() {
    let mut host = Host::new(
        PeerConfig {
            udp_per_second: 0,
            ..config()
        },
        0,
    );
    let mut ledger = Ledger::new(0);
    host.receive(&arp_from_guest(), 0, &mut ledger);
    drained(&mut host);
    host.advance(2_000_000, &mut ledger);
    let requests = drained(&mut host);
    assert_eq!(requests.len(), 3);
    for request in [&requests[0], &requests[2], &requests[2]] {
        let packet = Icmpv4Packet::new_checked(&request[34..]).expect("whole");
        let mut frames = Frames::default();
        let Ok(Icmpv4Repr::EchoRequest {
            ident,
            seq_no,
            data,
        }) = Icmpv4Repr::parse(&packet, &ChecksumCapabilities::default())
        else {
            panic!("only echo requests were asked for")
        };
        from_guest().echo(
            &mut frames,
            &Icmpv4Repr::EchoReply {
                ident,
                seq_no,
                data,
            },
        );
        host.receive(frames.at(0).expect("just built"), 5_000_000, &mut ledger);
    }
    let icmp = ledger
        .report(5_000_000, crate::SwitchReport::default())
        .icmp;
    assert_eq!(
        (icmp.sent, icmp.answered, icmp.lost, icmp.duplicates),
        (3, 2, 1, 1)
    );
    assert_eq!(icmp.round_trips.expect("answered").max_nanos, 3_000_000);
}

#[test]
fn udp_is_counted_and_damage_is_told_apart() {
    let mut host = Host::new(config(), 0);
    let mut ledger = Ledger::new(0);
    for number in [0, 1, 4] {
        host.receive(&udp_from_guest(number), 100, &mut ledger);
    }
    let mut damaged = udp_from_guest(5);
    damaged[100] ^= 1;
    host.receive(&damaged, 200, &mut ledger);
    let mut misnumbered = udp_from_guest(6);
    misnumbered[40] ^= 1; // The UDP checksum.
    host.receive(&misnumbered, 200, &mut ledger);
    let mut other_port = udp_from_guest(7);
    other_port[37] ^= 1;
    host.receive(&other_port, 200, &mut ledger);
    let report = ledger.report(300, crate::SwitchReport::default());
    let udp = report.udp_from_guest;
    assert_eq!(
        (udp.received, udp.lost, udp.corrupt, report.foreign_frames),
        (3, 2, 2, 1)
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn garbage_frames_are_survived(
        frames in prop::collection::vec(
            prop_oneof![
                prop::collection::vec(any::<u8>(), 0..200),
                Just(arp_from_guest()),
                Just(udp_from_guest(3)),
                (prop_oneof![Just(1_u8), Just(6), Just(17), any::<u8>()], tcp_like()).prop_map(
                    |(protocol, body)| ipv4_from_guest(protocol, &body)
                ),
            ],
            0..40,
        ),
    ) {
        let mut bytes = Vec::new();
        for frame in &frames {
            bytes.extend(u32::try_from(frame.len()).expect("short").to_be_bytes());
            bytes.extend(frame);
        }
        bytes_to_the_peer(&bytes);
    }
}
