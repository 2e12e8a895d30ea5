//! A part of the matrix of faults that has each party in it; `cargo xtask test faults` runs all of it.

use std::fs;
use std::time::{Duration, Instant};

use lab::{Lab, progress_on_stderr};
use testbed::Programs;
use testbed::faults::{CASES, Case, SoakOptions, faults, soak};

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

#[test]
fn a_soak_stops_at_a_wrong_byte_and_leaves_what_is_known_of_it() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let options = SoakOptions {
        seed: 5,
        first_guest: 0,
        until: Instant::now() + Duration::from_mins(15),
        folder: folder.path().into(),
        // What devices write is told to nobody.
        unsound_control: Some("no-log".into()),
    };
    let lab = Lab::ensure(&progress_on_stderr)?;
    let soaked = soak(lab, Programs::build()?, &options, &mut |step, verdict| {
        eprintln!("{step:?}, {}: {:.1} s", verdict.case, verdict.seconds);
    })?;
    assert!(soaked.tally.stale_pages > 0, "{soaked:#?}");
    let (step, left) = soaked.wrong.as_ref().expect("pages were stale");
    assert_eq!(left, &folder.path().join("5"));
    let verdict: serde_json::Value = serde_json::from_slice(&fs::read(left.join("soak.json"))?)?;
    assert_eq!(verdict["wrong"][0]["step"], step.step);
    assert_eq!(verdict["seed"], 5);
    let hosts: Vec<_> = fs::read_dir(left)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.is_dir())
        .collect();
    assert_eq!(hosts.len(), 2, "{hosts:?}");
    for left in hosts {
        let digests = fs::read_to_string(left.join("memory.digests"))?;
        assert!(digests.lines().count() >= 192 << 8, "a line each page");
        assert!(!fs::read_to_string(left.join("vferry.log"))?.is_empty());
        assert!(left.join("vm.toml").is_file());
    }
    assert!(!fs::read_to_string(left.join("memory.differs"))?.is_empty());
    for file in ["guest.json", "guest.log", "peer.json"] {
        assert!(left.join(file).is_file(), "no {file}");
    }
    Ok(())
}
