//! `cargo xtask bench`: one module per benchmark.
//!
//! A benchmark compares variants of one thing in one run, in turn, so that what else the machine
//! does meets all of them. It reports; it is no test, and no time makes it fail.

mod blk;
mod curve;
mod digest;
mod doorbell;
mod growth;
mod guest_module;
mod log;
mod mmio;
mod moves;
mod net;
mod passthrough;
mod pause;
mod pause_nvme;
mod pinned;
mod report;
mod scatter;
mod spent;

use std::fs;
use std::path::PathBuf;
use std::thread;

use anyhow::{Result, anyhow, bail, ensure};
use clap::{Args, ValueEnum};
use serde::Serialize;

/// Of `docs/performance.md`.
const HEAD: &str = "\
# Performance

What `cargo xtask bench all --charts docs/performance` prints: all benchmarks but `guest-module` and `passthrough`, which take
minutes before they measure. Each section is of one run, on the machine that its first line names, and may be printed anew by
its name alone. Each compares ways to do one thing, in turn in one run; the first line of a table is what the
others are compared with. Only the ratios say something about another machine, and the median of each round's ratio is the
one that is least disturbed by what else this one did.

All are pinned alike: what serves (vferry, QEMU without its vCPUs, a server, the guest's peer) has the first processor, what
is served (the vCPU, a driver) the second. Guests that move have two vCPUs, one on each, and of their two hosts each has the
rest of its threads on one of them. All are warmed alike: a first round that does not count, or a guest that is booted anew for each and is
under load before it moves.
";

/// Measures, and prints what it measured.
#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// What to measure, one after the other.
    #[arg(value_enum, value_name = "NAME", default_value = "all")]
    benchmarks: Vec<Benchmark>,
    /// Fewer and shorter runs: to see that it works, not to quote.
    #[arg(long)]
    quick: bool,
    /// How it is printed on standard output.
    #[arg(long, value_enum, default_value_t = Form::Md)]
    report: Form,
    /// Also draws what is a curve into this folder, to which a table in Markdown then refers as one beside it.
    #[arg(long, value_name = "FOLDER")]
    charts: Option<PathBuf>,
    /// `mmio` beside the sample device of this checkout of libvfio-user, not of the one in Debian's sources of QEMU.
    #[arg(long, value_name = "CHECKOUT")]
    libvfio_user: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Benchmark {
    /// All but `guest-module` and `passthrough`, which take minutes before they measure.
    All,
    /// A guest's disk, by vferry and by QEMU's own controllers.
    Blk,
    /// What vferry's module for Linux guests costs the network: loaded, and while it tracks.
    GuestModule,
    /// Digests of guest memory, beside reading it.
    Digest,
    /// Doorbells of the `NVMe` controller: trapped, as they are, or in a page that is looked at.
    Doorbell,
    /// Logged DMA beside DMA that is not, and what finding and marking pages takes.
    Log,
    /// Registers read and written: by a bare client, beside a bare socket; by a guest, beside QEMU's devices.
    Mmio,
    /// A guest's network, by vferry and by QEMU's own NICs.
    Net,
    /// A real virtual function, by vferry and by QEMU's own `vfio-pci`.
    Passthrough,
    /// A VM's pause and its NIC's outage, beside the same guest with QEMU's virtio-net.
    Pause,
    /// The same of its `NVMe` controller, beside QEMU's virtio-blk.
    PauseNvme,
    /// How both grow with guest memory, and with what devices write.
    Growth,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// A table in Markdown.
    Md,
    Json,
    /// A page with charts.
    Html,
}

/// What was measured.
#[derive(Debug, Default, Serialize)]
struct Report {
    /// The benchmark.
    name: &'static str,
    /// What decides how far the values reach beyond this machine.
    machine: String,
    /// One for each quantity; all of the same runs.
    tables: Vec<Table>,
    /// What it should be, whether it is, and if not what keeps it.
    goals: Vec<String>,
    /// Where the time goes.
    breakdowns: Vec<Breakdown>,
    /// What the floor of a figure is and where the rest goes, as far as it takes words.
    notes: Vec<String>,
}

/// Numbers that explain others.
#[derive(Debug, Serialize)]
struct Breakdown {
    /// What they are, with their unit.
    what: String,
    columns: Vec<&'static str>,
    /// Each with its name.
    rows: Vec<(String, Vec<f64>)>,
}

/// One quantity.
#[derive(Debug, Serialize)]
struct Table {
    /// What the values are, with their unit.
    what: &'static str,
    /// The first is what the others are compared with.
    variants: Vec<Variant>,
}

/// One of the things compared.
#[derive(Debug, Serialize)]
struct Variant {
    name: &'static str,
    /// One value per run; the same place is the same round.
    runs: Vec<f64>,
    min: f64,
    median: f64,
    max: f64,
    /// Of the medians, to the first variant's.
    ratio: f64,
    /// The median of each round's ratio to the first variant.
    paired_ratio: f64,
    /// Where it is on a curve, if they are points of some.
    #[serde(skip_serializing_if = "Option::is_none")]
    place: Option<Place>,
}

/// A point of a curve.
#[derive(Debug, Clone, Serialize)]
struct Place {
    /// The curve.
    line: &'static str,
    /// How far along it.
    at: f64,
    /// What of.
    unit: &'static str,
}

impl Benchmark {
    const ALL: [Self; 9] = [
        Self::Digest,
        Self::Doorbell,
        Self::Log,
        Self::Mmio,
        Self::Net,
        Self::Blk,
        Self::Pause,
        Self::PauseNvme,
        Self::Growth,
    ];

    /// Those that it stands for.
    fn each(&self) -> &[Self] {
        match self {
            Self::All => &Self::ALL,
            one => std::slice::from_ref(one),
        }
    }
}

/// All of them once and shortly: they fail where they cannot run, and at no number.
pub(crate) fn quickly() -> Result<()> {
    run(&Bench {
        benchmarks: vec![Benchmark::All],
        quick: true,
        report: Form::Md,
        charts: None,
        libvfio_user: None,
    })
}

/// Each is printed once it is there. One that cannot run keeps no other from it.
pub(crate) fn run(bench: &Bench) -> Result<()> {
    let wanted: Vec<_> = bench.benchmarks.iter().flat_map(Benchmark::each).collect();
    let whole = bench.benchmarks == [Benchmark::All] && !bench.quick;
    if matches!(bench.report, Form::Md) && whole {
        println!("{HEAD}");
    }
    let (mut reports, mut failures) = (Vec::new(), 0);
    for one in &wanted {
        match alone(**one, bench) {
            Ok(report) => {
                print(bench, &report)?;
                reports.push(report);
            }
            Err(error) => {
                eprintln!("bench: {error:?}");
                failures += 1;
            }
        }
    }
    if matches!(bench.report, Form::Html) {
        print!("{}", report::html(&reports));
    }
    ensure!(failures == 0, "{failures} of {} did not run", wanted.len());
    Ok(())
}

fn print(bench: &Bench, report: &Report) -> Result<()> {
    match bench.report {
        Form::Md => {
            let charts = bench.charts.as_deref();
            let charts = charts.map(|folder| report::draw(report, folder));
            let charts = charts.transpose()?.unwrap_or_default();
            println!("{}", report::markdown(report, &charts));
        }
        Form::Json => println!("{}", serde_json::to_string(report)?),
        // A page is of all of them.
        Form::Html => {}
    }
    Ok(())
}

/// In a thread of its own: some keep theirs on one processor.
fn alone(benchmark: Benchmark, bench: &Bench) -> Result<Report> {
    let quick = bench.quick;
    let measure = || match benchmark {
        Benchmark::All => bail!("all of them are many"),
        Benchmark::Blk => blk::run(quick),
        Benchmark::GuestModule => guest_module::run(quick),
        Benchmark::Digest => digest::run(quick),
        Benchmark::Doorbell => doorbell::run(quick),
        Benchmark::Log => log::run(quick),
        Benchmark::Mmio => mmio::run(quick, bench.libvfio_user.as_deref()),
        Benchmark::Net => net::run(quick),
        Benchmark::Passthrough => passthrough::run(quick),
        Benchmark::Pause => pause::run(quick),
        Benchmark::PauseNvme => pause_nvme::run(quick),
        Benchmark::Growth => growth::run(quick),
    };
    let done = thread::scope(|scope| scope.spawn(measure).join());
    done.map_err(|_| anyhow!("the benchmark panicked"))?
}

/// A goal, and what was found.
fn goal(what: &str, is: f64, met: bool, floor: &str) -> String {
    let outcome = if met { "met" } else { "**missed**" };
    format!("Goal: {what}. Found: {is:.3}; {outcome}. {floor}")
}

/// Puts the values of each variant, the first of them the one to compare with, beside each other.
fn variants<const N: usize>(names: [&'static str; N], runs: [Vec<f64>; N]) -> Vec<Variant> {
    variants_of(names.into_iter().zip(runs).collect())
}

/// The same, of as many as there are.
fn variants_of(runs: Vec<(&'static str, Vec<f64>)>) -> Vec<Variant> {
    let first = runs
        .first()
        .map(|(_, runs)| runs.clone())
        .unwrap_or_default();
    let variant = |(name, runs): (&'static str, Vec<f64>)| Variant {
        name,
        min: runs.iter().copied().fold(f64::INFINITY, f64::min),
        median: median(&runs),
        max: runs.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        ratio: median(&runs) / median(&first),
        paired_ratio: median(&ratios(&runs, &first)),
        place: None,
        runs,
    };
    runs.into_iter().map(variant).collect()
}

/// The kernel, the processor and how many of them there are.
fn machine() -> Result<String> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let of_processors = fs::read_to_string("/proc/cpuinfo")?;
    let model = of_processors.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == "model name").then(|| value.trim())
    });
    // All of them: this thread may have one to itself.
    let count = of_processors
        .lines()
        .filter(|line| line.starts_with("processor\t"))
        .count();
    Ok(format!(
        "{}, {count} processors ({})",
        kernel.trim(),
        model.unwrap_or("model unknown")
    ))
}

fn ratios(values: &[f64], to: &[f64]) -> Vec<f64> {
    values
        .iter()
        .zip(to)
        .map(|(value, to)| value / to)
        .collect()
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "the values are exact")]
mod tests {
    use super::*;

    #[test]
    fn variants_are_compared_with_the_first_round_by_round() {
        let [base, other] = &variants(
            ["base", "other"],
            [vec![2.0, 4.0, 8.0], vec![1.0, 4.0, 16.0]],
        )[..] else {
            panic!("two go in, two come out");
        };
        assert_eq!((base.ratio, base.paired_ratio), (1.0, 1.0));
        assert_eq!((other.min, other.median, other.max), (1.0, 4.0, 16.0));
        assert_eq!((other.ratio, other.paired_ratio), (1.0, 1.0));
        assert_eq!(median(&[1.0, 2.0]), 1.5);
        assert!(median(&[]).is_nan());
    }
}
