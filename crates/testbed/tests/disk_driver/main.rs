//! The stock Linux driver `nvme` on vferry's controller, in a real guest of each kernel of the lab.

mod cli;
mod guest;
mod health;
mod lifecycle;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lab::Kernel;

use guest::Guest;
use lifecycle::Action;

/// How long anything may take that takes a moment on an idle machine.
const PATIENCE: Duration = Duration::from_mins(1);

#[test]
fn the_driver_of_linux_7_3_works_after_all_that_happens_in_its_life() -> Result<()> {
    works_all_its_life(Kernel::Linux7_3)
}

#[test]
fn the_driver_of_linux_6_12_works_after_all_that_happens_in_its_life() -> Result<()> {
    works_all_its_life(Kernel::Linux6_12)
}

#[test]
fn the_driver_of_linux_6_1_works_after_all_that_happens_in_its_life() -> Result<()> {
    works_all_its_life(Kernel::Linux6_1)
}

#[test]
fn nvme_cli_reads_from_the_controller_what_is_configured() -> Result<()> {
    // Registers may be read beside the driver then (`iomem_is_exclusive`).
    let guest = Guest::boot_with(Kernel::default(), &["/usr/sbin/nvme"], "iomem=relaxed")?;
    step(&guest, "nvme-cli", || cli::agrees(&guest))?;
    step(&guest, "after that", || health::check(&guest, 1))
}

fn works_all_its_life(kernel: Kernel) -> Result<()> {
    let guest = Guest::boot(kernel)?;
    step(&guest, "when it probes", || health::probed(&guest))?;
    guest.start_load()?;
    for action in Action::UNDER_LOAD {
        live(&guest, action)?;
    }
    step(&guest, "the load at its end", || guest.stop_load())?;
    // What the load has left: without it, nothing else changes there.
    let content = guest.content()?;
    for action in Action::WITHOUT_LOAD {
        live(&guest, action)?;
        step(&guest, "the content after that", || {
            guest.expect_content(&content)
        })?;
    }
    guest.start_load()?;
    live(&guest, Action::Nothing)?;
    step(&guest, "the load at the end", || guest.stop_load())
}

fn live(guest: &Guest, action: Action) -> Result<()> {
    step(guest, &format!("{action:?}"), || {
        action.run(guest)?;
        health::check(guest, action.starts())
    })
}

/// What the kernel says may explain a failure; what went well is told with its time.
fn step(guest: &Guest, name: &str, what: impl FnOnce() -> Result<()>) -> Result<()> {
    let began = Instant::now();
    what().with_context(|| {
        let kernel = guest.shell("dmesg | tail -n 40").unwrap_or_default();
        format!("{name}; the guest's kernel said last:\n{kernel}")
    })?;
    println!("{name}: {:.1} s", began.elapsed().as_secs_f64());
    Ok(())
}
