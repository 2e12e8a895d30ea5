//! What QEMU does to the VM, and what follows for its devices.

use std::time::Instant;

use device::lifecycle::{Halted, Migratable};
use device::{DirtySink, GuestPageSink, MemoryId};
use endpoint::{Carry, Endpoint, Endpoints};
use sidecar::{Hooks, LogStart, Marker, Stop, Stopped, Veto};

use super::drain::of_sidecar;
use super::{StageName, Starter, State, Vm};
use crate::comparison::Comparing;
use crate::cooperative::help::Help;
use crate::state;

const NOT_AGREED: &str = "this migration was not agreed on by the two vferry processes, so PCI \
     configuration and interrupts were not prepared: start it with `vferry migrate`";

/// The sidecar's hooks of one VM.
#[derive(Debug)]
pub struct VmHooks(pub(super) Vm);

impl Hooks for VmHooks {
    fn connected(&mut self) {
        self.change(|state| state.sidecar_connected = true);
    }

    fn log_started(&mut self, start: LogStart) {
        if start == LogStart::Fresh {
            for endpoint in &self.0.0.endpoints.0 {
                endpoint.bus().discard_dirty();
            }
        }
        self.change(|state| {
            state.logging = true;
            state.timeline.log_started.get_or_insert_with(Instant::now);
        });
        tracing::info!(?start, "dirty log opened");
    }

    fn log_stopped(&mut self) {
        self.change(|state| state.logging = false);
        tracing::info!("dirty log closed");
    }

    fn stopping(&mut self, stop: Stop<'_>) -> Result<(), Veto> {
        // A VM that is merely paused keeps its devices as they are: nobody reads its memory.
        let Stop::Logged(marker) = stop else {
            return Ok(());
        };
        let controls = self.0.0.controls;
        let vm = self.0.clone();
        let mut result = Err(Veto::new(NOT_AGREED));
        self.change(|state| {
            state.logging = false;
            // Somebody else's migration: if the guest caused this stop, nobody would undo a halt.
            if !state.outgoing {
                return;
            }
            state.timeline.stopping = Some(Instant::now());
            state.timeline.saved = None;
            result = if controls.naive_order {
                mark_only(&vm, state, marker)
            } else {
                let lose = controls.no_log;
                halt_and_mark(state, &vm, &mut Sink { marker, lose })
            };
        });
        result
    }

    fn restarted(&mut self) {
        let vm = self.0.clone();
        self.change(|state| {
            if state.run(vm.guest()) {
                state.timeline.running = Some(Instant::now());
            }
        });
    }

    fn save(&mut self, stopped: Stopped) -> Result<Vec<u8>, Veto> {
        let vm = self.0.clone();
        let controls = self.0.0.controls;
        let mut result = Err(Veto::new(""));
        self.change(|state| {
            if controls.naive_order {
                // The wrong way round, on purpose: what was written since the marking is lost.
                let _ = state
                    .stage
                    .halt_and_mark(&mut |_: MemoryId, _: u64| {}, |_, _| Ok(()));
            }
            result = save(state, &vm.0.endpoints, stopped);
            state.timeline.saved = Some(Instant::now());
        });
        result
    }

    fn load(&mut self, blob: Vec<u8>) -> Result<(), Veto> {
        let began = Instant::now();
        let states = state::unpack(&blob).map_err(|error| Veto::new(error.to_string()))?;
        let mut session = {
            let mut state = self.0.lock();
            state.timeline.load_began = Some(began);
            let session = state.session.as_ref();
            session.ok_or_else(|| Veto::new(NOT_AGREED))?.clone()
        };
        // Without the lock: whoever looks at the VM meanwhile must not wait for it.
        if session.verify {
            let digested = session.digest();
            digested.map_err(|e| Veto::new(format!("reading guest memory: {e}")))?;
        }
        let mut state = self.0.lock();
        if session.verify {
            state.timeline.digested = Some(Instant::now());
        }
        state
            .session
            .as_mut()
            .ok_or_else(|| Veto::new("this migration was given up"))?
            .digests = session.digests;
        state.stage.load(states).map_err(|error| match error {
            Some(error) => Veto::new(error.to_string()),
            None => Veto::new(format!(
                "this side's devices are {}, not waiting for an arrival",
                state.stage.name().as_str()
            )),
        })?;
        state.timeline.loaded = Some(Instant::now());
        drop(state);
        self.0.0.changed.notify_all();
        Ok(())
    }

    fn refused(&mut self, why: &Veto) {
        tracing::warn!(%why, "migration refused");
        self.change(|state| state.refusal = Some(why.to_string()));
    }

    fn disconnected(&mut self, why: Option<&sidecar::Error>) {
        if let Some(error) = why {
            tracing::error!(%error, "QEMU was sent away from the sidecar: its VM cannot be migrated");
        }
        self.change(|state| {
            state.sidecar_connected = false;
            state.logging = false;
        });
    }
}

impl VmHooks {
    fn change(&self, f: impl FnOnce(&mut State)) {
        f(&mut self.0.lock());
        self.0.0.changed.notify_all();
    }
}

fn halt_and_mark(state: &mut State, vm: &Vm, sink: &mut Sink<'_>) -> Result<(), Veto> {
    let endpoints = &vm.0.endpoints;
    let State {
        stage,
        help,
        timeline,
        marks,
        marks_by_guest,
        marks_by_iommu,
        starter,
        carry,
        comparing,
        ..
    } = state;
    let mut untold = Untold::default();
    let result = stage.halt_and_mark(sink, |halted, sink| {
        timeline.halted = Some(Instant::now());
        comparing.begin();
        untold = mark_untold(help.as_ref(), halted, vm, sink, comparing)?;
        *carry = carries(help.as_ref(), starter, endpoints);
        Ok(())
    });
    timeline.marked = Some(Instant::now());
    *marks_by_guest = untold.by_guest;
    marks_by_iommu.at_halt = untold.by_iommu;
    let all = sink.marker.tally().newly_marked;
    marks.at_halt = all.saturating_sub(untold.by_guest + untold.by_iommu);
    result?;
    match sink.marker.tally().missed {
        0 => Ok(()),
        missed => Err(Veto::new(format!(
            "devices wrote {missed} pages that QEMU's dirty log does not cover; they would arrive \
             stale"
        ))),
    }
}

/// How many pages of devices without a log were not marked yet.
#[derive(Debug, Default)]
struct Untold {
    /// Marked on the guest's word.
    by_guest: u64,
    /// Marked as the devices can write them.
    by_iommu: u64,
}

/// Marks what devices without a log wrote, as far as the guest says or a virtual IOMMU lets them, which
/// must be all unless memory is compared.
fn mark_untold(
    help: Option<&Help>,
    halted: &Halted<Endpoints>,
    vm: &Vm,
    sink: &mut Sink<'_>,
    comparing: &mut Comparing,
) -> Result<Untold, Veto> {
    let devices = vm.0.endpoints.0.iter().enumerate();
    let blind: Vec<_> = devices.filter(|(_, device)| !device.keeps_log()).collect();
    let mut untold = Untold::default();
    let mut asked = false;
    for (index, device) in blind {
        if help.is_some_and(|help| help.knows(index, device)) {
            asked = true;
        } else if !sink.lose && vm.0.iommu && (!device.bus().can_write_most() || !comparing.take())
        {
            // All of memory, where nobody compares it.
            device.mark_mapped(halted, sink);
            untold.by_iommu = sink.marker.tally().newly_marked;
        } else if !sink.lose && !comparing.take() {
            return Err(Veto::new(format!(
                "device `{}` keeps no log of what it writes, or has lost it, and when the VM was stopped \
                 the guest had not told, or the device had been started anew: migrate again",
                device.name()
            )));
        }
    }
    if let Some(help) = help.filter(|_| asked) {
        let marked = help.mark(halted, &mut sink.marker());
        if let Err(error) = marked
            && !comparing.take()
        {
            return Err(Veto::new(error.to_string()));
        }
        untold.by_guest = sink.marker.tally().newly_marked - untold.by_iommu;
    }
    Ok(untold)
}

/// The control run of the naive order: devices run on.
fn mark_only(vm: &Vm, state: &mut State, marker: Marker<'_>) -> Result<(), Veto> {
    let mut endpoints = vm.0.endpoints.clone();
    let lose = false;
    let mut sink = Sink { marker, lose };
    let result = endpoints
        .mark(&mut sink)
        .map_err(|error| Veto::new(error.to_string()));
    state.timeline.marked = Some(Instant::now());
    state.marks.at_halt = sink.marker.tally().newly_marked;
    result
}

/// What of each device goes to the other side.
fn carries(help: Option<&Help>, starter: &Starter, endpoints: &Endpoints) -> Vec<Carry> {
    let devices = endpoints.0.iter().enumerate();
    let of = |(index, device): (usize, &Endpoint)| {
        let in_use = device.is_in_use();
        // One that no driver has at work has nothing to recover.
        if starter.recovers().contains(&index) && in_use {
            return Carry::Configuration;
        }
        // Nor has it a state that its driver would miss: it is yet to start it.
        if !device.has_state() && (!in_use || matches!(starter, Starter::WakeUp)) {
            return Carry::Configuration;
        }
        help.map_or(Carry::State, |help| help.carry(index, device))
    };
    devices.map(of).collect()
}

fn save(state: &State, endpoints: &Endpoints, stopped: Stopped) -> Result<Vec<u8>, Veto> {
    if state.stage.name() != StageName::Marked || stopped != Stopped::Logged {
        return Err(Veto::new(
            "the VM's devices were not halted while QEMU's dirty log was open, so what they wrote \
             is not known: let the VM run (QMP `cont`) and migrate again",
        ));
    }
    // The stop that halted them may have been the guest's, which has gone on since.
    let now = carries(state.help.as_ref(), &state.starter, endpoints);
    let mut changes = state.carry.iter().zip(now);
    if changes.any(|(then, now)| *then == Carry::Configuration && now == Carry::State) {
        return Err(Veto::new(
            "the guest has started a device that it had stopped for the migration: migrate again",
        ));
    }
    let to_recover = state.starter.recovers().iter();
    let mut to_recover = to_recover.filter_map(|&index| endpoints.0.get(index));
    if let Some(device) = to_recover.find(|device| device.has_left()) {
        return Err(Veto::new(format!(
            "the guest has just reset device `{}`, which it had yet to recover: migrate again",
            device.name()
        )));
    }
    let states = state
        .stage
        .save(&state.carry)
        .expect("the stage was just seen to be `Marked`");
    let states = states.map_err(|error| Veto::new(error.to_string()))?;
    state::pack(states).map_err(|error| Veto::new(error.to_string()))
}

/// QEMU's log as the devices see it.
struct Sink<'a> {
    marker: Marker<'a>,
    /// The control run without a log.
    lose: bool,
}

impl<'a> Sink<'a> {
    /// Where the guest's word goes, whatever the device's own log is worth.
    fn marker(&mut self) -> impl GuestPageSink + use<'_, 'a> {
        struct Through<'b, 'a>(&'b mut Marker<'a>);
        impl GuestPageSink for Through<'_, '_> {
            fn mark_words(&mut self, first_page: u64, words: &[u64]) {
                self.0.mark_words(first_page, words);
            }
        }
        Through(&mut self.marker)
    }
}

impl DirtySink for Sink<'_> {
    fn mark_words(&mut self, file: MemoryId, first_page: u64, words: &[u64]) {
        if !self.lose {
            let file = of_sidecar(file);
            self.marker.mark_file_words(file, first_page, words);
        }
    }
}
