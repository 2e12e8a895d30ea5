//! The source's power is cut, at any moment of a migration or of none: what the guest was told is
//! durable must be on its disk.
//!
//! The guest keeps a journal there (`load_format::journal`) and writes to its console up to which
//! record the disk has said to keep it. A cut kills all processes of the source's host with SIGKILL.
//! Where the VM runs then, at the destination or nowhere, the disk's file is looked at from outside.
//!
//! What a cut of the machine would also take, the page cache of the host's kernel, stays: whether the
//! controller flushes when it must is for the tests of the model.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lab::Lab;
use load_format::journal;
use qemu::QmpError;
use serde::Serialize;

use crate::dice::Dice;
use crate::{Devices, Host, Options, Programs, Testbed};

/// How long anything may take that takes seconds on an idle machine.
const PATIENCE: Duration = Duration::from_mins(2);
/// How long the journal is written before a cut without a migration.
const ALONE: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(5);
/// MiB of the disk that the journal goes round in.
const JOURNAL_MIB: u32 = 16;
/// Records per second.
const RATE: u32 = 100;

/// What became of the VM, each time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Cuts {
    /// Times that the source's power was cut.
    pub cuts: usize,
    /// Of these, while a migration was under way; the others before one, or just after.
    pub in_migration: usize,
    /// Times that the VM ran at the destination afterwards.
    pub at_destination: usize,
    /// Times that it ran nowhere, and was booted again.
    pub nowhere: usize,
    /// Of these, times that the disk had been handed over and not been taken, so that its lease had
    /// to be deleted first.
    pub in_between: usize,
    /// Times that a record was not there which the guest had been told is durable.
    pub lost: usize,
    /// Records that the guest was told are durable.
    pub told: u64,
}

/// Cuts the power `count` times, at moments that follow from `seed`, and tells `progress` of each.
///
/// # Errors
/// When a VM does not come up again, or its disk does not work where it runs.
pub fn power_cuts(
    lab: Lab,
    programs: Programs,
    count: usize,
    seed: u64,
    progress: &mut dyn FnMut(&Cuts),
) -> Result<Cuts> {
    let options = Options {
        devices: Devices::Disk,
        load: false,
        verify: false,
        ..Options::default()
    };
    let testbed = Testbed::start(lab, programs, options)?;
    let image = testbed.next_host_options().disk.context("it has a disk")?;
    let mut bench = Bench {
        testbed,
        image,
        dice: Dice::new(seed),
        longest: Duration::ZERO,
        cuts: Cuts::default(),
    };
    bench.begin_journal()?;
    bench.migrate_uncut()?;
    while bench.cuts.cuts < count {
        bench.cut()?;
        progress(&bench.cuts);
    }
    Ok(bench.cuts)
}

struct Bench {
    testbed: Testbed,
    image: PathBuf,
    dice: Dice,
    /// How long after a migration has begun its source is cut at most.
    longest: Duration,
    cuts: Cuts,
}

impl Bench {
    fn begin_journal(&self) -> Result<()> {
        let journal = format!(
            "lab-guest journal /dev/nvme0n1 --mib {JOURNAL_MIB} --per-second {RATE} \
             --tell /dev/ttyS0 > /tmp/journal.log 2>&1 &"
        );
        self.testbed.shell(&journal)?;
        wait_for_more(&self.testbed.host)
    }

    /// Finds out how long a migration takes on this machine. Some cuts shall come after its end, the
    /// others are spread over it.
    fn migrate_uncut(&mut self) -> Result<()> {
        let next = self.testbed.next_host()?;
        let began = Instant::now();
        let status = self.begin_migration(&next)?.wait()?;
        let took = began.elapsed();
        ensure!(
            status.success(),
            "a migration without a cut failed ({status}): {}",
            self.testbed.host.log()
        );
        self.longest = took + took / 4;
        wait_for_more(&next)?;
        std::mem::replace(&mut self.testbed.host, next).end(PATIENCE)
    }

    fn cut(&mut self) -> Result<()> {
        self.cuts.cuts += 1;
        let next = if self.dice.throw(4) == 0 {
            std::thread::sleep(self.dice.moment(ALONE));
            self.testbed.host.kill();
            None
        } else {
            let next = self.testbed.next_host()?;
            let mut migration = self.begin_migration(&next)?;
            std::thread::sleep(self.dice.moment(self.longest));
            self.cuts.in_migration += usize::from(migration.try_wait()?.is_none());
            self.testbed.host.kill();
            migration.wait()?;
            Some(next)
        };
        let told = told(&self.testbed.host);
        if let Some(next) = next {
            if runs(&next)? {
                return self.go_on(next, told);
            }
            // Its power too, lest the VM comes to run there after all.
            next.kill();
        }
        self.cuts.nowhere += 1;
        self.check(told)?;
        self.boot()
    }

    /// The VM runs at `next`.
    fn go_on(&mut self, next: Host, told: Option<u64>) -> Result<()> {
        self.cuts.at_destination += 1;
        wait_for_more(&next)?;
        next.vm.qmp().stop()?;
        self.check(told.max(self::told(&next)))?;
        next.vm.qmp().cont()?;
        self.testbed.host = next;
        Ok(())
    }

    fn begin_migration(&self, next: &Host) -> Result<Child> {
        let mut command = self.testbed.host.command("migrate");
        command.args(["--to", &next.link]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        Ok(command.spawn()?)
    }

    /// The disk, seen from outside, holds what the guest was told it does.
    fn check(&mut self, told: Option<u64>) -> Result<()> {
        let told = told.context("the guest has written nothing")?;
        let state = journal::check(&mut File::open(&self.image)?)?;
        if !state.holds(told) {
            self.cuts.lost += 1;
            eprintln!("record {told} was told to be durable, and the disk has {state:?}");
        }
        self.cuts.told = told;
        Ok(())
    }

    /// The VM runs nowhere, as an operator has seen: it is started where it was.
    fn boot(&mut self) -> Result<()> {
        let options = self.testbed.next_host_options();
        let mut host = self.testbed.another_host(&options, false)?;
        if let Some(status) = wait_held(&host)? {
            ensure!(
                host.log().contains("nobody has taken it"),
                "vferry ended with {status}: {}",
                host.log()
            );
            self.cuts.in_between += 1;
            host.kill();
            let mut lease = self.image.clone().into_os_string();
            lease.push(".vferry-lease");
            fs::remove_file(lease)?;
            host = self.testbed.another_host(&options, false)?;
        }
        host.vm.wait_ready(PATIENCE)?;
        self.testbed.host = host;
        self.begin_journal()
    }
}

/// Waits until the host's vferry has its disk; how it ended if it did not get it.
fn wait_held(host: &Host) -> Result<Option<std::process::ExitStatus>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = host.process().exit_status() {
            return Ok(Some(status));
        }
        if host.log().contains("the VM starts here") {
            return Ok(None);
        }
        ensure!(
            Instant::now() < deadline,
            "neither took its disk nor ended: {}",
            host.log()
        );
        std::thread::sleep(LOOK);
    }
}

/// Whether the VM has come to run there, once that is certain.
fn runs(host: &Host) -> Result<bool> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if host.vm.exit_status().is_some() {
            return Ok(false);
        }
        match host.vm.qmp().run_status() {
            Ok(status) if status.running => return Ok(true),
            // The source did not get so far that its devices wait for theirs.
            Ok(_) if host.status().is_ok_and(|status| status.stage == "running") => {
                return Ok(false);
            }
            Ok(_) | Err(QmpError::Disconnected { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        ensure!(
            Instant::now() < deadline,
            "the destination neither runs the VM nor gives it up: {}",
            host.log()
        );
        std::thread::sleep(LOOK);
    }
}

/// Up to which record the guest was told on this host that it is durable.
fn told(host: &Host) -> Option<u64> {
    let console = host.vm.console();
    let whole = console.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let numbers = whole.lines().filter_map(|line| {
        let number = line.trim_ascii().strip_prefix("DURABLE ")?;
        number.parse().ok()
    });
    numbers.max()
}

/// The disk works there: more becomes durable.
fn wait_for_more(host: &Host) -> Result<()> {
    let before = told(host);
    let deadline = Instant::now() + PATIENCE;
    while told(host) == before {
        if Instant::now() > deadline {
            bail!("the guest's disk does nothing: {}", host.vm.evidence());
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}
