//! Two hosts of the lab, side by side, and a guest of one of them with a function of its NIC.
//!
//! Each host is a machine with an SR-IOV NIC, an IOMMU and KVM ([`lab::Host`]), in which vferry and
//! QEMU run as they do on real ones. Their NICs hang on one network with the measuring peer; a
//! cable of their own carries migrations.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ferry::{Report, Strategy};
use lab::{Cable, Function, Guest, Host, HostOptions, Initrd, Lab, SHARE};
use load_format::GuestReport;
use uplink::peer::now_nanos;
use uplink::{Peer, PeerConfig};
use vferry::control::Reply;

use crate::{GUEST_IP, PEER_IP, Programs};

/// A host boots in 15 s on two idle processors under emulation, and a guest of it in as many.
const BOOT: Duration = Duration::from_mins(4);
/// How long traffic may take to flow everywhere, from nothing or after a migration.
const FLOW: Duration = Duration::from_mins(1);
/// How long a migration may take.
const MIGRATION: Duration = Duration::from_mins(3);
/// Its guest's address on its network.
const MAC: &str = "52:54:00:aa:bb:01";
/// Bytes of TCP per second, each way: what a guest has time for that is emulated twice.
const TCP_RATE: u32 = 50_000;
const PACKETS: u32 = 200;
/// Bytes of guest memory.
const MEMORY: u64 = 256 << 20;
/// Where vferry and QEMU have their sockets, in each host.
const FOLDER: &str = "/tmp";

/// What to run.
#[derive(Debug, Clone, Default)]
pub struct NestedOptions {
    /// Start the load; else the guest is left idle with its interface up.
    pub load: bool,
}

/// Two hosts, the guest, and the peer.
#[derive(Debug)]
pub struct Nested {
    /// The other end of the guest's network.
    pub peer: Peer,
    /// The hosts.
    pub hosts: [NestedHost; 2],
    /// Which of them the guest is on.
    at: usize,
    guest: Guest,
    lab: Lab,
    initrd: Initrd,
    // Last: the hosts' files are in it.
    _folder: tempfile::TempDir,
}

/// A host with vferry.
#[derive(Debug)]
pub struct NestedHost {
    /// The machine.
    pub host: Host,
    function: Function,
    address: String,
}

impl Nested {
    /// Boots both hosts and a guest on the first, and waits until all load flows.
    ///
    /// # Errors
    /// When any part does not come up, with what it says.
    pub fn start(lab: Lab, programs: &Programs, options: &NestedOptions) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("vferry-").tempdir()?;
        let wire = folder.path().join("wire.sock");
        let mut config = PeerConfig::new(&wire, PEER_IP, GUEST_IP);
        config.tcp_bytes_per_second = TCP_RATE;
        config.udp_per_second = PACKETS;
        config.icmp_per_second = PACKETS / 2;
        let peer = Peer::start(config)?;
        let cable = folder.path().join("cable.sock");
        let start = |number: u8, end: Cable<'_>| {
            let options = HostOptions {
                number,
                wire: Some(&wire),
                cable: Some(end),
            };
            NestedHost::start(&lab, programs, folder.path(), options)
        };
        let hosts = [
            start(1, Cable::Listens(&cable))?,
            start(2, Cable::Connects(&cable))?,
        ];
        let initrd = Initrd::new()
            .module("igbvf")
            .program(&programs.guest, "lab-guest");
        hosts[0].serve()?;
        let args = hosts[0].qemu_args(false)?;
        let guest = hosts[0].host.guest(&lab, &initrd, &args, BOOT);
        let guest = guest.with_context(|| hosts[0].said())?;
        let mut this = Self {
            peer,
            hosts,
            at: 0,
            guest,
            lab,
            initrd,
            _folder: folder,
        };
        this.shell(&format!(
            "ip addr add {GUEST_IP}/24 dev eth0 && ip link set eth0 up"
        ))?;
        if options.load {
            this.start_load()?;
        }
        Ok(this)
    }

    fn start_load(&mut self) -> Result<()> {
        self.shell(&format!(
            "lab-guest load --peer {PEER_IP} --dirty-mib 4 --dirty-mib-per-second 1 \
             > /tmp/load.log 2>&1 & load=$!; \
             until lab-guest report > /dev/null 2>&1; do kill -0 $load || exit 0; usleep 50000; done"
        ))?;
        self.wait_for_traffic()?;
        self.peer.reset();
        self.shell("lab-guest reset").map(drop)
    }

    /// The host that the guest is on.
    pub fn here(&self) -> &NestedHost {
        &self.hosts[self.at]
    }

    /// The other one.
    pub fn there(&self) -> &NestedHost {
        &self.hosts[1 - self.at]
    }

    /// Runs a command in the guest, which must succeed.
    ///
    /// # Errors
    /// When it does not, with what it says.
    pub fn shell(&mut self, command: &str) -> Result<String> {
        let here = &self.hosts[self.at];
        let output = here.host.guest_shell(&mut self.guest, command);
        output.with_context(|| here.said())
    }

    /// What the guest's load has counted.
    ///
    /// # Errors
    /// When the guest does not answer.
    pub fn guest_report(&mut self) -> Result<GuestReport> {
        Ok(serde_json::from_str(&self.shell("lab-guest report")?)?)
    }

    /// Waits until every kind of load has flowed both ways since now.
    ///
    /// # Errors
    /// When one does not, with what the guest and vferry say.
    pub fn wait_for_traffic(&mut self) -> Result<()> {
        let flows = self.peer.wait_for_traffic(now_nanos(), FLOW);
        if flows.is_err() {
            let look = "cat /tmp/load.log; ip -s addr; cat /proc/interrupts; dmesg | tail -n 30";
            let said = self.shell(look).unwrap_or_else(|error| error.to_string());
            let vferry = self.here().said();
            return flows
                .with_context(|| format!("the guest said:\n{said}\nvferry said:\n{vferry}"));
        }
        Ok(())
    }

    /// Has the other host's vferry and QEMU wait for the guest, in whose place they are then.
    ///
    /// # Errors
    /// When they do not.
    pub fn prepare_next(&self) -> Result<Guest> {
        let there = self.there();
        there.serve()?;
        let args = there.qemu_args(true)?;
        let guest = there.host.power_on(&self.lab, &self.initrd, &args);
        guest.with_context(|| there.said())
    }

    /// Moves the guest to the other host, and ends what it leaves behind.
    ///
    /// # Errors
    /// When the migration fails, with what both sides say.
    pub fn migrate(&mut self, strategy: Option<Strategy>) -> Result<Report> {
        let next = self.prepare_next()?;
        let report = self.run_migrate(strategy)?;
        self.here().end()?;
        self.at = 1 - self.at;
        self.guest = next;
        Ok(report)
    }

    /// Runs `vferry migrate` to the other host.
    ///
    /// # Errors
    /// When the migration fails, with what both sides say.
    pub fn run_migrate(&self, strategy: Option<Strategy>) -> Result<Report> {
        let strategy = strategy.map_or(String::new(), |strategy| format!("--strategy {strategy}"));
        let (here, there) = (self.here(), self.there());
        let to = format!("tcp:{}:7800", there.address);
        here.host.shell(&format!(
            "rm -f /r{SHARE}/migrate.rc
            (chroot /r {SHARE}/vferry migrate {SHARE}/vm.toml --verify --json --to {to} {strategy} \
             > /r{SHARE}/migrate.out 2> /r{SHARE}/migrate.err; echo $? > /r{SHARE}/migrate.new; \
             mv /r{SHARE}/migrate.new /r{SHARE}/migrate.rc) &"
        ))?;
        let deadline = Instant::now() + MIGRATION;
        while !here.host.share().join("migrate.rc").exists() {
            ensure!(Instant::now() < deadline, "vferry migrate does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
        let read =
            |file: &str| fs::read_to_string(here.host.share().join(file)).unwrap_or_default();
        let lines = read("migrate.out");
        match lines.lines().last().map(serde_json::from_str::<Reply>) {
            Some(Ok(Reply::Done { report })) => Ok(report),
            _ => bail!(
                "vferry migrate failed: {}\nthe source said:\n{}\nthe destination said:\n{}",
                read("migrate.err"),
                here.said(),
                there.said(),
            ),
        }
    }
}

impl NestedHost {
    fn start(
        lab: &Lab,
        programs: &Programs,
        folder: &Path,
        options: HostOptions<'_>,
    ) -> Result<Self> {
        let number = options.number;
        let host = Host::start(lab, folder, &format!("host{number}"), options, BOOT)?;
        let address = format!("192.168.7.{number}");
        host.shell(&format!(
            "ip addr add {address}/24 dev eth1 && ip link set eth1 up"
        ))?;
        fs::copy(&programs.vferry, host.share().join("vferry"))?;
        let functions = host.functions(&[MAC])?;
        let function = functions.into_iter().next().context("one was asked for")?;
        fs::write(
            host.share().join("vm.toml"),
            configuration(&function, &address),
        )?;
        Ok(Self {
            host,
            function,
            address,
        })
    }

    /// The function that a guest here has.
    pub fn function(&self) -> &Function {
        &self.function
    }

    /// Starts `vferry run`, and waits until it serves its sockets.
    ///
    /// # Errors
    /// When it does not, with what it says.
    pub fn serve(&self) -> Result<()> {
        let served = self.host.shell(&format!(
            "chroot /r {SHARE}/vferry run {SHARE}/vm.toml > /r{SHARE}/vferry.log 2>&1 &
            for try in $(seq 200); do
                test -S /r{FOLDER}/control.sock && exit
                kill -0 $! 2> /dev/null || exit 1
                usleep 100000
            done; exit 1"
        ));
        served.map(drop).with_context(|| self.said())
    }

    fn qemu_args(&self, incoming: bool) -> Result<String> {
        let incoming = if incoming { "--incoming" } else { "" };
        let args = format!("{SHARE}/vferry qemu-args {SHARE}/vm.toml {incoming}");
        Ok(self.host.run(&args)?.trim().to_owned())
    }

    /// Ends QEMU, and sees vferry end after it by itself.
    ///
    /// # Errors
    /// When vferry does not.
    pub fn end(&self) -> Result<()> {
        let end = self.host.shell(
            "kill $(pidof qemu-system-x86_64)
            for try in $(seq 200); do pidof vferry > /dev/null || exit 0; usleep 100000; done; exit 1",
        );
        end.map(drop).with_context(|| self.said())
    }

    /// What vferry, the guest's QEMU and its console have said.
    pub fn said(&self) -> String {
        let vferry = fs::read(self.host.share().join("vferry.log")).unwrap_or_default();
        let vferry = String::from_utf8_lossy(&vferry);
        format!("{vferry}\n{}", self.host.guest_said())
    }
}

fn configuration(function: &Function, address: &str) -> String {
    let function = &function.address;
    let memory = MEMORY >> 20;
    format!(
        r#"[vm]
name = "nested"
memory = "{memory}M"

[qemu]
qmp = "{FOLDER}/qmp.sock"

[control]
socket = "{FOLDER}/control.sock"

[sidecar]
socket = "{FOLDER}/sidecar.sock"
address = "00:06.1"

[migration]
link = "tcp:{address}:7800"
incoming = "tcp:{address}:7801"

[[device]]
name = "net0"
model = "passthrough"
socket = "{FOLDER}/net0.sock"
address = "00:05.0"
root-port = true
function = "{function}"
"#
    )
}
