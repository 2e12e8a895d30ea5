//! `cargo xtask bench guest-module`
//!
//! One guest, one NIC, TCP as fast as it goes, both ways at once. Each round measures the guest
//! without the module, with it, and while it tracks (`vferry rehearse`); every other round in
//! reverse order. The NIC's driver is bound anew each time, since what the module does about sync
//! calls lasts from a driver's probe on. The guest has a processor to itself, where there are two:
//! what it does not get from others it cannot lose to them.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Accelerator, Kernel, Lab, progress_on_stderr};
use load_format::GuestReport;
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_setaffinity};
use testbed::{GUEST_IP, GuestOptions, Host, HostOptions, PEER_IP, Programs};
use uplink::peer::now_nanos;
use uplink::{Peer, PeerConfig};

use super::{Report, variants};

/// How long anything may take that takes seconds on an idle machine.
const PATIENCE: Duration = Duration::from_mins(2);
/// Bytes per second, each way: more than an emulated guest can take.
const TCP_RATE: u32 = 1_000_000_000;
/// Packets per second, each way: only to see that the guest is reached.
const UDP_RATE: u32 = 20;
/// TCP finds its speed, and an emulator translates what runs.
const WARM_UP: Duration = Duration::from_secs(2);
const NIC: &str = "0000:00:05.0";
const MODULE: &str = "/lib/modules/vferry.ko";
/// What the module hooks only while it tracks.
const HOOKED: &str = "sync_single_for_cpu";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Without,
    Loaded,
    Tracking,
}

/// A guest, and who it talks to.
struct Rig {
    host: Host,
    peer: Peer,
    pinned: bool,
    _folder: tempfile::TempDir,
}

pub(super) fn run(quick: bool) -> Result<Report> {
    let (rounds, window) = if quick {
        (2, Duration::from_secs(2))
    } else {
        (15, Duration::from_secs(3))
    };
    let rig = Rig::start()?;
    let mut runs = [Vec::new(), Vec::new(), Vec::new()];
    for round in 0..rounds {
        let mut order = [State::Without, State::Loaded, State::Tracking];
        if round % 2 == 1 {
            order.reverse();
        }
        for state in order {
            let rate = rig.measure(state, window)?;
            eprintln!(
                "bench: round {} of {rounds}: {state:?} {rate:.2}",
                round + 1
            );
            runs[state as usize].push(rate);
        }
    }
    Ok(Report {
        name: "guest-module",
        what: "TCP through the VF, MB/s, both ways together",
        machine: format!(
            "{} by {:?}, 2 vCPUs on {}, {} rounds of {} s",
            rig.host.vm.shell("uname -r", PATIENCE)?.success()?.trim(),
            Accelerator::detect(),
            if rig.pinned {
                "a processor of their own"
            } else {
                "the only processor"
            },
            rounds,
            window.as_secs()
        ),
        variants: variants(["no module", "loaded", "tracking"], runs),
    })
}

impl Rig {
    fn start() -> Result<Self> {
        let lab = Lab::ensure(&progress_on_stderr)?
            .with_kernel(Kernel::default(), &progress_on_stderr)?;
        let programs = Programs::build()?;
        let folder = tempfile::Builder::new().prefix("vferry-").tempdir()?;
        let wire = folder.path().join("wire.sock");
        let peer = Peer::start(PeerConfig {
            udp_per_second: UDP_RATE,
            icmp_per_second: 0,
            tcp_bytes_per_second: TCP_RATE,
            ..PeerConfig::new(&wire, PEER_IP, GUEST_IP)
        })?;
        let module = lab.guest_module(&progress_on_stderr)?;
        let options = HostOptions {
            guest: Some(GuestOptions {
                module: Some((module.path().to_owned(), String::new())),
                quiesce_deadline: Duration::from_secs(5),
            }),
            ..HostOptions::new(512 << 20, wire)
        };
        let host = Host::start(&lab, &programs, folder.path(), "1", &options, false)?;
        let this = Self {
            host,
            peer,
            pinned: std::thread::available_parallelism()?.get() > 1,
            _folder: folder,
        };
        this.host.vm.wait_ready(PATIENCE)?;
        if this.pinned {
            pin(this.host.vm.pid(), 0)?;
            pin(this.host.vferry_pid(), 1)?;
            pin(std::process::id(), 1)?;
        }
        this.shell("mount -t tracefs tracefs /sys/kernel/tracing")?;
        // The load ends where there is no network.
        this.host.bring_up(PATIENCE)?;
        this.shell(&format!(
            "lab-guest load --peer {PEER_IP} --rate {UDP_RATE} --tick-us 50000 --dirty-mib 0 \
             > /tmp/load.log 2>&1 &"
        ))?;
        Ok(this)
    }

    fn shell(&self, command: &str) -> Result<String> {
        self.host.vm.shell(command, PATIENCE)?.success()
    }

    /// MB/s, both ways together.
    fn measure(&self, state: State, window: Duration) -> Result<f64> {
        self.prepare(state)?;
        let rehearsal = match state {
            State::Tracking => Some(self.track()?),
            State::Without | State::Loaded => None,
        };
        std::thread::sleep(WARM_UP);
        self.shell("lab-guest reset")?;
        std::thread::sleep(window);
        let report: GuestReport = serde_json::from_str(&self.shell("lab-guest report")?)?;
        if let Some(mut rehearsal) = rehearsal {
            ensure!(
                self.hooks()?.contains(HOOKED),
                "the guest stopped tracking:\n{}",
                self.host.log()
            );
            rehearsal.kill()?;
            rehearsal.wait()?;
            self.wait_for_hooks(false)?;
        }
        let tcp = report.tcp.context("no TCP runs in the guest")?;
        ensure!(
            tcp.connected && tcp.broken == 0 && tcp.wrong_bytes == 0,
            "{tcp:?}"
        );
        #[expect(clippy::cast_precision_loss, reason = "below 2^53")]
        let rate = |bytes: u64| bytes as f64 * 1e3 / report.window_nanos as f64;
        // What one direction has more the other has less: they share the vCPUs.
        Ok(rate(tcp.received_bytes + tcp.sent_bytes))
    }

    /// The module as it is to be, and the NIC's driver bound after it.
    fn prepare(&self, state: State) -> Result<()> {
        let module = match state {
            State::Without => "! grep -q ^vferry /proc/modules || rmmod vferry".into(),
            State::Loaded | State::Tracking => {
                format!("grep -q ^vferry /proc/modules || insmod {MODULE}")
            }
        };
        self.shell(&format!(
            "{module}; cd /sys/bus/pci/drivers/ixgbevf && echo {NIC} > unbind && \
             echo {NIC} > bind"
        ))?;
        self.host.bring_up(PATIENCE)?;
        let flows = self.peer.wait_for_traffic(now_nanos(), PATIENCE);
        flows.with_context(|| format!("vferry said:\n{}", self.host.log()))
    }

    /// Has the guest track what its NIC writes until the rehearsal is killed.
    fn track(&self) -> Result<Child> {
        let mut command = self.host.command("rehearse");
        command.args(["--hold-ms", "600000"]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let rehearsal = command.spawn()?;
        self.wait_for_hooks(true)?;
        Ok(rehearsal)
    }

    fn wait_for_hooks(&self, there: bool) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.hooks()?.contains(HOOKED) != there {
            let log = || self.host.log();
            ensure!(
                Instant::now() < deadline,
                "the guest does not begin or end tracking:\n{}",
                log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn hooks(&self) -> Result<String> {
        self.shell("cat /sys/kernel/tracing/enabled_functions")
    }
}

/// Has all threads of a process run on one processor, and those that they start.
fn pin(process: u32, processor: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(processor);
    for task in std::fs::read_dir(format!("/proc/{process}/task"))? {
        let id: i32 = task?.file_name().to_string_lossy().parse()?;
        sched_setaffinity(Pid::from_raw(id), &set)?;
    }
    Ok(())
}
