//! `cargo xtask bench doorbell`
//!
//! An `NVMe` controller learns of commands by doorbells. Here they are registers like any other:
//! QEMU *traps* a write to them and posts it as a message. The alternative is a page that QEMU
//! *maps* into the guest. Nothing tells of a write to it, so somebody has to look, all the time or
//! every now and then. Both are measured side by side, on the controller as it is served: a
//! vfio-user connection, the endpoint, its engine. A thread plays the driver; it looks for
//! completions in memory and so waits for no interrupt. The mapped page exists only here, in
//! [`Mapped`].
//!
//! # What was found, and what follows
//!
//! *Doorbells stay trapped*, though a page is faster while the guest is at work. One that is looked
//! at without rest is so by far for a command alone, as nobody has to be woken, neither for the
//! doorbell nor for what the disk has done; and with many under way either page is, as no message
//! has to be sent, taken and handed on. But steady state is to cost nothing, and only trapped
//! doorbells do: while the guest is idle no thread runs. The page takes a processor of the host for
//! each VM, whether its disk is used or not; looked at every 50 us it still takes a good part of
//! one, and a command alone waits longer than for the message. Nor can it be looked at only while
//! there is work: nothing tells of the first doorbell after that, and QEMU does not take a mapping
//! back from a guest.
//!
//! It costs more than time, too. Messages come in their order: a doorbell that was written before
//! bus mastering went off, or the controller was disabled, is there before that is. A page has no
//! order with them. It would have to be looked at once more after every halt, to be cleared by a
//! reset while the guest may write to it, and to be carried to the other host, which QEMU does not
//! do. And QEMU waits for an answer to every other write to a device of which a part is mapped.
//!
//! Doorbells in the guest's own memory (Doorbell Buffer Config, `NVMe` 1.4, section 5.7) are the
//! third way, and the one to take when messages are found to limit a disk: the driver rings only if
//! the controller has asked for it by a word beside them, so they are free while idle and send no
//! message under load. They are left for then, as they make two pages of the guest a part of the
//! saved state, to be read once more before every sleep and after every halt.
//!
//! # What the numbers leave out
//!
//! The vCPU's way to QEMU and through it, which each trapped doorbell takes in a VM and a mapped
//! one does not: it is the same for whoever serves, and comes on top. Interrupts, which are alike
//! in all variants. The trapped variant's client is a thread more than the others have, which counts on
//! two processors.

pub(super) mod client;
mod driver;
mod mapped;

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use device::{Claim, Model};
use endpoint::Endpoint;
use endpoint::engine::Engine;
use nvme::{Controller, ControllerConfig, FileBacking, NamespaceConfig};
use pci::ConfigSpace;
use rustix::time::{ClockId, clock_gettime};
use vfio_user::{Ended, ServeError, Server};

use super::{Report, Table, machine, median, pinned, variants};
use driver::{DISK_LEN, Driver, READ_LEN};
use mapped::{Mapped, Page};

/// For how long the guest does nothing.
const IDLE: Duration = Duration::from_secs(1);
const WARM_UP: Duration = Duration::from_millis(50);

#[derive(Debug, Clone, Copy)]
enum Doorbells {
    /// Registers: each write is a message.
    Trapped,
    /// A page, at which the engine looks with this much rest in between.
    Mapped(Duration),
}

const NAMES: [&str; 3] = [
    "trapped",
    "mapped, polled without rest",
    "mapped, polled every 50 us",
];
const ALL: [Doorbells; 3] = [
    Doorbells::Trapped,
    Doorbells::Mapped(Duration::ZERO),
    Doorbells::Mapped(Duration::from_micros(50)),
];

/// A controller that is served, and its guest.
struct Rig {
    driver: Driver,
    endpoint: Endpoint,
    connection: JoinHandle<Result<Ended, ServeError>>,
    _engine: Engine,
}

pub(super) fn run(quick: bool) -> Result<Report> {
    let (rounds, window) = if quick {
        (1, Duration::from_millis(200))
    } else {
        (9, Duration::from_secs(1))
    };
    let folder = tempfile::Builder::new().prefix("vferry-").tempdir()?;
    let disk = folder.path().join("disk");
    fs::write(&disk, vec![0x5a; DISK_LEN as usize])?;
    let mut quantities: [[Vec<f64>; 3]; 3] = Default::default();
    let mut engine = String::new();
    let [serves, drives] = pinned::two()?;
    for round in 1..=rounds {
        for turn in 0..ALL.len() {
            let which = (round + turn) % ALL.len();
            pinned::run_on(serves)?;
            let mut rig = Rig::start(folder.path(), &disk, ALL[which])?;
            pinned::run_on(drives)?;
            engine = rig.endpoint.inspect()["engine"].to_string();
            let values = rig.measure(window)?;
            rig.stop()?;
            let name = NAMES[which];
            eprintln!("bench: round {round} of {rounds}: {name}: {values:.2?}");
            for (quantity, value) in quantities.iter_mut().zip(values) {
                quantity[which].push(value);
            }
        }
    }
    let [latency, rate, idle] = quantities.map(|runs| variants(NAMES, runs));
    let table = |what, variants| Table { what, variants };
    Ok(Report {
        name: "doorbell",
        machine: format!(
            "{}, engine {engine}, reads of {READ_LEN} bytes from the page cache, {} ms of them for each \
             value",
            machine()?,
            window.as_millis()
        ),
        tables: vec![
            table("A command alone, median, microseconds", latency),
            table("Commands per second, 32 under way", rate),
            table(
                "While the guest is idle, milliseconds of processor time per second",
                idle,
            ),
        ],
        notes: vec![
            "Doorbells stay trapped: a page that is looked at is faster and takes a processor, or much of one, for \
             each VM whose disk is idle. What a trapped one takes is the message and the wake-up of the thread that \
             serves it; `mmio` has both alone."
                .to_owned(),
        ],
        ..Report::default()
    })
}

impl Rig {
    fn start(folder: &Path, disk: &Path, doorbells: Doorbells) -> Result<Self> {
        let mut controller = Controller::new(ControllerConfig {
            serial: "bench".into(),
            queues: 1,
            namespaces: vec![NamespaceConfig {
                backing: Box::new(FileBacking::open(disk)?),
                block_size: 512,
            }],
        })?;
        controller.acquire(Claim::Start)?;
        let (model, page): (Box<dyn Model>, _) = match doorbells {
            Doorbells::Trapped => (Box::new(controller), None),
            Doorbells::Mapped(rest) => {
                let page = Page::new()?;
                let model = Mapped::new(controller, page.clone(), rest);
                (Box::new(model), Some(page))
            }
        };
        let space = ConfigSpace::of(&nvme::spec::pci::LAYOUT);
        let endpoint = Endpoint::new("disk0", space, model)?;
        let engine = Engine::start(&endpoint)?;
        let socket: PathBuf = folder.join("disk0.sock");
        let server = Server::bind(&socket)?;
        let mut frontend = endpoint.frontend();
        let connection = std::thread::Builder::new()
            .name("vfio-disk0".into())
            .spawn(move || server.serve_one(&mut frontend))?;
        Ok(Self {
            driver: Driver::start(&socket, page).context("the guest does not come up")?,
            endpoint,
            connection,
            _engine: engine,
        })
    }

    fn measure(&mut self, window: Duration) -> Result<[f64; 3]> {
        self.driver.one_by_one(WARM_UP)?;
        let latency = median(&self.driver.one_by_one(window)?);
        let rate = self.driver.many(window)?;
        // Of what is not the serving side, there is this thread, which sleeps.
        let before = processor_time();
        std::thread::sleep(IDLE);
        let idle = processor_time().saturating_sub(before).as_secs_f64() * 1e3 / IDLE.as_secs_f64();
        Ok([latency, rate, idle])
    }

    /// Gives the disk back.
    fn stop(self) -> Result<()> {
        drop(self.driver);
        let ended = self.connection.join();
        let ended = ended.map_err(|_| anyhow::anyhow!("the server panicked"))??;
        ensure!(ended == Ended::Disconnected, "the server stopped");
        Ok(())
    }
}

/// Of all threads of this process.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(time).expect("no clock of a process runs below 0")
}
