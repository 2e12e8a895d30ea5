//! What came of a fault: who runs the VM, and whether it is well.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ferry::commit::{Other, Way};
use vferry::resolution::Resolution;

use super::cases::{At, Case, Expect};
use super::wire;
use super::{Runs, Verdict};
use crate::{Host, Testbed};

/// How long both hosts may take until one of them runs the VM.
pub(super) const SETTLE: Duration = Duration::from_secs(40);

/// What an operator does with a VM that is kept paused.
pub(super) fn resolve(case: &Case, source: &Host, destination: &Host) -> Result<()> {
    let (option, way) = match case.expect {
        Expect::ResolvedHere => ("--run-here", Way::RunHere),
        Expect::ResolvedThere => ("--give-up-here", Way::GiveUpHere),
        _ => return Ok(()),
    };
    let resolution = ask(source, &[])?;
    let Resolution::Open { unsettled, .. } = resolution else {
        anyhow::bail!("nothing is to be resolved: {resolution:?}");
    };
    if matches!(unsettled.other, Other::Silent | Other::CannotSay) {
        // As the way out says: first vferry there, then its QEMU, if it does not run the VM.
        destination.process().kill();
        ensure!(!runs(destination), "it runs there");
        destination.kill();
    }
    let taken = ask(source, &[option])?;
    let right = matches!(&taken, Resolution::Taken { way: taken, .. } if *taken == way);
    ensure!(right, "{taken:?}");
    Ok(())
}

fn ask(host: &Host, options: &[&str]) -> Result<Resolution> {
    let mut command = host.command("resolve");
    let output = command.arg("--json").args(options).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`vferry resolve`: {said}");
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Waits until the VM runs where it has to, and says where it does.
pub(super) fn settle(case: &Case, source: &Host, destination: &Host) -> Runs {
    let deadline = Instant::now() + SETTLE;
    let ended = matches!(case.expect, Expect::WithItsQemu | Expect::WithItsVferry);
    loop {
        let (here, there) = (runs(source), runs(destination));
        if here && there {
            return Runs::Twice;
        }
        // Without its vferry it has no device, and does not count as running.
        let works = source.process().exit_status().is_none();
        let runs = match (here && works, there) {
            (true, _) => Runs::Here,
            (false, true) => Runs::There,
            (false, false) => Runs::Nowhere,
        };
        let right = match case.expect {
            Expect::Here | Expect::ResolvedHere => runs == Runs::Here && is_running(source),
            Expect::There | Expect::ResolvedThere => runs == Runs::There && is_running(destination),
            // Has become one of these by now.
            Expect::AsSaid => runs != Runs::Nowhere,
            // Nobody else may come to run it: who has been sent some of it ends, others wait for a VM.
            Expect::WithItsQemu | Expect::WithItsVferry => {
                let was_sent = !matches!(case.at, At::Before | At::Check | At::Prepare);
                runs == Runs::Nowhere && (!was_sent || destination.vm.exit_status().is_some())
            }
        };
        if right || Instant::now() > deadline {
            let late = ended && !right && runs == Runs::Nowhere;
            return if late { Runs::There } else { runs };
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// QEMU of a VM that has stayed plans the end of a migration as it did before, and not as one that is
/// kept from it.
pub(super) fn is_let_go(host: &Host) -> Result<()> {
    let deadline = Instant::now() + SETTLE;
    let of = |name: &str| host.vm.qmp().migration_parameter(name);
    loop {
        let (bandwidth, limit) = (of("avail-switchover-bandwidth")?, of("downtime-limit")?);
        if bandwidth == 0 && limit != 1 {
            return Ok(());
        }
        // A command that has been killed does not wait for it.
        ensure!(
            Instant::now() < deadline,
            "QEMU is still held, at {bandwidth} bytes per second and {limit} ms"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub(super) fn runs(host: &Host) -> bool {
    let alive = host.vm.exit_status().is_none();
    alive
        && host
            .vm
            .qmp()
            .run_status()
            .is_ok_and(|status| status.running)
}

fn is_running(host: &Host) -> bool {
    control(host)
        .and_then(|control| wire::stage(&control))
        .is_ok_and(|stage| stage == "running")
}

/// What the guest and its peer have seen.
pub(super) fn judge(testbed: &Testbed, verdict: &mut Verdict) -> Result<()> {
    let peer = testbed.peer.report();
    // One with a disk has read again all that it has written there.
    let guest = testbed.final_report()?;
    let tcp = guest.tcp.context("TCP flows")?;
    let words = guest.dirty.map_or(0, |dirty| dirty.wrong_words);
    let udp = &peer.udp_from_guest;
    verdict.content_wrong |= !peer.tcp_content_ok() || tcp.wrong_bytes > 0 || words > 0;
    verdict.content_wrong |= udp.corrupt > 0;
    let disk = guest.disk.unwrap_or_default();
    verdict.content_wrong |= disk.wrong_blocks > 0;
    ensure!(
        !verdict.content_wrong,
        "content was wrong: {:?}, {tcp:?}, {words} words, disk: {disk:?}",
        peer.tcp
    );
    ensure!(disk.io_errors == 0, "the disk failed: {disk:?}");
    ensure!(tcp.broken == 0, "a TCP connection broke: {tcp:?}");
    // Two that run send the same numbers.
    ensure!(
        udp.duplicates == 0,
        "the guest's packets came twice: {udp:?}"
    );
    Ok(())
}

pub(super) fn control(host: &Host) -> Result<PathBuf> {
    Ok(folder(host)?.join("control.sock"))
}

pub(super) fn folder(host: &Host) -> Result<PathBuf> {
    let folder = host.config.parent();
    Ok(folder.context("a file is in a folder")?.into())
}

pub(super) fn logs(source: &Host, destination: &Host) -> String {
    format!(
        "the source said:\n{}\nits VM: {}\nthe destination said:\n{}\nits VM: {}",
        source.log(),
        source.vm.evidence(),
        destination.log(),
        destination.vm.evidence()
    )
}
