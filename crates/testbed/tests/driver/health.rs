//! Whether the guest's NIC does all that it should: the one check that follows every action.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use etherparse::PacketBuilder;
use testbed::{GUEST_IP, PEER_IP, Testbed, wait_until};

use crate::station::{self, Station};
use crate::trace::{self, Event};
use crate::{GUEST_MAC, PATIENCE};

/// What the stack is told of a packet whose checksums need no other look (`CHECKSUM_UNNECESSARY`).
const UNNECESSARY: u64 = 1;
/// Flows of the check, enough for each of two queues to get some whatever the hash.
const FLOWS: u16 = 16;
/// Nobody listens there.
const PORT: u16 = 9;
const PAYLOAD: usize = 333;

/// The kernel's words for something that went wrong anywhere.
const COMPLAINTS: [&str; 5] = [
    "WARNING:",
    "BUG:",
    "Call Trace",
    "NETDEV WATCHDOG",
    "Tx Unit Hang",
];

/// What the kernel says at the level of a warning of any reset that was asked for.
const ASKED_FOR: [&str; 3] = [
    "Device-specific reset disabled",
    ": resetting",
    ": reset done",
];

/// What the device must not have seen of a sound driver.
const FAULTS: [&str; 6] = [
    "/dropped/rx_dma",
    "/dropped/rx_never_fits",
    "/dropped/tx_malformed",
    "/dropped/tx_oversize",
    "/dropped/tx_dma",
    "/ring_dma_errors",
];

/// Checks the guest's NIC, under load.
pub(crate) fn check(testbed: &Testbed, station: &Station) -> Result<()> {
    testbed.wait_for_traffic()?;
    let carrier = testbed.shell("cat /sys/class/net/eth0/carrier")?;
    ensure!(carrier.trim() == "1", "the link is `{carrier}`");
    testbed
        .shell(&format!("ping -q -A -c 3 {PEER_IP}"))
        .context("the peer does not answer")?;
    let interrupts = queue_interrupts(testbed)?;
    both_queues_receive(testbed, station)?;
    both_queues_interrupt(testbed, interrupts)?;
    content_is_right(testbed)?;
    device_has_no_complaint(testbed)?;
    kernel_has_no_complaint(testbed)
}

/// Flows of all kinds reach the stack, over both queues, with checksums that were looked at.
fn both_queues_receive(testbed: &Testbed, station: &Station) -> Result<()> {
    let headers = 20 + 8;
    let filter = format!("len == {}", PAYLOAD + headers);
    Event::Received.record(testbed, &filter)?;
    for flow in 0..FLOWS {
        let packet = PacketBuilder::ethernet2(station::MAC, GUEST_MAC)
            .ipv4(station::IP.octets(), GUEST_IP.octets(), 64)
            .udp(20_000 + flow, PORT);
        let mut frame = Vec::new();
        packet.write(&mut frame, &[7; PAYLOAD])?;
        station.send(&frame)?;
    }
    let count = usize::from(FLOWS);
    let packets = trace::wait_for(testbed, PATIENCE, |packets| packets.len() >= count)?;
    // The driver does not name the queue, but each has a poller (NAPI) of its own.
    let mut pollers = BTreeSet::new();
    for packet in &packets {
        ensure!(
            packet.is("ip_summed", UNNECESSARY),
            "checksums unseen: {packet:?}"
        );
        pollers.insert(packet.get("napi_id")?);
    }
    ensure!(
        pollers.len() == 2,
        "{FLOWS} flows came over the pollers {pollers:?}"
    );
    Ok(())
}

fn both_queues_interrupt(testbed: &Testbed, before: [u64; 2]) -> Result<()> {
    wait_until("both queues interrupt", PATIENCE, || {
        let now = queue_interrupts(testbed)?;
        Ok(before.iter().zip(now).all(|(before, now)| now > *before))
    })
}

/// The lines of the driver's queues in `/proc/interrupts`, all processors together.
fn queue_interrupts(testbed: &Testbed) -> Result<[u64; 2]> {
    let table = testbed.shell("cat /proc/interrupts")?;
    let count = |queue: usize| -> Result<u64> {
        let name = format!("eth0-TxRx-{queue}");
        let line = table.lines().find(|line| line.trim_end().ends_with(&name));
        let line = line.with_context(|| format!("no interrupt {name} in:\n{table}"))?;
        let counts = line
            .split_whitespace()
            .skip(1)
            .map_while(|word| word.parse::<u64>().ok());
        Ok(counts.sum())
    };
    Ok([count(0)?, count(1)?])
}

fn content_is_right(testbed: &Testbed) -> Result<()> {
    let guest = testbed.guest_report()?;
    let udp = guest.udp.context("the guest runs no UDP")?;
    let tcp = guest.tcp.context("the guest runs no TCP")?;
    ensure!(
        udp.corrupt == 0 && tcp.wrong_bytes == 0,
        "the guest received {udp:?} {tcp:?}"
    );
    let peer = testbed.peer.report();
    let (udp, tcp) = (peer.udp_from_guest, peer.tcp);
    ensure!(
        udp.corrupt == 0 && tcp.wrong_bytes == 0,
        "the peer received {udp:?} {tcp:?}"
    );
    Ok(())
}

fn device_has_no_complaint(testbed: &Testbed) -> Result<()> {
    let device = device(testbed)?;
    for fault in FAULTS {
        ensure!(
            counter(&device, fault)? == 0,
            "{fault} counts in {device:#}"
        );
    }
    Ok(())
}

/// Neither the kernel, of anything, nor its driver, of the device. What it said is taken away, so
/// that the next check sees only what is new.
pub(crate) fn kernel_has_no_complaint(testbed: &Testbed) -> Result<()> {
    let messages = testbed.shell("dmesg -r -c")?;
    let complains = |line: &str| {
        let names_us = ["ixgbevf", "eth0"].iter().any(|name| line.contains(name))
            && !ASKED_FOR.iter().any(|words| line.contains(words));
        let level = line.strip_prefix('<').and_then(|line| line.split_once('>'));
        // The three bits of the level; up to `KERN_WARNING`.
        let level = level
            .and_then(|(level, _)| level.parse::<u32>().ok())
            .map(|level| level & 7);
        COMPLAINTS.iter().any(|words| line.contains(words))
            || names_us && level.is_some_and(|level| level <= 4)
    };
    let bad: Vec<_> = messages.lines().filter(|line| complains(line)).collect();
    ensure!(
        bad.is_empty(),
        "the kernel complains: {bad:#?}\nof all:\n{messages}"
    );
    Ok(())
}

/// What the NIC's model shows of itself.
pub(crate) fn device(testbed: &Testbed) -> Result<serde_json::Value> {
    let status = testbed.host.status()?;
    let device = status.devices.into_iter().next();
    Ok(device.context("vferry shows no device")?.model)
}

/// One counter of [`device`], by JSON pointer.
pub(crate) fn counter(device: &serde_json::Value, pointer: &str) -> Result<u64> {
    device
        .pointer(pointer)
        .and_then(serde_json::Value::as_u64)
        .with_context(|| format!("no counter {pointer} in {device:#}"))
}
