//! `cargo xtask bench net`
//!
//! One guest with four NICs: QEMU's own virtio-net, `igb` and `e1000e`, and vferry's 82599 virtual
//! function. All have a wire to the same switch and the same peer (`uplink::Peer`), and one at a time is
//! up, with the guest's address: so kernel, program, processors and peer are the same, and what differs
//! is the NIC and its driver. They take turns within a round, and rounds begin with another one each.
//!
//! What flows is counted where it arrives: TCP by the peer, frames from the guest at the switch, frames to
//! it by its IP. The floods of UDP are as much as the wire takes, and nobody in the guest reads what
//! comes; the sizes are those of whole Ethernet frames, FCS included. Frames to the guest are not
//! counted where they are sent: QEMU's `igb` takes a frame that it has no buffer for and
//! drops it, where others leave it in the wire.
//!
//! # What was found
//!
//! *The message is the floor of small frames from the guest.* `ixgbevf` rings for each frame
//! (`ixgbevf_tx_map`), and each ring is a message from the vCPU's thread to QEMU's own and from there to
//! vferry's, where an emulated NIC of QEMU's is called as a function; `cargo xtask bench mmio` has both. What
//! vferry does for each was counted (`perf stat -e syscalls:*`), in a second or two of frames of 64 bytes: 42433
//! frames came by 14369 `recvmsg` and went on by 11980 `sendmsg`. Before frames of a row of doorbells
//! went out by one call, it was one for each frame.
//!
//! *An echo is the sum of who has to be woken.* The peer's frame wakes vferry's engine, its interrupt QEMU's main
//! loop, which wakes the vCPU; the guest's doorbell wakes QEMU's thread for messages, that vferry's for the
//! connection, and this the peer: six, and with QEMU's own NICs three. (vferry's part was traced, QEMU's is as
//! its `vfio-user` is built. The report counts who is woken.) On processors that have other work, each of
//! them may wait for a time slice, some milliseconds, and that is what is measured then.
//!
//! Frames to the guest cost vferry next to nothing: 225409 of 64 bytes came by 79 reads. What takes the time
//! is the guest.
//!
//! *`e1000e`, and virtio-net with all but the largest frames, send next to no UDP* while nothing comes in, in
//! this QEMU and with these drivers; TCP, whose acknowledgements come in, is not concerned. The ratio to them says
//! nothing there.
//!
//! Tried and dropped: no second look at the wire after a read that found less than there was room for. It saves
//! one call for each wake-up by the network, but `peek` may then say that there is nothing where there is, and
//! whoever looks once misses the end of a wire.
//!
//! Not tried: to look for messages for a while before sleeping. Two processors have none to spare for that.
//!
//! # What the numbers leave out
//!
//! The wire is a socket and carries one frame after the other. A TAP takes segments of 64 KiB from a
//! virtio-net, whose guest then cuts and sums up nothing; here its driver does both, as every NIC's
//! does whose other end is no kernel. The guest has one vCPU, and the other processor is the
//! devices' and the peer's ([`super::pinned`]): where the guest is translated, an interrupt and a register take far
//! longer than on a processor that has them.

mod goals;
mod rig;

use std::time::Duration;

use anyhow::{Context, Result};
use uplink::Load;

use super::spent::{self, Rates, Shares};
use super::{Breakdown, Report, Table, median, variants};
use goals::{Seen, echoes, goals, per_vcpu_second};
use rig::{Measured, NICS, Rig};

/// Of whole Ethernet frames with their FCS; the last is for what a NIC takes beyond 1500 bytes of
/// payload.
const FRAMES: [usize; 3] = [64, 1518, 9018];
/// FCS, and headers of Ethernet, IPv4 and UDP.
const AROUND: usize = 4 + 14 + 20 + 8;
/// More than an emulated guest can take.
const TCP_RATE: u32 = 2_000_000_000;
const ECHOES: u32 = 200;

/// How much is measured of a NIC, in one round.
#[derive(Debug, Clone, Copy)]
struct Extent {
    /// Before each window.
    warm_up: Duration,
    window: Duration,
    frames: &'static [usize],
}

const SHORT: Extent = Extent {
    warm_up: Duration::from_millis(50),
    window: Duration::from_millis(150),
    frames: &[FRAMES[0]],
};
const WHOLE: Extent = Extent {
    warm_up: Duration::from_millis(200),
    window: Duration::from_millis(600),
    frames: &FRAMES,
};

/// One value for each of a NIC's quantities.
const QUANTITIES: [&str; 9] = [
    "TCP to the guest, MB per second",
    "TCP from the guest, MB per second",
    "an echo, microseconds on average",
    "frames of 64 bytes to the guest, thousands per second",
    "frames of 64 bytes from the guest, thousands per second",
    "frames of 1518 bytes to the guest, thousands per second",
    "frames of 1518 bytes from the guest, thousands per second",
    "frames of 9018 bytes to the guest, thousands per second",
    "frames of 9018 bytes from the guest, thousands per second",
];
const NOTES: [&str; 3] = [
    "QEMU's `e1000e`, and virtio-net with all but the largest frames, send next to no UDP while nothing comes in: \
     the ratio to them says nothing there. TCP, whose acknowledgements come in, is not concerned.",
    "The floor is the vCPU's thread: the guest's kernel and its driver, which are translated, and QEMU's part of \
     an access to a register. What a NIC takes beside it is in the columns of whoever emulates it: QEMU's in the \
     vCPU's and QEMU's other threads, vferry's in vferry's and, for each message, in QEMU's other threads. An \
     echo's floor is who has to be woken one after the other: three for a NIC of QEMU's, six for vferry's (the \
     engine, QEMU's main loop, the vCPU, QEMU's thread for messages, the thread of the connection, the peer). What \
     was counted has more, as the driver also writes to registers for which nobody waits: it enables its interrupt again \
     and gives buffers back.",
    "Copies of a frame in vferry: two from the guest (its memory to the model, the model to the link's buffer), \
     one to it (the link's buffer to its memory). One `recvmsg` takes all messages or frames that have come, one `sendmsg` \
     hands on all frames of a row of doorbells.",
];
/// Of which less is better.
const ECHO: usize = 2;

/// In [`NICS`].
const VIRTIO: usize = 0;
const EMULATED: [usize; 2] = [1, 2];
const OURS: usize = 3;

/// Of each NIC, a value for each round.
type OfNics<T> = [Vec<T>; NICS.len()];
/// Of each quantity that is measured.
type Runs = Vec<OfNics<f64>>;

pub(super) fn run(quick: bool) -> Result<Report> {
    let (rounds, extent) = if quick { (1, SHORT) } else { (4, WHOLE) };
    let rig = Rig::start()?;
    let quantities = &QUANTITIES[..ECHO + 1 + 2 * extent.frames.len()];
    let mut runs: Runs = vec![Default::default(); quantities.len()];
    let mut shares: Vec<OfNics<Shares>> = vec![Default::default(); quantities.len()];
    let mut of_echoes: OfNics<Rates> = Default::default();
    // The first round is for what an emulator translates.
    for round in usize::from(quick)..=rounds {
        for turn in 0..NICS.len() {
            let which = (round + turn) % NICS.len();
            let name = NICS[which].name;
            let extent = if round == 0 { SHORT } else { extent };
            let values = measure(&rig, which, extent)
                .with_context(|| format!("{name}: {}", rig.evidence()))?;
            let rates: Vec<_> = values.iter().map(|measured| measured.value).collect();
            eprintln!("bench: round {round} of {rounds}, {name}: {rates:.1?}");
            if round > 0 {
                for ((runs, shares), measured) in runs.iter_mut().zip(&mut shares).zip(values) {
                    of_echoes[which].extend(measured.for_each);
                    runs[which].push(measured.value);
                    shares[which].push(measured.shares);
                }
            }
        }
    }
    let mut notes = NOTES.map(str::to_owned).to_vec();
    if !quick {
        notes.push(system_calls(&rig, extent)?);
    }
    let goals = goals(Seen {
        runs: &runs,
        shares: &shares,
        echoes: &of_echoes,
    });
    let [micros, wakes] = echoes(&of_echoes);
    let names = NICS.map(|nic| nic.name);
    Ok(Report {
        goals,
        name: "net",
        machine: format!(
            "{}; guest {}, windows of {} ms",
            super::machine()?,
            rig.describe()?,
            extent.window.as_millis()
        ),
        tables: quantities
            .iter()
            .zip(runs.clone())
            .map(|(what, runs)| Table {
                what,
                variants: variants(names, runs),
            })
            .collect(),
        breakdowns: vec![who(quantities, &runs, &shares), micros, wakes],
        notes,
    })
}

/// How many system calls vferry makes for what flows, of flows that end at the peer.
fn system_calls(rig: &Rig, extent: Extent) -> Result<String> {
    rig.plug(OURS, 1500)?;
    let tcp = Load {
        tcp_bytes_per_second: TCP_RATE,
        ..Load::default()
    };
    let counted = [
        rig.system_calls(|rig| rig.tcp("tcp-in", tcp, extent))?,
        rig.system_calls(|rig| rig.tcp("tcp-out", Load::default(), extent))?,
        rig.system_calls(|rig| rig.frames_from(FRAMES[0] - AROUND, extent))?,
    ];
    let [Some(to), Some(from), Some(frames)] = counted else {
        return Ok(
            "vferry's system calls were not counted: there is no `perf` here that can.".into(),
        );
    };
    Ok(format!(
        "vferry's system calls, counted by `perf stat`: {to:.0} for each MB of TCP to the guest, which is some 700 \
         frames and half as many acknowledgements; {from:.0} for each MB from it; {frames:.0} for a thousand frames of \
         64 bytes from it, each of which has a message."
    ))
}

/// Who had the processors meanwhile, for each quantity and NIC, and what the vCPU had for each unit.
fn who(quantities: &[&'static str], runs: &Runs, shares: &[OfNics<Shares>]) -> Breakdown {
    let mut rows = Vec::new();
    let mut of_vcpu = Vec::new();
    for (quantity, what) in quantities.iter().enumerate() {
        let what = what.split(',').next().unwrap_or(what);
        for (at, nic) in NICS.iter().enumerate() {
            rows.push((
                format!("{what}: {}", nic.name),
                shares[quantity][at].clone(),
            ));
            let rates = per_vcpu_second(quantity, &runs[quantity][at], &shares[quantity][at]);
            of_vcpu.push(1e6 / median(&rates));
        }
    }
    let mut breakdown = spent::breakdown(
        "who had the processors meanwhile, percent of one, and microseconds of the vCPU for each MB, echo or \
         thousand frames; medians",
        rows,
    );
    breakdown.columns.push("vCPU, microseconds");
    for ((_, values), micros) in breakdown.rows.iter_mut().zip(of_vcpu) {
        values.push(micros);
    }
    breakdown
}

fn measure(rig: &Rig, nic: usize, extent: Extent) -> Result<Vec<Measured>> {
    rig.plug(nic, 1500)?;
    let tcp = Load {
        tcp_bytes_per_second: TCP_RATE,
        ..Load::default()
    };
    let echoes = Load {
        icmp_per_second: ECHOES,
        ..Load::default()
    };
    let mut values = vec![
        rig.tcp("tcp-in", tcp, extent)?,
        rig.tcp("tcp-out", Load::default(), extent)?,
        rig.echo(echoes, extent)?,
    ];
    for frame in extent.frames {
        let payload = frame - AROUND;
        if payload > 1500 {
            rig.plug(nic, 9000)?;
        }
        values.push(rig.frames_to(payload, extent)?);
        values.push(rig.frames_from(payload, extent)?);
    }
    Ok(values)
}
