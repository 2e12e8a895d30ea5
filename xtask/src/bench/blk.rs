//! `cargo xtask bench blk`
//!
//! One guest with three disks, which are the same file: QEMU's own virtio-blk and `nvme`, and vferry's
//! controller. All of them go through this host's page cache, which has the file, and by `io_uring` where
//! there is one; what differs is the device and its driver. The guest reads and writes past its own page cache
//! (`lab-guest disk-rate`), by a thread for each operation on its way.
//!
//! # What the numbers leave out
//!
//! A disk: what is measured is the way to the page cache. The guest has one vCPU, which has a processor; the rest
//! has the other. That three have the file open at once is for the benchmark alone, which tells QEMU not to lock it:
//! only one of them is used at a time.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Accelerator, Lab, ONE_CPU, progress_on_stderr};
use load_format::Rate;
use testbed::{Host, HostOptions, Programs};

use super::spent::{self, Shares, Spent};
use super::{Breakdown, Report, Table, pinned, variants};

/// How long anything may take that takes seconds on an idle machine.
const PATIENCE: Duration = Duration::from_mins(1);
const BOOT: Duration = Duration::from_mins(2);
const LEN: usize = 256 << 20;

/// One of the guest's disks.
struct Disk {
    name: &'static str,
    serial: &'static str,
    /// QEMU's device; it is vferry's if there is none.
    device: Option<&'static str>,
    address: &'static str,
}

const DISKS: [Disk; 3] = [
    Disk {
        name: "virtio-blk",
        serial: "QEMUVIRTIO",
        device: Some("virtio-blk-pci"),
        address: "0a",
    },
    Disk {
        name: "nvme",
        serial: "QEMUNVME",
        device: Some("nvme"),
        address: "0b",
    },
    Disk {
        name: "vferry",
        // As the testbed has it.
        serial: "LAB0",
        device: None,
        address: "09",
    },
];

/// What is measured, and how `lab-guest disk-rate` is told.
const QUANTITIES: [(&str, &str); 6] = [
    (
        "random reads of 4 KiB per second, one at a time",
        "--depth 1",
    ),
    (
        "random reads of 4 KiB per second, 32 at a time",
        "--depth 32",
    ),
    (
        "random writes of 4 KiB per second, one at a time",
        "--depth 1 --write",
    ),
    (
        "random writes of 4 KiB per second, 32 at a time",
        "--depth 32 --write",
    ),
    (
        "reads of 1 MiB one after the other, MiB per second",
        "--kib 1024 --sequential",
    ),
    (
        "writes of 1 MiB one after the other, MiB per second",
        "--kib 1024 --sequential --write",
    ),
];

pub(super) fn run(quick: bool) -> Result<Report> {
    let (rounds, warm_up, window) = if quick { (1, 50, 150) } else { (5, 300, 1000) };
    let folder = tempfile::Builder::new().prefix("vferry-").tempdir()?;
    let host = start(folder.path())?;
    let shell = |command: &str| host.vm.shell(command, PATIENCE)?.success();
    let nodes = nodes(&shell)?;
    let mut runs: [[Vec<f64>; DISKS.len()]; QUANTITIES.len()] = Default::default();
    let mut shares: [[Vec<Shares>; DISKS.len()]; QUANTITIES.len()] = Default::default();
    // The first round is for what an emulator translates.
    let first = usize::from(quick);
    for round in first..=rounds {
        for turn in 0..DISKS.len() {
            let which = (round + turn) % DISKS.len();
            for (quantity, (what, options)) in QUANTITIES.iter().enumerate() {
                let node = &nodes[which];
                let before = Spent::by(&host)?;
                let said = shell(&format!(
                    "lab-guest disk-rate {node} {options} --warm-up-ms {warm_up} --ms {window}"
                ))?;
                let share = before.shares_until(&Spent::by(&host)?);
                let value = per_second(&said);
                let value = value.with_context(|| format!("{}, {what}", DISKS[which].name))?;
                eprintln!(
                    "bench: round {round} of {rounds}, {}: {value:.1} {what}",
                    DISKS[which].name
                );
                if round > 0 {
                    runs[quantity][which].push(value);
                    shares[quantity][which].push(share);
                }
            }
        }
    }
    let kernel = shell("uname -r")?;
    let names = DISKS.map(|disk| disk.name);
    let table = |((what, _), runs)| Table {
        what,
        variants: variants(names, runs),
    };
    Ok(Report {
        name: "blk",
        machine: format!(
            "{}; guest {} by {:?} with one vCPU, windows of {window} ms",
            super::machine()?,
            kernel.trim(),
            Accelerator::detect()
        ),
        tables: QUANTITIES.into_iter().zip(runs).map(table).collect(),
        breakdowns: vec![who(shares)],
        notes: vec![
            "The floor is what the guest's kernel takes for an operation, which is translated, and a way to the page \
             cache; where the vCPU has all of its processor no disk is faster than its driver. vferry's further way is \
             a message for each doorbell and one wake-up more."
                .to_owned(),
        ],
        ..Report::default()
    })
}

/// Who had the processors meanwhile, for each quantity and disk.
fn who(shares: [[Vec<Shares>; DISKS.len()]; QUANTITIES.len()]) -> Breakdown {
    let rows = QUANTITIES.iter().zip(shares);
    let rows = rows.flat_map(|((what, _), of_disks)| {
        let of_disks = DISKS.iter().zip(of_disks);
        of_disks.map(move |(disk, shares)| (format!("{what}: {}", disk.name), shares))
    });
    spent::breakdown(
        "who had the processors meanwhile, from the start of the guest's program to its end, percent of one, medians",
        rows.collect(),
    )
}

fn start(folder: &Path) -> Result<Host> {
    let lab = Lab::ensure(&progress_on_stderr)?;
    let programs = Programs::build()?;
    let file: PathBuf = folder.join("disk.img");
    std::fs::write(&file, vec![0x5a; LEN])?;
    let path = qemu::args::option_value(&file.display().to_string());
    let mut args = Vec::new();
    for disk in DISKS {
        let Disk {
            serial, address, ..
        } = disk;
        if let Some(device) = disk.device {
            args.push("-drive".to_owned());
            args.push(format!(
                "if=none,id=d{address},file={path},format=raw,file.locking=off,aio=io_uring,\
                 cache=writeback"
            ));
            args.push("-device".to_owned());
            args.push(format!(
                "{device},drive=d{address},serial={serial},addr={address}"
            ));
        }
    }
    let options = HostOptions {
        nic: false,
        disk: Some(file),
        append: ONE_CPU.to_owned(),
        modules: vec!["virtio_blk".to_owned()],
        args,
        ..HostOptions::new(512 << 20, folder.join("none"))
    };
    let processors = pinned::serving()?;
    let start = || Host::start(&lab, &programs, folder, "1", &options, false);
    let host = processors.start(1, start, |host| &host.vm)?;
    host.vm.wait_ready(BOOT)?;
    Ok(host)
}

/// Where the guest has them.
fn nodes(shell: &impl Fn(&str) -> Result<String>) -> Result<Vec<String>> {
    let node = |disk: Disk| {
        let serial = disk.serial;
        let found = shell(&format!(
            "cd /sys/block; for disk in *; do \
             cat $disk/serial $disk/device/serial 2> /dev/null | grep -qw {serial} && echo $disk; \
             done; true"
        ))?;
        let name = found.trim();
        ensure!(
            !name.is_empty() && !name.contains('\n'),
            "the guest has no disk {serial}, or several: {found:?}"
        );
        Ok(format!("/dev/{name}"))
    };
    DISKS.into_iter().map(node).collect()
}

fn per_second(said: &str) -> Result<f64> {
    let rate: Rate = serde_json::from_str(said)?;
    ensure!(
        rate.failed == 0 && rate.done > 0,
        "operations failed, or none was carried out: {rate:?}"
    );
    Ok(rate.per_second())
}
