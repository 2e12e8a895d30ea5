//! A part of the matrix of faults that has each party in it; `cargo xtask test faults` runs all of it.

use lab::{Lab, progress_on_stderr};
use testbed::Programs;
use testbed::faults::{CASES, Case, faults};

#[test]
fn the_vm_runs_on_one_host_whoever_fails() -> anyhow::Result<()> {
    let lab = Lab::ensure(&progress_on_stderr)?;
    let cases: Vec<Case> = CASES.iter().filter(|case| case.always).copied().collect();
    let tally = faults(lab, Programs::build()?, &cases, &mut |verdict| {
        eprintln!("{}: {:.1} s", verdict.case, verdict.seconds);
    });
    assert!(tally.is_right(), "{tally:#?}");
    assert_eq!(tally.survived, cases.len());
    Ok(())
}
