//! Registers from a guest: by its vCPU, QEMU and, where the device is vferry's, a message.
//!
//! No driver has the devices: `lab-guest mmio` maps their BARs. The floor is `edu`, QEMU's device for
//! teaching, whose registers do nothing; `igb` is a NIC as ours is.

use std::time::Duration;

use anyhow::{Result, ensure};
use lab::{Lab, progress_on_stderr};
use load_format::Rate;
use testbed::{GUEST_IP, Host, HostOptions, PEER_IP, Programs};
use uplink::{Load, Peer, PeerConfig};

use super::super::{Table, pinned, variants};

const PATIENCE: Duration = Duration::from_mins(1);
const BOOT: Duration = Duration::from_mins(2);

/// A device, and what is read and written of it.
struct Device {
    name: &'static str,
    address: &'static str,
    read: u32,
    write: u32,
}

const DEVICES: [Device; 3] = [
    // Its identification, and the register that gives back the inverse of what was written.
    Device {
        name: "QEMU's edu",
        address: "0a",
        read: 0,
        write: 4,
    },
    // Its status, and the mask of interrupts to be cleared: none.
    Device {
        name: "QEMU's igb",
        address: "0b",
        read: 0x8,
        write: 0xd8,
    },
    // The same of an 82599's virtual function.
    Device {
        name: "vferry",
        address: "05",
        read: 0x8,
        write: 0x10c,
    },
];

/// Reads and writes per second.
pub(super) fn run(rounds: u32, count: u32) -> Result<[Table; 2]> {
    let lab = Lab::ensure(&progress_on_stderr)?;
    let programs = Programs::build()?;
    let processors = pinned::serving()?;
    let folder = tempfile::Builder::new().prefix("vferry-").tempdir()?;
    let wire = folder.path().join("wire.sock");
    let peer = Peer::start(PeerConfig::new(&wire, PEER_IP, GUEST_IP))?;
    peer.set_load(Load::default());
    let args = ["-device", "edu,addr=0a", "-device", "igb,addr=0b,romfile="];
    let options = HostOptions {
        append: lab::ONE_CPU.to_owned(),
        args: args.map(str::to_owned).into(),
        ..HostOptions::new(512 << 20, wire)
    };
    let start = || Host::start(&lab, &programs, folder.path(), "1", &options, false);
    let host = processors.start(1, start, |host| &host.vm)?;
    host.vm.wait_ready(BOOT)?;
    let shell = |command: &str| host.vm.shell(command, PATIENCE)?.success();
    for Device { address, .. } in DEVICES {
        shell(&format!(
            "cd /sys/bus/pci/devices/0000:00:{address}.0; \
             ! [ -e driver ] || echo 0000:00:{address}.0 > driver/unbind; echo 1 > enable"
        ))?;
    }
    let mut runs: [[Vec<f64>; DEVICES.len()]; 2] = Default::default();
    // The first round warms up.
    for round in 0..=rounds {
        for turn in 0..DEVICES.len() {
            let which = (round as usize + turn) % DEVICES.len();
            let Device {
                name,
                address,
                read,
                write,
            } = DEVICES[which];
            let said = shell(&format!(
                "lab-guest mmio /sys/bus/pci/devices/0000:00:{address}.0/resource0 \
                 --read {read} --write {write} --count {count}"
            ))?;
            let rates: [Rate; 2] = serde_json::from_str(&said)?;
            ensure!(rates.iter().all(|rate| rate.nanos > 0), "{name}: {said}");
            for (runs, rate) in runs.iter_mut().zip(rates) {
                if round > 0 {
                    runs[which].push(rate.per_second());
                }
            }
        }
    }
    let names = DEVICES.map(|device| device.name);
    let [reads, writes] = runs.map(|runs| variants(names, runs));
    Ok([
        Table {
            what: "register reads from a guest per second",
            variants: reads,
        },
        Table {
            what: "register writes from a guest per second, each 64 followed by a read",
            variants: writes,
        },
    ])
}
