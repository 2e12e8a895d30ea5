//! The command line.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use load_format::Rate;

use crate::disk::DiskOptions;
use crate::disk_rate::DiskRateOptions;
use crate::flood::FloodOptions;
use crate::journal::JournalOptions;
use crate::mmio::MmioOptions;
use crate::nic::NicOptions;
use crate::now_nanos;

/// Load for the lab's guest: numbered UDP, a checked TCP transfer, memory that keeps changing, disks.
#[derive(Debug, Parser)]
pub(crate) struct Options {
    /// Name of the abstract unix socket by which `report` and `reset` find the running load.
    #[arg(long, global = true, default_value = "lab-guest")]
    pub(crate) control: String,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Runs all loads until killed, or for --seconds.
    Load {
        /// The peer's IPv4 address; without one, the NIC is left alone.
        #[arg(long)]
        peer: Option<Ipv4Addr>,
        #[command(flatten)]
        udp: UdpOptions,
        #[command(flatten)]
        tcp: TcpOptions,
        /// MiB of memory to write over and over (0: none).
        #[arg(long, default_value_t = 16)]
        dirty_mib: usize,
        /// MiB to write per second.
        #[arg(long, default_value_t = 16)]
        dirty_mib_per_second: usize,
        /// A block device to load as well, whose content is lost; may be given several times.
        #[arg(long, value_name = "DEVICE")]
        disk: Vec<PathBuf>,
        #[command(flatten)]
        disk_options: DiskOptions,
        #[command(flatten)]
        run: Run,
    },
    /// Runs the numbered UDP alone.
    Udp {
        #[command(flatten)]
        peer: Peer,
        #[command(flatten)]
        udp: UdpOptions,
        #[command(flatten)]
        run: Run,
    },
    /// Runs the TCP transfer alone.
    Tcp {
        #[command(flatten)]
        peer: Peer,
        #[command(flatten)]
        tcp: TcpOptions,
        #[command(flatten)]
        run: Run,
    },
    /// Runs the memory dirtier alone.
    Dirty {
        /// MiB of memory to write over and over.
        #[arg(long, default_value_t = 16)]
        mib: usize,
        /// MiB to write per second.
        #[arg(long, default_value_t = 16)]
        mib_per_second: usize,
        #[command(flatten)]
        run: Run,
    },
    /// Runs the disk load alone.
    Disk {
        /// The block devices, whose content is lost.
        #[arg(required = true, value_name = "DEVICE")]
        devices: Vec<PathBuf>,
        #[command(flatten)]
        options: DiskOptions,
        #[command(flatten)]
        run: Run,
    },
    /// Reads or writes a disk as fast as it goes, and prints how fast as one line of JSON.
    DiskRate(DiskRateOptions),
    /// Sends or takes as much as goes, one way; nobody looks at what it is. UDP to the guest is
    /// counted for a time, which is then printed; all else goes on until killed.
    Flood(FloodOptions),
    /// Writes numbered records to a disk and tells the outside which of them are durable.
    Journal(JournalOptions),
    /// Reads and writes a register as often as told, and prints how fast, as one line of JSON.
    Mmio(MmioOptions),
    /// Says what is left of a disk's journal, as one line of JSON.
    JournalCheck {
        /// The block device, or an image of it.
        device: PathBuf,
    },
    /// Sets rings, interrupts and features of an interface.
    Nic(NicOptions),
    /// Prints what the running load counted in its window, as one line of JSON.
    Report,
    /// Starts a new window: all counts are 0 again.
    Reset,
    /// Has the running disk load read and check all that it knows, and prints the report then.
    Verify,
}

#[derive(Debug, Args)]
pub(crate) struct Peer {
    /// The peer's IPv4 address.
    #[arg(long)]
    pub(crate) peer: Ipv4Addr,
}

#[derive(Debug, Args)]
pub(crate) struct UdpOptions {
    /// UDP port of the peer.
    #[arg(long, default_value_t = 7000)]
    pub(crate) udp_port: u16,
    /// UDP port to send from and to receive at.
    #[arg(long, default_value_t = 7000)]
    pub(crate) listen: u16,
    /// Packets to send per second.
    #[arg(long, default_value_t = 2000)]
    pub(crate) rate: u32,
    /// Bytes of payload in each: 40 to 1472.
    #[arg(long, default_value_t = 256)]
    pub(crate) payload: usize,
    /// Microseconds between two looks at the socket.
    #[arg(long, default_value_t = 1000)]
    pub(crate) tick_us: u32,
    /// Number of the processor to run on and no other (from 0).
    #[arg(long)]
    pub(crate) udp_cpu: Option<usize>,
}

#[derive(Debug, Args)]
pub(crate) struct TcpOptions {
    /// TCP port of the peer.
    #[arg(long, default_value_t = 7001)]
    pub(crate) tcp_port: u16,
}

/// The time in which something is counted.
#[derive(Debug, Args)]
pub(crate) struct Window {
    /// Milliseconds before those that count.
    #[arg(long, default_value_t = 500)]
    warm_up_ms: u64,
    /// Milliseconds that count.
    #[arg(long, default_value_t = 2000)]
    ms: u64,
}

impl Window {
    /// Prints how fast a count grows, as one line of JSON; `counts` tells what was done and what failed.
    pub(crate) fn print(&self, counts: impl Fn() -> Result<(u64, u64)>) -> Result<()> {
        std::thread::sleep(Duration::from_millis(self.warm_up_ms));
        let (since, (before, _)) = (now_nanos(), counts()?);
        std::thread::sleep(Duration::from_millis(self.ms));
        let (until, (after, failed)) = (now_nanos(), counts()?);
        let rate = Rate {
            done: after.saturating_sub(before),
            failed,
            nanos: until.saturating_sub(since),
        };
        println!("{}", serde_json::to_string(&rate)?);
        Ok(())
    }
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    /// Ends after this many seconds and prints the report.
    #[arg(long)]
    pub(crate) seconds: Option<u64>,
}
