//! Long frames, offloads, statistics.

use anyhow::{Context, Result, ensure};
use etherparse::PacketBuilder;
use testbed::{GUEST_IP, PEER_IP, Testbed, wait_until};

use crate::health::{counter, device, kernel_has_no_complaint};
use crate::station::{self, Station};
use crate::trace::{self, Event};
use crate::{GUEST_MAC, PATIENCE, guest};

/// What a packet's checksums are to the stack (`include/linux/skbuff.h`).
mod checksum {
    /// Not looked at.
    pub(super) const NONE: u64 = 0;
    /// Right.
    pub(super) const UNNECESSARY: u64 = 1;
    /// Left to the device.
    pub(super) const PARTIAL: u64 = 3;
}

#[test]
fn frames_of_9000_bytes_go_both_ways() -> Result<()> {
    let testbed = guest(false)?;
    let station = Station::plug_in(&testbed)?;
    // 8 bytes of ICMP header, 20 of IPv4.
    let longest = 9000 - 28;
    too_long_is_dropped(&testbed, &station)?;
    testbed.shell("ip link set eth0 mtu 9000")?;
    for size in [56, 1472, 1473, 2020, 3000, 4096, 8000, longest] {
        let filter = format!("len == {}", size + 28);
        Event::Received.record(&testbed, &filter)?;
        testbed
            .shell(&format!("ping -q -A -c 3 -s {size} {}", station::IP))
            .with_context(|| format!("echoes of {size} bytes"))?;
        let answers = trace::wait_for(&testbed, PATIENCE, |packets| packets.len() == 3)?;
        if size >= 8000 {
            let pieces = |answer: &trace::Packet| answer.get("nr_frags").unwrap_or(0);
            ensure!(
                answers.iter().all(|answer| pieces(answer) >= 2),
                "{answers:?}"
            );
        }
    }
    // And back: the limit is the driver's again.
    testbed.shell("ip link set eth0 mtu 1500")?;
    too_long_is_dropped(&testbed, &station)?;
    kernel_has_no_complaint(&testbed)
}

/// A frame of 8 KiB does not come through to a driver that asked for 1518 bytes.
fn too_long_is_dropped(testbed: &Testbed, station: &Station) -> Result<()> {
    let dropped = || counter(&device(testbed)?, "/dropped/rx_oversize");
    let before = dropped()?;
    station.send(&udp(8000, 1))?;
    wait_until("the long frame is dropped", PATIENCE, || {
        Ok(dropped()? == before + 1)
    })
}

fn udp(payload: usize, port: u16) -> Vec<u8> {
    let packet = PacketBuilder::ethernet2(station::MAC, GUEST_MAC)
        .ipv4(station::IP.octets(), GUEST_IP.octets(), 64)
        .udp(port, 9);
    let mut frame = Vec::new();
    packet
        .write(&mut frame, &vec![7; payload])
        .expect("a vector takes all");
    frame
}

#[test]
fn the_device_fills_in_checksums_and_cuts_segments() -> Result<()> {
    let testbed = guest(false)?;
    let station = Station::plug_in(&testbed)?;
    transmit_checksums(&testbed, &station)?;
    segments(&testbed)?;
    receive_checksums(&testbed, &station)?;
    kernel_has_no_complaint(&testbed)
}

/// The stack leaves UDP checksums to the device, and they are right on the wire.
fn transmit_checksums(testbed: &Testbed, station: &Station) -> Result<()> {
    let (payload, port) = (200, 7010);
    Event::Sent.record(testbed, &format!("len == {}", payload + 42))?;
    station.forget();
    testbed.shell(&format!(
        "lab-guest udp --seconds 1 --rate 200 --payload {payload} --udp-port {port} --peer {}",
        station::IP
    ))?;
    let sent = trace::packets(testbed)?;
    ensure!(sent.len() > 50, "only {} packets were sent", sent.len());
    let left_to_device = sent
        .iter()
        .all(|packet| packet.is("ip_summed", checksum::PARTIAL));
    ensure!(left_to_device, "the stack fills in checksums: {sent:?}");
    let arrived = station.wait_for(sent.len(), |frame| is_udp_to(frame, port), PATIENCE)?;
    ensure!(
        arrived.len() == sent.len(),
        "{} of {} came",
        arrived.len(),
        sent.len()
    );
    for frame in arrived {
        ensure!(
            checksums_are_right(&frame)?,
            "wrong checksums: {frame:02x?}"
        );
    }
    Ok(())
}

fn is_udp_to(frame: &[u8], port: u16) -> bool {
    frame.get(12..14) == Some(&[8, 0])
        && frame.get(23) == Some(&17)
        && frame.get(36..38) == Some(&port.to_be_bytes())
}

fn checksums_are_right(frame: &[u8]) -> Result<bool> {
    let headers = etherparse::PacketHeaders::from_ethernet_slice(frame)?;
    let (ip, _) = headers
        .net
        .as_ref()
        .and_then(|net| net.ipv4_ref())
        .context("not IPv4")?;
    let udp = headers
        .transport
        .and_then(etherparse::TransportHeader::udp)
        .context("not UDP")?;
    let right = udp.calc_checksum_ipv4(ip, headers.payload.slice())?;
    Ok(ip.header_checksum == ip.calc_header_checksum() && udp.checksum == right)
}

/// The stack hands over TCP in pieces longer than a frame, the peer finds the content right, and
/// driver and device count the same segments and bytes.
fn segments(testbed: &Testbed) -> Result<()> {
    let before = Statistics::settled(testbed)?;
    Event::Sent.record(testbed, &format!("gso_segs > 1 || len < {SHORTEST}"))?;
    testbed.shell(&format!("lab-guest tcp --seconds 3 --peer {PEER_IP}"))?;
    let after = Statistics::settled(testbed)?;
    let (mut pieces, mut padding) = (0, 0);
    for packet in trace::packets(testbed)? {
        let len = packet.get("len")?;
        if len < SHORTEST {
            padding += SHORTEST - len;
        } else {
            ensure!(packet.is("ip_summed", checksum::PARTIAL), "{packet:?}");
            pieces += packet.get("gso_segs")?;
        }
    }
    let report = testbed.peer.report().tcp;
    ensure!(
        report.from_guest_bytes > 100_000 && report.wrong_bytes == 0,
        "{report:?}"
    );
    ensure!(pieces > 0, "no packet was left to the device to cut");
    let driver = Statistics::growth(&before.driver, &after.driver);
    let device = Statistics::growth(&before.device, &after.device);
    ensure!(
        driver[TX_PACKETS] > pieces,
        "{pieces} segments are more than {driver:?}"
    );
    let mut expected = driver;
    // The device pads what the driver gives it short.
    expected[TX_BYTES] += padding;
    ensure!(
        device == expected,
        "the driver's {driver:?} and {padding}, the device's {device:?}"
    );
    Ok(())
}

/// The shortest frame on a wire, without FCS.
const SHORTEST: u64 = 60;

/// Packets and bytes each way, as the driver shows them in sysfs and as the device counts them.
const COUNTERS: [(&str, &str); 4] = [
    ("rx_packets", "/received/frames"),
    ("rx_bytes", "/received/bytes"),
    ("tx_packets", "/sent/frames"),
    ("tx_bytes", "/sent/bytes"),
];
const RX_PACKETS: usize = 0;
const TX_PACKETS: usize = 2;
const TX_BYTES: usize = 3;

struct Statistics {
    driver: [u64; 4],
    device: [u64; 4],
}

impl Statistics {
    fn read(testbed: &Testbed) -> Result<Self> {
        let files = COUNTERS.map(|(name, _)| format!("/sys/class/net/eth0/statistics/{name}"));
        let text = testbed.shell(&format!("cat {}", files.join(" ")))?;
        let counters = device(testbed)?;
        let (mut driver, mut device) = ([0; 4], [0; 4]);
        let lines = text.lines().zip(COUNTERS);
        for ((line, (_, pointer)), slots) in lines.zip(driver.iter_mut().zip(&mut device)) {
            *slots.0 = line.parse()?;
            *slots.1 = counter(&counters, pointer)?;
        }
        Ok(Self { driver, device })
    }

    /// As soon as nothing is on its way: both count the same packets.
    fn settled(testbed: &Testbed) -> Result<Self> {
        let mut last = Self::read(testbed)?;
        let settled = wait_until("driver and device count the same packets", PATIENCE, || {
            last = Self::read(testbed)?;
            Ok([RX_PACKETS, TX_PACKETS]
                .iter()
                .all(|at| last.driver[*at] == last.device[*at]))
        });
        let counts = format!("driver {:?}, device {:?}", last.driver, last.device);
        settled.context(counts).map(|()| last)
    }

    fn growth(before: &[u64; 4], after: &[u64; 4]) -> [u64; 4] {
        std::array::from_fn(|at| after[at] - before[at])
    }
}

/// Right checksums are vouched for, wrong ones are not and the stack drops the packet.
fn receive_checksums(testbed: &Testbed, station: &Station) -> Result<()> {
    let (right, wrong_udp, wrong_ip) = (301, 302, 303);
    Event::Received.record(testbed, "len >= 300 && len < 400")?;
    let spoilt = |payload: usize, at: usize| {
        let mut frame = udp(payload - 28, 1);
        frame[at] ^= 0x55;
        frame
    };
    station.send(&udp(right - 28, 1))?;
    station.send(&spoilt(wrong_udp, 50))?;
    station.send(&spoilt(wrong_ip, 24))?;
    let packets = trace::wait_for(testbed, PATIENCE, |packets| packets.len() == 3)?;
    for (len, summed) in [
        (right, checksum::UNNECESSARY),
        (wrong_udp, checksum::NONE),
        (wrong_ip, checksum::NONE),
    ] {
        let as_expected = |packet: &&trace::Packet| {
            packet.is("len", len as u64) && packet.is("ip_summed", summed)
        };
        let found = packets.iter().filter(as_expected).count();
        ensure!(
            found == 1,
            "of the packet of {len} bytes, {summed} was not said: {packets:?}"
        );
    }
    Ok(())
}
