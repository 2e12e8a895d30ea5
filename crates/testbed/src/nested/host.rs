//! A host with vferry, or with QEMU's own `vfio-pci` in its place.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ferry::cooperative::Deadlines;
use lab::{Function, Guest, Host, HostOptions, Initrd, Lab, SHARE};

use super::{LOOK, MAC, MEMORY, NestedOptions, Way};
use crate::options::Help;
use crate::{GUEST_IP, Programs, host};

/// A host boots in 15 s on two idle processors under emulation, and a guest of it in as many.
pub(super) const BOOT: Duration = Duration::from_mins(4);
/// What a host shows that has set no address for a function.
const NO_MAC: &str = "00:00:00:00:00:00";
/// How often it is tried.
const BOOTS: usize = 3;
/// Where vferry and QEMU have their sockets, in each host.
const FOLDER: &str = "/tmp";
/// How long a guest that is emulated twice may take to begin to track, to stop its device and to start it again: a
/// second or two each, and tens of seconds where the machine is slow or has other work. The guest runs meanwhile, so
/// nobody waits for it.
const DEADLINES: Deadlines = Deadlines {
    track: Duration::from_mins(1),
    quiesce: Duration::from_mins(1),
    end: Duration::from_mins(1),
};
/// The monitor of each QEMU: a pipe's two ends.
const MONITOR: &str = "/tmp/monitor";
/// An address on the guest's network that nobody has.
const NOBODY: &str = "10.77.0.66";
const MONITOR_LOG: &str = "monitor.log";

/// How often a processor has left a guest (`Documentation/virt/kvm/api.rst`, statistics).
#[derive(Debug, Clone, Copy)]
pub struct Exits {
    /// For any reason.
    pub all: u64,
    /// Those that KVM has QEMU answer: registers and ports.
    pub answered: u64,
}

/// A host of the nested lab.
#[derive(Debug)]
pub struct NestedHost {
    /// The machine.
    pub host: Host,
    function: Function,
    address: String,
    way: Way,
}

impl NestedHost {
    pub(super) fn start(
        lab: &Lab,
        programs: &Programs,
        folder: &Path,
        host: HostOptions<'_>,
        options: &NestedOptions,
    ) -> Result<Self> {
        let number = host.number;
        let host = Host::start(lab, folder, &format!("host{number}"), host, BOOT)?;
        let address = format!("192.168.7.{number}");
        host.shell(&format!(
            "ip addr add {address}/24 dev eth1 && ip link set eth1 up"
        ))?;
        host.set_aside(MEMORY)?;
        fs::copy(&programs.vferry, host.share().join("vferry"))?;
        // By vferry, the second host learns of it from the first one.
        let unset = number != 1 && options.way == Way::Vferry;
        let functions = host.functions(&[if unset { NO_MAC } else { MAC }])?;
        let function = functions.into_iter().next().context("one was asked for")?;
        fs::write(
            host.share().join("vm.toml"),
            configuration(&function, &address, options),
        )?;
        let this = Self {
            host,
            function,
            address,
            way: options.way,
        };
        if options.way == Way::Failover {
            this.bridge()?;
        }
        Ok(this)
    }

    /// The function that a guest here has.
    pub fn function(&self) -> &Function {
        &self.function
    }

    /// By whom the next guest has its function.
    pub(super) fn set_way(&mut self, way: Way) {
        self.way = way;
    }

    /// Its address on the cable.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Boots a guest, once more if the emulated processor fails it.
    pub(super) fn boot(&self, lab: &Lab, initrd: &Initrd) -> Result<Guest> {
        let mut left = BOOTS;
        loop {
            left -= 1;
            let args = self.prepare(false)?;
            match self.host.guest(lab, initrd, &args, BOOT) {
                Err(_) if left > 0 && self.host.is_broken() => self.end()?,
                booted => return booted.with_context(|| self.said()),
            }
        }
    }

    /// Starts what QEMU needs beside it, and gives QEMU's arguments.
    pub(super) fn prepare(&self, incoming: bool) -> Result<String> {
        self.host.shell(&format!(
            "rm -f /r{MONITOR}.in /r{MONITOR}.out && mkfifo /r{MONITOR}.in /r{MONITOR}.out
            : > /r{SHARE}/{MONITOR_LOG}
            cat /r{MONITOR}.out >> /r{SHARE}/{MONITOR_LOG} 2>&1 &"
        ))?;
        let args = match self.way {
            Way::Vferry => {
                self.serve()?;
                self.qemu_args(incoming)?
            }
            Way::VfioPci => format!(
                "{} -device vfio-pci,host={}",
                stock_machine(),
                self.function.address
            ),
            Way::Failover => self.failover_args(incoming),
        };
        Ok(format!(
            "{args} -chardev pipe,id=monitor,path={MONITOR} -mon monitor"
        ))
    }

    /// Waits until QEMU, which has just been started, answers.
    pub(super) fn wait_answers(&self) -> Result<()> {
        self.tell_monitor("info status")?;
        self.wait_said("VM status")
    }

    /// Waits until QEMU's monitor has said `what`.
    fn wait_said(&self, what: &str) -> Result<()> {
        let deadline = Instant::now() + BOOT;
        while !self.monitor_said().contains(what) {
            self.host.alive().with_context(|| self.said())?;
            ensure!(
                Instant::now() < deadline,
                "QEMU does not say `{what}`, but:\n{}\n{}",
                self.monitor_said(),
                self.said()
            );
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Asks the guest who it is until it answers, which it does after it has taken all that came before.
    pub(super) fn wait_guest_answers(&self) -> Result<()> {
        let answer = self.host.shell(&format!(
            "arping -q -f -w {} -I eth0 {GUEST_IP}",
            BOOT.as_secs()
        ));
        let answer = answer.context("the guest answers nothing that comes by its function");
        answer.map(drop).with_context(|| self.said())
    }

    /// Stops the guest's vCPUs, of whom none runs any more when this returns.
    pub(super) fn stop(&self) -> Result<()> {
        // What it said of earlier stops is not of this one.
        self.host.shell(&format!(": > /r{SHARE}/{MONITOR_LOG}"))?;
        self.tell_monitor("stop")?;
        self.tell_monitor("info status")?;
        self.wait_said("VM status: paused")
    }

    /// Whether the guest's address is set for its function here.
    ///
    /// # Errors
    /// When the host does not tell.
    pub fn has_mac(&self) -> Result<bool> {
        let settings = self.host.run("/sbin/ip link show eth0")?;
        Ok(settings.contains(MAC))
    }

    /// Switches the card off whose function a guest here has, or on, and waits until it has its link.
    ///
    /// # Errors
    /// When the host cannot, or there is no link.
    pub fn switch_card(&self, on: bool) -> Result<()> {
        let command = if on {
            "ip link set eth0 up
            for try in $(seq 200); do
                grep -q up /sys/class/net/eth0/operstate && exit
                usleep 100000
            done; exit 1"
        } else {
            "ip link set eth0 down"
        };
        self.host.shell(command).map(drop)
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

    /// A standby interface beside the function (QEMU's `docs/system/virtio-net-failover.rst`): QEMU
    /// takes the function from the guest before it migrates, and gives it the other host's afterwards.
    fn failover_args(&self, incoming: bool) -> String {
        let incoming = if incoming {
            format!("-incoming tcp:{}:7801", self.address)
        } else {
            String::new()
        };
        format!(
            "{} -device pcie-root-port,id=primary-port,chassis=1,slot=1 \
             -netdev tap,id=standby,ifname=tap0,script=no,downscript=no \
             -device virtio-net-pci,netdev=standby,mac={MAC},id=standby,failover=on \
             -device vfio-pci,host={},id=primary,bus=primary-port,failover_pair_id=standby {incoming}",
            stock_machine(),
            self.function.address
        )
    }

    /// Gives the function another address.
    pub(super) fn set_mac(&self, mac: &str) -> Result<()> {
        let number = self.function.number;
        let set = format!("/sbin/ip link set eth0 vf {number} mac {mac}");
        self.host.run(&set).map(drop)
    }

    /// Tells QEMU's monitor.
    pub(super) fn tell_monitor(&self, command: &str) -> Result<()> {
        let told = self
            .host
            .shell(&format!("echo '{command}' > /r{MONITOR}.in"));
        told.map(drop)
    }

    /// What the monitor has said, of its VM's migration at last.
    pub(super) fn migration_said(&self) -> String {
        // One that does not answer is evidence, too, so nobody waits for the answer longer than this.
        let asked = self.tell_monitor("info migrate");
        if let Err(error) = asked.and_then(|()| self.host.shell("usleep 2000000").map(drop)) {
            return format!("{error:#}");
        }
        self.monitor_said()
    }

    /// What the monitor has said.
    pub(super) fn monitor_said(&self) -> String {
        self.read(MONITOR_LOG)
    }

    /// The guest's console.
    pub(super) fn console(&self) -> String {
        self.read("guest.console")
    }

    fn read(&self, file: &str) -> String {
        let said = fs::read(self.host.share().join(file)).unwrap_or_default();
        String::from_utf8_lossy(&said).into_owned()
    }

    /// The standby interface's way to the wire: past the physical function.
    fn bridge(&self) -> Result<()> {
        for command in [
            "tuntap add dev tap0 mode tap",
            "link add br0 type bridge",
            "link set eth0 master br0 promisc on",
            "link set tap0 master br0 up",
            "link set br0 up",
        ] {
            self.host.run(&format!("/sbin/ip {command}"))?;
        }
        Ok(())
    }

    /// Ends QEMU, sees vferry end after it by itself, and the kernel let go of the function.
    ///
    /// # Errors
    /// When either does not.
    pub fn end(&self) -> Result<()> {
        let function = &self.function.address;
        let end = self.host.shell(&format!(
            "kill $(pidof qemu-system-x86_64)
            group=/dev/vfio/$(basename $(readlink /sys/bus/pci/devices/{function}/iommu_group))
            for try in $(seq 200); do
                pidof vferry qemu-system-x86_64 > /dev/null ||
                    {{ (exec 3<> $group) 2> /dev/null && exit 0; }}
                usleep 100000
            done; exit 1"
        ));
        end.map(drop).with_context(|| self.said())
    }

    /// Whether anything writes to guest memory while everybody on the function's network asks who
    /// somebody is, which a function at work receives.
    ///
    /// # Errors
    /// When the host cannot tell.
    pub fn is_memory_written(&self) -> Result<bool> {
        let seen = self.host.shell(&format!(
            r#"pid=$(pidof qemu-system-x86_64)
            for fd in /proc/$pid/fd/*; do
                case $(readlink $fd) in /memfd:memory-backend*) memory=$fd;; esac
            done
            test -n "$memory" && chroot /r cp $memory /tmp/memory || exit
            arping -q -c 3 -I eth0 {NOBODY} > /dev/null
            chroot /r cmp -s /tmp/memory $memory; echo $?
            rm /r/tmp/memory"#
        ))?;
        match seen.trim() {
            "0" => Ok(false),
            "1" => Ok(true),
            other => bail!("guest memory was not compared: `{other}`"),
        }
    }

    /// How often vferry's threads have slept and been woken so far.
    ///
    /// # Errors
    /// When it does not run.
    pub fn wake_ups(&self) -> Result<u64> {
        let count = self.host.shell(
            "cat /proc/$(pidof vferry)/task/*/status | awk '/^voluntary/ { sum += $2 } END { print sum }'",
        )?;
        Ok(count.trim().parse()?)
    }

    /// How often the processor has left the guest so far.
    ///
    /// # Errors
    /// When the host's kernel does not count.
    pub fn exits(&self) -> Result<Exits> {
        let counts = self.host.shell(
            "debug=/sys/kernel/debug; test -d $debug/kvm || mount -t debugfs debugfs $debug
             cat $debug/kvm/exits $debug/kvm/mmio_exits $debug/kvm/io_exits",
        )?;
        let counts: Vec<u64> = counts
            .split_whitespace()
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        let [all, mmio, io] = counts[..] else {
            bail!("KVM counts otherwise: {counts:?}");
        };
        Ok(Exits {
            all,
            answered: mmio + io,
        })
    }

    /// What vferry, the guest's QEMU and its console have said.
    pub fn said(&self) -> String {
        format!("{}\n{}", self.read("vferry.log"), self.host.guest_said())
    }
}

/// As QEMU has it by itself: anonymous memory, for which it asks for large pages.
fn stock_machine() -> String {
    format!("-machine q35 -m {}M", MEMORY >> 20)
}

fn configuration(function: &Function, address: &str, options: &NestedOptions) -> String {
    let function = &function.address;
    let memory = MEMORY >> 20;
    let iommu = options
        .iommu
        .map(|iommu| format!("iommu = \"{iommu}\"\n"))
        .unwrap_or_default();
    let guest = match options.guest {
        Help::NoDevice => String::new(),
        Help::NoDriver | Help::Module(_) => host::guest_section(Path::new(FOLDER), DEADLINES),
    };
    format!(
        r#"[vm]
name = "nested"
memory = "{memory}M"
hugepages = "2M"

[qemu]
qmp = "{FOLDER}/qmp.sock"
{iommu}
[control]
socket = "{FOLDER}/control.sock"

[sidecar]
socket = "{FOLDER}/sidecar.sock"
address = "00:06.1"

[migration]
link = "tcp:{address}:7800"
incoming = "tcp:{address}:7801"
plain-tcp-without-protection = true
{guest}
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
