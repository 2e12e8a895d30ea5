//! The VM's devices: model, engine and vfio-user socket of each.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::Sender;
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};

use anyhow::{Context, bail};
use device::{LogSource, Model};
use endpoint::Endpoint;
use endpoint::engine::Engine;
use ferry::restore::Slot;
use ferry::root_port;
use local_socket::Access;
use qemu::{Iommu, Place};
use vfio_user::{Ended, Server, Stopper};

use super::survival::Left;
use super::{End, Shared, Survival};
use crate::config::{self, Config, DirtyLog, Guest, Settings};
use crate::models;

/// A device, ready to be served.
pub(super) struct Device {
    pub(super) slot: Slot,
    server: Server,
    /// Of its connection, by another process.
    left: Option<Left>,
}

/// How much memory a QEMU may have pinned for a function, in bytes: the guest's, as much again that it is given
/// while it runs, and firmware.
fn pinned(memory: u64) -> u64 {
    memory.saturating_mul(2).saturating_add(1 << 30)
}

/// The devices while they are served; stops and joins when dropped.
pub(super) struct Serving {
    connections: Vec<Serves>,
    engines: Vec<Engine>,
}

/// A connection's thread, and the ways to end it.
struct Serves {
    stopper: Stopper,
    /// For one that outlives the process.
    ending: Arc<OnceLock<Arc<UnixStream>>>,
    thread: JoinHandle<()>,
}

/// The devices, with the control device behind those that it speaks for, and the way to the guest.
pub(super) fn open(
    config: &Config,
    access: Access,
    survival: Option<&Survival>,
) -> anyhow::Result<(Vec<Device>, Option<ferry::Guest>)> {
    let of_host = |device: &&config::Device| matches!(device.settings, Settings::Host(_));
    let functions = config.devices.iter().filter(of_host).count();
    passthrough::locked::room_for(functions as u64, config.memory.size)?;
    let mut devices = Vec::new();
    let mut spaces = Vec::new();
    for device in &config.devices {
        let context = || format!("device `{}`", device.name);
        let (space, mut model) = models::build(device, survival).with_context(context)?;
        if let Some(function) = model.hardware() {
            function.limit_memory(pinned(config.memory.size));
        }
        spaces.push(space.clone());
        let place = (device.place, &*device.socket);
        let endpoint = if keeps_log(device, model.as_mut()).with_context(context)? {
            Endpoint::new(&device.name, space, model)
        } else {
            Endpoint::without_log(&device.name, space, model)
        };
        let bound = bind(place, access, config.iommu, endpoint?, survival);
        devices.push(bound.with_context(context)?);
    }
    let Some(guest) = &config.guest else {
        return Ok((devices, None));
    };
    let context = || format!("device `{}`", Guest::NAME);
    let spaces: Vec<_> = spaces.iter().collect();
    let (space, model, control) = models::control(&spaces).with_context(context)?;
    // Of those behind root ports it is known when a migration is prepared.
    let slots: Vec<_> = devices.iter().map(|device| device.slot.clone()).collect();
    control.place(&root_port::locations(&slots, &[]))?;
    let place = (Place::MainBus(guest.address), guest.socket.as_path());
    let endpoint = Endpoint::new(Guest::NAME, space, Box::new(model))?;
    let bound = bind(place, access, config.iommu, endpoint.clone(), survival);
    devices.push(bound.with_context(context)?);
    let guest = ferry::Guest {
        control,
        endpoint,
        deadlines: guest.deadlines,
    };
    Ok((devices, Some(guest)))
}

/// Whether the host knows what the device writes. Of hardware that is seen only now.
fn keeps_log(device: &config::Device, model: &mut dyn Model) -> anyhow::Result<bool> {
    let Some(hardware) = model.hardware() else {
        return Ok(device.dirty_log != DirtyLog::Guest);
    };
    let source = hardware.log_source();
    let keeps = hardware_keeps_log(device.dirty_log, source)?;
    if let Some(source) = source.filter(|_| keeps) {
        let source = source.name();
        tracing::info!(device = device.name, source, "what it writes is logged");
    }
    Ok(keeps)
}

fn hardware_keeps_log(asked: DirtyLog, source: Option<LogSource>) -> anyhow::Result<bool> {
    match (asked, source) {
        (DirtyLog::Device, None) => bail!(
            "dirty-log = \"device\", but neither the function nor this host's IOMMU logs what it \
             writes: write \"guest\", or leave `dirty-log` out"
        ),
        (DirtyLog::Guest, _) | (DirtyLog::Best, None) => Ok(false),
        (DirtyLog::Device | DirtyLog::Best, Some(_)) => Ok(true),
    }
}

fn bind(
    (place, socket): (Place, &Path),
    access: Access,
    iommu: Option<Iommu>,
    endpoint: Endpoint,
    survival: Option<&Survival>,
) -> anyhow::Result<Device> {
    let server = Survival::listening(
        survival,
        &endpoint::kept::prefix(endpoint.name()),
        |left| Ok(Server::over(left, socket, access)?),
        || Ok(Server::bind_for(socket, access)?),
    )?;
    let left = survival.map(|survival| survival.take_over(&endpoint));
    Ok(Device {
        slot: Slot {
            endpoint,
            place,
            iommu,
        },
        server,
        left: left.transpose()?.flatten(),
    })
}

pub(super) fn serve(
    devices: Vec<Device>,
    shared: &Arc<Shared>,
    ended: &Sender<End>,
) -> anyhow::Result<Serving> {
    let mut serving = Serving {
        connections: Vec::new(),
        engines: Vec::new(),
    };
    for mut device in devices {
        serving.engines.push(Engine::start(&device.slot.endpoint)?);
        let stopper = device.server.stopper();
        let endpoint = device.slot.endpoint.clone();
        let ended = ended.clone();
        let ending = Arc::<OnceLock<_>>::default();
        let serve = {
            let (survival, ending) = (shared.survival.clone(), Arc::clone(&ending));
            move || {
                let end = match survival {
                    None => serve_one(&device),
                    Some(survival) => {
                        let left = device.left.take();
                        survival.serve(&device.server, &device.slot.endpoint, left, &ending)
                    }
                };
                tell_end(device.slot.endpoint.name(), end, &ended);
            }
        };
        let name = format!("vfio-{}", endpoint.name());
        let thread = thread::Builder::new().name(name).spawn(serve)?;
        serving.connections.push(Serves {
            stopper,
            ending,
            thread,
        });
    }
    look_when_connected(shared, ended)?;
    Ok(serving)
}

fn serve_one(device: &Device) -> anyhow::Result<Ended> {
    let mut frontend = device.slot.endpoint.frontend();
    Ok(device.server.serve_one(&mut frontend)?)
}

/// QEMU never connects a second time: its first connection is the device's life.
fn tell_end(name: &str, end: anyhow::Result<Ended>, ended: &Sender<End>) {
    let end = match end {
        Ok(Ended::Stopped) => return,
        Ok(Ended::Disconnected) => End::QemuGone(name.into()),
        Err(error) => End::Failed(error.context(format!("device `{name}`"))),
    };
    let _ = ended.send(end);
}

/// QEMU's monitor greets only after all its devices have connected.
fn look_when_connected(shared: &Arc<Shared>, ended: &Sender<End>) -> std::io::Result<()> {
    let (shared, ended) = (Arc::clone(shared), ended.clone());
    let look = move || {
        shared.end_rest();
        shared.bring_back();
        if shared.vm.wait_connected()
            && let Err(error) = shared.look_at_qemu()
        {
            let _ = ended.send(End::Failed(error));
        }
    };
    let looker = thread::Builder::new().name("look-at-qemu".into());
    looker.spawn(look).map(drop)
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.engines.clear();
        for Serves {
            stopper,
            ending,
            thread,
        } in self.connections.drain(..)
        {
            stopper.stop();
            if let Some(stream) = ending.get() {
                let _ = stream.shutdown(Shutdown::Read);
            }
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_that_logs_nothing_is_left_to_the_guest_unless_it_was_asked_to() {
        let both = |asked| [None, Some(LogSource::Iommu)].map(|has| hardware_keeps_log(asked, has));
        let [none, some] = both(DirtyLog::Best);
        assert!(!none.unwrap() && some.unwrap());
        let [none, some] = both(DirtyLog::Guest);
        assert!(!none.unwrap() && !some.unwrap());
        let [none, some] = both(DirtyLog::Device);
        assert!(some.unwrap());
        let refused = none.unwrap_err().to_string();
        assert!(refused.contains("leave `dirty-log` out"), "{refused}");
    }
}
