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
//!
//! Before each move it is seen what the same guest is silent for where it is: its load by itself, and around a stop of
//! its vCPUs that is no migration.
//!
//! # What was found
//!
//! *From the source's completion to the VM's run* it was 0.95 ms when all threads were watched (`perf record -e
//! sched:sched_switch,sched:sched_waking`) on a machine that had other work: 0.15 until QEMU had told the second of those
//! who listen to its monitor, which is vferry; 0.06 until vferry had sent the word; 0.28 in which QEMU's thread that
//! frees memory (`call_rcu`) had the destination's processor; 0.07 in vferry there, until it had told QEMU to go on;
//! 0.28 until QEMU's thread for its monitor had read that; and 0.1 in its main loop. So of vferry's own there is 0.13,
//! and all else is QEMU's, or waits for a processor that it has.

use anyhow::Result;
use lab::{Lab, progress_on_stderr};
use testbed::{Devices, Options, Still, Stock};

use super::moves::{self, By, Move, Mover, Times, each, phases};
use super::{Report, Table, Variant, goal, median, ratios, variants_of};

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

/// Of an operation on a disk: small ones, so that the load rests for a millisecond or so at a time by itself, and not
/// for longer than the disk is out.
const DISK_MAX_KIB: u32 = 4;
const WHOLE: Times = Times {
    rounds: 3,
    legs: 4,
    still: true,
};

/// The first is QEMU's own device, the second vferry's, whose pause has a floor of its own.
pub(super) fn compare(
    benchmark: &'static str,
    lab: &Lab,
    variants: &[(&'static str, By)],
    floor: &str,
    quick: bool,
) -> Result<(Report, Vec<Vec<Move>>)> {
    let (times, memory) = if quick {
        let still = true;
        (
            Times {
                still,
                ..Times::QUICK
            },
            256 << 20,
        )
    } else {
        (WHOLE, 512 << 20)
    };
    let guests = variants.iter().map(|&(name, by)| Mover {
        name,
        by,
        options: Options {
            memory,
            disk_max_kib: DISK_MAX_KIB,
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
    let phases = phases(&moves[1]);
    let goals = vec![
        goal(
            "VM pause at 1.10 or less",
            ratio,
            ratio <= 1.10,
            format!("{} {floor}", of_pause(names, moves, &phases)).trim(),
        ),
        goal(
            "outage at most 20 ms longer than the pause",
            rest,
            rest <= 20.0,
            &of_guest(names, moves),
        ),
    ];
    let table = |what, variants| Table { what, variants };
    Report {
        name,
        machine,
        tables: vec![
            table("VM pause, milliseconds", pause),
            table(
                "outage, milliseconds",
                each(names, moves, |seen| seen.outage),
            ),
            table("outage less pause, milliseconds", beyond),
            table(
                "silence around a stop of the vCPUs where the guest stays, less the stop, milliseconds",
                still(names, moves, |still| still.after_stop_ms),
            ),
            table(
                "the load's longest silence within a second where the guest stays, milliseconds",
                still(names, moves, |still| still.usual_ms),
            ),
            table(
                "VM pause until the source is done, as its QEMU tells (`downtime`), milliseconds",
                each(names, moves, |seen| seen.downtime),
            ),
            table(
                "VM pause from then on, milliseconds",
                each(names, moves, |seen| seen.word),
            ),
            phases,
        ],
        goals,
        ..Report::default()
    }
}

/// What was seen of guests that stayed.
fn still(names: &[&'static str], moves: &[Vec<Move>], of: fn(&Still) -> f64) -> Vec<Variant> {
    let of = |seen: &Move| seen.still.as_ref().map_or(f64::NAN, of);
    each(names, moves, of)
}

/// What a pause has that is vferry's, and what that is the floor of.
fn of_pause(names: &[&'static str], moves: &[Vec<Move>], phases: &Table) -> String {
    let theirs = names[0];
    let of = |which: usize, of: fn(&Move) -> f64| moves[which].iter().map(of).collect::<Vec<_>>();
    let pauses = of(0, |seen| seen.pause);
    let [their_word, word] = [0, 1].map(|which| median(&of(which, |seen| seen.word)));
    let without_word = of(1, |seen| seen.pause - seen.word);
    let monitor = still(names, moves, |still| still.monitor_ms);
    // By the order of the phases.
    let took = |phase: usize| phases.variants[phase].median;
    format!(
        "The floor is the pause of {theirs}, {:.3} ms: QEMU's last pass over memory, its devices' states and their \
         loading, which are in `copy` and `restore` here. What vferry adds is `halt` and `mark`, {:.3} ms, and the \
         word between the hosts by which never two of them run the VM. It is given once the source's QEMU is done, \
         and the VM runs {word:.3} ms later ({theirs}'s {:.3} ms {}). Five threads are woken for it one after the \
         other: two of vferry's at the source, one at the destination, and two of QEMU's there, whose monitor alone \
         takes {:.3} ms for a command while a VM stands still. Without what comes after the source is done vferry's \
         pause is {:.3} of all of {theirs}'s.",
        median(&pauses),
        took(0) + took(1),
        their_word.abs(),
        if their_word < 0.0 { "before" } else { "later" },
        monitor[1].median,
        median(&ratios(&without_word, &pauses)),
    )
}

/// What is left of an outage after the pause.
fn of_guest(names: &[&'static str], moves: &[Vec<Move>]) -> String {
    let beyond = each(names, moves, |seen| seen.outage - seen.pause);
    format!(
        "With {} it is {:.3}: what is left is the guest's. Where vferry's stays, and its vCPUs stop for as long and go \
         on, with nothing to be translated anew, it is {:.3}; and {:.3} is the longest in which its load is silent \
         by itself within a second. What is beyond these is the guest that an emulator translates anew.",
        names[0],
        beyond[0].median,
        still(names, moves, |still| still.after_stop_ms)[1].median,
        still(names, moves, |still| still.usual_ms)[1].median,
    )
}
