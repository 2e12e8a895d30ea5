//! `cargo xtask bench passthrough`
//!
//! One guest of a host of the nested lab, with the same virtual function by QEMU's own `vfio-pci` and
//! by vferry, in turn: it is booted anew for each. TCP both ways as fast as it goes, and echoes among it.
//! Of a host that is emulated throughput scatters by a sixth, so it is counted as well how often its
//! processor leaves the guest for each megabyte, and for how many of these exits somebody else has to answer:
//! who traps what the other does not would be seen there. Of vferry's threads it is counted how often they
//! are woken meanwhile: nothing of the guest's traffic should pass through them.
//!
//! Tried instead: small packets, more than the guest has time for. They say the same. Windows of 10 s: of what was one
//! and the same, they made 0.78 to 1.14 times itself.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use lab::{Accelerator, Lab, progress_on_stderr};
use testbed::{Nested, NestedOptions, Programs, Way};

use super::scatter::nine_in_ten;
use super::{Report, Table, goal, median, ratios, variants};

/// What vferry has to keep of what a guest has with QEMU's own `vfio-pci`.
const KEEPS: f64 = 0.99;

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
        (9, Duration::from_secs(20))
    };
    let lab = Lab::ensure(&progress_on_stderr)?.for_hosts(&progress_on_stderr)?;
    let version = lab.kernel_version().to_owned();
    let options = NestedOptions {
        way: WAYS[0].1,
        tcp_rate: TCP_RATE,
        ..NestedOptions::default()
    };
    let mut nested = Nested::start(lab, &Programs::build()?, options)?;
    let mut runs: Runs = [const { [const { Vec::new() }; 2] }; 5];
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
    let goals = goals(&runs);
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
        goals,
        ..Report::default()
    })
}

/// What is measured of each of [`WAYS`], in the order of [`Measured`].
type Runs = [[Vec<f64>; 2]; 5];

fn goals(runs: &Runs) -> Vec<String> {
    let [throughput, echo, exits, trapped, wake_ups] = runs;
    let [theirs, ours] = throughput;
    let carried = kept("TCP", &ratios(ours, theirs));
    let [theirs, ours] = echo;
    let prompt = kept("an echo's speed", &ratios(theirs, ours));
    let [theirs, ours] = trapped;
    let (theirs, ours) = (median(theirs), median(ours));
    let untrapped = goal(
        "no register of the function takes QEMU or vferry to answer it",
        ours,
        ours <= theirs,
        &format!(
            "Exits of the processor for each megabyte that somebody has to answer; with QEMU's vfio-pci {theirs:.3}. Of \
             all exits there are {:.3} times as many.",
            median(&ratios(&exits[1], &exits[0]))
        ),
    );
    let most = wake_ups[1].iter().copied().fold(0.0, f64::max);
    let asleep = goal(
        "0 wake-ups of vferry's threads under load",
        most,
        most == 0.0,
        "",
    );
    vec![carried, prompt, untrapped, asleep]
}

fn kept(what: &str, ratios: &[f64]) -> String {
    let [low, high] = nine_in_ten(&[ratios], |medians| medians[0]);
    let met = median(ratios) >= KEEPS;
    let mut floor = format!("It lies between {low:.3} and {high:.3} in nine of ten measurements.");
    if !met && high >= KEEPS {
        floor += " Missed by no more than chance.";
    }
    let what = format!("{what} at least {KEEPS} of QEMU's vfio-pci");
    goal(&what, median(ratios), met, &floor)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(ours: [[f64; 3]; 5]) -> Runs {
        ours.map(|ours| [vec![1.0, 2.0, 4.0], ours.to_vec()])
    }

    #[test]
    fn what_is_the_same_and_wakes_nobody_meets_all() {
        let same = [1.0, 2.0, 4.0];
        let told = goals(&runs([same, same, same, same, [0.0; 3]]));
        assert_eq!(
            told.iter().filter(|goal| goal.contains("; met.")).count(),
            4,
            "{told:?}"
        );
    }

    #[test]
    fn what_is_less_is_missed_and_chance_is_told() {
        let slow = [0.5, 1.0, 2.0];
        let [tcp, echo, traps, wakes] =
            &goals(&runs([slow, slow, slow, [8.0; 3], [0.0, 0.0, 1.0]]))[..]
        else {
            panic!("four goals");
        };
        assert!(
            tcp.contains("0.500; **missed**") && !tcp.contains("chance"),
            "{tcp}"
        );
        // Half the time is twice the speed.
        assert!(echo.contains("2.000; met"), "{echo}");
        assert!(traps.contains("8.000; **missed**"), "{traps}");
        assert!(wakes.contains("1.000; **missed**"), "{wakes}");
        let often = kept("it", &[0.9, 0.98, 1.1]);
        assert!(
            often.contains("missed") && often.contains("no more than chance"),
            "{often}"
        );
    }
}
