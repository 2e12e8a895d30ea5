//! A VM's endpoints on their way to another host.

use device::lifecycle::{Halted, Migratable};
use device::{Claim, DirtySink, Interrupts, Reset, Run, StateError, StateRecord};
use pci::{ConfigImage, ImageError};
use serde::{Deserialize, Serialize};

use crate::Endpoint;

/// All endpoints of a VM.
#[derive(Debug, Clone)]
pub struct Endpoints(pub Vec<Endpoint>);

/// What of an endpoint goes to the other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Carry {
    /// All of it: the guest notices nothing.
    #[default]
    State,
    /// Its configuration space only. The other side's device is as after power-on, and the driver
    /// in the guest, which has stopped it and knows that, starts it anew.
    Configuration,
}

/// One endpoint's saved state, version 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndpointState {
    /// Name of the endpoint.
    pub name: String,
    /// Its configuration space.
    pub config: ConfigImage,
    /// Vectors whose interrupt has not reached the VMM.
    pub pending: Vec<u16>,
    /// The model's state; `None` if it is left to its driver ([`Carry::Configuration`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<StateRecord>,
    /// What the guest was told through it (see [`Model::heard`](device::Model::heard)).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub heard: Vec<Vec<u8>>,
}

/// Why an endpoint could not be saved, loaded or reached.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The two sides have other devices.
    #[error(
        "the source has devices [{found}], this side has [{expected}]: give both the same devices in the same order"
    )]
    Devices {
        /// Names in the state.
        found: String,
        /// Names here.
        expected: String,
    },
    /// The configuration space does not fit.
    #[error("device `{0}`: {1}")]
    Config(String, ImageError),
    /// The model's state does not fit.
    #[error("device `{0}`: {1}")]
    Model(String, StateError),
    /// What only one host may have could not be had, made durable, or let go of; or a real device was
    /// not halted, or what it wrote is not known.
    #[error("device `{0}`: {1}")]
    Hold(String, std::io::Error),
    /// What another process has left cannot be gone on with, or nothing can be left to another.
    #[error("device `{endpoint}`: what is kept of it for another process: {why}")]
    Kept {
        /// The device.
        endpoint: String,
        /// What is wrong with it.
        why: String,
    },
    /// No VMM is connected.
    #[error(
        "device `{0}` is not connected to a VMM: start QEMU with the arguments of `vferry qemu-args`"
    )]
    NotConnected(String),
    /// The VMM refused or did not answer.
    #[error("device `{endpoint}`: the VMM did not carry out a DMA message: {why}")]
    Vmm {
        /// The device.
        endpoint: String,
        /// What happened.
        why: String,
    },
}

impl Endpoint {
    /// Reports the pages that the function can write, and those that it could write and that were
    /// unmapped since the last call, or the last
    /// [`drain_released`](device::BusMaster::drain_released): a halted function has written nothing
    /// else. Few, where a virtual IOMMU lets it reach only what its driver maps.
    pub fn mark_mapped(&self, _: &Halted<Endpoints>, sink: &mut dyn DirtySink) {
        self.0.bus.drain_released(sink);
        self.0.bus.mark_writable(sink);
    }
}

impl Migratable for Endpoints {
    type State = Vec<EndpointState>;
    /// One for each endpoint, in order; all of the state of those that are left out.
    type Carry = Vec<Carry>;
    type Error = EndpointError;

    fn halt(&mut self) -> Result<(), EndpointError> {
        // All first: none is to have more to wait for than it must.
        for endpoint in &self.0 {
            endpoint.0.bus.halt();
        }
        let each = |step: &dyn Fn(&Endpoint) -> std::io::Result<()>| {
            let mut all = self.0.iter();
            all.try_for_each(|endpoint| step(endpoint).map_err(|e| endpoint.hold_error(e)))
        };
        // None is stopped while another may still write to it.
        each(&|endpoint| endpoint.run_hardware(Run::WithoutPeers))?;
        each(&|endpoint| endpoint.run_hardware(Run::Off))?;
        each(&Endpoint::follow_gate)?;
        each(&|endpoint| endpoint.lock_model().drain())
    }

    fn unhalt(&mut self) {
        for endpoint in &self.0 {
            endpoint.0.bus.unhalt();
            let on = [endpoint.follow_gate(), endpoint.run_hardware(Run::On)];
            let faults = on.into_iter().filter_map(Result::err);
            let faults: Vec<_> = faults.map(|error| error.to_string()).collect();
            let fault = Some(faults.join("; ")).filter(|fault| !fault.is_empty());
            if let Some(fault) = &fault {
                let device = endpoint.name();
                tracing::error!(
                    device,
                    "it does not run as it did before it was halted: {fault}"
                );
            }
            endpoint.set_fault(fault);
            endpoint.with_hardware(|hardware| hardware.raise_what_was_lost());
            endpoint.0.kick.kick();
        }
    }

    fn mark(&mut self, sink: &mut dyn DirtySink) -> Result<(), EndpointError> {
        for endpoint in self.0.iter().filter(|endpoint| endpoint.keeps_log()) {
            endpoint.0.bus.drain_dirty(sink);
            // A real device's log knows addresses on the bus only: of memory that is gone from there, all that
            // it could write counts.
            if endpoint.log_source().is_some() {
                endpoint.0.bus.drain_released(sink);
            }
            let read = endpoint.read_log(sink);
            read.map_err(|error| endpoint.hold_error(error))?;
        }
        Ok(())
    }

    fn save(&self, carry: &Vec<Carry>) -> Result<Vec<EndpointState>, EndpointError> {
        let carry = carry.iter().copied().chain(std::iter::repeat(Carry::State));
        let endpoints = self.0.iter().zip(carry);
        endpoints
            .map(|(endpoint, carry)| save(endpoint, carry))
            .collect()
    }

    fn load(&mut self, states: Vec<EndpointState>) -> Result<(), EndpointError> {
        if !self
            .0
            .iter()
            .map(Endpoint::name)
            .eq(states.iter().map(|s| s.name.as_str()))
        {
            let list = |names: Vec<&str>| names.join(", ");
            return Err(EndpointError::Devices {
                found: list(states.iter().map(|s| s.name.as_str()).collect()),
                expected: list(self.0.iter().map(Endpoint::name).collect()),
            });
        }
        self.0
            .iter()
            .zip(&states)
            .try_for_each(|(endpoint, state)| {
                endpoint.note_change();
                endpoint.in_turn(|| load(endpoint, state))
            })
    }

    fn release(&mut self, migration: &str) -> Result<(), EndpointError> {
        let release = |endpoint: &Endpoint| endpoint.release(migration);
        let undo = |endpoint: &Endpoint| endpoint.acquire(Claim::TakeBack(migration));
        all_or_nothing(&self.0, release, undo)
    }

    fn acquire(&mut self, claim: Claim<'_>) -> Result<(), EndpointError> {
        let acquire = |endpoint: &Endpoint| endpoint.acquire(claim);
        let undo = |endpoint: &Endpoint| match claim {
            // Nobody waits for it; it goes with the process.
            Claim::Start => Ok(()),
            Claim::Arrive(migration) | Claim::TakeBack(migration) => endpoint.release(migration),
        };
        all_or_nothing(&self.0, acquire, undo)
    }

    fn restart(&mut self) {
        for endpoint in &self.0 {
            endpoint.restart();
        }
    }
}

/// Does `step` for each, and undoes it if one fails.
fn all_or_nothing(
    endpoints: &[Endpoint],
    step: impl Fn(&Endpoint) -> Result<(), EndpointError>,
    undo: impl Fn(&Endpoint) -> Result<(), EndpointError>,
) -> Result<(), EndpointError> {
    for (index, endpoint) in endpoints.iter().enumerate() {
        let Err(error) = step(endpoint) else { continue };
        for done in &endpoints[..index] {
            if let Err(error) = undo(done) {
                tracing::error!(%error, "a device is left without what it needs");
            }
        }
        return Err(error);
    }
    Ok(())
}

fn save(endpoint: &Endpoint, carry: Carry) -> Result<EndpointState, EndpointError> {
    let model = endpoint.lock_model();
    let config = endpoint.lock_config().save();
    let name = endpoint.name().to_owned();
    let (pending, state) = match carry {
        Carry::State => match model.save() {
            Ok(state) => (endpoint.0.vectors.pending(), Some(state)),
            Err(error) => return Err(EndpointError::Model(name, error)),
        },
        // An interrupt of a device that its driver has stopped would be for nobody.
        Carry::Configuration => (Vec::new(), None),
    };
    Ok(EndpointState {
        name,
        config,
        pending,
        model: state,
        heard: model.heard(),
    })
}

fn load(endpoint: &Endpoint, state: &EndpointState) -> Result<(), EndpointError> {
    let name = || endpoint.name().to_owned();
    let mut model = endpoint.lock_model();
    let mut config = endpoint.lock_config();
    let mut changed = config.clone();
    changed
        .load(&state.config)
        .map_err(|e| EndpointError::Config(name(), e))?;
    if let Some(saved) = &state.model {
        model
            .load(saved)
            .map_err(|e| EndpointError::Model(name(), e))?;
    } else {
        endpoint.0.vectors.forget_pending();
        // A real one takes its time (100 ms), and has been reset before it began to wait.
        if !model.hardware().is_some_and(|real| real.is_untouched()) {
            model.reset(Reset::Bus);
        }
    }
    model.remember(&state.heard, state.model.is_none());
    *config = changed;
    endpoint.0.bus.set_enabled(config.bus_master());
    for &vector in &state.pending {
        endpoint.0.vectors.signal(vector);
    }
    Ok(())
}
