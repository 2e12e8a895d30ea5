//! `cargo xtask bench guest-module`
//!
//! Three guests with a NIC each, TCP as fast as it goes, both ways at once: in one the module is
//! absent, in one it is loaded, in one it tracks (`vferry rehearse`). They run at the same time on
//! the same processor, which the host's scheduler hands from one to the next every few
//! milliseconds: whatever slows it down, neighbours or a second thread on its core, slows all three.
//! One after the other they could not be compared on a machine that is not ours alone. What each
//! gets done counts per second of processor time, so that an unequal share is no advantage.
//!
//! After each window the guests change roles. A run is three windows, in which each guest had each
//! role once, so that none that is faster than the others is always the same one's. The NIC's driver
//! is bound anew each time, since what the module does about sync calls lasts until then.

use std::fs;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Accelerator, Kernel, Lab, ONE_CPU, progress_on_stderr};
use rustix::process::Pid;
use testbed::{GUEST_IP, GuestOptions, Host, HostOptions, PEER_IP, Programs};
use uplink::peer::now_nanos;
use uplink::{Peer, PeerConfig};

use super::spent::processor_time;
use super::{Report, Table, variants};

/// How long anything may take that takes seconds on an idle machine.
const PATIENCE: Duration = Duration::from_mins(2);
/// Bytes per second, each way: more than an emulated guest can take.
const TCP_RATE: u32 = 1_000_000_000;
/// Packets per second, each way: only to see that the guest is reached.
const UDP_RATE: u32 = 20;
/// TCP finds its speed, and an emulator translates what runs.
const WARM_UP: Duration = Duration::from_secs(4);
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

const STATES: [State; 3] = [State::Without, State::Loaded, State::Tracking];

/// A guest, and who it talks to.
struct Rig {
    host: Host,
    peer: Peer,
    _folder: tempfile::TempDir,
}

pub(super) fn run(quick: bool) -> Result<Report> {
    let (rounds, window) = if quick {
        (1, Duration::from_secs(3))
    } else {
        (8, Duration::from_secs(6))
    };
    let rigs = start()?;
    let mut runs = [Vec::new(), Vec::new(), Vec::new()];
    for round in 1..=rounds {
        let mut run = [1.0; 3];
        for turn in 0..STATES.len() {
            let roles = [0, 1, 2].map(|guest| STATES[(guest + turn) % STATES.len()]);
            let rates = side_by_side(&rigs, roles, window)?;
            eprintln!("bench: round {round} of {rounds}: {roles:?} {rates:.2?}");
            for (role, rate) in roles.into_iter().zip(rates) {
                run[role as usize] *= rate;
            }
        }
        for (runs, product) in runs.iter_mut().zip(run) {
            runs.push(f64::cbrt(product));
        }
    }
    let kernel = rigs[0].shell("uname -r")?;
    Ok(Report {
        name: "guest-module",
        machine: format!(
            "{} by {:?}, three guests of one vCPU on one processor, a run is three windows of {} s",
            kernel.trim(),
            Accelerator::detect(),
            window.as_secs()
        ),
        tables: vec![Table {
            what: "TCP through the VF, MB per second of QEMU's processor time, both ways together",
            variants: variants(["no module", "loaded", "tracking"], runs),
        }],
        ..Report::default()
    })
}

fn start() -> Result<[Rig; 3]> {
    let lab =
        Lab::ensure(&progress_on_stderr)?.with_kernel(Kernel::default(), &progress_on_stderr)?;
    let programs = Programs::build()?;
    let module = lab.guest_module(&progress_on_stderr)?.path().to_owned();
    if std::thread::available_parallelism()?.get() > 1 {
        pin(std::process::id(), 1)?;
    }
    Ok([
        Rig::start(&lab, &programs, module.clone())?,
        Rig::start(&lab, &programs, module.clone())?,
        Rig::start(&lab, &programs, module)?,
    ])
}

/// What each guest gets done in its role: MB per second of its QEMU's processor time.
fn side_by_side(rigs: &[Rig; 3], roles: [State; 3], window: Duration) -> Result<[f64; 3]> {
    let mut rehearsals = Vec::new();
    for (rig, role) in rigs.iter().zip(roles) {
        rig.prepare(role)?;
        if role == State::Tracking {
            rehearsals.push((rig, rig.track()?));
        }
    }
    std::thread::sleep(WARM_UP);
    let before = [rigs[0].begin()?, rigs[1].begin()?, rigs[2].begin()?];
    std::thread::sleep(window);
    let rates = [
        rigs[0].end(before[0])?,
        rigs[1].end(before[1])?,
        rigs[2].end(before[2])?,
    ];
    for (rig, mut rehearsal) in rehearsals {
        ensure!(
            rig.hooks()?.contains(HOOKED),
            "the guest stopped tracking:\n{}",
            rig.host.log()
        );
        rehearsal.kill()?;
        rehearsal.wait()?;
        rig.wait_for_hooks(false)?;
    }
    Ok(rates)
}

impl Rig {
    fn start(lab: &Lab, programs: &Programs, module: std::path::PathBuf) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("vferry-").tempdir()?;
        let wire = folder.path().join("wire.sock");
        let peer = Peer::start(PeerConfig {
            udp_per_second: UDP_RATE,
            icmp_per_second: 0,
            tcp_bytes_per_second: TCP_RATE,
            ..PeerConfig::new(&wire, PEER_IP, GUEST_IP)
        })?;
        let options = HostOptions {
            // On one processor, two vCPUs of a guest would wait for each other's locks for whole time slices.
            append: ONE_CPU.to_owned(),
            guest: Some(GuestOptions {
                module: Some((module, String::new())),
                quiesce_deadline: Duration::from_secs(5),
            }),
            ..HostOptions::new(512 << 20, wire)
        };
        let host = Host::start(lab, programs, folder.path(), "1", &options, false)?;
        let this = Self {
            host,
            peer,
            _folder: folder,
        };
        this.host.vm.wait_ready(PATIENCE)?;
        pin(this.host.vm.pid(), 0)?;
        this.shell("mount -t tracefs tracefs /sys/kernel/tracing")?;
        // The load ends where there is no network.
        this.host.bring_up(PATIENCE)?;
        this.shell(&format!(
            "lab-guest load --peer {PEER_IP} --rate {UDP_RATE} --tick-us 50000 --dirty-mib 0 \
             > /tmp/load.log 2>&1 &"
        ))?;
        Ok(this)
    }

    /// The processor time of its QEMU, with all traffic counted from now on.
    fn begin(&self) -> Result<u64> {
        self.peer.reset();
        processor_time(self.host.vm.pid())
    }

    /// MB per second of processor time, since it was `before`.
    fn end(&self, before: u64) -> Result<f64> {
        let nanos = processor_time(self.host.vm.pid())? - before;
        let report = self.peer.report();
        ensure!(report.tcp_content_ok(), "{:?}", report.tcp);
        let bytes = report.tcp.to_guest_bytes + report.tcp.from_guest_bytes;
        #[expect(clippy::cast_precision_loss, reason = "below 2^53")]
        let rate = bytes as f64 * 1e3 / nanos as f64;
        Ok(rate)
    }

    fn shell(&self, command: &str) -> Result<String> {
        self.host.vm.shell(command, PATIENCE)?.success()
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
    for task in fs::read_dir(format!("/proc/{process}/task"))? {
        let id: i32 = task?.file_name().to_string_lossy().parse()?;
        testbed::run_on(Pid::from_raw(id), processor)?;
    }
    Ok(())
}
