//! Makes the host as a VM needs it, one recorded change after the other.

use std::collections::BTreeSet;

use crate::host::Lock;
use crate::sysfs::Interface;
use crate::{Address, Change, Host, Ledger, PortWish, Setting, SriovError};

/// Which function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// By its address.
    Function(Address),
    /// By its physical function and its number among that one's virtual functions.
    Virtual {
        /// The physical function.
        physical: Address,
        /// From 0 on.
        number: u16,
    },
}

/// What is wished for one device.
#[derive(Debug, Clone)]
pub struct Wish {
    /// The function.
    pub which: Which,
    /// How many virtual functions to make if the physical one has none.
    pub create: Option<u16>,
    /// Whether to take the function from its driver, for the host's driver for processes.
    pub bind: bool,
    /// How its traffic is to be treated.
    pub port: PortWish,
}

impl Wish {
    /// Whether the host is left as it is.
    pub fn is_empty(&self) -> bool {
        self.create.is_none() && !self.bind && self.port.is_empty()
    }
}

impl Host {
    /// Makes the host so. What is changed is in `ledger` also if this fails: give it back then.
    ///
    /// # Errors
    /// The first thing that stands against it.
    pub fn take(&self, wishes: &[Wish], ledger: &mut Ledger) -> Result<(), SriovError> {
        if wishes.iter().all(Wish::is_empty) {
            return Ok(());
        }
        if wishes.iter().any(|wish| wish.bind) && !self.pci.is_loaded(&self.driver) {
            return Err(SriovError::NotLoaded(self.driver.clone()));
        }
        let lock = self.lock()?;
        let mut seen = BTreeSet::new();
        for wish in wishes {
            self.make(wish, &lock, ledger)?;
            let function = self.address(&wish.which)?;
            if !seen.insert(function.clone()) {
                return Err(SriovError::Twice(function));
            }
            if wish.bind {
                self.bind(&function, ledger)?;
            }
            self.set_port(&function, &wish.port, ledger)?;
        }
        Ok(())
    }

    /// Makes the port of `function` so, among others' changes.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub fn set(
        &self,
        function: &Address,
        wish: &PortWish,
        ledger: &mut Ledger,
    ) -> Result<(), SriovError> {
        let _lock = self.lock()?;
        self.set_port(function, wish, ledger)
    }

    fn make(&self, wish: &Wish, lock: &Lock, ledger: &mut Ledger) -> Result<(), SriovError> {
        let physical = match &wish.which {
            Which::Virtual { physical, .. } => Some(physical.clone()),
            Which::Function(function) => self.pci.physical_of(function)?,
        };
        let Some(physical) = physical else {
            return Ok(());
        };
        let known = |change: &Change| matches!(change, Change::Count { physical: known, .. } if *known == physical);
        let count = self.pci.count(&physical)?;
        if count != 0 {
            // Another VM's vferry has made them, and goes perhaps before this one.
            let shared = lock.made_by_us(&physical, count);
            if shared && !ledger.changes().iter().any(known) {
                ledger.will(Change::Count {
                    physical,
                    is: count,
                })?;
            }
            return Ok(());
        }
        let Some(count) = wish.create else {
            return Ok(());
        };
        let total = self.pci.total(&physical)?;
        if count > total {
            return Err(SriovError::TooMany {
                physical,
                count,
                total,
            });
        }
        ledger.will(Change::Count {
            physical: physical.clone(),
            is: count,
        })?;
        lock.will_make(&physical, count)?;
        let made = self.pci.set_count(&physical, count);
        tracing::info!(%physical, count, "virtual functions made");
        made.map_err(|error| SriovError::NotMade {
            physical,
            count,
            error,
        })
    }

    fn bind(&self, function: &Address, ledger: &mut Ledger) -> Result<(), SriovError> {
        let was = self.pci.driver(function)?;
        let driver = self.driver.as_str();
        if was.as_deref() == Some(driver) {
            return Ok(());
        }
        ledger.will(Change::Driver {
            function: function.clone(),
            was: was.clone(),
            was_override: self.pci.driver_override(function)?,
            is: driver.into(),
        })?;
        self.pci.set_driver_override(function, Some(driver))?;
        if was.is_some() {
            self.pci.unbind(function)?;
        }
        self.pci.probe(function)?;
        let now = self.pci.driver(function)?;
        if now.as_deref() != Some(driver) {
            return Err(SriovError::NotBound {
                function: function.clone(),
                driver: driver.into(),
                now,
            });
        }
        tracing::info!(%function, was, is = driver, "taken from its driver");
        Ok(())
    }

    fn set_port(
        &self,
        function: &Address,
        wish: &PortWish,
        ledger: &mut Ledger,
    ) -> Result<(), SriovError> {
        if wish.is_empty() {
            return Ok(());
        }
        let place = self.place(function)?;
        let (interface, physical, number) =
            place.ok_or_else(|| SriovError::NoPort(function.clone()))?;
        let port = self.read(&interface, number)?;
        for (was, is) in wish.differences(&port) {
            let physical = physical.clone();
            ledger.will(Change::Port {
                physical,
                number,
                was,
                is,
            })?;
            self.set_one(&interface, number, is)?;
            tracing::info!(%function, %was, %is, "set");
        }
        Ok(())
    }

    /// Also looks whether it is so then: not every driver says that it does not know a setting.
    pub(crate) fn set_one(
        &self,
        interface: &Interface,
        number: u16,
        setting: Setting,
    ) -> Result<(), SriovError> {
        let set = self.ports.set(interface.index, number, setting);
        set.map_err(|error| SriovError::NotSet {
            interface: interface.name.clone(),
            number,
            setting,
            error,
        })?;
        if self.read(interface, number)?.like(setting) != setting {
            return Err(SriovError::NotTaken {
                interface: interface.name.clone(),
                number,
                setting,
            });
        }
        Ok(())
    }
}
