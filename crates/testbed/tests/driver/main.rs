//! The stock Linux driver `ixgbevf` on vferry's NIC, in a real guest.

mod features;
mod filters;
mod health;
mod lifecycle;
mod station;
mod trace;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lab::{Lab, progress_on_stderr};
use testbed::{Options, Programs, Testbed};

use lifecycle::Action;
use station::Station;

/// The guest's address, as `vm.toml` of the testbed has it.
const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// How long anything may take that takes a moment on an idle machine.
const PATIENCE: Duration = Duration::from_mins(1);

fn guest(load: bool) -> Result<Testbed> {
    let lab = Lab::ensure(&progress_on_stderr)?;
    let options = Options {
        load,
        // The NIC is the matter here, and the processors are few.
        dirty: (0, 0),
        ..Options::default()
    };
    Testbed::start(lab, Programs::build()?, options)
}

/// Everything twice: on the host where the guest has booted, and on the one that it moved to.
#[test]
fn the_driver_works_after_all_that_happens_in_its_life() -> Result<()> {
    let mut testbed = guest(true)?;
    let station = Station::plug_in(&testbed)?;
    for host in ["where it booted", "where it moved to"] {
        for action in Action::ALL {
            live(&mut testbed, &station, action, host)?;
        }
    }
    Ok(())
}

fn live(testbed: &mut Testbed, station: &Station, action: Action, host: &str) -> Result<()> {
    let began = Instant::now();
    action
        .run(testbed)
        .and_then(|()| health::check(testbed, station))
        .with_context(|| format!("{action:?}, on the host {host}"))?;
    lifecycle::told(action, began.elapsed());
    Ok(())
}
