//! Two hosts of the lab, side by side, and a guest of one of them with a function of its NIC.
//!
//! Each host is a machine with an SR-IOV NIC, an IOMMU and KVM ([`lab::Host`]), in which vferry and
//! QEMU run as they do on real ones. Their NICs hang on one network with the measuring peer; a
//! cable of their own carries migrations. Instead of vferry, QEMU's own `vfio-pci` may give the guest
//! its function, for comparison.

mod failover;
mod host;
mod race;

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ferry::source::Prospect;
use ferry::{Report, Strategy};
use lab::{
    Accelerator, Cable, Guest, HostOptions, Initrd, Lab, SHARE, StandsStill, progress_on_stderr,
};
use load_format::GuestReport;
use qemu::Iommu;
use uplink::peer::now_nanos;
use uplink::{Peer, PeerConfig};
use vferry::control::Reply;

pub use self::failover::{NeverGone, Replug};
pub use self::host::{Exits, NestedHost};
pub use self::race::DriverRace;
use crate::migration::Interrupts;
use crate::options::Help;
use crate::{GUEST_IP, Migration, PEER_IP, Programs};

/// How long traffic may take to flow everywhere, from nothing or after a migration.
const FLOW: Duration = Duration::from_mins(1);
/// How long a migration may take.
const MIGRATION: Duration = Duration::from_mins(5);
/// How often it is looked whether it is over.
const LOOK: Duration = Duration::from_millis(20);
/// Its guest's address on its network.
const MAC: &str = "52:54:00:aa:bb:01";
/// Bytes of guest memory.
const MEMORY: u64 = 256 << 20;
/// Bytes of TCP per second, each way: what a guest has time for that is emulated twice.
const TCP_RATE: u32 = 50_000;
/// Numbered UDP packets per second, each way.
const PACKETS: u32 = 200;

/// What to run.
#[derive(Debug, Clone)]
pub struct NestedOptions {
    /// By whom the guest has its function.
    pub way: Way,
    /// What the guest can do to help.
    pub guest: Help,
    /// By which the guest gives its function addresses, with vferry.
    pub iommu: Option<Iommu>,
    /// When memory is compared before the VM runs elsewhere; vferry chooses if `None`.
    pub compare: Option<&'static str>,
    /// Start the load; else the guest is left idle with its interface up.
    pub load: bool,
    /// Bytes of TCP per second that are asked for, each way.
    pub tcp_rate: u32,
    /// Numbered UDP packets per second, each way; half as many echoes.
    pub packets: u32,
}

/// By whom the guest has its function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// vferry.
    Vferry,
    /// QEMU's own `vfio-pci`. Such a guest stays where it is.
    VfioPci,
    /// The same, beside a standby interface that the guest uses while it moves.
    Failover,
}

impl NestedOptions {
    /// A guest behind a virtual IOMMU, which alone tells what its function may have written. Each packet
    /// takes mapping and unmapping, and the guest has time for few that is emulated twice.
    #[must_use]
    pub fn behind_iommu(self) -> Self {
        Self {
            iommu: Some(Iommu::Virtio),
            compare: Some("never"),
            tcp_rate: self.tcp_rate / 5,
            packets: self.packets / 10,
            ..self
        }
    }
}

impl Default for NestedOptions {
    fn default() -> Self {
        Self {
            way: Way::Vferry,
            guest: Help::NoDevice,
            iommu: None,
            compare: None,
            load: true,
            tcp_rate: TCP_RATE,
            packets: PACKETS,
        }
    }
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
    /// Its end of the line there, of which a host has one.
    guest: Option<Guest>,
    lab: Lab,
    initrd: Initrd,
    options: NestedOptions,
    // Last: the hosts' files are in it.
    _folder: tempfile::TempDir,
}

impl Nested {
    /// Boots both hosts and a guest on the first, and waits until all load flows. `lab` is one of
    /// [`Lab::for_hosts`]. If an emulated host stands still before anything of vferry's runs there, all of it is
    /// begun once more, and a line on stderr says so.
    ///
    /// # Errors
    /// When any part does not come up, with what it says.
    pub fn start(lab: Lab, programs: &Programs, options: NestedOptions) -> Result<Self> {
        match Self::start_once(lab.clone(), programs, options.clone()) {
            Err(error)
                if error.is::<StandsStill>() && Accelerator::detect() == Accelerator::Tcg =>
            {
                eprintln!("once more, as {error:#}");
                Self::start_once(lab, programs, options)
            }
            other => other,
        }
    }

    fn start_once(lab: Lab, programs: &Programs, options: NestedOptions) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("vferry-").tempdir()?;
        let wire = folder.path().join("wire.sock");
        let mut config = PeerConfig::new(&wire, PEER_IP, GUEST_IP);
        config.tcp_bytes_per_second = options.tcp_rate;
        config.udp_per_second = options.packets;
        config.icmp_per_second = options.packets / 2;
        let peer = Peer::start(config)?;
        let cable = folder.path().join("cable.sock");
        let start = |number: u8, end: Cable<'_>| {
            let host = HostOptions {
                number,
                wire: Some(&wire),
                cable: Some(end),
            };
            NestedHost::start(&lab, programs, folder.path(), host, &options)
        };
        // Both at once: each boots on one processor, for the most part.
        let [one, two] = std::thread::scope(|scope| {
            let first = scope.spawn(|| start(1, Cable::Listens(&cable)));
            while !cable.exists() && !first.is_finished() {
                std::thread::sleep(LOOK);
            }
            let two = start(2, Cable::Connects(&cable));
            [first.join().expect("it does not panic"), two]
        });
        let hosts = [one?, two?];
        let initrd = initrd(&lab, programs, &options)?;
        let guest = hosts[0].boot(&lab, &initrd)?;
        let mut this = Self {
            peer,
            hosts,
            at: 0,
            guest: Some(guest),
            lab,
            initrd,
            options,
            _folder: folder,
        };
        this.bring_up()?;
        if this.options.load {
            this.start_load()?;
        }
        Ok(this)
    }

    /// Its interface, or the one that is above two (`net_failover`).
    fn bring_up(&mut self) -> Result<()> {
        self.shell(&format!(
            "eth=eth0; upper=/sys/class/net/eth0/master
            test ! -e $upper || eth=$(basename $(readlink $upper))
            ip addr add {GUEST_IP}/24 dev $eth && ip link set $eth up"
        ))
        .map(drop)
    }

    fn start_load(&mut self) -> Result<()> {
        let rate = self.options.packets;
        self.shell(&format!(
            "lab-guest load --peer {PEER_IP} --rate {rate} --dirty-mib 4 --dirty-mib-per-second 1 \
             > /tmp/load.log 2>&1 & load=$!; \
             until lab-guest report > /dev/null 2>&1; do kill -0 $load || exit 0; usleep 50000; done"
        ))?;
        self.wait_for_traffic()?;
        self.reset_counts()
    }

    /// Starts a new measured run of the load.
    ///
    /// # Errors
    /// When the guest does not answer.
    pub fn reset_counts(&mut self) -> Result<()> {
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
        let guest = self.guest.as_mut().context("there is no guest")?;
        let output = here.host.guest_shell(guest, command);
        output.with_context(|| here.said())
    }

    /// What the guest's load has counted.
    ///
    /// # Errors
    /// When the guest does not answer.
    pub fn guest_report(&mut self) -> Result<GuestReport> {
        Ok(serde_json::from_str(&self.shell("lab-guest report")?)?)
    }

    /// That every byte of TCP was right, both ways and on one connection, as were all the words of its
    /// own memory that the guest looked at.
    ///
    /// # Errors
    /// When they were not, with the counts.
    pub fn content_is_right(&mut self) -> Result<()> {
        let guest = self.guest_report()?;
        let peer = self.peer.report();
        let tcp = guest.tcp.as_ref();
        let tcp_right = tcp.is_some_and(|tcp| tcp.wrong_bytes == 0 && tcp.broken == 0);
        let words_right = guest
            .dirty
            .as_ref()
            .is_some_and(|dirty| dirty.wrong_words == 0);
        ensure!(
            peer.tcp_content_ok() && tcp_right && words_right,
            "wrong content: {guest:?}, {peer:?}"
        );
        Ok(())
    }

    /// Waits until every kind of load has flowed both ways since now.
    ///
    /// # Errors
    /// When one does not, with what the guest and vferry say; [`DriverRace`] if it is that.
    pub fn wait_for_traffic(&mut self) -> Result<()> {
        let flows = self.peer.wait_for_traffic(now_nanos(), FLOW);
        if flows.is_err() {
            let look = "cat /tmp/load.log /proc/net/tcp /proc/net/dev /proc/net/arp; ip addr; cat /proc/interrupts; \
                 cat /proc/uptime; sleep 1; cat /proc/uptime; echo w > /proc/sysrq-trigger; \
                 for thread in /proc/[0-9]*/task/*; do \
                 echo $thread $(cat $thread/comm $thread/wchan) $(head -n 6 $thread/stack); done; \
                 dmesg | tail -n 60";
            let said = self.shell(look).unwrap_or_else(|error| error.to_string());
            if DriverRace::is_in(&said) {
                return Err(DriverRace.into());
            }
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
        let args = there.prepare(true)?;
        let guest = there.host.power_on(&self.lab, &self.initrd, &args);
        let guest = guest.with_context(|| there.said())?;
        there.wait_answers()?;
        Ok(guest)
    }

    /// Moves the guest to the other host, under load, and ends what it leaves behind.
    ///
    /// # Errors
    /// When the migration fails, with what both sides say, or by a [`DriverRace`].
    pub fn migrate(&mut self, strategy: Option<Strategy>) -> Result<Migration> {
        let migration = self.leave(strategy);
        self.there().end()?;
        migration
    }

    /// The same, but what the guest leaves behind stays as it is: a VM that stands still.
    ///
    /// # Errors
    /// As there.
    pub fn leave(&mut self, strategy: Option<Strategy>) -> Result<Migration> {
        let next = self.prepare_next()?;
        self.leave_to(next, strategy)
    }

    /// The same, with the one that [waits](Self::prepare_next) for the guest.
    ///
    /// # Errors
    /// As there.
    pub fn leave_to(&mut self, next: Guest, strategy: Option<Strategy>) -> Result<Migration> {
        self.wait_for_traffic()?;
        let since = now_nanos();
        let report = self.run_migrate(strategy)?;
        self.arrived(next);
        self.wait_for_traffic()?;
        let window = self.peer.window(since, now_nanos());
        Ok(Migration {
            report,
            window,
            interrupts: Interrupts::default(),
            pause_ms: None,
            word_ms: None,
            disk_outage_ms: None,
        })
    }

    /// Stops the guest's vCPUs, and its devices not, while `f` looks at its host. The peer says nothing
    /// from before that on, and the guest has taken all that came: so its function's ring has room.
    ///
    /// # Errors
    /// Those of `f`, or when the guest or QEMU does not answer.
    pub fn while_stopped<T>(&self, f: impl FnOnce(&NestedHost) -> Result<T>) -> Result<T> {
        let here = self.here();
        self.peer.set_silent(true);
        let seen = here.wait_guest_answers().and_then(|()| {
            here.stop()?;
            let seen = f(here);
            here.tell_monitor("cont")?;
            seen
        });
        self.peer.set_silent(false);
        seen
    }

    /// From now on the guest is the one of the other host.
    fn arrived(&mut self, guest: Guest) {
        self.at = 1 - self.at;
        self.guest = Some(guest);
    }

    /// Runs `vferry check` for the other host, and gives what it prints; its error says why not.
    ///
    /// # Errors
    /// When nothing can be said, or that the VM could not be migrated.
    pub fn look(&self) -> Result<Prospect> {
        let to = format!("tcp:{}:7800", self.there().address());
        let look = format!("{SHARE}/vferry check {SHARE}/vm.toml --json --to {to}");
        // What it refuses, it prints too.
        let host = &self.here().host;
        let said = host.shell(&format!("chroot /r {look} 2> /dev/null || true"))?;
        match serde_json::from_str(&said).with_context(|| said.clone())? {
            Reply::Prospect(prospect) => Ok(prospect),
            Reply::Failed { why } => bail!("{why}"),
            other => bail!("it said {other:?}"),
        }
    }

    /// Runs `vferry migrate` to the other host.
    ///
    /// # Errors
    /// When the migration fails, with what both sides say.
    pub fn run_migrate(&self, strategy: Option<Strategy>) -> Result<Report> {
        let strategy = strategy.map_or(String::new(), |strategy| format!("--strategy {strategy}"));
        let compare = self.options.compare;
        let compare = compare.map_or(String::new(), |compare| format!("--compare {compare}"));
        let (here, there) = (self.here(), self.there());
        let to = format!("tcp:{}:7800", there.address());
        here.host.shell(&format!(
            "rm -f /r{SHARE}/migrate.rc
            (chroot /r {SHARE}/vferry migrate {SHARE}/vm.toml --verify --json --to {to} {strategy} {compare} \
             > /r{SHARE}/migrate.out 2> /r{SHARE}/migrate.err; echo $? > /r{SHARE}/migrate.new; \
             mv /r{SHARE}/migrate.new /r{SHARE}/migrate.rc) &"
        ))?;
        let deadline = Instant::now() + MIGRATION;
        while !here.host.share().join("migrate.rc").exists() {
            ensure!(Instant::now() < deadline, "vferry migrate does not end");
            std::thread::sleep(LOOK);
        }
        let read =
            |file: &str| fs::read_to_string(here.host.share().join(file)).unwrap_or_default();
        let lines = read("migrate.out");
        let last = lines.lines().last().map(serde_json::from_str::<Reply>);
        if let Some(Ok(Reply::Done { report })) = last {
            return Ok(report);
        }
        here.host.alive().with_context(|| here.said())?;
        bail!(
            "vferry migrate failed: {}\nthe source said:\n{}\nthe destination said:\n{}",
            read("migrate.err"),
            here.said(),
            there.said(),
        )
    }

    /// Ends the guest, and boots it again on the same host, which gives it its function in this way.
    ///
    /// # Errors
    /// When it does not come up, with what it says.
    pub fn boot_again(&mut self, way: Way) -> Result<()> {
        self.guest = None;
        self.here().end()?;
        self.options.way = way;
        self.hosts[self.at].set_way(way);
        let guest = self.hosts[self.at].boot(&self.lab, &self.initrd)?;
        self.guest = Some(guest);
        self.bring_up()?;
        self.start_load()
    }
}

fn initrd(lab: &Lab, programs: &Programs, options: &NestedOptions) -> Result<Initrd> {
    let mut initrd = Initrd::new();
    // Before the drivers of the devices that it tracks.
    if let Help::Module(parameters) = &options.guest {
        let module = lab.guest_module(&progress_on_stderr)?;
        initrd = initrd.module_file(module.path(), parameters);
    }
    if options.way == Way::Failover {
        initrd = initrd.module("virtio_net");
    }
    if options.iommu == Some(Iommu::Virtio) {
        initrd = initrd.module("virtio_iommu");
    }
    Ok(initrd.module("igbvf").program(&programs.guest, "lab-guest"))
}
