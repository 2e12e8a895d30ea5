//! The guest's side: the function as a [`Model`].

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use device::{Access, Model, Progress, Reset, State, StateError, StateRecord};
use rustix::event::{EventfdFlags, eventfd};

use crate::exchange::Exchange;
use crate::host::Control;
use crate::saved;
use crate::spec::{self, DOORBELL, MAX_DEVICES, features};
use crate::state::ControlState;

/// The control device without its configuration space.
#[derive(Debug)]
pub struct ControlDevice {
    shared: Arc<Shared>,
}

/// What both sides work on.
#[derive(Debug)]
pub(crate) struct Shared {
    exchange: Mutex<Exchange>,
    /// The guest has written something.
    pub(crate) changed: Condvar,
    /// Wakes the model's owner.
    kick: OwnedFd,
}

/// Why there can be no such control device.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The list has no room.
    #[error("the control device speaks for {MAX_DEVICES} devices at most, and there are {0}")]
    TooManyDevices(usize),
    /// The system has no descriptor to give.
    #[error("the control device's wake-up cannot be made: {0}")]
    System(#[from] std::io::Error),
}

/// Makes a control device that speaks for devices with these vendor and device IDs, and the handle
/// for the host's side.
///
/// # Errors
/// When there are too many devices, or the system has no descriptor left.
pub fn new(devices: &[(u16, u16)]) -> Result<(ControlDevice, Control), ConfigError> {
    if devices.len() > MAX_DEVICES {
        return Err(ConfigError::TooManyDevices(devices.len()));
    }
    let identities: Vec<u32> = devices
        .iter()
        .map(|&(vendor, device)| u32::from(device) << 16 | u32::from(vendor))
        .collect();
    let state = ControlState::new(features::ALL, &identities);
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    let shared = Arc::new(Shared {
        exchange: Mutex::new(Exchange::new(state)),
        changed: Condvar::new(),
        kick: eventfd(0, flags).map_err(std::io::Error::from)?,
    });
    let model = ControlDevice {
        shared: Arc::clone(&shared),
    };
    Ok((model, Control::new(shared)))
}

impl ControlDevice {
    /// A copy of the live state.
    pub fn state(&self) -> ControlState {
        self.shared.lock().state.clone()
    }

    /// Rings if there is reason to, and lets the host's side look.
    fn settle(&self, mut exchange: MutexGuard<'_, Exchange>, access: &Access<'_>) {
        let ring = std::mem::take(&mut exchange.doorbell);
        drop(exchange);
        self.shared.changed.notify_all();
        if ring {
            access.interrupts.signal(DOORBELL);
        }
    }
}

impl Model for ControlDevice {
    fn read(&mut self, bar: u8, offset: u64, data: &mut [u8], _: &Access<'_>) {
        match <&mut [u8; 4]>::try_from(&mut *data) {
            Ok(word) if is_register(bar, offset) => {
                *word = self.shared.lock().read(offset).to_le_bytes();
            }
            _ => data.fill(0xff),
        }
    }

    fn write(&mut self, bar: u8, offset: u64, data: &[u8], access: &Access<'_>) {
        if let Ok(word) = <[u8; 4]>::try_from(data)
            && is_register(bar, offset)
        {
            let mut exchange = self.shared.lock();
            exchange.write(offset, u32::from_le_bytes(word));
            self.settle(exchange, access);
        }
    }

    fn reset(&mut self, _: Reset) {
        self.shared.lock().reset();
        self.shared.changed.notify_all();
    }

    fn poll(&mut self, access: &Access<'_>) -> Progress {
        // Before the look at what there is to do, so that no later wake-up is lost.
        let _ = rustix::io::read(&self.shared.kick, &mut [0; 8]);
        self.settle(self.shared.lock(), access);
        Progress::Idle(None)
    }

    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.shared.kick.as_fd())
    }

    fn needs_poll(&self) -> bool {
        self.shared.lock().doorbell
    }

    fn save(&self) -> Result<StateRecord, StateError> {
        saved::save(&self.shared.lock().state)
    }

    fn load(&mut self, record: &StateRecord) -> Result<(), StateError> {
        let mut exchange = self.shared.lock();
        let state = saved::load(record, &exchange.state)?;
        exchange.load(state);
        drop(exchange);
        self.shared.changed.notify_all();
        Ok(())
    }

    /// As it would travel: there is little of it, and the guest seldom comes.
    fn live(&self, state: &mut Vec<u8>) -> bool {
        let record = self.save();
        record.is_ok_and(|record| serde_json::to_writer(state, &record).is_ok())
    }

    /// Who has asked the guest for something is gone with the other process: it is told that it is over.
    fn take_over(&mut self, live: &[u8]) -> Result<(), StateError> {
        let record = serde_json::from_slice(live).map_err(|error| StateError::Body {
            name: saved::v1::Control::NAME,
            why: error.to_string(),
        })?;
        self.load(&record)?;
        self.shared.lock().leave_unattended();
        Ok(())
    }

    fn inspect(&self) -> serde_json::Value {
        self.shared.lock().inspect()
    }

    fn resume(&mut self, access: &Access<'_>) {
        // One may have been lost on the way; a repeated one is harmless.
        access.interrupts.signal(DOORBELL);
    }
}

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Exchange> {
        self.exchange.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the model's owner call [`Model::poll`].
    pub(crate) fn kick(&self) {
        // Full means that a wake-up is on its way already.
        let _ = rustix::io::write(&self.kick, &1u64.to_ne_bytes());
    }
}

fn is_register(bar: u8, offset: u64) -> bool {
    bar == spec::pci::REGISTER_BAR
        && offset < spec::pci::REGISTER_BAR_SIZE
        && offset.is_multiple_of(4)
}
