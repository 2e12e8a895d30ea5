//! `cargo xtask`: lab, tests, benchmarks and lints for people who work on vferry.
//!
//! One module per command. Commands run cargo and git as their user would, from the workspace's
//! root, and say what they run.
//!
//! # What it does not do
//!
//! It installs nothing but what the lab needs, changes no file but by `fmt`, and holds no test of
//! its own beyond those of its lints: what is tested is in the crates.

mod bench;
mod demo;
mod device;
mod faults;
mod fmt;
mod fuzz;
mod house;
mod kill_worker;
mod lab;
mod licences;
mod lint;
mod nested;
mod power_cut;
mod soak;
mod test;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Lab, tests, benchmarks and lints for people who work on vferry.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build the lab if it is not there yet, and say what is in it.
    Lab {
        /// Build it anew, from the latest packages.
        #[arg(long)]
        rebuild: bool,
        /// Also build the guest's kernel module, for each kernel that the lab knows.
        #[arg(long)]
        modules: bool,
    },
    /// Format the source.
    Fmt {
        /// Only tell whether it is formatted.
        #[arg(long)]
        check: bool,
    },
    /// Check formatting, clippy's lints, the house's own, and the dependencies.
    Lint,
    /// Run all tests, those with a VM too; or only some kind.
    Test(test::Test),
    /// Round trips under load, with faults and settings that change, until something is wrong.
    Soak(soak::Soak),
    /// Run the fuzz targets, each for a bounded time.
    Fuzz(fuzz::Fuzz),
    /// Measure what vferry promises, and print it.
    Bench(bench::Bench),
    /// Kill the process that serves a VM's devices at random moments, and see the VM go on.
    KillWorker(kill_worker::KillWorker),
    /// Cut the source's power at random moments, and look for what the guest's disk had promised.
    PowerCut(power_cut::PowerCut),
    /// Migrate a Linux guest with a device under load from one QEMU to another, and report.
    Demo(demo::Demo),
    /// Migrate a guest with a real virtual function between hosts with SR-IOV, an IOMMU and KVM, and
    /// report, beside what QEMU does by itself.
    Nested(nested::Arguments),
}

fn main() -> Result<ExitCode> {
    let done = match Arguments::parse().command {
        Command::Demo(demo) => return demo::run(&demo),
        Command::KillWorker(options) => return kill_worker::run(&options),
        Command::PowerCut(options) => return power_cut::run(&options),
        Command::Nested(arguments) => return nested::run(&arguments),
        Command::Test(options) => return test::run(&options),
        Command::Soak(soak) => return soak::run(&soak),
        Command::Bench(bench) => bench::run(&bench),
        Command::Lab { rebuild, modules } => lab::run(rebuild, modules),
        Command::Fmt { check } => fmt::run(check),
        Command::Fuzz(fuzz) => fuzz::run(&fuzz),
        Command::Lint => lint::run(),
    };
    done.map(|()| ExitCode::SUCCESS)
}
