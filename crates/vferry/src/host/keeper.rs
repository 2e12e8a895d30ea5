//! Keeps the host as the VM needs it.
//!
//! Whatever way this process ends, somebody must give the host back: a second process of the same program
//! holds one end of a pipe, whose other end is here, and sees this process go.

use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use ferry::check::{Facts, PortFacts};
use sriov::{Host, Ledger, Wish};

use super::{back, host, port};
use crate::config::{Config, Device, Settings};

/// The program that runs, also where its file has been replaced since.
const SELF: &str = "/proc/self/exe";
/// After a watcher that has ended, which none does by itself.
const AGAIN: Duration = Duration::from_millis(500);

/// What the host is to be, and what was changed for it.
#[derive(Debug)]
pub(crate) struct Keeper {
    host: Host,
    devices: Vec<(String, Wish)>,
    record: PathBuf,
    configuration: PathBuf,
    /// What was changed, if anything was; somebody watches then.
    changed: Mutex<Option<Ledger>>,
}

impl Keeper {
    /// Of the VM of `config`. Nothing is changed yet.
    pub(crate) fn new(config: &Config) -> Self {
        let devices = config.devices.iter();
        let devices = devices.filter_map(|device| match &device.settings {
            Settings::Host(wish) => Some((device.name.clone(), wish.clone())),
            Settings::Nic(_) | Settings::Disk(_) | Settings::None => None,
        });
        Self {
            host: host(),
            devices: devices.collect(),
            record: config.host_record(),
            configuration: config.origin.path.clone(),
            changed: Mutex::new(None),
        }
    }

    /// Makes the host as the devices need it, after giving back what an earlier run of the same VM may
    /// have left. To be called by the one process that serves the VM.
    ///
    /// # Errors
    /// When it cannot be made so, or what was left cannot be given back.
    pub(crate) fn take(&self) -> anyhow::Result<()> {
        let left = back::after_another(&self.record)
            .with_context(|| format!("what an earlier run has left ({})", self.record.display()))?;
        if !left.is_empty() {
            bail!(
                "an earlier run of this VM has changed this host, and it cannot be given back: {}. See to \
                 that, then `vferry give-back {}`",
                left.join("; "),
                self.configuration.display()
            );
        }
        let wishes = self.devices.iter().map(|(_, wish)| wish.clone());
        let wishes: Vec<_> = wishes.collect();
        if wishes.iter().any(|wish| !wish.is_empty()) {
            self.change(|host, ledger| host.take(&wishes, ledger))?;
        }
        for fault in self.faults() {
            tracing::warn!("{fault}");
        }
        Ok(())
    }

    /// The end of the run, whose exit status is `status`: the host is given back. Functions are open
    /// here, in threads that wait for the world, so this process becomes one with nothing open: it
    /// executes itself.
    pub(crate) fn finish(&self, status: u8) -> ExitCode {
        let owner = self.lock().as_ref().map(|ledger| ledger.owner().to_owned());
        let Some(owner) = owner else {
            return ExitCode::from(status);
        };
        let error = Command::new(SELF)
            .args(["give-back-record", "--owner", &owner])
            .args(["--status", &status.to_string(), "--"])
            .arg(&self.record)
            .exec();
        eprintln!("vferry: the process that watches gives the host back: {error}");
        ExitCode::FAILURE
    }

    /// How the host treats the traffic of `device`, if it is one whose traffic it treats.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub(crate) fn port(&self, device: &Device) -> anyhow::Result<Option<PortFacts>> {
        let Settings::Host(wish) = &device.settings else {
            return Ok(None);
        };
        let function = self.host.address(&wish.which)?;
        let found = self.host.port(&function)?;
        Ok(found.map(|found| port::facts(&found, &wish.port)))
    }

    /// Why no frame reaches a device, for each that none does.
    fn faults(&self) -> Vec<String> {
        let fault = |(name, wish): &(String, Wish)| {
            let function = self.host.address(&wish.which);
            match function.and_then(|function| self.host.fault(&function)) {
                Ok(fault) => fault.map(|fault| format!("device `{name}`: {fault}")),
                Err(error) => Some(format!("device `{name}`: {error}")),
            }
        };
        self.devices.iter().filter_map(fault).collect()
    }

    /// Has the watcher there before anything is changed.
    fn change<E>(
        &self,
        change: impl FnOnce(&Host, &mut Ledger) -> Result<(), E>,
    ) -> anyhow::Result<()>
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        let mut changed = self.lock();
        if changed.is_none() {
            let ledger = Ledger::begin(&self.record)?;
            keep_watched(&self.record, ledger.owner())
                .context("the process that gives the host back does not start")?;
            *changed = Some(ledger);
        }
        if let Some(ledger) = &mut *changed {
            change(&self.host, ledger)?;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Option<Ledger>> {
        self.changed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ferry::destination::Host for Keeper {
    fn obstacles(&self) -> Vec<String> {
        self.faults()
    }

    fn follow(&self, source: &Facts) -> Result<(), String> {
        for (name, wish) in &self.devices {
            let mut theirs = source.devices.iter();
            let theirs = theirs.find(|device| device.name == *name);
            let Some(theirs) = theirs.and_then(|device| device.port.as_ref()) else {
                continue;
            };
            let follow = || -> anyhow::Result<()> {
                let function = self.host.address(&wish.which)?;
                let Some(ours) = self.host.port(&function)? else {
                    return Ok(());
                };
                let wish = port::wish(&port::facts(&ours, &wish.port), theirs)?;
                if wish.is_empty() {
                    return Ok(());
                }
                self.change(|host, ledger| host.set(&function, &wish, ledger))
            };
            follow().map_err(|error| {
                format!("device `{name}` is not made as it is at the source: {error:#}")
            })?;
        }
        Ok(())
    }
}

/// Has somebody watch, and another when that one ends. The pipe to it closes with this process.
fn keep_watched(record: &Path, owner: &str) -> anyhow::Result<()> {
    let mut watcher = watch(record, owner)?;
    let (record, owner) = (record.to_owned(), owner.to_owned());
    let keep = move || {
        loop {
            // To wait for it would close it.
            let pipe = watcher.stdin.take();
            let status = watcher.wait();
            drop(pipe);
            tracing::error!(
                ?status,
                "who gives the host back has ended; another is started"
            );
            thread::sleep(AGAIN);
            watcher = match watch(&record, &owner) {
                Ok(watcher) => watcher,
                Err(error) => {
                    tracing::error!(
                        "nobody gives the host back if this process is killed, but `vferry give-back`: \
                         {error:#}"
                    );
                    return;
                }
            };
        }
    };
    thread::Builder::new().name("watched".into()).spawn(keep)?;
    Ok(())
}

/// Starts the watcher, and waits until it is one.
fn watch(record: &Path, owner: &str) -> anyhow::Result<Child> {
    let mut watcher = Command::new(SELF)
        .args(["give-back-record", "--watch", "--owner", owner, "--"])
        .arg(record)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut ready = [0];
    let told = watcher.stdout.take().context("it has an output")?;
    let read = { told }.read_exact(&mut ready);
    read.context("it has ended at once")?;
    Ok(watcher)
}
