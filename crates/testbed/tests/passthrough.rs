//! Virtual functions of real hosts, given to a guest by vferry, and migrated.

use anyhow::Result;
use ferry::Strategy;
use lab::{Lab, progress_on_stderr};
use testbed::{Nested, NestedOptions, Programs};

#[test]
fn recovery() -> Result<()> {
    let lab = Lab::ensure(&progress_on_stderr)?.for_hosts(&progress_on_stderr)?;
    let programs = Programs::build()?;
    let mut nested = Nested::start(lab, &programs, &NestedOptions { load: true })?;
    let report = nested.migrate(Some(Strategy::Recovery))?;
    eprintln!("{report:#?}");
    nested.wait_for_traffic()?;
    Ok(())
}
