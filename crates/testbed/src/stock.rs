//! What is without vferry: a guest that has only QEMU's own devices, moved by QEMU alone.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lab::{Initrd, Lab, Vm, VmBuilder};
use load_format::Silence;
use qemu::args::{QemuArgs, option_value};
use qemu::migration::{MigrationInfo, MigrationSettings, MigrationStatus};
use qemu::{Event, Qmp, QmpError};
use serde_json::json;
use uplink::Peer;
use uplink::peer::now_nanos;

use crate::load::{self, AROUND, BOOT, COMMAND, ISOLATE, Load, Work};
use crate::migration::ms;
use crate::options::Options;
use crate::pause::Watch;
use crate::processors::start_on;
use crate::still::Still;
use crate::{HostOptions, Programs};

/// The same as that of vferry's NIC.
const MAC: &str = "02:00:00:00:00:02";
/// The id of the function that is taken from a guest.
const FUNCTION: &str = "function";
/// How often a migration is looked at, as vferry does.
const TICK: Duration = Duration::from_millis(100);
const MIGRATION: Duration = Duration::from_mins(2);
const END: Duration = Duration::from_secs(10);
/// Waits until it is. An interface that is down or just going has no `carrier` to be read.
const LINK_UP: &str =
    "until grep -qs 1 /sys/bus/pci/drivers/igb/0*/net/*/carrier; do usleep 20000; done";

/// Which of QEMU's devices a guest has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stock {
    /// A virtio NIC.
    VirtioNet,
    /// The same as a standby of an emulated 82576 (`igb`), which is what those have today who pass a
    /// function through: it is taken from the guest before it moves, and one of the other host's is
    /// given to it afterwards. QEMU would do so by itself (`docs/system/virtio-net-failover.rst`), but
    /// not with an `igb`, which takes itself for one of several functions.
    Replug,
    /// A virtio disk, in a file that all hosts see.
    VirtioBlk,
}

/// A guest, its QEMU, and the peer at the other end of its network.
#[derive(Debug)]
pub struct StockTestbed {
    /// Where the guest is.
    pub vm: Vm,
    /// The other end of its network.
    pub peer: Peer,
    stock: Stock,
    lab: Lab,
    programs: Programs,
    options: Options,
    wire: PathBuf,
    disk: Option<PathBuf>,
    hosts: u32,
    folder: tempfile::TempDir,
}

/// One migration by QEMU alone.
#[derive(Debug, Clone)]
pub struct StockMigration {
    /// The VM's pause: see [`Migration::pause_ms`](crate::Migration::pause_ms).
    pub pause_ms: f64,
    /// See [`Migration::word_ms`](crate::Migration::word_ms).
    pub word_ms: f64,
    /// What QEMU tells of it.
    pub info: MigrationInfo,
    /// The longest silence of the guest's NIC either way, if it has one.
    pub silence_ms: Option<f64>,
    /// Longest time without a completed operation of its disk, if it has one: see
    /// [`Migration::disk_outage_ms`](crate::Migration::disk_outage_ms).
    pub disk_outage_ms: Option<f64>,
    /// How long the guest had no function, if one was taken from it: from QEMU's word that it has let
    /// go of it until the link of the other host's is up.
    pub without_function_ms: Option<f64>,
}

impl StockTestbed {
    /// Boots a guest and waits until all load flows. Of `options`, memory, load and what is for the
    /// guest's kernel count; QEMU migrates with the same limits as a [`Host`](crate::Host)'s vferry.
    ///
    /// # Errors
    /// When any part does not come up, with what it says.
    pub fn start(lab: Lab, programs: Programs, stock: Stock, options: Options) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("vferry-").tempdir()?;
        let wire = folder.path().join("wire.sock");
        let packets = if stock.is_nic() {
            options.packets_per_second
        } else {
            0
        };
        let peer = load::peer(&wire, packets)?;
        let disk = (!stock.is_nic()).then(|| load::disk(folder.path()));
        let disk = disk.transpose()?;
        let start = || {
            let builder = Vm::builder(&lab, folder.path(), "1");
            with_devices(builder, &programs, stock, &options, &wire, disk.as_deref()).spawn()
        };
        let vm = start_on(options.processors.as_ref(), 1, start, |vm| vm)?;
        let this = Self {
            vm,
            peer,
            stock,
            lab,
            programs,
            options,
            wire,
            disk,
            hosts: 1,
            folder,
        };
        this.vm.wait_ready(BOOT)?;
        if stock.is_nic() {
            load::bring_up(&this.vm, COMMAND)?;
        }
        this.plug()?;
        this.load().start()?;
        Ok(this)
    }

    /// See [`Testbed::still`](crate::Testbed::still).
    ///
    /// # Errors
    /// As there.
    pub fn still(&self) -> Result<Still> {
        Still::of(&self.load())
    }

    /// Moves the guest to another QEMU by QMP, under load, and ends the old one.
    ///
    /// # Errors
    /// When the migration fails or the guest is not well afterwards.
    pub fn migrate(&mut self) -> Result<StockMigration> {
        let next = self.next()?;
        self.load().wait()?;
        std::thread::sleep(AROUND);
        let since = now_nanos();
        let disk_before = self.load().disk_report()?;
        let watch = Watch::begin(self.vm.qmp(), next.qmp());
        let unplugged = self.unplug()?;
        let uri = format!(
            "unix:{}",
            self.folder.path().join("incoming.sock").display()
        );
        let settings = settings(&self.options);
        next.qmp().prepare_migration(&settings)?;
        next.qmp().migrate_incoming(&uri)?;
        self.vm.qmp().prepare_migration(&settings)?;
        let info = send(self.vm.qmp(), &uri)
            .with_context(|| format!("{}\n{}", self.vm.evidence(), next.evidence()))?;
        let old = std::mem::replace(&mut self.vm, next);
        self.plug()?;
        let without_function_ms = unplugged.map(|at| at.elapsed().as_secs_f64() * 1e3);
        self.load().wait().with_context(|| self.vm.evidence())?;
        let window = self.peer.window(since, now_nanos());
        let pause = watch.pause(old.qmp())?;
        let disk = disk_before.zip(self.load().disk_report()?);
        let silence = disk.map(|(before, after)| load::disk_silence_ms(&before, &after));
        old.quit(END)?;
        let silent = |silence: Silence| ms(&silence);
        Ok(StockMigration {
            pause_ms: pause.all_ms,
            word_ms: pause.word_ms,
            info,
            silence_ms: window.outage().filter(|_| self.stock.is_nic()).map(silent),
            disk_outage_ms: silence.map(|ms| ms + pause.all_ms),
            without_function_ms,
        })
    }

    /// Another QEMU, which waits for the guest.
    fn next(&mut self) -> Result<Vm> {
        self.hosts += 1;
        let name = self.hosts.to_string();
        let disk = self.disk.as_deref();
        let (programs, options) = (&self.programs, &self.options);
        let start = || {
            let builder = Vm::builder(&self.lab, self.folder.path(), &name).incoming();
            with_devices(builder, programs, self.stock, options, &self.wire, disk).spawn()
        };
        start_on(options.processors.as_ref(), self.hosts, start, |vm| vm)
    }

    /// Gives the guest its function, if it is to have one, and waits until its link is up.
    fn plug(&self) -> Result<()> {
        if self.stock == Stock::Replug {
            let igb = json!({
                "driver": "igb", "id": FUNCTION, "bus": "port0", "netdev": "net0", "mac": MAC
            });
            self.vm.qmp().execute("device_add", igb)?;
            self.vm.shell(LINK_UP, COMMAND)?.success()?;
        }
        Ok(())
    }

    /// Takes it from the guest, and says when it had let go of it.
    fn unplug(&self) -> Result<Option<Instant>> {
        if self.stock != Stock::Replug {
            return Ok(None);
        }
        let mut events = self.vm.qmp().events();
        let function = json!({ "id": FUNCTION });
        self.vm.qmp().execute("device_del", function)?;
        let gone = |event: &Event| event.data["device"] == FUNCTION;
        let deadline = Instant::now() + COMMAND;
        let event = events.wait_for("DEVICE_DELETED", gone, deadline);
        Ok(Some(
            event.context("the guest keeps its function")?.received,
        ))
    }

    fn load(&self) -> Load<'_> {
        Load {
            vm: &self.vm,
            peer: &self.peer,
            work: Work {
                nic: self.stock.is_nic(),
                disk: (!self.stock.is_nic()).then_some("/dev/vda"),
                disk_max_kib: self.options.disk_max_kib,
                dirty: self.options.dirty,
            },
        }
    }
}

impl Stock {
    fn is_nic(self) -> bool {
        self != Self::VirtioBlk
    }

    /// The guest's drivers.
    fn modules(self) -> &'static [&'static str] {
        match self {
            Self::VirtioNet => &["virtio_net"],
            Self::Replug => &["virtio_net", "igb"],
            Self::VirtioBlk => &["virtio_blk"],
        }
    }

    fn args(self, wire: &Path, disk: Option<&Path>) -> QemuArgs {
        let wire = option_value(&wire.to_string_lossy());
        let stream = |id| format!("stream,id={id},server=off,addr.type=unix,addr.path={wire}");
        let args = QemuArgs::new();
        match self {
            Self::VirtioNet => args.args(["-netdev".to_owned(), stream("net0")]).args([
                "-device".to_owned(),
                format!("virtio-net-pci,netdev=net0,mac={MAC}"),
            ]),
            Self::Replug => args
                .args(["-device", "pcie-root-port,id=port0,chassis=1,slot=1"])
                .args(["-netdev".to_owned(), stream("standby")])
                .args([
                    "-device".to_owned(),
                    format!("virtio-net-pci,netdev=standby,id=standby,mac={MAC},failover=on"),
                ])
                .args(["-netdev".to_owned(), stream("net0")]),
            Self::VirtioBlk => {
                let file = disk.map(Path::to_string_lossy).unwrap_or_default();
                let file = option_value(&file);
                args.args([
                    "-drive".to_owned(),
                    format!("if=none,id=disk0,format=raw,file={file},aio=io_uring,discard=unmap"),
                ])
                .args(["-device", "virtio-blk-pci,drive=disk0"])
            }
        }
    }
}

fn with_devices<'a>(
    builder: VmBuilder<'a>,
    programs: &Programs,
    stock: Stock,
    options: &Options,
    wire: &Path,
    disk: Option<&Path>,
) -> VmBuilder<'a> {
    let mut initrd = Initrd::new();
    for module in stock.modules() {
        initrd = initrd.module(module);
    }
    builder
        .memory(options.memory)
        .initrd(initrd.program(&programs.guest, "lab-guest"))
        .append(&format!("{ISOLATE} {}", options.append))
        .args(stock.args(wire, disk).into_vec())
}

/// Those of vferry's configuration in the lab.
fn settings(options: &Options) -> MigrationSettings {
    let host = HostOptions::new(options.memory, PathBuf::new());
    MigrationSettings {
        pause_before_switchover: false,
        max_bandwidth: Some(options.max_bandwidth.unwrap_or(0)),
        downtime_limit: Some(host.downtime_limit),
        switchover_bandwidth: None,
    }
}

/// Sends a VM, and says what QEMU tells of that.
fn send(qmp: &Qmp, uri: &str) -> Result<MigrationInfo> {
    let deadline = Instant::now() + MIGRATION;
    let mut events = qmp.events();
    qmp.migrate(uri)?;
    loop {
        match events.next(Instant::now() + TICK) {
            Ok(_) | Err(QmpError::Timeout { .. } | QmpError::EventsLost { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let info = qmp.migration()?;
        match &info.status {
            MigrationStatus::Completed => return Ok(info),
            status if status.is_over() => bail!("{status:?}: {:?}", info.error_desc),
            _ => ensure!(Instant::now() < deadline, "still under way: {info:?}"),
        }
    }
}
