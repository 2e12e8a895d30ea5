//! The link or the destination fails when the word to run is on its way: the source keeps the VM
//! paused, and `vferry resolve` gets it to run on one host (`docs/commit-protocol.md`).

mod relay;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ferry::Strategy;
use ferry::commit::{Other, Safety, Way};
use lab::{Lab, progress_on_stderr};
use relay::{Relay, Word};
use testbed::{Devices, Host, Options, Programs, Testbed};
use vferry::resolution::Resolution;

/// How long a process may take to end, or QEMU to do something.
const PATIENCE: Duration = Duration::from_mins(1);

fn start() -> Result<Testbed> {
    let options = Options {
        packets_per_second: 200,
        devices: Devices::NicAndDisk,
        strategy: Some(Strategy::Transparent),
        ..Options::default()
    };
    Testbed::start(
        Lab::ensure(&progress_on_stderr)?,
        Programs::build()?,
        options,
    )
}

/// Migrates until the word, does `then` with it, and returns the destination and what the source
/// said.
fn migrate_until_word(
    testbed: &mut Testbed,
    then: impl FnOnce(&mut Word, &Host) -> Result<()>,
) -> Result<(Host, Word, String)> {
    let mut next = testbed.next_host()?;
    testbed.wait_for_traffic()?;
    let folder = next.config.parent().context("it is in a folder")?;
    let relay = Relay::start(folder, &next.link)?;
    next.link.clone_from(&relay.link);
    let (word, error) = std::thread::scope(|scope| {
        let migration = scope.spawn(|| testbed.run_migrate(&next));
        let mut word = relay.word()?;
        then(&mut word, &next)?;
        let report = migration.join().expect("it does not panic");
        anyhow::Ok((word, report.map(drop).unwrap_err().to_string()))
    })?;
    ensure!(error.contains("`vferry resolve`"), "{error}");
    ensure!(!testbed.host.vm.qmp().run_status()?.running, "{error}");
    ensure!(testbed.host.status()?.unsettled.is_some(), "{error}");
    Ok((next, word, error))
}

fn resolve(host: &Host, options: &[&str]) -> Result<Resolution> {
    let output = host
        .command("resolve")
        .arg("--json")
        .args(options)
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{said}");
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// What is known of the other host, and what is thought of letting the VM run on here.
fn known(host: &Host) -> Result<(Other, Safety)> {
    let resolution = resolve(host, &[])?;
    let Resolution::Open {
        unsettled, ways, ..
    } = resolution
    else {
        anyhow::bail!("it is to be resolved: {resolution:?}");
    };
    let way = ways.iter().find(|way| way.way == Way::RunHere);
    Ok((unsettled.other, way.context("there are two ways")?.safety))
}

fn takes(host: &Host, option: &str, expected: Way) -> Result<()> {
    let resolution = resolve(host, &[option])?;
    let taken = matches!(&resolution, Resolution::Taken { way, .. } if *way == expected);
    ensure!(taken, "{resolution:?}");
    Ok(())
}

/// It runs, its devices work, and it can be migrated still.
fn is_well(testbed: &mut Testbed) -> Result<()> {
    testbed.wait_for_traffic()?;
    ensure!(testbed.host.status()?.stage == "running");
    // That outage was nobody's migration.
    testbed.reset_counts()?;
    let migration = testbed.migrate()?;
    ensure!(migration.report.stale_pages == Some(0), "{migration:?}");
    Ok(())
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        ensure!(Instant::now() < deadline, "not seen: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

#[test]
fn a_word_that_comes_late_finds_nobody() -> Result<()> {
    let mut testbed = start()?;
    // The source hears nothing until its deadline.
    let (next, mut word, error) = migrate_until_word(&mut testbed, |_, _| Ok(()))?;
    ensure!(error.contains("did not answer"), "{error}");
    ensure!(!next.vm.qmp().run_status()?.running, "it was not told to");
    // Asked for the VM, the destination gives it up, though the word is still on its way.
    assert_eq!(known(&testbed.host)?, (Other::WillNot, Safety::Right));
    takes(&testbed.host, "--run-here", Way::RunHere)?;
    word.pass();
    wait_until("the destination's QEMU ends", || {
        next.vm.qmp().run_status().is_err()
    })?;
    drop(next);
    is_well(&mut testbed)
}

#[test]
fn a_vm_whose_arrival_nobody_hears_of_runs_there_and_not_here() -> Result<()> {
    let mut testbed = start()?;
    let (next, _, _) = migrate_until_word(&mut testbed, |word, _| {
        ensure!(word.pass(), "the destination waits for it");
        word.swallow_answer()?;
        word.cut();
        Ok(())
    })?;
    assert_eq!(known(&testbed.host)?, (Other::Runs, Safety::Refused));
    let refused = resolve(&testbed.host, &["--run-here"]);
    let why = refused.map(drop).unwrap_err().to_string();
    ensure!(why.contains("runs there"), "{why}");
    ensure!(!testbed.host.vm.qmp().run_status()?.running, "{why}");
    takes(&testbed.host, "--give-up-here", Way::GiveUpHere)?;
    let old = std::mem::replace(&mut testbed.host, next);
    let ended = old.process().wait(Instant::now() + PATIENCE);
    ensure!(ended.is_some_and(|status| status.success()), "{ended:?}");
    drop(old);
    is_well(&mut testbed)
}

#[test]
fn a_vm_whose_destination_dies_at_the_word_runs_on_here() -> Result<()> {
    let mut testbed = start()?;
    let (next, _, _) = migrate_until_word(&mut testbed, |word, next| {
        next.kill();
        word.cut();
        Ok(())
    })?;
    // Nobody can be asked: the operator has seen to it.
    assert_eq!(known(&testbed.host)?, (Other::Silent, Safety::IfSeenTo));
    takes(&testbed.host, "--run-here", Way::RunHere)?;
    drop(next);
    is_well(&mut testbed)
}
