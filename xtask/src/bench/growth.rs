//! `cargo xtask bench growth`
//!
//! How a VM's pause and its NIC's outage grow: with guest memory, beside QEMU's own virtio-net at the
//! same sizes; and with what a device writes while memory is copied, which a streaming test device does
//! beside the NIC, as fast as it is told to. What it has written and nobody has carried yet is marked
//! after its halt: by then a thread of vferry's has carried all but the last milliseconds' pages, so
//! few are left however many it writes. What many would take is in `log`.
//!
//! Most of a larger guest's memory is pages of zeroes, which QEMU looks at and does not send.

mod memory;

use anyhow::Result;
use lab::{Lab, progress_on_stderr};
use testbed::{Devices, Options, Stock};

use super::moves::{self, By, Move, Mover, Times, each};
use super::{Place, Report, Table, Variant, goal, median, variants_of};
use memory::{grown, slopes, split};

/// MiB of guest memory.
const SIZES: [(u32, [&str; 2]); 5] = [
    (256, ["virtio-net, 256 MiB", "vferry's VF, 256 MiB"]),
    (512, ["virtio-net, 512 MiB", "vferry's VF, 512 MiB"]),
    (1024, ["virtio-net, 1 GiB", "vferry's VF, 1 GiB"]),
    (2048, ["virtio-net, 2 GiB", "vferry's VF, 2 GiB"]),
    (4096, ["virtio-net, 4 GiB", "vferry's VF, 4 GiB"]),
];
const LINES: [&str; 2] = ["virtio-net", "vferry's VF"];
/// Pages that the device writes per second, of some thousands that its driver has.
const RATES: [(u32, &str); 4] = [
    (0, "0 pages a second"),
    (1_000, "1k pages a second"),
    (10_000, "10k pages a second"),
    (100_000, "100k pages a second"),
];

/// Of each guest. All take turns: what the machine does meanwhile, it does to all sizes.
const TIMES: Times = Times {
    rounds: 3,
    legs: 2,
    still: false,
};

pub(super) fn run(quick: bool) -> Result<Report> {
    let (times, sizes, rates) = if quick {
        (Times::QUICK, &SIZES[..2], &RATES[2..3])
    } else {
        (TIMES, &SIZES[..], &RATES[..])
    };
    // With headers, to build the test device's driver.
    let lab = Lab::ensure(&progress_on_stderr)?.for_hosts(&progress_on_stderr)?;
    let by = [By::Qemu(Stock::VirtioNet), By::Vferry(Devices::Nic)];
    let guests = sizes.iter().flat_map(|(mib, names)| {
        names.iter().zip(by).map(|(name, by)| Mover {
            name,
            by,
            options: Options {
                memory: u64::from(*mib) << 20,
                ..Options::default()
            },
        })
    });
    let guests: Vec<_> = guests.collect();
    let moves = moves::compare("growth", &lab, &guests, times)?;
    let names: Vec<_> = guests.iter().map(|guest| guest.name).collect();
    let writers = rates.iter().map(|(rate, name)| Mover {
        name,
        by: By::Vferry(Devices::Nic),
        options: Options {
            stream: Some(format!("rate={rate} buffers=1024")),
            ..Options::default()
        },
    });
    let writers: Vec<_> = writers.collect();
    let written = moves::compare("growth", &lab, &writers, times)?;

    let pauses = places(sizes, each(&names, &moves, |seen| seen.pause));
    let outages = places(sizes, each(&names, &moves, |seen| seen.outage));
    let slopes = [0, 1].map(|line| slopes(sizes, &moves, line));
    let marks: Vec<_> = written.iter().flatten().map(Move::mark).collect();
    let steepness = slopes.each_ref().map(|slopes| median(slopes));
    let breakdowns = split(sizes, &moves);
    let goals = vec![grown(&outages, steepness, &breakdowns), marked(&marks)];
    let mut tables = vec![
        Table {
            what: "VM pause by guest memory, milliseconds",
            variants: pauses,
        },
        Table {
            what: "outage by guest memory, milliseconds",
            variants: outages,
        },
        Table {
            what: "slope of the outage, milliseconds per GiB",
            variants: variants_of(LINES.into_iter().zip(slopes).collect()),
        },
    ];
    tables.extend(by_pages(rates, &written));
    Ok(Report {
        name: "growth",
        machine: moves::machine(&lab)?,
        tables,
        goals,
        breakdowns: breakdowns.into(),
        ..Report::default()
    })
}

/// The same at several rates.
fn by_pages(rates: &[(u32, &'static str)], moves: &[Vec<Move>]) -> [Table; 4] {
    let names: Vec<_> = rates.iter().map(|(_, name)| *name).collect();
    let marked = |seen: &Move, which: usize| seen.marked.map_or(0.0, |marked| marked[which]);
    [
        Table {
            what: "VM pause while a device writes, milliseconds",
            variants: each(&names, moves, |seen| seen.pause),
        },
        Table {
            what: "outage while a device writes, milliseconds",
            variants: each(&names, moves, |seen| seen.outage),
        },
        Table {
            what: "pages marked as written by devices, of all passes",
            variants: each(&names, moves, |seen| marked(seen, 0) + marked(seen, 1)),
        },
        Table {
            what: "marking those that were left at the halt, milliseconds",
            variants: each(&names, moves, Move::mark),
        },
    ]
}

/// On a curve for each line.
fn places(sizes: &[(u32, [&'static str; 2])], mut variants: Vec<Variant>) -> Vec<Variant> {
    let places = sizes.iter().flat_map(|(mib, _)| {
        LINES.map(|line| Place {
            line,
            at: f64::from(*mib) / 1024.0,
            unit: "GiB",
        })
    });
    for (variant, place) in variants.iter_mut().zip(places) {
        variant.place = Some(place);
    }
    variants
}

fn marked(marks: &[f64]) -> String {
    let longest = marks.iter().copied().fold(0.0, f64::max);
    let floor = format!("The median is {:.3}; the longest counts.", median(marks));
    goal(
        "what devices wrote marked within 5 ms",
        longest,
        longest <= 5.0,
        &floor,
    )
}
