//! One host: a vferry process and its QEMU.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use authority::{Authority, Subject, Validity};
use ferry::cooperative::Deadlines;
use lab::{Guarded, Initrd, Lab, Vm};
use qemu::Iommu;
use vferry::control::Status;

use crate::small_disk::SmallDisk;
use crate::{HostFiles, Programs, load};

/// How long vferry may take until it serves its sockets.
const START: Duration = Duration::from_secs(10);

/// How long a guest may take to begin to track what devices write: long where it has a share of two
/// processors on which its kernel is translated, and nobody stands still for it.
const TRACK: Duration = Duration::from_secs(30);

/// The name by which hosts know each other that have certificates.
const HOST_NAME: &str = "host.example";

/// What the two hosts of a migration have in common.
#[derive(Debug, Clone)]
pub struct HostOptions {
    /// Guest memory in bytes.
    pub memory: u64,
    /// Where the guest's NIC is plugged in.
    pub wire: PathBuf,
    /// The guest has a NIC.
    pub nic: bool,
    /// The file behind the guest's `NVMe` controller, which all hosts see; it has none if `None`.
    pub disk: Option<PathBuf>,
    /// Longest pause that QEMU may plan.
    pub downtime_limit: Duration,
    /// A law to switch off: the argument of `--unsound-control`.
    pub unsound_control: Option<String>,
    /// Most bytes per second that a source sends; `None` is no limit.
    pub max_bandwidth: Option<u64>,
    /// Where the sidecar sits on the guest's PCI bus.
    pub sidecar_address: String,
    /// Where the NIC sits on the guest's PCI bus.
    pub nic_address: String,
    /// Root ports sit where NIC and `NVMe` controller would, and these behind them.
    pub root_ports: bool,
    /// The virtual IOMMU that all of them are behind.
    pub iommu: Option<Iommu>,
    /// The firmware's image; QEMU's own if `None`.
    pub firmware: Option<PathBuf>,
    /// Firmware is given no kernel to boot.
    pub without_kernel: bool,
    /// More modules to load at boot.
    pub modules: Vec<String>,
    /// More for the kernel's command line.
    pub append: String,
    /// More for QEMU's.
    pub args: Vec<String>,
    /// Files to be put into the guest's `/bin`, and their names there.
    pub files: Vec<(PathBuf, String)>,
    /// Programs of the lab's packages to be put there too, by their paths in these.
    pub packaged: Vec<String>,
    /// The control device, if there is one.
    pub guest: Option<GuestOptions>,
    /// Who knows what the devices write: `device` or `guest`.
    pub dirty_log: String,
    /// Who signs the certificates with which the hosts know each other; all is plain if `None`.
    pub tls: Option<Arc<Authority>>,
    /// What it shows of itself, and whom it takes, where there are certificates.
    pub identity: Identity,
    /// A streaming test device beside the NIC, and the test driver's module and parameters.
    pub stream: Option<(PathBuf, String)>,
    /// How often a keeper starts another process when the one that serves the devices dies; there is none if
    /// `None`.
    pub deaths_per_minute: Option<u32>,
    /// Where its own files are.
    pub host_files: HostFiles,
    /// Where the service manager listens of which vferry is a unit; of none if `None`.
    pub notify: Option<PathBuf>,
}

/// A host among others that have certificates.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The name in its certificates.
    pub name: &'static str,
    /// When they are valid.
    pub validity: Validity,
    /// The one host that it takes.
    pub peer: &'static str,
}

impl Default for Identity {
    /// A host like all others.
    fn default() -> Self {
        Self {
            name: HOST_NAME,
            validity: Validity::Now,
            peer: HOST_NAME,
        }
    }
}

/// The control device and the guest's driver for it.
#[derive(Debug, Clone)]
pub struct GuestOptions {
    /// vferry's module for the guest's kernel, and its parameters; none is loaded if `None`.
    pub module: Option<(PathBuf, String)>,
    /// How long the guest may take to stop its devices.
    pub quiesce_deadline: Duration,
}

/// A running host. Dropping it ends both processes.
#[derive(Debug)]
pub struct Host {
    /// Its configuration file.
    pub config: PathBuf,
    /// Its link, as `vferry migrate --to` takes it.
    pub link: String,
    /// Its QEMU.
    pub vm: Vm,
    vferry: PathBuf,
    log: PathBuf,
    process: Guarded,
    // After those who write there.
    small_disk: Option<SmallDisk>,
}

impl Host {
    /// Gives the guest's interface its address and takes it up.
    ///
    /// # Errors
    /// When the guest cannot, or does not within `limit`.
    pub fn bring_up(&self, limit: Duration) -> Result<()> {
        load::bring_up(&self.vm, limit)
    }

    /// vferry's process.
    pub fn vferry_pid(&self) -> u32 {
        self.process.id()
    }

    /// Starts vferry, then QEMU with the arguments that vferry prints. With `incoming` it waits for
    /// a VM, else it boots one.
    ///
    /// # Errors
    /// When either does not start, with what it says.
    pub fn start(
        lab: &Lab,
        programs: &Programs,
        folder: &Path,
        name: &str,
        options: &HostOptions,
        incoming: bool,
    ) -> Result<Self> {
        let folder = folder.join(name);
        fs::create_dir_all(&folder)?;
        let small_disk = match options.host_files {
            HostFiles::Together => None,
            HostFiles::Apart => Some(SmallDisk::mount(&folder)?),
        };
        let config = folder.join("vm.toml");
        let link = link(&folder, options)?;
        fs::write(&config, configuration(&folder, &link, options))?;
        let log = folder.join("vferry.log");
        let mut run = Command::new(&programs.vferry);
        run.arg("run").arg(&config);
        if let Some(law) = &options.unsound_control {
            run.args(["--unsound-control", law]);
        }
        if let Some(socket) = &options.notify {
            run.env("NOTIFY_SOCKET", socket);
        }
        if options.tls.is_some() {
            run.env("VFERRY_LOG", "trace");
        }
        let process = Guarded::spawn(run, &File::create(&log)?)?;
        wait_served(&process, &folder.join("control.sock"))
            .with_context(|| format!("vferry said:\n{}", read(&log)))?;
        let mut initrd = Initrd::new();
        // Before any driver whose devices it is to track.
        if let Some((module, parameters)) = options.module() {
            initrd = initrd.module_file(module, parameters);
        }
        if let Some((module, parameters)) = &options.stream {
            initrd = initrd.module_file(module, parameters);
        }
        for (file, name) in &options.files {
            initrd = initrd.program(file, name);
        }
        for path in &options.packaged {
            initrd = initrd.packaged(path);
        }
        for module in &options.modules {
            initrd = initrd.module(module);
        }
        let initrd = initrd
            .module("ixgbevf")
            .module("8021q")
            .module("evdev")
            .program(&programs.guest, "lab-guest");
        let mut builder = Vm::builder(lab, &folder, "qemu")
            .machine_from_args()
            .initrd(initrd)
            .append(&options.append)
            .args(qemu_args(&programs.vferry, &config)?)
            .args(options.args.clone());
        if let Some(image) = &options.firmware {
            builder = builder.args(["-bios".to_owned(), image.display().to_string()]);
        }
        if options.without_kernel {
            builder = builder.without_kernel();
        }
        if incoming {
            builder = builder.incoming();
        }
        let vm = builder
            .spawn()
            .with_context(|| format!("vferry said:\n{}", read(&log)))?;
        Ok(Self {
            config,
            link,
            vm,
            vferry: programs.vferry.clone(),
            log,
            process,
            small_disk,
        })
    }

    /// The `vferry` program.
    pub fn vferry(&self) -> &Path {
        &self.vferry
    }

    /// A `vferry` command about this host's VM.
    pub fn command(&self, name: &str) -> Command {
        let mut command = Command::new(&self.vferry);
        command.arg(name).arg(&self.config);
        command
    }

    /// What `vferry status` says.
    ///
    /// # Errors
    /// When it fails.
    pub fn status(&self) -> Result<Status> {
        let output = self.command("status").arg("--json").output()?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Where vferry logs.
    pub(crate) fn log_file(&self) -> &Path {
        &self.log
    }

    /// What vferry has logged.
    pub fn log(&self) -> String {
        read(&self.log)
    }

    /// The vferry process.
    pub fn process(&self) -> &Guarded {
        &self.process
    }

    /// Kills both processes, as when the host's power is cut. They have ended when this returns.
    pub fn kill(&self) {
        self.process.kill();
        self.vm.kill();
    }

    /// Its folder's own file system.
    ///
    /// # Errors
    /// When it has none.
    pub(crate) fn small_disk(&self) -> Result<&SmallDisk> {
        let disk = self.small_disk.as_ref();
        disk.context("its folder is no file system of its own")
    }

    /// Ends QEMU, and sees vferry end after it by itself.
    ///
    /// # Errors
    /// When vferry does not.
    pub fn end(self, limit: Duration) -> Result<()> {
        let Self {
            vm, process, log, ..
        } = self;
        vm.quit(limit)?;
        match process.wait(Instant::now() + limit) {
            Some(status) if status.success() => Ok(()),
            Some(status) => bail!("vferry ended with {status}; it said:\n{}", read(&log)),
            None => bail!(
                "vferry outlived its QEMU by {limit:?}; it said:\n{}",
                read(&log)
            ),
        }
    }
}

impl HostOptions {
    /// A plain host, whose guest has so many bytes of memory and a NIC that is plugged in at `wire`.
    pub fn new(memory: u64, wire: PathBuf) -> Self {
        Self {
            memory,
            wire,
            nic: true,
            disk: None,
            downtime_limit: Duration::from_millis(10),
            unsound_control: None,
            max_bandwidth: None,
            sidecar_address: "00:06.1".into(),
            nic_address: "00:05.0".into(),
            root_ports: false,
            iommu: None,
            firmware: None,
            without_kernel: false,
            modules: Vec::new(),
            append: String::new(),
            args: Vec::new(),
            files: Vec::new(),
            packaged: Vec::new(),
            guest: None,
            dirty_log: "device".into(),
            tls: None,
            identity: Identity::default(),
            stream: None,
            deaths_per_minute: None,
            host_files: HostFiles::Together,
            notify: None,
        }
    }

    fn module(&self) -> Option<&(PathBuf, String)> {
        self.guest.as_ref()?.module.as_ref()
    }
}

/// The control device's part of a configuration whose sockets are in `folder`.
pub(crate) fn guest_section(folder: &Path, deadlines: Deadlines) -> String {
    let folder = folder.display();
    let [track, quiesce, restart] =
        [deadlines.track, deadlines.quiesce, deadlines.end].map(|deadline| deadline.as_millis());
    format!(
        r#"
[guest]
socket = "{folder}/guest.sock"
address = "00:07.0"
track-deadline-ms = {track}
quiesce-deadline-ms = {quiesce}
restart-deadline-ms = {restart}
"#
    )
}

fn stream_section(folder: &Path, options: &HostOptions) -> String {
    let folder = folder.display();
    let dirty_log = &options.dirty_log;
    format!(
        r#"
[[device]]
name = "stream0"
model = "stream"
socket = "{folder}/stream0.sock"
address = "00:08.0"
dirty-log = "{dirty_log}"
"#
    )
}

fn nic_section(folder: &Path, options: &HostOptions) -> String {
    let folder = folder.display();
    let wire = options.wire.display();
    let HostOptions {
        nic_address,
        root_ports,
        dirty_log,
        ..
    } = options;
    format!(
        r#"
[[device]]
name = "net0"
model = "ixgbevf"
socket = "{folder}/net0.sock"
address = "{nic_address}"
root-port = {root_ports}
dirty-log = "{dirty_log}"
mac = "02:00:00:00:00:02"
uplink = "wire:{wire}"
"#
    )
}

fn disk_section(folder: &Path, file: &Path, options: &HostOptions) -> String {
    let folder = folder.display();
    let file = file.display();
    let HostOptions {
        root_ports,
        dirty_log,
        ..
    } = options;
    format!(
        r#"
[[device]]
name = "disk0"
model = "nvme"
socket = "{folder}/disk0.sock"
address = "00:09.0"
root-port = {root_ports}
dirty-log = "{dirty_log}"
file = "{file}"
serial = "LAB0"
queues = 8
"#
    )
}

/// Where the other host reaches vferry, and its certificates if it has any.
fn link(folder: &Path, options: &HostOptions) -> Result<String> {
    let Some(authority) = &options.tls else {
        return Ok(format!("unix:{}", folder.join("link.sock").display()));
    };
    let Identity { name, validity, .. } = options.identity;
    let names = [name];
    let subject = Subject {
        validity,
        ..Subject::new(&names)
    };
    authority.write(&folder.join("tls"), &subject)?;
    // Free again until vferry listens there; nobody else takes one that the system has just given.
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    Ok(format!("tcp:127.0.0.1:{port}"))
}

fn configuration(folder: &Path, link: &str, options: &HostOptions) -> String {
    let guest = options.guest.as_ref();
    let mut rest = guest.map_or(String::new(), |guest| {
        let deadlines = Deadlines {
            track: TRACK,
            quiesce: guest.quiesce_deadline,
            ..Deadlines::default()
        };
        guest_section(folder, deadlines)
    });
    if options.nic {
        rest += &nic_section(folder, options);
    }
    if let Some(file) = &options.disk {
        rest += &disk_section(folder, file, options);
    }
    if let Some(deaths) = options.deaths_per_minute {
        rest += "\n[keeper]\ndeaths-per-minute = ";
        rest += &deaths.to_string();
        rest += "\n";
    }
    if options.stream.is_some() {
        rest += &stream_section(folder, options);
    }
    let folder = folder.display();
    let memory = options.memory >> 20;
    let limit = options.downtime_limit.as_millis();
    let bandwidth = options.max_bandwidth.unwrap_or(0);
    let sidecar_address = &options.sidecar_address;
    let iommu = options
        .iommu
        .map_or(String::new(), |iommu| format!("iommu = \"{iommu}\""));
    let tls = options.tls.as_ref().map_or(String::new(), |_| {
        let peer = options.identity.peer;
        format!("tls = \"{folder}/tls\"\npeers = [\"{peer}\"]")
    });
    format!(
        r#"[vm]
name = "lab"
memory = "{memory}M"

[qemu]
qmp = "{folder}/vferry-qmp.sock"
{iommu}

[control]
socket = "{folder}/control.sock"

[sidecar]
socket = "{folder}/sidecar.sock"
address = "{sidecar_address}"

[migration]
link = "{link}"
incoming = "unix:{folder}/incoming.sock"
downtime-limit-ms = {limit}
max-bandwidth = "{bandwidth}"
{tls}
{rest}"#
    )
}

fn qemu_args(vferry: &Path, config: &Path) -> Result<Vec<String>> {
    let output = Command::new(vferry)
        .arg("qemu-args")
        .arg("--json")
        .arg(config)
        .output()?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The control socket comes last of all that vferry opens.
fn wait_served(process: &Guarded, control: &Path) -> Result<()> {
    let deadline = Instant::now() + START;
    while UnixStream::connect(control).is_err() {
        if let Some(status) = process.exit_status() {
            bail!("vferry did not start ({status})");
        }
        ensure!(
            Instant::now() < deadline,
            "vferry did not serve its sockets within {START:?}"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn read(path: &Path) -> String {
    fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}
