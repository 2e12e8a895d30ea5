//! What the guest was told is durable outlives the source's host.

use anyhow::Result;
use lab::{Lab, progress_on_stderr};
use testbed::{Programs, power_cuts};

/// Few, as each may need a boot; `cargo xtask power-cut` makes as many as one likes.
const CUTS: usize = 4;

#[test]
fn what_the_guest_was_told_is_durable_is_there_after_a_power_cut() -> Result<()> {
    let lab = Lab::ensure(&progress_on_stderr)?;
    let programs = Programs::build()?;
    let cuts = power_cuts(lab, programs, CUTS, 7, &mut |cuts| eprintln!("{cuts:?}"))?;
    assert_eq!((cuts.cuts, cuts.lost), (CUTS, 0), "{cuts:?}");
    // There was something to lose.
    assert!(cuts.told > 0, "{cuts:?}");
    Ok(())
}
