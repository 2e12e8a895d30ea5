//! `cargo xtask bench pause`
//!
//! How long a VM stands still and how long its NIC is out, under load: a guest with vferry's 82599
//! VF, moved by `transparent`, beside the same guest
//!
//! * with QEMU's own virtio-net on the same wire, moved by QEMU with the same limits: what a
//!   migration costs without a passed-through device;
//! * with an emulated function (`igb`) that is taken from it before it moves and given it back
//!   afterwards, with a virtio-net that stands in meanwhile: what those have today who pass one through.
//!
//! The pause is what both QEMUs say of it, from the source's stop until the destination's word that the
//! VM runs (`RESUME`). QEMU says so before it starts its devices and then the vCPUs: what the sidecar
//! takes to start is in vferry's phase `resume`, and in the outage.
//!
//! An outage is the longest silence either way as the peer sees it, which sends 2000 packets a second
//! and gets as many: it is the pause and what the guest takes to be heard again. A function that was
//! taken from its guest is out from QEMU's word that the guest has let go of it until its link is up
//! again.

use anyhow::Result;
use lab::{Lab, progress_on_stderr};
use testbed::{Devices, Options, Stock};

use super::moves::{self, By, Move, Mover, Times, each, phases};
use super::{Report, Table, goal, median, ratios, variants_of};

const NIC: [(&str, By); 3] = [
    ("virtio-net", By::Qemu(Stock::VirtioNet)),
    ("vferry's VF", By::Vferry(Devices::Nic)),
    ("igb and a standby", By::Qemu(Stock::Replug)),
];

pub(super) fn run(quick: bool) -> Result<Report> {
    // Its kernel has a driver for `igb`, too.
    let lab = Lab::ensure(&progress_on_stderr)?.for_hosts(&progress_on_stderr)?;
    let (mut report, moves) = compare("pause", &lab, &NIC, "", quick)?;
    let [_, ours, replugged] = &moves[..] else {
        return Ok(report);
    };
    let outages: Vec<_> = ours.iter().map(|seen| seen.outage).collect();
    let without = replugged.iter().filter_map(|seen| seen.without_function);
    let without: Vec<_> = without.collect();
    let times = median(&ratios(&without, &outages));
    report.goals.push(goal(
        "a device that is unplugged and plugged out for 10 times as long as vferry's or longer",
        times,
        times >= 10.0,
        "Its traffic goes by the standby meanwhile.",
    ));
    report.tables.push(Table {
        what: "the device silent, or not there, milliseconds",
        variants: variants_of(vec![
            ("vferry's VF", outages),
            ("igb, unplugged and plugged", without),
        ]),
    });
    Ok(report)
}

/// The first is QEMU's own device, the second vferry's, whose pause has a floor of its own.
pub(super) fn compare(
    benchmark: &'static str,
    lab: &Lab,
    variants: &[(&'static str, By)],
    floor: &str,
    quick: bool,
) -> Result<(Report, Vec<Vec<Move>>)> {
    let (times, memory) = if quick {
        (Times::QUICK, 256 << 20)
    } else {
        (Times { rounds: 3, legs: 4 }, 512 << 20)
    };
    let guests = variants.iter().map(|&(name, by)| Mover {
        name,
        by,
        options: Options {
            memory,
            ..Options::default()
        },
    });
    let guests: Vec<_> = guests.collect();
    let moves = moves::compare(benchmark, lab, &guests, times)?;
    let names: Vec<_> = variants.iter().map(|(name, _)| *name).collect();
    let machine = format!("{}, {} MiB", moves::machine(lab)?, memory >> 20);
    Ok((report(benchmark, machine, &names, &moves, floor), moves))
}

fn report(
    name: &'static str,
    machine: String,
    names: &[&'static str],
    moves: &[Vec<Move>],
    floor: &str,
) -> Report {
    let pause = each(names, moves, |seen| seen.pause);
    let beyond = each(names, moves, |seen| seen.outage - seen.pause);
    let (ratio, rest) = (pause[1].paired_ratio, beyond[1].median);
    let of_qemu = format!(
        "With {} it is {:.3}: what is left is the guest's, which an emulator translates anew.",
        names[0], beyond[0].median
    );
    let phases = phases(&moves[1]);
    let took = |phase: usize| phases.variants[phase].median;
    // By the order of the phases.
    let floor = format!(
        "The floor is the pause of {}, {:.3} ms: QEMU's last pass over memory, its devices' states and their \
         loading, which are in `copy` and `restore` here. What vferry adds is `halt` and `mark`, {:.3} ms, and the \
         word between the hosts by which never two of them run the VM: it is given once the source's QEMU is \
         done, and is in `resume`, {:.3} ms. {floor}",
        names[0],
        pause[0].median,
        took(0) + took(1),
        took(4),
    );
    let goals = vec![
        goal(
            "VM pause at 1.10 or less",
            ratio,
            ratio <= 1.10,
            floor.trim(),
        ),
        goal(
            "outage at most 20 ms longer than the pause",
            rest,
            rest <= 20.0,
            &of_qemu,
        ),
    ];
    Report {
        name,
        machine,
        tables: vec![
            Table {
                what: "VM pause, milliseconds",
                variants: pause,
            },
            Table {
                what: "outage, milliseconds",
                variants: each(names, moves, |seen| seen.outage),
            },
            Table {
                what: "outage less pause, milliseconds",
                variants: beyond,
            },
            Table {
                what: "VM pause until the source is done, as its QEMU tells (`downtime`), milliseconds",
                variants: each(names, moves, |seen| seen.downtime),
            },
            phases,
        ],
        goals,
        ..Report::default()
    }
}
