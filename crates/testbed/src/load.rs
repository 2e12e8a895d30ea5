//! What keeps a guest busy, and how it is seen that it is: the same whoever serves its devices.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::Vm;
use load_format::{DiskReport, DiskSilence, GuestReport};
use uplink::peer::now_nanos;
use uplink::{Peer, PeerConfig};

use crate::run::{GUEST_IP, PEER_IP};

/// A guest boots in 10 s on two idle processors under emulation.
pub(crate) const BOOT: Duration = Duration::from_mins(2);
/// A command in the guest takes a moment, or long where other guests have the processors too.
pub(crate) const COMMAND: Duration = Duration::from_mins(1);
/// How much is seen of the traffic before a migration.
pub(crate) const AROUND: Duration = Duration::from_millis(500);
/// How long traffic may take to flow everywhere, from nothing or after a migration.
const FLOW: Duration = Duration::from_secs(30);
/// Bytes of TCP per second, each way: with the UDP and the echoes, as much as an emulated guest of
/// two vCPUs carries with time to spare.
const TCP_RATE: u32 = 500_000;
/// Nothing but the guest's UDP service runs on its second vCPU, as guests with a network function
/// are set up. An emulator starts at the destination with nothing translated: what must be
/// translated before the service runs again decides the silence that the peer sees.
pub(crate) const ISOLATE: &str = "isolcpus=1 irqaffinity=0";
const SERVICE_CPU: usize = 1;
/// Bytes of the guest's disk.
const DISK: u64 = 128 << 20;
/// MiB per second that the guest reads and writes: what an emulated guest with other loads has time
/// for.
const DISK_RATE: u32 = 8;
/// Programs in the guest that use it at a time.
const DISK_WORKERS: u64 = 6;

/// What a guest is loaded with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Work {
    /// Its NIC is.
    pub(crate) nic: bool,
    /// Its disk, if that is.
    pub(crate) disk: Option<&'static str>,
    /// KiB of one operation on it at most.
    pub(crate) disk_max_kib: u32,
    /// MiB of guest memory that a program writes over and over, and how many of them per second.
    pub(crate) dirty: (u32, u32),
}

/// A guest that is to be, or is, under load.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load<'a> {
    pub(crate) vm: &'a Vm,
    pub(crate) peer: &'a Peer,
    pub(crate) work: Work,
}

impl Load<'_> {
    /// Starts it, and waits until all of it flows.
    pub(crate) fn start(&self) -> Result<()> {
        let Work {
            nic,
            disk,
            disk_max_kib: kib,
            dirty: (mib, rate),
        } = self.work;
        let nic = if nic {
            format!("--peer {PEER_IP} --udp-cpu {SERVICE_CPU}")
        } else {
            String::new()
        };
        let disk = disk.map_or(String::new(), |node| {
            format!(
                "--disk {node} --disk-workers {DISK_WORKERS} --disk-mib-per-second {DISK_RATE} \
                 --disk-max-kib {kib}"
            )
        });
        let load = format!("load --dirty-mib {mib} --dirty-mib-per-second {rate} {nic} {disk}");
        // The load outlives the shell that starts it.
        self.shell(&format!(
            "lab-guest {load} > /tmp/load.log 2>&1 & load=$!; \
             until lab-guest report > /dev/null 2>&1; do kill -0 $load || exit 0; usleep 50000; done"
        ))?;
        let flowing = self.wait();
        if flowing.is_err() {
            let log = self
                .shell("cat /tmp/load.log; ip addr; ls /dev/nvme* /dev/vd*; dmesg | grep -i nvme; dmesg | tail -n 20")
                .unwrap_or_default();
            return flowing.context(format!("the guest said:\n{log}"));
        }
        self.reset_counts()
    }

    /// Waits until every kind of load has flowed both ways since now.
    pub(crate) fn wait(&self) -> Result<()> {
        let flows = if self.work.nic {
            let flows = self.peer.wait_for_traffic(now_nanos(), FLOW);
            flows.map_err(anyhow::Error::new)
        } else {
            Ok(())
        };
        flows.and_then(|()| self.wait_for_disk())
    }

    /// Starts counting anew on both ends.
    pub(crate) fn reset_counts(&self) -> Result<()> {
        self.peer.reset();
        self.shell("lab-guest reset").map(drop)
    }

    /// What it has counted.
    pub(crate) fn report(&self) -> Result<GuestReport> {
        Ok(serde_json::from_str(&self.shell("lab-guest report")?)?)
    }

    /// What the load on the guest's disk has counted; `None` without one.
    pub(crate) fn disk_report(&self) -> Result<Option<DiskReport>> {
        if self.work.disk.is_none() {
            return Ok(None);
        }
        Ok(Some(self.report()?.disk.context("no disk is loaded")?))
    }

    /// Waits until the guest's disk has carried out what was begun since now.
    pub(crate) fn wait_for_disk(&self) -> Result<()> {
        let deadline = Instant::now() + FLOW;
        let Some(before) = self.disk_report()? else {
            return Ok(());
        };
        // Each worker has one on its way at most.
        let enough = before.operations + before.workers + 1;
        while self
            .disk_report()?
            .is_some_and(|now| now.operations < enough)
        {
            ensure!(Instant::now() < deadline, "the guest's disk does nothing");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn shell(&self, command: &str) -> Result<String> {
        self.vm.shell(command, COMMAND)?.success()
    }
}

/// The other end of a guest's network, at the socket `wire`, with so many packets a second.
pub(crate) fn peer(wire: &Path, packets: u32) -> Result<Peer> {
    let mut config = PeerConfig::new(wire, PEER_IP, GUEST_IP);
    config.tcp_bytes_per_second = TCP_RATE;
    config.udp_per_second = packets;
    config.icmp_per_second = packets / 2;
    Ok(Peer::start(config)?)
}

/// Gives the guest's interface its address and takes it up.
pub(crate) fn bring_up(vm: &Vm, limit: Duration) -> Result<()> {
    let command = format!("ip addr add {GUEST_IP}/24 dev eth0 && ip link set eth0 up");
    vm.shell(&command, limit)?.success().map(drop)
}

/// The longest silence of the guest's disk between two reports, in milliseconds of the guest's clock.
#[expect(
    clippy::cast_precision_loss,
    reason = "an outage of 100 days loses a microsecond"
)]
pub(crate) fn disk_silence_ms(before: &DiskReport, after: &DiskReport) -> f64 {
    let later = |silence: &&DiskSilence| silence.until_nanos > before.now_nanos;
    let silences = after.silences.iter().filter(later);
    let longest = silences.map(DiskSilence::nanos).max();
    // Shorter ones are not told.
    longest.unwrap_or(DiskReport::MIN_SILENCE_NANOS) as f64 / 1e6
}

/// A new disk.
pub(crate) fn disk(folder: &Path) -> Result<PathBuf> {
    let path = folder.join("disk.img");
    std::fs::File::create_new(&path)?.set_len(DISK)?;
    Ok(path)
}
