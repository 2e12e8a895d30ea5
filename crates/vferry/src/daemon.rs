//! `vferry run`: serves one VM's devices and sidecar until its QEMU ends.

mod acpi;
mod alive;
mod at_work;
mod complaints;
mod confinement;
mod control;
mod devices;
mod link;
mod migrating;
mod resolve;
mod strangers;
mod survival;
mod upgrade;

use std::path::Path;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use endpoint::Endpoints;
use ferry::check::{DeviceFacts, Facts};
use ferry::restore::Slot;
use ferry::vm::Drainer;
use ferry::{Controls, Vm};
use local_socket::Access;
use qemu::migration::MigrationSettings;
use qemu::stream_tls::{StreamSide, StreamTls};
use qemu::system::{Rests as _, RunState};
use qemu::{Place, Qmp};
use sidecar::Sidecar;
use tls::PeerName;

use crate::config::{Config, Endpoint, Guest, Protection, Settings};
use crate::host::Keeper;
use crate::stream::{BoundSocket, Listener};
use at_work::AtWork;
pub(crate) use confinement::Confinement;
use migrating::Migrating;
use survival::Noting;
pub(crate) use survival::{Halted, Survival};

/// How long QEMU's monitor may take to greet.
const MONITOR: Duration = Duration::from_secs(5);
/// After a monitor that was not to be had: another client may have it.
const AGAIN: Duration = Duration::from_secs(1);
/// How long QEMU may take to start before that is worth an error.
const QEMU_STARTS: Duration = Duration::from_secs(10);

/// How long a process whose QEMU is gone stays for those whom it has yet to answer: the look of a
/// waiting destination at its QEMU comes within a second.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Why the process ends.
#[derive(Debug)]
enum End {
    Signal(i32),
    QemuGone(String),
    Failed(anyhow::Error),
}

/// What all threads share.
struct Shared {
    config: Config,
    vm: Vm,
    slots: Vec<Slot>,
    host: Arc<Keeper>,
    /// Held by the one migration, out or in, that may be under way.
    migrating: Migrating,
    /// Where the last migration away from here went.
    went_to: Mutex<Option<Endpoint>>,
    /// Who has yet to be answered.
    at_work: AtWork,
    /// If another process can go on where this one dies.
    survival: Option<Arc<Survival>>,
}

/// Serves the VM of `config`. Returns when its QEMU is gone or a signal says so.
///
/// # Errors
/// When a socket, a device's uplink or a thread cannot be had.
pub(crate) fn run(
    config: Config,
    keeper: &Arc<Keeper>,
    controls: Controls,
    confinement: Confinement,
    survival: Option<Survival>,
) -> anyhow::Result<()> {
    let survival = survival.map(Arc::new);
    // Certificates may be about to be exchanged while the VM runs on.
    if survival.as_ref().is_none_or(|kept| kept.is_first()) {
        check_certificates(&config)?;
    }
    let (ended, end) = mpsc::channel();
    // First: who has it is the one process that serves this VM.
    let access = Access {
        group: config.socket_group,
    };
    let kept = survival.as_deref();
    let control = Survival::listening(
        kept,
        "control",
        |left| Ok(BoundSocket::over(left, &config.control, access)),
        || bind(&config.control, access),
    )?;
    keeper.take()?;
    let (devices, guest) = devices::open(&config, access, kept)?;
    let mut sidecar = bind_sidecar(&config, access, kept)
        .with_context(|| format!("the sidecar's socket {}", config.sidecar.display()))?;
    if let Some(survival) = &survival {
        sidecar.keep(Arc::clone(survival.worker()), &mut survival.held())?;
    }
    let table = acpi::write(&config)?;
    let endpoints = devices
        .iter()
        .map(|device| device.slot.endpoint.clone())
        .collect();
    let vm = Vm::new(
        Endpoints(endpoints),
        config.iommu.is_some(),
        sidecar.marker_handle(),
        guest,
        controls,
    );
    vm.take_over_late()?;
    let slots = devices.iter().map(|device| device.slot.clone()).collect();
    let link = Survival::listening(
        kept,
        "link",
        |left| Ok(Listener::over(left, &config.link, access)),
        || {
            Listener::bind(&config.link, access)
                .with_context(|| format!("listening for other hosts at {}", config.link))
        },
    )?;
    // All is open, and no thread of those that serve has been started.
    confinement.begin(&config)?;
    let shared = Arc::new(Shared {
        config,
        vm: vm.clone(),
        slots,
        host: Arc::clone(keeper),
        migrating: Migrating::default(),
        went_to: Mutex::default(),
        at_work: AtWork::default(),
        survival,
    });

    catch_signals(ended.clone())?;
    let drainer = Drainer::start(&vm)?;
    let sidecar_stopper = sidecar.stopper();
    let sidecar_thread = thread::Builder::new().name("sidecar".into()).spawn({
        let mut hooks = Noting {
            hooks: vm.hooks(),
            vm: vm.clone(),
            survival: shared.survival.clone(),
        };
        let ended = ended.clone();
        move || {
            if let Err(error) = sidecar.serve(&mut hooks) {
                let _ = ended.send(End::Failed(error.into()));
            }
        }
    })?;
    let serving = devices::serve(devices, &shared, &ended)?;
    control::serve(control.listener.try_clone()?, access, &shared)?;
    link::serve(link.try_clone()?, &shared)?;
    shared.tell_service()?;

    let result = match end.recv().context("all threads ended")? {
        End::Signal(signal) => {
            tracing::info!(signal, "told to end");
            upgrade::leave(&shared);
            Ok(())
        }
        End::QemuGone(device) => {
            tracing::info!(device, "QEMU is gone");
            // Whoever waits for an answer that is on its way gets it.
            shared.at_work.wait(LAST_WORDS);
            Ok(())
        }
        End::Failed(error) => Err(error),
    };
    // Sockets go with their owners; the control and link threads hold only duplicates.
    drop((serving, table));
    sidecar_stopper.stop();
    let _ = sidecar_thread.join();
    drop((drainer, control, link));
    result
}

impl Shared {
    /// Whoever has started this process hears that it serves.
    fn tell_service(&self) -> anyhow::Result<()> {
        if let Some(survival) = &self.survival {
            alive::begin(self)?;
            survival.worker().ready()?;
            if let Some(limit) = self.hung_after() {
                survival.be_watched(limit);
            }
        } else if let Err(error) = keeper::tell_service(0) {
            tracing::error!(%error, "the service manager is not told that this unit serves");
        }
        let deaths = keeper::Worker::deaths();
        tracing::info!(vm = self.config.name, deaths, "serving");
        Ok(())
    }

    /// When this process counts as hung, where somebody is to notice.
    fn hung_after(&self) -> Option<Duration> {
        self.config.keeper.and_then(|kept| kept.hung_after)
    }

    fn monitor(&self) -> anyhow::Result<Qmp> {
        let qmp = Qmp::connect(&self.config.qmp, Instant::now() + MONITOR)?;
        Ok(match &self.survival {
            Some(survival) => qmp.telling(Arc::clone(survival) as _),
            None => qmp,
        })
    }

    /// What this side is; refuses a QEMU that is not the configuration's.
    fn facts(&self, qmp: &Qmp) -> anyhow::Result<Facts> {
        let machine = qmp.machine()?;
        if machine.base_memory != self.config.memory.size {
            let origin = &self.config.origin;
            let has = machine.base_memory >> 20;
            anyhow::bail!(
                "{}:{}: the configuration says {} MiB of memory, but QEMU has {has} MiB\n    \
                 write instead: memory = \"{has}M\", or start QEMU with the arguments of \
                 `vferry qemu-args`",
                origin.path.display(),
                origin.memory_line,
                self.config.memory.size >> 20,
            );
        }
        let ids = |name: &str| {
            let mut slots = self.slots.iter();
            let slot = slots.find(|slot| slot.endpoint.name() == name);
            slot.map(|slot| {
                let (vendor, device) = slot.endpoint.ids();
                format!("{vendor:04x}:{device:04x}")
            })
        };
        let without_state = |name: &str| {
            let mut slots = self.slots.iter();
            let slot = slots.find(|slot| slot.endpoint.name() == name);
            slot.is_some_and(|slot| !slot.endpoint.has_state())
        };
        let device = |device: &crate::config::Device| -> anyhow::Result<DeviceFacts> {
            let port = self.host.port(device);
            Ok(DeviceFacts {
                name: device.name.clone(),
                model: device.model.clone(),
                identity: match &device.settings {
                    Settings::Disk(disk) => Some(disk.serial.clone()),
                    Settings::Host(_) => ids(&device.name),
                    Settings::Nic(_) | Settings::None => None,
                },
                place: device.place,
                without_state: without_state(&device.name),
                port: port.with_context(|| format!("device `{}`", device.name))?,
            })
        };
        let guest = |guest: &Guest| DeviceFacts {
            name: Guest::NAME.into(),
            model: "control-device".into(),
            identity: None,
            place: Place::MainBus(guest.address),
            port: None,
            without_state: false,
        };
        let devices = self.config.devices.iter().map(device);
        let guest = self.config.guest.iter().map(guest).map(Ok);
        Ok(Facts {
            vferry: env!("CARGO_PKG_VERSION").into(),
            vm: self.config.name.clone(),
            machine,
            devices: devices.chain(guest).collect::<anyhow::Result<_>>()?,
            sidecar: self.config.sidecar_address,
            iommu: self.config.iommu,
        })
    }

    fn settings(&self) -> MigrationSettings {
        MigrationSettings {
            pause_before_switchover: false,
            max_bandwidth: Some(self.config.max_bandwidth),
            downtime_limit: Some(self.config.downtime_limit),
            // One that failed may have left another.
            switchover_bandwidth: Some(0),
        }
    }

    /// How QEMU's stream goes beside a link to `peer`, as the side that `side` makes of its name.
    fn stream(&self, peer: Option<&PeerName>, side: fn(String) -> StreamSide) -> ferry::Protection {
        match (&self.config.protection, peer) {
            (Protection::Tls { folder, .. }, Some(peer)) => ferry::Protection::Tls(StreamTls {
                folder: folder.clone(),
                side: side(peer.to_string()),
                authz: self.config.stream_authz.clone(),
            }),
            (Protection::None, _) => ferry::Protection::Open,
            (Protection::Loopback | Protection::Tls { .. }, _) => ferry::Protection::Local,
        }
    }

    /// Writes down whether the devices run, where somebody else may have to know.
    fn note_stage(&self) {
        if let Some(survival) = &self.survival {
            survival.note(|| survival::runs(&self.vm));
        }
    }

    /// Lets the vCPUs run again that another process had stopped for a moment when it died.
    fn end_rest(&self) {
        let Some(survival) = &self.survival else {
            return;
        };
        while survival.rests() {
            let ended = self.monitor().and_then(|qmp| {
                if qmp.run_status()?.status == RunState::Paused {
                    qmp.cont()?;
                    tracing::info!("the vCPUs run again, which another process had stopped");
                }
                Ok(())
            });
            match ended {
                Ok(()) => survival.end(),
                Err(error) => {
                    tracing::error!("the vCPUs may be stopped; vferry tries again: {error:#}");
                    thread::sleep(AGAIN);
                }
            }
        }
    }

    /// Has the VM run here whose devices were halted for a migration when another process died.
    fn bring_back(&self) {
        let Some(survival) = &self.survival else {
            return;
        };
        let Some(asleep) = survival.brings_back() else {
            return;
        };
        // None begins meanwhile.
        let _guard = self.migrating.begin();
        loop {
            let back = self.monitor().and_then(|qmp| {
                ferry::resolve::run_on(&self.vm, &qmp, asleep).map_err(anyhow::Error::msg)
            });
            match back {
                Ok(()) => break,
                Err(error) => {
                    tracing::error!(
                        "the VM stands still, as the process that was about to migrate it has died; vferry tries \
                         again to have it run on here: {error:#}"
                    );
                    thread::sleep(AGAIN);
                }
            }
        }
        survival.is_back();
        tracing::warn!("the VM runs on here: the process that was about to migrate it has died");
    }

    /// Has QEMU end migrations as it did before another process died that kept it from that.
    fn end_hold(&self, qmp: &Qmp) {
        if keeper::Worker::deaths() == 0 {
            return;
        }
        // One that has begun meanwhile puts it back in its end.
        let Some(_guard) = self.migrating.begin() else {
            return;
        };
        if let Err(error) = ferry::cooperative::let_go(qmp) {
            tracing::warn!(
                %error,
                "QEMU may keep the `downtime-limit` of 1 ms that a process which has died had set: set it, should \
                 you migrate the VM without vferry"
            );
        }
    }

    /// Says at once, not only when a migration is asked for, that QEMU is another than expected. A
    /// VM that starts here takes what only one host may have; until QEMU has said that it does, its
    /// disks wait.
    fn look_at_qemu(&self) -> anyhow::Result<()> {
        let began = Instant::now();
        let mut told = false;
        let (qmp, state) = loop {
            let asked = self
                .monitor()
                .and_then(|qmp| Ok((qmp.run_status()?.status, qmp)));
            match asked {
                Ok((state, qmp)) => break (qmp, state),
                // QEMU connects to its devices, and maps all memory for some, before it answers.
                Err(error) if !told && began.elapsed() >= QEMU_STARTS => {
                    tracing::error!(
                        "this VM cannot be migrated, and disks that vferry serves wait, as QEMU has not \
                         answered for {QEMU_STARTS:?}; vferry goes on asking: {error:#}"
                    );
                    told = true;
                }
                Err(_) => {}
            }
            thread::sleep(AGAIN);
        };
        if state != RunState::InMigrate {
            self.vm.start_here()?;
            tracing::info!("the VM starts here");
            self.end_hold(&qmp);
        }
        if let Err(error) = self.facts(&qmp) {
            tracing::error!("this VM cannot be migrated: {error:#}");
        }
        Ok(())
    }
}

fn bind(path: &Path, access: Access) -> anyhow::Result<BoundSocket> {
    BoundSocket::bind(path, access).with_context(|| format!("listening on {}", path.display()))
}

fn check_certificates(config: &Config) -> anyhow::Result<()> {
    let Protection::Tls { folder, peers } = &config.protection else {
        return Ok(());
    };
    tls::check(folder, peers).with_context(|| {
        let (path, line) = (config.origin.path.display(), config.origin.link_line);
        format!("{path}:{line}: the link cannot be protected by `tls`")
    })
}

fn bind_sidecar(
    config: &Config,
    access: Access,
    survival: Option<&Survival>,
) -> anyhow::Result<Sidecar> {
    let bounds = sidecar::Config::default;
    let path = &config.sidecar;
    Survival::listening(
        survival,
        "sidecar",
        |left| Ok(Sidecar::over(left.into(), path, bounds(), access)?),
        || Ok(Sidecar::bind_for(path, bounds(), access)?),
    )
}

fn catch_signals(ended: Sender<End>) -> anyhow::Result<()> {
    use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};
    // A file that may not grow is an error of that write, of which the guest or the operator hears, and no
    // reason to end: nobody looks at this flag.
    signal_hook::flag::register(SIGXFSZ, Arc::default())?;
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM])?;
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for signal in signals.forever() {
                let _ = ended.send(End::Signal(signal));
            }
        })?;
    Ok(())
}
