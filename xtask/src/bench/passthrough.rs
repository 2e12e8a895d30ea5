//! `cargo xtask bench passthrough`
//!
//! One guest of a host of the nested lab, with the same virtual function by QEMU's own `vfio-pci` and
//! by vferry, in turn: it is booted anew for each. TCP both ways as fast as it goes, and echoes among it.
//! Of a host that is emulated throughput scatters by a sixth, so it is counted as well how often its
//! processor leaves the guest for each megabyte, and for how many of these exits somebody else has to answer:
//! who traps what the other does not would be seen there. Of vferry's threads it is counted how often they
//! are woken meanwhile: nothing of the guest's traffic should pass through them.
//!
//! Tried instead: small packets, more than the guest has time for. They say the same.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use lab::{Accelerator, Lab, progress_on_stderr};
use testbed::{Nested, NestedOptions, Programs, Way};

use super::{Report, Table, variants};

/// Bytes of TCP per second, each way: more than such a guest can take.
const TCP_RATE: u32 = 50_000_000;
/// An emulator translates what runs.
const WARM_UP: Duration = Duration::from_secs(4);

/// What is compared with what.
const WAYS: [(&str, Way); 2] = [("QEMU's vfio-pci", Way::VfioPci), ("vferry", Way::Vferry)];

struct Measured {
    /// Megabytes of TCP per second, both ways together.
    throughput: f64,
    /// Microseconds of an echo, on average.
    echo: f64,
    /// From the guest to KVM, for each of these megabytes.
    exits: f64,
    /// Of them, those that KVM has QEMU answer.
    trapped: f64,
    /// Of vferry's threads, per second.
    wake_ups: f64,
}

pub(super) fn run(quick: bool) -> Result<Report> {
    let (rounds, window) = if quick {
        (1, Duration::from_secs(4))
    } else {
        (9, Duration::from_secs(10))
    };
    let lab = Lab::ensure(&progress_on_stderr)?.for_hosts(&progress_on_stderr)?;
    let version = lab.kernel_version().to_owned();
    let options = NestedOptions {
        way: WAYS[0].1,
        tcp_rate: TCP_RATE,
        ..NestedOptions::default()
    };
    let mut nested = Nested::start(lab, &Programs::build()?, options)?;
    let mut runs = [const { [const { Vec::new() }; 2] }; 5];
    let mut booted = WAYS[0].1;
    for round in 1..=rounds {
        // Who was last is first now: half of the boots, and neither is always the later one.
        let turns = if round % 2 == 1 { [0, 1] } else { [1, 0] };
        for turn in turns {
            let (name, way) = WAYS[turn];
            if way != booted {
                nested.boot_again(way)?;
                booted = way;
            }
            let Measured {
                throughput,
                echo,
                exits,
                trapped,
                wake_ups,
            } = measure(&mut nested, way, window)?;
            eprintln!(
                "bench: round {round} of {rounds}, {name}: {throughput:.2} MB/s, {echo:.0} us, {wake_ups:.1} wake-ups"
            );
            for (runs, value) in runs
                .iter_mut()
                .zip([throughput, echo, exits, trapped, wake_ups])
            {
                runs[turn].push(value);
            }
        }
    }
    let [throughput, echo, exits, trapped, wake_ups] = runs;
    let names = WAYS.map(|(name, _)| name);
    let [_, of_vferry] = wake_ups;
    Ok(Report {
        name: "passthrough",
        machine: format!(
            "{version} by KVM in a host by {:?}, igbvf, windows of {} s",
            Accelerator::detect(),
            window.as_secs()
        ),
        tables: vec![
            Table {
                what: "TCP, MB/s, both ways together",
                variants: variants(names, throughput),
            },
            Table {
                what: "an echo among them, microseconds on average",
                variants: variants(names, echo),
            },
            Table {
                what: "exits of the guest's processor, for each of these megabytes",
                variants: variants(names, exits),
            },
            Table {
                what: "of them those that QEMU has to answer",
                variants: variants(names, trapped),
            },
            Table {
                what: "wake-ups of vferry's threads per second meanwhile",
                variants: variants(["vferry"], [of_vferry]),
            },
        ],
        ..Report::default()
    })
}

fn measure(nested: &mut Nested, way: Way, window: Duration) -> Result<Measured> {
    thread::sleep(WARM_UP);
    let wake_ups = |nested: &Nested| match way {
        Way::Vferry => nested.here().wake_ups(),
        Way::VfioPci | Way::Failover => Ok(0),
    };
    nested.reset_counts()?;
    let before = wake_ups(nested)?;
    let exits_before = nested.here().exits()?;
    thread::sleep(window);
    let report = nested.peer.report();
    let exits_after = nested.here().exits()?;
    let woken = wake_ups(nested)? - before;
    let seconds = Duration::from_nanos(report.until_nanos - report.since_nanos).as_secs_f64();
    let echoes = report.icmp.round_trips.context("no echo came back")?;
    let bytes = report.tcp.to_guest_bytes + report.tcp.from_guest_bytes;
    let megabytes = f64::from(u32::try_from(bytes)?) / 1e6;
    let per_megabyte = |after: u64, before: u64| -> Result<f64> {
        Ok(f64::from(u32::try_from(after - before)?) / megabytes)
    };
    Ok(Measured {
        throughput: megabytes / seconds,
        echo: f64::from(u32::try_from(echoes.mean_nanos / 1000)?),
        exits: per_megabyte(exits_after.all, exits_before.all)?,
        trapped: per_megabyte(exits_after.answered, exits_before.answered)?,
        wake_ups: f64::from(u32::try_from(woken)?) / seconds,
    })
}
