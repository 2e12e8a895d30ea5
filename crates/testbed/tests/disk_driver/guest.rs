//! A guest with an `NVMe` controller, and the load on its disk.

use std::fs::File;

use anyhow::{Context, Result, ensure};
use lab::{Kernel, Lab, progress_on_stderr};
use load_format::{DiskReport, GuestReport};
use tempfile::TempDir;
use testbed::{Host, HostOptions, Programs, wait_until};

use crate::PATIENCE;

/// Where the guest has the disk.
pub(crate) const NODE: &str = "/dev/nvme0n1";
/// MiB of the disk.
pub(crate) const DISK_MIB: u64 = 128;
/// MiB of it that the load uses, from its beginning; the rest is for probes of single queues.
pub(crate) const LOAD_MIB: u64 = 32;

const MEMORY: u64 = 512 << 20;
/// The driver has a queue for each vCPU; this gives it two more, and tells reads from writes.
const QUEUES: &str = "nvme.write_queues=2";

/// A running guest.
pub(crate) struct Guest {
    pub(crate) host: Host,
    // Last: the host's files are in it.
    _folder: TempDir,
}

impl Guest {
    /// Boots one, with nothing running in it.
    pub(crate) fn boot(kernel: Kernel) -> Result<Self> {
        Self::boot_with(kernel, &[], "")
    }

    /// Boots one that has these programs of the lab's packages, and this on its kernel's command line.
    pub(crate) fn boot_with(kernel: Kernel, packaged: &[&str], append: &str) -> Result<Self> {
        let lab = Lab::ensure(&progress_on_stderr)?.with_kernel(kernel, &progress_on_stderr)?;
        let folder = tempfile::Builder::new().prefix("vferry-").tempdir()?;
        let disk = folder.path().join("disk.img");
        File::create_new(&disk)?.set_len(DISK_MIB << 20)?;
        let options = HostOptions {
            nic: false,
            disk: Some(disk),
            append: format!("{QUEUES} {append}"),
            packaged: packaged.iter().map(|path| (*path).to_owned()).collect(),
            ..HostOptions::new(MEMORY, folder.path().join("wire.sock"))
        };
        let programs = Programs::build()?;
        let host = Host::start(&lab, &programs, folder.path(), "1", &options, false)?;
        host.vm.wait_ready(PATIENCE * 2)?;
        Ok(Self {
            host,
            _folder: folder,
        })
    }

    /// Runs a command, which must succeed.
    pub(crate) fn shell(&self, command: &str) -> Result<String> {
        self.host.vm.shell(command, PATIENCE)?.success()
    }

    /// Starts a load of all kinds of I/O, from both processors.
    pub(crate) fn start_load(&self) -> Result<()> {
        // It outlives the shell that starts it.
        self.shell(&format!(
            "lab-guest disk {NODE} --disk-workers 6 --disk-mib {LOAD_MIB} > /tmp/load.log 2>&1 & \
             load=$!; until lab-guest report > /dev/null 2>&1; do \
             kill -0 $load || {{ cat /tmp/load.log; exit 1; }}; usleep 50000; done"
        ))
        .context("the load does not start")?;
        self.wait_for_load()
    }

    /// Has the load read all that it has written, when it has done every kind of I/O, and ends it:
    /// nothing may have been wrong.
    pub(crate) fn stop_load(&self) -> Result<()> {
        wait_until("the load does every kind of I/O", PATIENCE, || {
            let load = self.load()?.context("the load has ended")?;
            let done = [
                load.reads,
                load.writes,
                load.durable_writes,
                load.flushes,
                load.discards,
                load.zeroes,
            ];
            Ok(done.iter().all(|count| *count > 0))
        })?;
        let verified: GuestReport = serde_json::from_str(&self.shell("lab-guest verify")?)?;
        let load = verified.disk.context("no disk is loaded")?;
        is_right(&load)?;
        ensure!(load.checked_blocks > 0, "no block was checked: {load:?}");
        self.shell("killall lab-guest; while pidof lab-guest; do usleep 20000; done")
            .map(drop)
    }

    /// What the load has counted; `None` if there is none now.
    pub(crate) fn load(&self) -> Result<Option<DiskReport>> {
        let report = self.shell("! pidof lab-guest > /dev/null || lab-guest report")?;
        if report.is_empty() {
            return Ok(None);
        }
        let report: GuestReport = serde_json::from_str(&report)?;
        report.disk.context("no disk is loaded").map(Some)
    }

    /// Waits until the disk has carried out what was begun since now, if it is loaded.
    pub(crate) fn wait_for_load(&self) -> Result<()> {
        let Some(before) = self.load()? else {
            return Ok(());
        };
        // Each worker has one on its way at most.
        let enough = before.operations + before.workers + 1;
        wait_until("the disk carries out I/O", PATIENCE, || {
            let now = self.load()?.context("the load has ended")?;
            is_right(&now)?;
            Ok(now.operations >= enough)
        })
    }

    /// A sum over what the load has written, from the disk and not from the page cache.
    pub(crate) fn content(&self) -> Result<String> {
        self.shell(&format!(
            "dd if={NODE} bs=1M count={LOAD_MIB} iflag=direct 2> /tmp/dd.log | md5sum"
        ))
    }

    pub(crate) fn expect_content(&self, before: &str) -> Result<()> {
        let now = self.content()?;
        ensure!(
            now == before,
            "the disk holds something else than before: its sum is {now}, and was {before}"
        );
        Ok(())
    }
}

/// No operation failed, no block was wrong.
pub(crate) fn is_right(load: &DiskReport) -> Result<()> {
    ensure!(
        load.io_errors == 0,
        "{} operations failed: {:?}",
        load.io_errors,
        load.first_io_errors
    );
    ensure!(
        load.wrong_blocks == 0,
        "{} blocks were wrong, first {:?}",
        load.wrong_blocks,
        load.first_wrong
    );
    Ok(())
}
