//! What runs inside the lab's guest: load on NIC, memory and disks, with every byte checked.
//!
//! One binary for a guest that has a kernel, busybox and nothing else. It is steered by
//! shell commands over a serial line:
//!
//! ```text
//! lab-guest load --peer 10.0.0.1 --dirty-mib 64 --dirty-mib-per-second 20 &
//! lab-guest reset      # starts a new measuring window
//! lab-guest report     # prints one line: a `load_format::GuestReport` as JSON
//! lab-guest verify     # reads all that the disk load wrote, then prints the report
//! ```
//!
//! It is built to need no libraries:
//!
//! ```text
//! RUSTFLAGS=-Ctarget-feature=+crt-static \
//!     cargo build --release -p lab-guest --target x86_64-unknown-linux-gnu
//! ```
//!
//! `udp`, `tcp`, `dirty` and `disk` are `load` with that part alone. `journal` is for disks whose
//! power is cut: it tells the outside which of its records are durable, and `journal-check` (or
//! `load_format::journal` on the host) says which are there.
//!
//! ```text
//! lab-guest load --peer 10.0.0.1 --disk /dev/nvme0n1 --disk-mib-per-second 8 &
//! lab-guest disk /dev/nvme0n1 /dev/nvme1n1 --disk-workers 8 --seconds 60
//! lab-guest journal /dev/nvme0n1 --tell /dev/ttyS2 &
//! lab-guest journal-check /dev/nvme0n1
//! lab-guest flood tcp-out --peer 10.0.0.1 &
//! lab-guest disk-rate /dev/nvme0n1 --depth 32
//! ```
//! `flood` and `disk-rate` are as much as goes, with nothing checked: for who wants to know how much
//! that is.
//! `nic` sets what busybox's `ip` cannot, and is no load.
//!
//! The guest is emulated, so each load is
//! built to need few system calls and timers: UDP is sent and drained once per tick, TCP waits in
//! the kernel for a whole block, and the TCP upload follows the download byte for byte instead of
//! keeping a pace of its own.
//!
//! # What it does not do
//!
//! It sets no addresses and brings no interface up (busybox `ip` does), and it judges nothing: a
//! report holds counts, and whoever reads it decides what they mean.
//!
//! The disk load knows only what it wrote itself since it was started: what an earlier one left is
//! not checked, and nothing survives the guest's end (for that there is the journal). Its times are
//! of a clock that stands still while the VM is paused. No two workers touch the same block, so it
//! does not test what a device makes of overlapping commands.

mod control;
mod direct;
mod dirty;
mod disk;
mod disk_rate;
mod flood;
mod journal;
mod mmio;
mod nic;
mod options;
mod tcp;
mod udp;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, mpsc};
use std::thread::Builder;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use rustix::thread::{CpuSet, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

use control::{Control, Load, Request};
use disk::DiskOptions;
use options::{Command, Options, Peer, Run, UdpOptions};

fn main() -> ExitCode {
    let Options { control, command } = Options::parse();
    match run(&control, command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-guest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What is to run.
#[derive(Debug)]
struct Plan {
    udp: Option<(Ipv4Addr, UdpOptions)>,
    tcp: Option<(Ipv4Addr, u16)>,
    dirty: Option<(usize, usize)>,
    disk: Option<(Vec<PathBuf>, DiskOptions)>,
    run: Run,
}

fn run(control: &str, command: Command) -> Result<()> {
    let plan = match command {
        Command::Report => return control::ask(control, Request::Report),
        Command::Reset => return control::ask(control, Request::Reset),
        Command::Verify => return control::verify(control),
        Command::DiskRate(options) => return disk_rate::run(&options),
        Command::Flood(options) => return flood::run(&options),
        Command::Journal(options) => return journal::run(&options),
        Command::Mmio(options) => return mmio::run(&options),
        Command::JournalCheck { device } => return journal::check(&device),
        Command::Nic(options) => return nic::set(&options),
        Command::Load {
            peer,
            udp,
            tcp,
            dirty_mib,
            dirty_mib_per_second,
            disk,
            disk_options,
            run,
        } => Plan {
            udp: peer.map(|peer| (peer, udp)),
            tcp: peer.map(|peer| (peer, tcp.tcp_port)),
            dirty: (dirty_mib > 0).then_some((dirty_mib, dirty_mib_per_second)),
            disk: (!disk.is_empty()).then_some((disk, disk_options)),
            run,
        },
        Command::Udp {
            peer: Peer { peer },
            udp,
            run,
        } => Plan {
            udp: Some((peer, udp)),
            tcp: None,
            dirty: None,
            disk: None,
            run,
        },
        Command::Tcp {
            peer: Peer { peer },
            tcp,
            run,
        } => Plan {
            udp: None,
            tcp: Some((peer, tcp.tcp_port)),
            dirty: None,
            disk: None,
            run,
        },
        Command::Dirty {
            mib,
            mib_per_second,
            run,
        } => Plan {
            udp: None,
            tcp: None,
            dirty: Some((mib, mib_per_second)),
            disk: None,
            run,
        },
        Command::Disk {
            devices,
            options,
            run,
        } => Plan {
            udp: None,
            tcp: None,
            dirty: None,
            disk: Some((devices, options)),
            run,
        },
    };
    let control = Control::listen(control)?;
    let load = Load::new(
        plan.udp
            .map(|(peer, options)| start_udp(peer, &options))
            .transpose()?,
        plan.tcp.map(start_tcp).transpose()?,
        plan.dirty
            .map(|(mib, rate)| start_dirty(mib, rate))
            .transpose()?,
        plan.disk
            .map(|(devices, options)| disk::start(&devices, &options))
            .transpose()?,
    );
    control.serve(&load, plan.run.seconds.map(Duration::from_secs))
}

fn start_udp(peer: Ipv4Addr, options: &UdpOptions) -> Result<Arc<udp::Account>> {
    let account = Arc::new(udp::Account::default());
    let mut udp = udp::Udp::new(peer, options, Arc::clone(&account))?;
    let cpu = options.udp_cpu;
    let (ready, started) = mpsc::channel();
    let run = move || {
        // It is the instrument: what it measures is the network, not the guest's scheduler.
        set_nice(-20);
        let pinned = cpu.map_or(Ok(()), pin);
        let go = pinned.is_ok();
        // Whoever waits for it is in the lines below.
        let _ = ready.send(pinned);
        if go {
            udp.run();
        }
    };
    Builder::new()
        .name("udp".into())
        .spawn(run)
        .context("cannot start a thread")?;
    started.recv().context("the thread ended")??;
    Ok(account)
}

/// Keeps this thread on processor `cpu`.
fn pin(cpu: usize) -> Result<()> {
    ensure!(cpu < CpuSet::MAX_CPU, "there is no processor {cpu}");
    let mut only = CpuSet::new();
    only.set(cpu);
    sched_setaffinity(None, &only).with_context(|| format!("cannot run on processor {cpu}"))
}

fn start_tcp(peer: (Ipv4Addr, u16)) -> Result<Arc<tcp::Account>> {
    let account = Arc::new(tcp::Account::default());
    let run = {
        let account = Arc::clone(&account);
        move || tcp::run(peer, &account)
    };
    Builder::new()
        .name("tcp".into())
        .spawn(run)
        .context("cannot start a thread")?;
    Ok(account)
}

fn start_dirty(mib: usize, mib_per_second: usize) -> Result<Arc<dirty::Account>> {
    let mut memory = dirty::Memory::new(mib)?;
    let account = Arc::new(dirty::Account::new(memory.bytes()));
    let run = {
        let account = Arc::clone(&account);
        move || {
            // It keeps memory changing, and takes the time that nobody else wants for it.
            set_nice(19);
            memory.run(mib_per_second, &account);
        }
    };
    Builder::new()
        .name("dirty".into())
        .spawn(run)
        .context("cannot start a thread")?;
    Ok(account)
}

/// Sets this thread's nice value. Without the right to, it stays as it is, and the load is only
/// less even.
fn set_nice(nice: i32) {
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), nice);
}

/// Now, in nanoseconds of this machine's `CLOCK_MONOTONIC`.
fn now_nanos() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds
        .saturating_mul(1_000_000_000)
        .saturating_add(u64::try_from(now.tv_nsec).unwrap_or(0))
}
