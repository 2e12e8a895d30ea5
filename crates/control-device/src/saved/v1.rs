//! Version 1.
//!
//! Registers are kept as the guest reads them. What the guest may set to anything, such as the
//! table's address, is no damage.

use device::State;
use serde::{Deserialize, Serialize};

use crate::spec::{Command, READY, Request, features};
use crate::state::{ControlState, DeviceState, TableRegisters};

/// A control device's state, version 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the names are those of the registers")]
pub struct Control {
    pub features: u32,
    pub driver: u32,
    pub request: u32,
    pub deadline_ms: u32,
    pub table_directory: u64,
    pub table_chunks: u32,
    pub devices: Vec<Device>,
}

/// A device's registers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the names are those of the registers")]
pub struct Device {
    pub function: u32,
    pub identity: u32,
    pub ack: u32,
    pub detail: u32,
    pub micros: u32,
}

/// Why a state cannot be taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// The lists differ.
    #[error(
        "it speaks for other devices than the one here: give both sides the same devices in the same order"
    )]
    Devices,
    /// This side is older.
    #[error("it offers features {0:#x} that are not known here: update vferry on this side")]
    Features(u32),
    /// The driver took what was not offered.
    #[error("its driver took features {0:#x} that were not offered")]
    Driver(u32),
    /// No host asks for that.
    #[error("its request {0:#x} is none")]
    Request(u32),
    /// Nobody asked for that answer.
    #[error("its answer {0:#x} is none")]
    Answer(u32),
}

impl State for Control {
    const NAME: &'static str = "control-device";
    const VERSION: u32 = 1;
}

impl From<&ControlState> for Control {
    fn from(state: &ControlState) -> Self {
        let device = |device: &DeviceState| Device {
            function: device.function,
            identity: device.identity,
            ack: device.ack,
            detail: device.detail,
            micros: device.micros,
        };
        Self {
            features: state.features,
            driver: state.driver,
            request: state.request.word(),
            deadline_ms: state.deadline_ms,
            table_directory: state.table.directory,
            table_chunks: state.table.chunks,
            devices: state.devices.iter().map(device).collect(),
        }
    }
}

impl Control {
    /// The live state, for a control device that is `here` now.
    ///
    /// # Errors
    /// See [`Damage`].
    pub fn restore(&self, here: &ControlState) -> Result<ControlState, Damage> {
        let identities = self.devices.iter().map(|device| device.identity);
        if !identities.eq(here.devices.iter().map(|device| device.identity)) {
            return Err(Damage::Devices);
        }
        if self.features & !features::ALL != 0 {
            return Err(Damage::Features(self.features));
        }
        let absent = self.driver & READY == 0;
        if self.driver & !(READY | self.features) != 0 || absent && self.driver != 0 {
            return Err(Damage::Driver(self.driver));
        }
        let request = Request::from_word(self.request).ok_or(Damage::Request(self.request))?;
        Ok(ControlState {
            features: self.features,
            driver: self.driver,
            request,
            deadline_ms: self.deadline_ms,
            table: TableRegisters {
                directory: self.table_directory,
                chunks: self.table_chunks,
            },
            devices: self
                .devices
                .iter()
                .map(Device::restore)
                .collect::<Result<_, _>>()?,
        })
    }
}

impl Device {
    fn restore(&self) -> Result<DeviceState, Damage> {
        // The answer to some request, if there is one.
        let request = Request::from_word(self.ack & !0xf);
        let answered = request.is_some_and(|request| {
            request.command() != Command::Idle && request.answered_by(self.ack).is_some()
        });
        if self.ack != 0 && !answered {
            return Err(Damage::Answer(self.ack));
        }
        Ok(DeviceState {
            function: self.function,
            identity: self.identity,
            ack: self.ack,
            detail: self.detail,
            micros: self.micros,
        })
    }
}
