//! The TAP against the kernel's own network, in a network namespace that ends with its thread.

#[path = "support/namespace.rs"]
mod namespace;

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use device::{FrameLink, Sent, TxFrame, TxOffload};
use uplink::Tap;

use namespace::{in_namespace, ip};

/// The next frame for which `wanted` holds.
fn receive(tap: &mut Tap, wanted: impl Fn(&[u8]) -> bool) -> (Vec<u8>, bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while Instant::now() < deadline {
        while let Some(frame) = tap.peek() {
            let (bytes, good) = (frame.bytes.to_vec(), frame.checksums_good);
            tap.consume();
            if wanted(&bytes) {
                return (bytes, good);
            }
        }
        std::thread::yield_now();
    }
    panic!("the frame did not come");
}

fn sum(bytes: &[u8], start: u32) -> u32 {
    bytes.chunks(2).fold(start, |sum, pair| {
        let word = u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |byte| u32::from(*byte));
        let sum = sum + word;
        (sum & 0xffff) + (sum >> 16)
    })
}

/// The sum of the pseudo header of the IPv4 packet in `frame` (RFC 9293, section 3.1).
fn pseudo_header_sum(frame: &[u8]) -> u32 {
    let length = u32::from(u16::from_be_bytes([frame[16], frame[17]])) - 20;
    sum(&frame[26..34], u32::from(frame[23]) + length)
}

/// An Ethernet frame with an IPv4 packet whose own checksum is right.
fn ipv4(source: [u8; 4], destination: [u8; 4], protocol: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + body.len()).expect("short").to_be_bytes();
    let mut frame = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 9], &[8, 0]].concat();
    frame.extend([
        0x45, 0, length[0], length[1], 0, 0, 0x40, 0, 64, protocol, 0, 0,
    ]);
    frame.extend([source, destination].concat());
    let check = !u16::try_from(sum(&frame[14..34], 0)).expect("folded");
    frame[24..26].copy_from_slice(&check.to_be_bytes());
    frame.extend(body);
    frame
}

fn send(tap: &mut Tap, bytes: &[u8], offload: TxOffload) {
    assert_eq!(tap.send(TxFrame { bytes, offload }), Sent::Taken);
    tap.flush();
}

#[test]
fn what_the_kernel_sends_comes_with_its_checksums_complete() {
    in_namespace(|| {
        let mut tap = Tap::open("vf%d").expect("a TAP");
        assert_eq!(tap.name(), "vf0");
        ip("addr add 10.9.0.1/24 dev vf0");
        ip("link set vf0 up");
        ip("neigh add 10.9.0.2 lladdr 02:00:00:00:00:09 dev vf0");
        let socket = UdpSocket::bind("10.9.0.1:4000").expect("an address of ours");
        socket
            .send_to(&[0x5a; 301], "10.9.0.2:4001")
            .expect("the interface is up");

        let (frame, good) = receive(&mut tap, |frame| frame[12..14] == [8, 0] && frame[23] == 17);
        assert_eq!(frame.len(), 14 + 20 + 8 + 301);
        assert!(
            good,
            "a frame that never left this host needs no second look"
        );
        assert_eq!(sum(&frame[34..], pseudo_header_sum(&frame)), 0xffff);
    });
}

#[test]
fn a_checksum_left_to_the_kernel_is_right_on_arrival() {
    in_namespace(|| {
        let mut tap = Tap::open("vf0").expect("a TAP");
        ip("addr add 10.9.0.1/24 dev vf0");
        ip("link set vf0 up");
        let socket = UdpSocket::bind("10.9.0.1:4000").expect("an address of ours");
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .expect("not zero");

        let udp = [&[0x0f, 0xa1, 0x0f, 0xa0, 0, 13, 0, 0][..], b"hello"].concat();
        let mut frame = ipv4([10, 9, 0, 2], [10, 9, 0, 1], 17, &udp);
        let partial = u16::try_from(pseudo_header_sum(&frame)).expect("folded");
        frame[40..42].copy_from_slice(&partial.to_be_bytes());
        send(
            &mut tap,
            &frame,
            TxOffload::Checksum {
                start: 34,
                offset: 6,
            },
        );

        let mut payload = [0; 16];
        let (len, from) = socket
            .recv_from(&mut payload)
            .expect("the kernel took the packet");
        assert_eq!((&payload[..len], from.port()), (&b"hello"[..], 4001));
    });
}

#[test]
fn a_long_tcp_segment_is_cut_by_the_kernel() {
    in_namespace(|| {
        // A bridge between two TAPs: the second can only receive frames that fit its MTU.
        let mut sender = Tap::open("vf0").expect("a TAP");
        let mut receiver = Tap::open("vf1").expect("a TAP");
        ip("link add br0 type bridge");
        for tap in ["vf0", "vf1"] {
            ip(&format!("link set {tap} master br0"));
            ip(&format!("link set {tap} up"));
        }
        ip("link set br0 up");

        let (mss, payload) = (1000_usize, 5500_usize);
        let mut tcp = vec![
            0x0f, 0xa1, 0x0f, 0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x10, 2, 0, 0, 0, 0, 0,
        ];
        tcp.extend((0..payload).map(|at| at.to_le_bytes()[0]));
        let mut frame = ipv4([10, 9, 0, 2], [10, 9, 0, 1], 6, &tcp);
        let partial = u16::try_from(pseudo_header_sum(&frame)).expect("folded");
        frame[50..52].copy_from_slice(&partial.to_be_bytes());
        let offload = TxOffload::TcpSegments {
            ipv6: false,
            header_len: 54,
            mss: u16::try_from(mss).expect("small"),
            start: 34,
        };

        let is_tcp = |frame: &[u8]| frame[12..14] == [8, 0] && frame[23] == 6;
        let mut got = Vec::new();
        // The bridge's ports forward at once without STP, but only from when the kernel says so.
        let deadline = Instant::now() + Duration::from_secs(5);
        while got.is_empty() {
            assert!(Instant::now() < deadline, "the bridge forwards nothing");
            send(&mut sender, &frame, offload);
            while let Some(frame) = receiver.peek() {
                got.extend(is_tcp(frame.bytes).then(|| frame.bytes.to_vec()));
                receiver.consume();
            }
        }
        while got.len() < payload.div_ceil(mss) {
            got.push(receive(&mut receiver, is_tcp).0);
        }

        let mut content = Vec::new();
        for (index, segment) in got.iter().enumerate() {
            let sequence = u32::from_be_bytes([segment[38], segment[39], segment[40], segment[41]]);
            assert_eq!(usize::try_from(sequence).expect("small"), index * mss);
            assert_eq!(
                sum(&segment[34..], pseudo_header_sum(segment)),
                0xffff,
                "segment {index}"
            );
            content.extend_from_slice(&segment[54..]);
        }
        assert_eq!(content, tcp[20..]);
    });
}

#[test]
fn nonsense_from_a_guest_is_dropped_and_the_tap_works_on() {
    in_namespace(|| {
        let mut tap = Tap::open("vf0").expect("a TAP");
        send(&mut tap, &[0; 60], TxOffload::None);
        ip("link set vf0 up");
        for offload in [
            TxOffload::Checksum {
                start: u16::MAX,
                offset: u16::MAX,
            },
            TxOffload::TcpSegments {
                ipv6: true,
                header_len: 9000,
                mss: 0,
                start: 1,
            },
        ] {
            send(&mut tap, &[0; 60], offload);
        }
        send(&mut tap, &[], TxOffload::None);
        assert!(tap.is_up());
        ip("addr add 10.9.0.1/24 dev vf0");
        let socket = UdpSocket::bind("10.9.0.1:4000").expect("an address of ours");
        socket
            .send_to(b"x", "10.9.0.2:1")
            .expect("the interface is up");
        let (_, _) = receive(&mut tap, |frame| frame[12..14] == [8, 6]);
    });
}

#[test]
fn a_deleted_interface_is_a_link_that_is_down() {
    in_namespace(|| {
        let mut tap = Tap::open("vf0").expect("a TAP");
        ip("link delete vf0");
        assert!(tap.peek().is_none());
        assert!(!tap.is_up());
        assert!(tap.fd().is_none());
        send(&mut tap, &[0; 60], TxOffload::None);
    });
}
