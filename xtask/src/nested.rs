//! `cargo xtask nested`

use std::collections::BTreeMap;
use std::fmt::Display;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use ferry::{Phase, Strategy};
use lab::{Lab, progress_on_stderr};
use serde::Serialize;
use testbed::{
    DriverRace, Help, Migration, Nested, NestedOptions, NeverGone, Programs, RecoverySplit, Replug,
    Split, Spread, Way,
};

/// Live migrations of a guest with a real virtual function, from host to host of the nested lab.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// How the function goes over, one after the other. `failover` is what QEMU does by itself, beside
    /// which the others stand: it unplugs the function, and plugs the other host's.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "recovery,cooperative,failover"
    )]
    by: Vec<By>,
    /// There and back, so many times, each way.
    #[arg(long, value_name = "N", default_value_t = 1)]
    round_trips: usize,
    /// Who tells which pages the function wrote. The module does with `cooperative` only: with `recovery` nobody
    /// does then, and memory is compared.
    #[arg(long, value_enum, default_value_t = Tracking::Table)]
    tracking: Tracking,
    /// How the report is printed on standard output.
    #[arg(long, value_enum, default_value_t = Form::Text)]
    report: Form,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
enum By {
    Recovery,
    Cooperative,
    Failover,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Tracking {
    /// The guest's module, by its table of DMA pages.
    Table,
    /// The guest's module, by its dummy writes.
    Touch,
    /// A virtual IOMMU, by what it lets the function reach.
    Iommu,
    /// Nobody: both hosts compare memory.
    Digests,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    Text,
    Json,
}

/// What came of one way.
#[derive(Debug, Serialize)]
struct Summary {
    migrations: usize,
    /// Those beside that ended with the guest waiting for itself ([`DriverRace`], [`NeverGone`]).
    hung: usize,
    /// Pages that differed at the end, of all memory in all migrations; not looked for by `failover`.
    stale_pages: Option<usize>,
    /// How long the guest had no function that worked.
    function_outage_ms: Spread,
    /// The longest silence of its traffic, either way; by `failover`, other than its function carries it.
    silence_ms: Spread,
    #[serde(skip_serializing_if = "Option::is_none")]
    vm_pause_ms: Option<Spread>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    phases_ms: BTreeMap<Phase, Spread>,
    /// Where the outage went, if the guest stopped and started its function.
    #[serde(skip_serializing_if = "Option::is_none")]
    split: Option<Split>,
    /// The same, if its error recovery did.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    recovery: BTreeMap<String, RecoverySplit>,
    /// Of the medians: `failover`'s outage, in ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    failover_takes_times: Option<f64>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let began = Instant::now();
    let step = |what: &str| eprintln!("nested: [{:5.1} s] {what}", began.elapsed().as_secs_f64());
    step("the lab");
    let lab = Lab::ensure(&progress_on_stderr)?.for_hosts(&progress_on_stderr)?;
    step("building vferry and the guest's load");
    let programs = Programs::build()?;
    let mut summaries = BTreeMap::new();
    for by in &arguments.by {
        let options = arguments.options(*by);
        step(&format!(
            "{by:?}: booting two hosts, and a guest with a virtual function"
        ));
        let mut nested = Nested::start(lab.clone(), &programs, options)?;
        let count = 2 * arguments.round_trips;
        let summary = match by {
            By::Failover => Summary::of_replugs(&replugs(&mut nested, count, &step)?),
            By::Recovery => {
                Summary::of(&migrations(&mut nested, Strategy::Recovery, count, &step)?)
            }
            By::Cooperative => Summary::of(&migrations(
                &mut nested,
                Strategy::Cooperative,
                count,
                &step,
            )?),
        };
        summaries.insert(*by, summary);
    }
    if let Some(failover) = summaries.get(&By::Failover) {
        let theirs = failover.function_outage_ms.median;
        for (_, summary) in summaries.iter_mut().filter(|(by, _)| **by != By::Failover) {
            summary.failover_takes_times = Some(theirs / summary.function_outage_ms.median);
        }
    }
    match arguments.report {
        Form::Json => println!("{}", serde_json::to_string(&summaries)?),
        Form::Text => summaries
            .iter()
            .for_each(|(by, summary)| print(*by, summary)),
    }
    let stale: usize = summaries
        .values()
        .filter_map(|summary| summary.stale_pages)
        .sum();
    Ok(if stale == 0 {
        ExitCode::SUCCESS
    } else {
        eprintln!("nested: FAULT: {stale} pages of guest memory arrived stale");
        ExitCode::FAILURE
    })
}

impl Arguments {
    fn options(&self, by: By) -> NestedOptions {
        let defaults = NestedOptions::default();
        let module = |parameters: &str| Help::Module(parameters.into());
        let (guest, compare) = match (by, self.tracking) {
            (By::Failover, _) => {
                return NestedOptions {
                    way: Way::Failover,
                    // It does not come through the change of interfaces by itself.
                    tcp_rate: 0,
                    ..defaults
                };
            }
            (By::Recovery, Tracking::Iommu) => return defaults.behind_iommu(),
            (By::Cooperative, Tracking::Iommu) => {
                return NestedOptions {
                    guest: module(""),
                    ..defaults
                }
                .behind_iommu();
            }
            (By::Recovery, _) => (Help::NoDevice, None),
            (By::Cooperative, Tracking::Table) => (module("method=table"), Some("never")),
            (By::Cooperative, Tracking::Touch) => (module("method=touch"), Some("never")),
            (By::Cooperative, Tracking::Digests) => (module(""), Some("always")),
        };
        NestedOptions {
            guest,
            compare,
            ..defaults
        }
    }
}

/// What came of some migrations.
#[derive(Debug)]
struct Migrations<T = Migration> {
    done: Vec<T>,
    hung: usize,
}

/// Until so many came off. A guest that waits for itself is counted, and booted anew.
fn repeat<T>(
    nested: &mut Nested,
    way: Way,
    count: usize,
    step: &dyn Fn(&str),
    attempt: impl Fn(&mut Nested) -> Result<T>,
    found: impl Fn(&T) -> String,
) -> Result<Migrations<T>> {
    let booted = |nested: &mut Nested| match way {
        Way::Failover => nested.watch_function(),
        Way::Vferry | Way::VfioPci => Ok(()),
    };
    booted(nested)?;
    let (mut done, mut hung) = (Vec::new(), 0);
    while done.len() < count {
        let number = done.len() + 1;
        let say = |what: &dyn Display| step(&format!("migration {number} of {count}: {what}"));
        match attempt(nested) {
            Err(error) if waits_for_itself(&error) && hung < count => {
                hung += 1;
                say(&format!("{error}; booting it anew"));
                nested.boot_again(way)?;
                booted(nested)?;
            }
            one => {
                let one = one?;
                say(&found(&one));
                done.push(one);
            }
        }
    }
    Ok(Migrations { done, hung })
}

/// Without end: there is nothing to mend in the host or vferry.
fn waits_for_itself(error: &anyhow::Error) -> bool {
    error.is::<DriverRace>() || error.is::<NeverGone>()
}

fn migrations(
    nested: &mut Nested,
    strategy: Strategy,
    count: usize,
    step: &dyn Fn(&str),
) -> Result<Migrations> {
    let once = |nested: &mut Nested| {
        let migration = nested.migrate(Some(strategy))?;
        for device in &migration.report.devices {
            ensure!(
                device.strategy == strategy && device.fault.is_none(),
                "{} went over by {}: {:?}, {:?}",
                device.name,
                device.strategy,
                device.why,
                device.fault
            );
        }
        Ok(migration)
    };
    let found = |migration: &Migration| {
        format!(
            "VM pause {:.0} ms, silence {:.0} ms, {} stale pages",
            migration.report.vm_pause_ms,
            migration.outage_ms().unwrap_or_default(),
            migration.report.stale_pages.unwrap_or_default(),
        )
    };
    let migrations = repeat(nested, Way::Vferry, count, step, once, found)?;
    nested.content_is_right()?;
    Ok(migrations)
}

fn replugs(nested: &mut Nested, count: usize, step: &dyn Fn(&str)) -> Result<Migrations<Replug>> {
    let found = |replug: &Replug| {
        format!(
            "no function for {:.0} ms, silence {:.0} ms",
            replug.function_outage_ms,
            replug.silence_ms.unwrap_or_default(),
        )
    };
    repeat(nested, Way::Failover, count, step, Nested::replug, found)
}

impl Summary {
    fn of(Migrations { done, hung }: &Migrations) -> Self {
        let migrations = &done[..];
        let spread = |value: &dyn Fn(&Migration) -> Option<f64>| {
            Spread::of(migrations.iter().filter_map(value).collect())
        };
        let outage = spread(&Migration::outage_ms);
        let phases = Phase::ALL.into_iter().filter_map(|phase| {
            let times = migrations
                .iter()
                .filter_map(|m| m.report.phases_ms.get(&phase));
            let times: Vec<_> = times.copied().collect();
            (!times.is_empty()).then(|| (phase, Spread::of(times)))
        });
        Self {
            migrations: migrations.len(),
            hung: *hung,
            stale_pages: migrations.iter().map(|m| m.report.stale_pages).sum(),
            // All its traffic is the function's.
            function_outage_ms: outage,
            silence_ms: outage,
            vm_pause_ms: Some(spread(&|m| Some(m.report.vm_pause_ms))),
            phases_ms: phases.collect(),
            split: Split::of(migrations),
            recovery: RecoverySplit::of(migrations),
            failover_takes_times: None,
        }
    }

    fn of_replugs(Migrations { done, hung }: &Migrations<Replug>) -> Self {
        let replugs = &done[..];
        Self {
            migrations: replugs.len(),
            hung: *hung,
            stale_pages: None,
            function_outage_ms: Spread::of(replugs.iter().map(|r| r.function_outage_ms).collect()),
            silence_ms: Spread::of(replugs.iter().filter_map(|r| r.silence_ms).collect()),
            vm_pause_ms: None,
            phases_ms: BTreeMap::new(),
            split: None,
            recovery: BTreeMap::new(),
            failover_takes_times: None,
        }
    }
}

fn print(by: By, summary: &Summary) {
    let spread = |what: &str, spread: &Spread| {
        println!(
            "  {what:38} {:9.1} ms median, {:9.1} ms at most",
            spread.median, spread.max
        );
    };
    println!("{by:?}: {} migrations", summary.migrations);
    spread(
        "the guest has no function that works",
        &summary.function_outage_ms,
    );
    spread("longest silence of its traffic", &summary.silence_ms);
    if let Some(pause) = &summary.vm_pause_ms {
        spread("VM pause, as QEMU reports it", pause);
    }
    if let Some(split) = &summary.split {
        spread("  guest stops its function", &split.guest_quiesce_ms);
        spread("  VM pause", &split.vm_pause_ms);
        spread("  guest starts its function", &split.guest_restart_ms);
        spread("  the rest", &split.rest_ms);
    }
    for split in summary.recovery.values() {
        spread("  it is halted", &split.devices_paused_ms);
        spread("  the guest resets it", &split.guest_resets_ms);
        spread("  it is programmed", &split.programmed_ms);
        spread("  its driver starts it", &split.driver_starts_ms);
    }
    for (phase, times) in &summary.phases_ms {
        spread(&format!("phase {phase}"), times);
    }
    if summary.hung > 0 {
        println!(
            "  beside them the guest waited for itself until its end: {}",
            summary.hung
        );
    }
    if let Some(stale) = summary.stale_pages {
        println!("  stale pages: {stale}");
    }
    if let Some(times) = summary.failover_takes_times {
        println!("  failover's outage is {times:.1} times as long");
    }
}
