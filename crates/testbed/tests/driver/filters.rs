//! What reaches the guest, and what does not: addresses, groups, VLANs.

use anyhow::{Result, ensure};
use testbed::Testbed;

use crate::station::{self, Station, VLAN_IP, vlan_and_protocol};
use crate::trace::{self, Event, Packet};
use crate::{GUEST_MAC, PATIENCE, guest, health};

/// For experiments (IEEE 802, "Local Experimental Ethertype 1"): the stack does nothing with it.
const PROTOCOL: u16 = 0x88b5;
const TAG: u16 = 0x8100;
/// The VLAN that the guest has for some time.
const GUEST_VLAN: u16 = 5;
/// A probe is known by its length: this and its number.
const BASE_LEN: usize = 200;

/// A frame that is sent to find out whether it arrives.
struct Probe {
    name: &'static str,
    destination: [u8; 6],
    vlan: Option<u16>,
}

const PROBES: [Probe; 7] = [
    Probe::to("own", GUEST_MAC),
    Probe::to("changed", [2, 0, 0, 0, 0, 0x77]),
    Probe::to("foreign", [2, 0, 0, 0, 0, 0x42]),
    Probe::to("joined", JOINED_GROUP),
    Probe::to("other group", [0x33, 0x33, 0xff, 0x11, 0x22, 0x33]),
    Probe::to("VLAN 5", GUEST_MAC).tagged(GUEST_VLAN),
    Probe::to("VLAN 6", GUEST_MAC).tagged(6),
];

const JOINED_GROUP: [u8; 6] = [0x33, 0x33, 0xff, 0xab, 0xcd, 0xef];

/// What the guest does, and what arrives from then on beside the frame that always does: the one to
/// its own address.
const STEPS: [(&str, &[&str]); 10] = [
    ("true", &["own"]),
    (
        "vconfig add eth0 5 && ip link set eth0.5 up",
        &["own", "VLAN 5"],
    ),
    (
        "ip addr add fd00::12ab:cdef/64 dev eth0",
        &["own", "joined", "VLAN 5"],
    ),
    (
        "ifconfig eth0 allmulti",
        &["own", "joined", "other group", "VLAN 5"],
    ),
    ("ifconfig eth0 -allmulti", &["own", "joined", "VLAN 5"]),
    (
        "ifconfig eth0 promisc",
        &[
            "own",
            "changed",
            "foreign",
            "joined",
            "other group",
            "VLAN 5",
            "VLAN 6",
        ],
    ),
    ("ifconfig eth0 -promisc", &["own", "joined", "VLAN 5"]),
    (
        "ip addr del fd00::12ab:cdef/64 dev eth0",
        &["own", "VLAN 5"],
    ),
    ("vconfig rem eth0.5", &["own"]),
    ("ip link set eth0 address 02:00:00:00:00:77", &["changed"]),
];

impl Probe {
    const fn to(name: &'static str, destination: [u8; 6]) -> Self {
        let vlan = None;
        Self {
            name,
            destination,
            vlan,
        }
    }

    const fn tagged(self, vlan: u16) -> Self {
        Self {
            vlan: Some(vlan),
            ..self
        }
    }

    fn frame(&self, payload: usize) -> Vec<u8> {
        let mut frame = [self.destination, station::MAC].concat();
        if let Some(vlan) = self.vlan {
            frame.extend(TAG.to_be_bytes());
            frame.extend(vlan.to_be_bytes());
        }
        frame.extend(PROTOCOL.to_be_bytes());
        frame.resize(frame.len() + payload, 0xa5);
        frame
    }

    /// The frame arrived as it was sent, its tag beside it. The driver forgets the tag of a VLAN
    /// that the guest has not (`ixgbevf_process_skb_fields`).
    fn is(&self, packet: &Packet) -> bool {
        let tag = match self.vlan {
            Some(GUEST_VLAN) => {
                packet.is("vlan_tagged", 1) && packet.is("vlan_tci", GUEST_VLAN.into())
            }
            Some(_) | None => packet.is("vlan_tagged", 0),
        };
        tag && packet.is("protocol", PROTOCOL.into())
    }
}

#[test]
fn the_mailboxs_filters_decide_what_arrives() -> Result<()> {
    let testbed = guest(false)?;
    let station = Station::plug_in(&testbed)?;
    Event::Received.record(&testbed, &format!("protocol == {PROTOCOL:#x}"))?;
    for (command, expected) in STEPS {
        testbed.shell(command)?;
        let arrived = arrivals(&testbed, &station)?;
        ensure!(
            arrived == *expected,
            "after `{command}` came {arrived:?}, not {expected:?}"
        );
    }
    health::kernel_has_no_complaint(&testbed)
}

/// Sends all probes and tells which arrived. Behind them goes one that always does; all take the
/// same queue, so what has not come before it was filtered.
fn arrivals(testbed: &Testbed, station: &Station) -> Result<Vec<&'static str>> {
    let end = BASE_LEN + PROBES.len();
    testbed.shell("echo > /sys/kernel/tracing/trace")?;
    for (probe, len) in PROBES.iter().zip(BASE_LEN..) {
        station.send(&probe.frame(len))?;
    }
    station.send(&Probe::to("end", [0xff; 6]).frame(end))?;
    let packets = trace::wait_for(testbed, PATIENCE, |packets| {
        packets.iter().any(|packet| packet.is("len", end as u64))
    })?;
    let mut arrived = Vec::new();
    for (probe, len) in PROBES.iter().zip(BASE_LEN as u64..) {
        let copies: Vec<_> = packets
            .iter()
            .filter(|packet| packet.is("len", len))
            .collect();
        ensure!(
            copies.len() <= 1,
            "{} came {} times",
            probe.name,
            copies.len()
        );
        ensure!(
            copies.iter().all(|copy| probe.is(copy)),
            "{}: {copies:?}",
            probe.name
        );
        arrived.extend(copies.first().map(|_| probe.name));
    }
    Ok(arrived)
}

#[test]
fn a_vlan_of_the_guest_is_tagged_on_the_wire() -> Result<()> {
    let testbed = guest(false)?;
    let station = Station::plug_in(&testbed)?;
    testbed.shell("vconfig add eth0 5 && ip addr add 10.78.0.2/24 dev eth0.5")?;
    testbed.shell("ip link set eth0.5 up")?;
    station.forget();
    testbed.shell(&format!("ping -q -A -c 5 {VLAN_IP}"))?;
    testbed.shell(&format!("ping -q -A -c 5 {}", station::IP))?;
    let from_guest = |frame: &[u8]| frame[6..12] == GUEST_MAC;
    let echoes = |vlan: Option<u16>| {
        station
            .seen(|frame| from_guest(frame) && vlan_and_protocol(frame) == (vlan, 0x0800))
            .len()
    };
    ensure!((echoes(Some(5)), echoes(None)) == (5, 5));
    health::kernel_has_no_complaint(&testbed)
}
