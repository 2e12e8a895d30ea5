//! Makes the host as it was, the last change first.
//!
//! A change that was not made, or is given back already, is nothing to do: so this can be done after
//! any end, again and again. What somebody else has changed since is theirs, and told.

use std::path::Path;

use crate::host::Lock;
use crate::record::Change;
use crate::{Address, Host, Ledger, Setting, SriovError};

/// What became of it.
#[derive(Debug, Default)]
#[must_use]
pub struct GivenBack {
    /// How many changes there were.
    pub changes: usize,
    /// What stays as somebody else has made it, or for somebody else.
    pub theirs: Vec<String>,
    /// What could not be given back, and can be tried again.
    pub failed: Vec<String>,
}

/// One change.
enum Outcome {
    Done,
    Theirs(String),
}

impl Host {
    /// Gives back all that is written at `path`, and deletes it; what could not be given back stays
    /// there. Of `owner`'s only, if that is given: a VM may be served anew by now. The functions must
    /// not be open: the kernel waits for whoever has one.
    ///
    /// # Errors
    /// When another process changes the host for too long, or the record is not one.
    pub fn give_back(&self, path: &Path, owner: Option<&str>) -> Result<GivenBack, SriovError> {
        let mut result = GivenBack::default();
        if !path.exists() {
            return Ok(result);
        }
        // What is read is what is there: who was first may have given it back meanwhile.
        let lock = self.lock()?;
        let mut ledger = Ledger::open(path)?;
        if owner.is_some_and(|owner| owner != ledger.owner()) {
            return Ok(result);
        }
        let mut failed = Vec::new();
        for change in ledger.changes().iter().rev() {
            result.changes += 1;
            // Functions do not go before they are given back: ours would seem to be another's.
            if matches!(change, Change::Count { .. }) && !failed.is_empty() {
                failed.push(change.clone());
                continue;
            }
            match self.undo(change, &lock) {
                Ok(Outcome::Done) => tracing::info!(?change, "given back"),
                Ok(Outcome::Theirs(what)) => result.theirs.push(what),
                Err(error) => {
                    result.failed.push(error.to_string());
                    failed.push(change.clone());
                }
            }
        }
        failed.reverse();
        ledger.keep(failed)?;
        Ok(result)
    }

    fn undo(&self, change: &Change, lock: &Lock) -> Result<Outcome, SriovError> {
        match change {
            Change::Count { physical, is } => self.remove(physical, *is, lock),
            Change::Driver {
                function,
                was,
                was_override,
                is,
            } => self.unbind(function, was.as_deref(), was_override.as_deref(), is),
            Change::Port {
                physical,
                number,
                was,
                is,
            } => self.unset(physical, *number, *was, *is),
        }
    }

    fn remove(&self, physical: &Address, made: u16, lock: &Lock) -> Result<Outcome, SriovError> {
        if !self.pci.exists(physical) {
            return Ok(gone(physical));
        }
        let count = self.pci.count(physical)?;
        if count == 0 {
            lock.removed(physical)?;
            return Ok(Outcome::Done);
        }
        if count != made {
            return Ok(Outcome::Theirs(format!(
                "PCI function {physical} has {count} virtual functions, and was given {made} here: \
                 somebody else has changed that, so they stay"
            )));
        }
        for number in 0..count {
            let function = self.pci.virtual_of(physical, number)?;
            if let Some(function) = function
                && let Some(user) = self.user(&function)?
            {
                return Ok(Outcome::Theirs(format!(
                    "the virtual functions of PCI function {physical} stay, as {function} is for \
                     {user}: whichever vferry uses them last removes them; if none does, `echo 0 > \
                     /sys/bus/pci/devices/{physical}/sriov_numvfs`"
                )));
            }
        }
        self.pci
            .set_count(physical, 0)
            .map_err(|error| SriovError::NotMade {
                physical: physical.clone(),
                count: 0,
                error,
            })?;
        lock.removed(physical)?;
        Ok(Outcome::Done)
    }

    /// The driver that somebody has given a virtual function to on purpose.
    fn user(&self, function: &Address) -> Result<Option<String>, SriovError> {
        if let Some(wanted) = self.pci.driver_override(function)? {
            return Ok(Some(wanted));
        }
        let driver = self.pci.driver(function)?;
        Ok(driver.filter(|driver| *driver == self.driver))
    }

    fn unbind(
        &self,
        function: &Address,
        was: Option<&str>,
        was_override: Option<&str>,
        is: &str,
    ) -> Result<Outcome, SriovError> {
        if !self.pci.exists(function) {
            return Ok(gone(function));
        }
        let wanted = self.pci.driver_override(function)?;
        let driver = self.pci.driver(function)?;
        let ours = |now: Option<&str>, was: Option<&str>| now == Some(is) || now == was;
        let drivers_ours = driver.is_none() || ours(driver.as_deref(), was);
        if !ours(wanted.as_deref(), was_override) || !drivers_ours {
            return Ok(Outcome::Theirs(format!(
                "PCI function {function} was given from {} to {is}, and somebody else has given it to {} \
                 since: it stays so",
                was.unwrap_or("no driver"),
                wanted.or(driver).unwrap_or_else(|| "no driver".into()),
            )));
        }
        if wanted.as_deref() != was_override {
            self.pci.set_driver_override(function, was_override)?;
        }
        if driver.as_deref() == was {
            return Ok(Outcome::Done);
        }
        if driver.is_some() {
            self.pci.unbind(function)?;
        }
        match was {
            None => {}
            Some(was) if self.pci.is_loaded(was) => self.pci.bind(function, was)?,
            Some(was) => return Err(SriovError::NotLoaded(was.into())),
        }
        Ok(Outcome::Done)
    }

    fn unset(
        &self,
        physical: &Address,
        number: u16,
        was: Setting,
        is: Setting,
    ) -> Result<Outcome, SriovError> {
        let function = self.pci.virtual_of(physical, number)?;
        let (Some(_), Some(interface)) = (function, self.pci.interface(physical)?) else {
            return Ok(gone(physical));
        };
        let port = self.read(&interface, number)?;
        let now = port.like(is);
        if now == was {
            return Ok(Outcome::Done);
        }
        // A guest that is trusted may have changed its address itself.
        let guests = matches!(is, Setting::Mac(_)) && port.trust == Some(true);
        if now != is && !guests {
            return Ok(Outcome::Theirs(format!(
                "virtual function {number} of {} was given {is} here, and somebody else has set {now} since: \
                 it stays so",
                interface.name
            )));
        }
        self.set_one(&interface, number, was)?;
        Ok(Outcome::Done)
    }
}

/// What is not there any more needs nothing; its settings are gone with it.
fn gone(function: &Address) -> Outcome {
    tracing::debug!(%function, "gone, or without virtual functions");
    Outcome::Done
}
