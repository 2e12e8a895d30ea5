//! The guest with its NICs, and the peer that all of them have.

use std::cell::Cell;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Accelerator, Lab, ONE_CPU, progress_on_stderr};
use load_format::Rate;
use testbed::{GUEST_IP, Host, HostOptions, PEER_IP, Programs};
use uplink::peer::PeerReport;
use uplink::{Load, Peer, PeerConfig};

use super::Extent;
use crate::bench::pinned;
use crate::bench::spent::{Rates, Shares, Spent};

/// How long anything may take that takes seconds on an idle machine.
const PATIENCE: Duration = Duration::from_mins(1);
const BOOT: Duration = Duration::from_mins(2);
/// Of the peer: a quarter of a millisecond at what an emulated guest carries; less than its
/// wire holds, so that no frame is lost.
const TCP_BUFFER: usize = 256 * 1024;
/// How late a guest that is flooded may be with its look at the end of a window.
const LATE: Duration = Duration::from_millis(500);
/// Ends what floods.
const END: &str = "killall -9 lab-guest; while pidof lab-guest > /dev/null; do usleep 10000; done";

/// One of the guest's NICs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Nic {
    pub(super) name: &'static str,
    /// QEMU's device; it is vferry's if there is none.
    device: Option<&'static str>,
    address: &'static str,
    mac: &'static str,
}

pub(super) const NICS: [Nic; 4] = [
    Nic {
        name: "virtio-net",
        device: Some("virtio-net-pci"),
        address: "0a",
        mac: "02:00:00:00:00:0a",
    },
    Nic {
        name: "igb",
        device: Some("igb"),
        address: "0b",
        mac: "02:00:00:00:00:0b",
    },
    Nic {
        name: "e1000e",
        device: Some("e1000e"),
        address: "0c",
        mac: "02:00:00:00:00:0c",
    },
    Nic {
        name: "vferry",
        device: None,
        address: "05",
        // As the testbed has it.
        mac: "02:00:00:00:00:02",
    },
];

/// What was measured of a NIC, and who had the processors meanwhile.
#[derive(Debug, Clone, Copy)]
pub(super) struct Measured {
    pub(super) value: f64,
    pub(super) shares: Shares,
    /// What each did for one, if that was one after the other: an echo.
    pub(super) for_each: Option<Rates>,
}

impl Measured {
    fn over(self, unit: f64) -> Self {
        let value = self.value / unit;
        Self { value, ..self }
    }
}

pub(super) struct Rig {
    host: Host,
    peer: Peer,
    /// Whether vferry's system calls are to be counted in the next window, and how many a second there were.
    counting: Cell<bool>,
    calls: Cell<Option<f64>>,
    _folder: tempfile::TempDir,
}

impl Rig {
    pub(super) fn start() -> Result<Self> {
        // The guest's usual kernel has no driver for QEMU's Intel NICs.
        let lab = Lab::ensure(&progress_on_stderr)?.for_hosts(&progress_on_stderr)?;
        let programs = Programs::build()?;
        let processors = pinned::serving()?;
        let folder = tempfile::Builder::new().prefix("vferry-").tempdir()?;
        let wire = folder.path().join("wire.sock");
        let peer = Peer::start(PeerConfig {
            tcp_buffer: TCP_BUFFER,
            ..PeerConfig::new(&wire, PEER_IP, GUEST_IP)
        })?;
        peer.set_load(Load::default());
        let mut args = Vec::new();
        for nic in NICS {
            let Nic { address, mac, .. } = nic;
            if let Some(device) = nic.device {
                let path = qemu::args::option_value(&wire.display().to_string());
                args.push("-netdev".to_owned());
                args.push(format!(
                    "stream,id=n{address},server=off,addr.type=unix,addr.path={path}"
                ));
                args.push("-device".to_owned());
                args.push(format!(
                    "{device},netdev=n{address},mac={mac},addr={address},romfile="
                ));
            }
        }
        let options = HostOptions {
            append: format!("{ONE_CPU} ipv6.disable=1"),
            modules: ["virtio_net", "igb", "e1000e"].map(str::to_owned).into(),
            args,
            ..HostOptions::new(512 << 20, wire)
        };
        let start = || Host::start(&lab, &programs, folder.path(), "1", &options, false);
        let host = processors.start(1, start, |host| &host.vm)?;
        host.vm.wait_ready(BOOT)?;
        Ok(Self {
            host,
            peer,
            counting: Cell::new(false),
            calls: Cell::new(None),
            _folder: folder,
        })
    }

    pub(super) fn describe(&self) -> Result<String> {
        let kernel = self.shell("uname -r")?;
        Ok(format!(
            "{} by {:?} with one vCPU",
            kernel.trim(),
            Accelerator::detect()
        ))
    }

    pub(super) fn evidence(&self) -> String {
        let guest = self.shell("ip addr; dmesg | tail -n 20");
        format!(
            "vferry said:\n{}\nthe guest said:\n{}",
            self.host.log(),
            guest.unwrap_or_else(|error| format!("{error:#}"))
        )
    }

    /// Has the guest's address move to this NIC, whose interface takes so many bytes of payload.
    pub(super) fn plug(&self, nic: usize, mtu: u32) -> Result<()> {
        let mac = super::NICS[nic].mac;
        self.shell(&format!(
            "cd /sys/class/net; \
             for other in eth*; do ip addr flush dev $other; ip link set $other down; done; \
             dev=$(grep -lx {mac} */address | cut -d/ -f1) && ip link set $dev mtu {mtu} up && \
             ip addr add {GUEST_IP}/24 dev $dev && \
             until ping -c 1 -W 1 {PEER_IP} > /dev/null; do :; done"
        ))
        .map(drop)
    }

    /// MB per second of TCP, both ways together.
    pub(super) fn tcp(&self, flow: &str, load: Load, extent: Extent) -> Result<Measured> {
        let count =
            |report: &PeerReport| Ok(report.tcp.to_guest_bytes + report.tcp.from_guest_bytes);
        Ok(self.flood(flow, load, extent, count)?.over(1e6))
    }

    /// Thousands of frames per second to the guest, as its IP counts them. The guest's program runs before the
    /// flood does and above all others: a guest that is flooded by a NIC of QEMU's starts nothing in a minute. It may
    /// not get a frame either.
    pub(super) fn frames_to(&self, payload: usize, extent: Extent) -> Result<Measured> {
        // One that was over before it was seen, in a guest that had much left to do, has seen nothing of the flood.
        let start = || {
            self.shell(&format!(
                "lab-guest flood udp-in --peer {PEER_IP} --warm-up-ms {} --ms {} > /tmp/flood.log 2>&1 & flood=$!; \
                 until grep -q ':0009 ' /proc/net/udp; do \
                 kill -0 $flood || {{ cat /tmp/flood.log; exit 1; }}; usleep 10000; done",
                extent.warm_up.as_millis(),
                extent.window.as_millis()
            ))
        };
        start().or_else(|_| start()).or_else(|_| start())?;
        let spent = Spent::by(&self.host)?;
        self.peer.set_load(Load {
            flood: Some(payload),
            ..Load::default()
        });
        std::thread::sleep(extent.warm_up + extent.window + LATE);
        let shares = spent.shares_until(&Spent::by(&self.host)?);
        self.peer.set_load(Load::default());
        let said = self.shell(
            "while grep -q ':0009 ' /proc/net/udp; do usleep 10000; done; cat /tmp/flood.log",
        )?;
        let rate: Rate = serde_json::from_str(&said).context(said)?;
        Ok(Measured {
            value: rate.per_second() / 1e3,
            shares,
            for_each: None,
        })
    }

    /// The same from the guest.
    pub(super) fn frames_from(&self, payload: usize, extent: Extent) -> Result<Measured> {
        let flow = format!("udp-out --payload {payload}");
        let count = |report: &PeerReport| received(report);
        Ok(self.flood(&flow, Load::default(), extent, count)?.over(1e3))
    }

    /// Microseconds of an echo, on average; and what each did for one, beyond what all do while nothing flows.
    pub(super) fn echo(&self, load: Load, extent: Extent) -> Result<Measured> {
        std::thread::sleep(extent.warm_up);
        let rest = Spent::by(&self.host)?;
        std::thread::sleep(extent.window);
        let anyway = rest.rates_until(&Spent::by(&self.host)?);
        self.peer.set_load(load);
        std::thread::sleep(extent.warm_up);
        self.peer.reset();
        let before = Spent::by(&self.host)?;
        std::thread::sleep(extent.window);
        let after = Spent::by(&self.host)?;
        let rates = before.rates_until(&after);
        let deadline = Instant::now() + PATIENCE;
        let echoes = loop {
            if let Some(echoes) = self.peer.report().icmp.round_trips {
                break echoes;
            }
            ensure!(
                Instant::now() < deadline,
                "no echo came back within {PATIENCE:?}"
            );
            std::thread::sleep(Duration::from_millis(5));
        };
        self.peer.set_load(Load::default());
        Ok(Measured {
            value: Duration::from_nanos(echoes.mean_nanos).as_secs_f64() * 1e6,
            shares: before.shares_until(&after),
            for_each: Some(rates.for_each(load.icmp_per_second.into(), &anyway)),
        })
    }

    /// How fast a count grows while this flows.
    fn flood(
        &self,
        flow: &str,
        load: Load,
        extent: Extent,
        count: impl Fn(&PeerReport) -> Result<u64>,
    ) -> Result<Measured> {
        self.shell(&format!(
            "lab-guest flood {flow} --peer {PEER_IP} > /tmp/flood.log 2>&1 &"
        ))?;
        self.peer.set_load(load);
        let counted = self.counted(extent, count);
        self.peer.set_load(Load::default());
        let said = self.shell(&format!("cat /tmp/flood.log; {END}"))?;
        counted.with_context(|| format!("{flow}; the guest's program said: {said:?}"))
    }

    /// How fast a count grows, once it does.
    fn counted(
        &self,
        extent: Extent,
        count: impl Fn(&PeerReport) -> Result<u64>,
    ) -> Result<Measured> {
        let grown = |since: u64| -> Result<()> {
            let deadline = Instant::now() + PATIENCE;
            while count(&self.peer.report())? == since {
                ensure!(
                    Instant::now() < deadline,
                    "nothing came within {PATIENCE:?}"
                );
                std::thread::sleep(Duration::from_millis(5));
            }
            Ok(())
        };
        grown(count(&self.peer.report())?)?;
        std::thread::sleep(extent.warm_up);
        let (before, spent) = (self.peer.report(), Spent::by(&self.host)?);
        self.window(extent.window);
        grown(count(&before)?)?;
        let (after, shares) = (
            self.peer.report(),
            spent.shares_until(&Spent::by(&self.host)?),
        );
        let nanos = after.until_nanos - before.until_nanos;
        let counted = count(&after)?.saturating_sub(count(&before)?);
        #[expect(clippy::cast_precision_loss, reason = "below 2^53")]
        let value = counted as f64 / Duration::from_nanos(nanos).as_secs_f64();
        Ok(Measured {
            value,
            shares,
            for_each: None,
        })
    }

    /// vferry's system calls for each unit of what is measured; `None` if they cannot be counted here. What is
    /// measured is disturbed by that.
    pub(super) fn system_calls(
        &self,
        measure: impl FnOnce(&Self) -> Result<Measured>,
    ) -> Result<Option<f64>> {
        self.counting.set(true);
        let measured = measure(self);
        self.counting.set(false);
        let calls = self.calls.take();
        let value = measured?.value;
        Ok(calls.map(|calls| calls / value))
    }

    fn window(&self, window: Duration) {
        if !self.counting.get() {
            std::thread::sleep(window);
            return;
        }
        let (process, seconds) = (self.host.vferry_pid().to_string(), window.as_secs_f64());
        let mut perf = Command::new("perf");
        perf.args(["stat", "-x", ",", "-e", "raw_syscalls:sys_enter", "-p"])
            .args([&process, "--", "sleep", &seconds.to_string()]);
        // Not everywhere is a `perf`, or may it count.
        let Ok(output) = perf.output() else {
            return;
        };
        let said = String::from_utf8_lossy(&output.stderr);
        let calls = said
            .split(',')
            .next()
            .and_then(|calls| calls.trim().parse::<f64>().ok());
        self.calls.set(calls.map(|calls| calls / seconds));
    }

    fn shell(&self, command: &str) -> Result<String> {
        self.host.vm.shell(command, PATIENCE)?.success()
    }
}

/// Frames from the wire at which the guest is.
fn received(report: &PeerReport) -> Result<u64> {
    let at = report.moves.port.context("the guest is nowhere")?;
    let port = report.switch.ports.iter().find(|port| port.port == at);
    Ok(port.context("the guest's wire is gone")?.received)
}
