//! A guest under load on one host, and its way to the next.

use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use authority::Authority;
use ferry::{Report, Strategy};
use lab::{Lab, progress_on_stderr};
use load_format::GuestReport;
use qemu::system::RunState;
use uplink::Peer;
use uplink::peer::now_nanos;
use vferry::control::Reply;
use vferry::rehearsal::Rehearsal;

use crate::load::{self, AROUND, BOOT, COMMAND, ISOLATE, Load, Work};
use crate::migration::{Interrupts, Migration};
use crate::options::{Between, Boot, Help, Options, Plug};
use crate::pause::Watch;
use crate::processors::start_on;
use crate::still::Still;
use crate::{GuestOptions, Host, HostOptions, Programs};

/// The peer's address.
pub const PEER_IP: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The guest's address, in a network of 24 bits.
pub const GUEST_IP: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
const END: Duration = Duration::from_secs(10);
/// How long a guest may take to fall asleep.
const ASLEEP: Duration = Duration::from_mins(1);
/// The `NVMe` driver has a queue for each vCPU; this gives it two more, and tells reads from writes.
const QUEUES: &str = "nvme.write_queues=2";
/// Where the guest has its disk.
const DISK_NODE: &str = "/dev/nvme0n1";
/// QEMU now and then stops a VM before its guest has been asked, for all that holds it back
/// (`ferry::cooperative`'s `hold`): nothing is lost, and the user is told this.
const AGAIN: &str = "migrate again";
/// What a distribution's session manager does with the key, by busybox's `acpid`: event type, name,
/// code and value, then the event's name, for which there is an action.
const REACT_TO_KEY: &str = "pidof acpid || (mkdir -p /etc/acpi && \
     echo 'EV_KEY 1 KEY_SLEEP 142 1 button/sleep SLPB' > /etc/acpid.map && \
     echo 'SLPB sleep' > /etc/acpid.conf && \
     printf '#!/bin/sh\\necho mem > /sys/power/state\\n' > /etc/acpi/sleep && \
     chmod 755 /etc/acpi/sleep && \
     (acpid -d -c /etc/acpi -a /etc/acpid.conf -M /etc/acpid.map > /tmp/acpid.log 2>&1 &))";

/// A guest, its host, and the peer at the other end of its network.
#[derive(Debug)]
pub struct Testbed {
    /// Where the guest is.
    pub host: Host,
    /// The other end of the guest's network.
    pub peer: Peer,
    lab: Lab,
    programs: Programs,
    options: Options,
    host_options: HostOptions,
    hosts: u32,
    folder: tempfile::TempDir,
}

impl Testbed {
    /// Boots a guest and waits until all load flows.
    ///
    /// # Errors
    /// When any part does not come up, with what it says.
    pub fn start(lab: Lab, programs: Programs, options: Options) -> Result<Self> {
        let this = Self::power_on(lab, programs, options)?;
        this.host.vm.wait_ready(BOOT)?;
        if this.options.devices.nic() {
            this.bring_up()?;
        }
        if this.options.load {
            this.start_load()?;
        }
        Ok(this)
    }

    /// Powers a guest on, and does not wait for it to boot.
    ///
    /// # Errors
    /// When vferry or QEMU does not start, with what it says.
    pub fn power_on(lab: Lab, programs: Programs, options: Options) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("vferry-").tempdir()?;
        let wire = folder.path().join("wire.sock");
        let packets = if options.load && options.devices.nic() {
            options.packets_per_second
        } else {
            0
        };
        let peer = load::peer(&wire, packets)?;
        let guest = guest_options(&lab, &options)?;
        let stream = options.stream.as_ref();
        let stream = stream.map(|parameters| stream_module(&lab, parameters));
        let dirty_log = if options.dirty_log_of_guest {
            "guest"
        } else {
            "device"
        };
        let host_options = HostOptions {
            unsound_control: options.unsound_control.clone(),
            max_bandwidth: options.max_bandwidth,
            sidecar_address: options.sidecar_address.clone(),
            nic: options.devices.nic(),
            disk: options
                .devices
                .disk()
                .then(|| load::disk(folder.path()))
                .transpose()?,
            root_ports: options.plug == Plug::RootPort,
            iommu: options.iommu,
            firmware: options.firmware.clone(),
            without_kernel: options.boot == Boot::Firmware,
            modules: options.modules.clone(),
            append: format!("{ISOLATE} {QUEUES} {}", options.append),
            args: options.args.clone(),
            files: options.files.clone(),
            guest,
            dirty_log: dirty_log.into(),
            stream: stream.transpose()?,
            deaths_per_minute: options.deaths_per_minute,
            host_files: options.host_files,
            notify: options.notify.clone(),
            tls: match options.between {
                Between::Sockets => None,
                Between::Tls => Some(Arc::new(Authority::new()?)),
            },
            ..HostOptions::new(options.memory, wire)
        };
        let start = || Host::start(&lab, &programs, folder.path(), "1", &host_options, false);
        let host = start_on(options.processors.as_ref(), 1, start, |host| &host.vm)?;
        Ok(Self {
            host,
            peer,
            lab,
            programs,
            options,
            host_options,
            hosts: 1,
            folder,
        })
    }

    /// Runs a command in the guest, which must succeed.
    ///
    /// # Errors
    /// When it does not, with what it says.
    pub fn shell(&self, command: &str) -> Result<String> {
        self.host.vm.shell(command, COMMAND)?.success()
    }

    /// Where further stations of the guest's network plug in, as a [`uplink::Wire`].
    pub fn wire(&self) -> &Path {
        &self.host_options.wire
    }

    /// Gives the guest's interface its address and takes it up, as after boot; again when the
    /// interface was removed meanwhile.
    ///
    /// # Errors
    /// When the guest cannot.
    pub fn bring_up(&self) -> Result<()> {
        self.host.bring_up(COMMAND)
    }

    /// What the guest's load has counted.
    ///
    /// # Errors
    /// When the guest does not answer.
    pub fn guest_report(&self) -> Result<GuestReport> {
        self.load().report()
    }

    /// The same, once a guest with a disk has read again all that it has written there.
    ///
    /// # Errors
    /// When the guest does not answer.
    pub fn final_report(&self) -> Result<GuestReport> {
        if self.load().disk_report()?.is_some() {
            self.shell("lab-guest verify > /dev/null")?;
        }
        self.guest_report()
    }

    /// Waits until every kind of load has flowed both ways since now.
    ///
    /// # Errors
    /// When one does not, with what vferry and QEMU say.
    pub fn wait_for_traffic(&self) -> Result<()> {
        self.load().wait().with_context(|| {
            let guest = self.shell("dmesg | tail -n 40");
            format!(
                "QEMU said:\n{}\nvferry said:\n{}\nthe guest said:\n{}",
                self.host.vm.log(),
                self.host.log(),
                guest.unwrap_or_else(|error| error.to_string())
            )
        })
    }

    /// The same after a VM that stood still for long: TCP tries again after twice the time each time, and so may
    /// be silent for as long again; and after its next loss for twice as long.
    ///
    /// # Errors
    /// As [`wait_for_traffic`](Self::wait_for_traffic).
    pub fn wait_for_late_traffic(&self) -> Result<()> {
        self.wait_for_traffic().or_else(|_| self.wait_for_traffic())
    }

    pub(crate) fn load(&self) -> Load<'_> {
        let disk = self.options.devices.disk() && self.options.load;
        Load {
            vm: &self.host.vm,
            peer: &self.peer,
            work: Work {
                nic: self.options.devices.nic(),
                disk: disk.then_some(DISK_NODE),
                disk_max_kib: self.options.disk_max_kib,
                dirty: self.options.dirty,
            },
        }
    }

    /// From the next migration on memory is compared so; see [`Options::compare`].
    pub fn set_compare(&mut self, compare: Option<&'static str>) {
        self.options.compare = compare;
    }

    /// Starts a host that waits for the guest.
    ///
    /// # Errors
    /// When it does not start.
    pub fn next_host(&mut self) -> Result<Host> {
        self.another_host(&self.next_host_options(), true)
    }

    /// What [`Testbed::next_host`] starts a host with.
    pub fn next_host_options(&self) -> HostOptions {
        HostOptions {
            max_bandwidth: None,
            ..self.host_options.clone()
        }
    }

    /// Starts a host that waits for a guest, or boots one of its own.
    ///
    /// # Errors
    /// When it does not start.
    pub fn another_host(&mut self, options: &HostOptions, incoming: bool) -> Result<Host> {
        self.hosts += 1;
        let name = self.hosts.to_string();
        let start = || {
            Host::start(
                &self.lab,
                &self.programs,
                self.folder.path(),
                &name,
                options,
                incoming,
            )
        };
        let processors = self.options.processors.as_ref();
        start_on(processors, self.hosts, start, |host| &host.vm)
    }

    /// What the guest's devices are silent for while it stays where it is. What both ends of the load have counted
    /// is forgotten.
    ///
    /// # Errors
    /// When nothing flows, or the guest or QEMU does not answer.
    pub fn still(&self) -> Result<Still> {
        Still::of(&self.load())
    }

    /// Moves the guest to a new host, under load, and ends the old one.
    ///
    /// # Errors
    /// When the migration fails or the guest is not well afterwards.
    pub fn migrate(&mut self) -> Result<Migration> {
        let mut next = self.next_host()?;
        self.wait_for_traffic()?;
        std::thread::sleep(AROUND);
        let mut since = now_nanos();
        let disk_before = self.load().disk_report()?;
        let mut watch = Watch::begin(self.host.vm.qmp(), next.vm.qmp());
        let report = match self.run_migrate(&next) {
            Err(error) if error.to_string().contains(AGAIN) => {
                eprintln!("testbed: once more, as vferry says: {error:#}");
                next = self.next_host()?;
                self.wait_for_traffic()?;
                since = now_nanos();
                watch = Watch::begin(self.host.vm.qmp(), next.vm.qmp());
                self.run_migrate(&next)?
            }
            other => other?,
        };
        let old = std::mem::replace(&mut self.host, next);
        // Traffic flows again: this is the end of the outage, and the guest is alive.
        self.wait_for_traffic()?;
        let window = self.peer.window(since, now_nanos());
        let pause = watch.pause(old.vm.qmp())?;
        let before = self.host.status()?;
        self.wait_for_traffic()?;
        let interrupts = Interrupts::of(&before, &self.host.status()?);
        let disk = disk_before.zip(self.load().disk_report()?);
        let silence = disk.map(|(before, after)| load::disk_silence_ms(&before, &after));
        let disk_outage_ms = silence.map(|ms| ms + pause.all_ms);
        old.end(END)?;
        Ok(Migration {
            report,
            window,
            interrupts,
            pause_ms: Some(pause.all_ms),
            word_ms: Some(pause.word_ms),
            disk_outage_ms,
        })
    }

    /// Runs `vferry migrate` to `to`, and returns what it reports, stale pages or not.
    ///
    /// # Errors
    /// When the migration fails, with all that is known.
    pub fn run_migrate(&self, to: &Host) -> Result<Report> {
        self.run_migrate_by(to, self.options.strategy)
    }

    /// The same, by this strategy.
    ///
    /// # Errors
    /// As there.
    pub fn run_migrate_by(&self, to: &Host, strategy: Option<Strategy>) -> Result<Report> {
        let mut command = self.host.command("migrate");
        command
            .args(["--json", "--to", &to.link])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if self.options.verify {
            command.arg("--verify");
        }
        if let Some(strategy) = strategy {
            command.args(["--strategy", strategy.name()]);
        }
        if let Some(compare) = self.options.compare {
            command.args(["--compare", compare]);
        }
        let mut child = command.spawn()?;
        let lines = BufReader::new(child.stdout.take().context("stdout is piped")?);
        let mut last = None;
        for line in lines.lines() {
            last = Some(serde_json::from_str::<Reply>(&line?)?);
        }
        let output = child.wait_with_output()?;
        match last {
            Some(Reply::Done { report }) => Ok(report),
            _ => bail!(
                "vferry migrate failed ({}): {}\nthe source said:\n{}\nits VM: {}\nthe destination said:\n{}\nits VM: {}",
                output.status,
                String::from_utf8_lossy(&output.stderr),
                self.host.log(),
                self.host.vm.evidence(),
                to.log(),
                to.vm.evidence(),
            ),
        }
    }

    /// A count that the streaming test device's driver shows; `None` if no device has that driver.
    ///
    /// # Errors
    /// When the guest does not answer, or shows no such count.
    pub fn stream_count(&self, name: &str) -> Result<Option<u64>> {
        let status = self.shell("cat /sys/bus/pci/drivers/stream/0*/status || true")?;
        if status.is_empty() {
            return Ok(None);
        }
        let mut fields = status.split_whitespace();
        let value = fields.find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
        let value = value.and_then(|value| value.parse().ok());
        let value = value.with_context(|| format!("no `{name}` in {status:?}"))?;
        Ok(Some(value))
    }

    /// Has the guest stop its devices and start them again where they are (`vferry rehearse`), and
    /// waits until all traffic flows again.
    ///
    /// # Errors
    /// When the guest cannot.
    pub fn rehearse(&self) -> Result<Rehearsal> {
        let output = self.host.command("rehearse").arg("--json").output()?;
        let rehearsal = serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        self.wait_for_traffic()?;
        Ok(rehearsal)
    }

    /// Addresses and routes of the guest's interface, once they are [`settled`](Self::settled).
    ///
    /// # Errors
    /// When the guest does not answer.
    pub fn network_configuration(&self) -> Result<String> {
        self.settled("ip address show eth0; ip route")
    }

    /// What `show` prints of the guest's interfaces, from when their links are up, of which the kernel
    /// takes up to a second to tell, and IPv6 has found out that nobody else has its addresses.
    ///
    /// # Errors
    /// When the guest does not answer.
    pub fn settled(&self, show: &str) -> Result<String> {
        self.shell(&format!(
            "while ({show}) | grep -qe tentative -e NO-CARRIER; do usleep 50000; done; \
             ({show})"
        ))
    }

    /// From now on the guest sleeps when its key to sleep is pressed.
    ///
    /// # Errors
    /// When the guest cannot listen to it.
    pub fn listen_to_sleep_key(&self) -> Result<()> {
        self.shell(REACT_TO_KEY).map(drop)
    }

    /// The guest suspends itself to RAM, by its own wish. It sleeps when this returns.
    ///
    /// # Errors
    /// When it does not.
    pub fn fall_asleep(&self) -> Result<()> {
        self.shell("(sleep 1; echo mem > /sys/power/state) > /dev/null 2>&1 &")?;
        let deadline = Instant::now() + ASLEEP;
        while self.host.vm.qmp().run_status()?.status != RunState::Suspended {
            ensure!(Instant::now() < deadline, "the guest does not sleep");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Moves a guest that is asked nothing, with no look at its load: no page may be stale, and the
    /// VM and its devices must run.
    ///
    /// # Errors
    /// When the migration fails, or either is not so.
    pub fn move_on(&mut self) -> Result<Report> {
        self.move_on_by(self.options.strategy)
    }

    /// The same, by this strategy.
    ///
    /// # Errors
    /// As there.
    pub fn move_on_by(&mut self, strategy: Option<Strategy>) -> Result<Report> {
        let next = self.next_host()?;
        let report = self.run_migrate_by(&next, strategy)?;
        ensure!(report.stale_pages == Some(0), "{report:?}");
        let old = std::mem::replace(&mut self.host, next);
        old.end(COMMAND)?;
        let status = self.host.vm.qmp().run_status()?;
        let runs = status.running || status.status == RunState::Suspended;
        ensure!(runs, "QEMU says {status:?}");
        let stage = self.host.status()?.stage;
        ensure!(stage == "running", "the devices are {stage}");
        Ok(report)
    }

    /// All outages are over: starts counting anew on both ends.
    ///
    /// # Errors
    /// When the guest does not answer.
    pub fn reset_counts(&self) -> Result<()> {
        self.load().reset_counts()
    }

    /// Starts the load, and waits until all of it flows.
    ///
    /// # Errors
    /// When it does not, with what the guest says.
    pub fn start_load(&self) -> Result<()> {
        self.load().start()
    }
}

fn guest_options(lab: &Lab, options: &Options) -> Result<Option<GuestOptions>> {
    let module = match &options.guest {
        Help::NoDevice => return Ok(None),
        Help::NoDriver => None,
        Help::Module(parameters) => {
            let module = lab.guest_module(&progress_on_stderr)?;
            Some((module.path().to_owned(), parameters.clone()))
        }
    };
    Ok(Some(GuestOptions {
        module,
        quiesce_deadline: options.quiesce_deadline,
    }))
}

/// The test driver, which takes part in a migration by itself if vferry's module is there.
fn stream_module(lab: &Lab, parameters: &str) -> Result<(PathBuf, String)> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../stream-device/linux");
    let needs = lab.guest_module(&progress_on_stderr)?;
    let module = lab.build_module(&sources, &[&needs], &progress_on_stderr)?;
    Ok((module.path().to_owned(), parameters.to_owned()))
}
