//! `cargo xtask bench mmio`
//!
//! A bare vfio-user client reads a register of 32 bits over and over, and writes one by posted writes,
//! as QEMU does for each access of a guest to a register that is trapped: of the `NVMe` controller as
//! it is served, beside [`floor`], a socket at whose other end somebody answers to reads and does
//! nothing else: what the kernel and two threads that wait for each other take; and of a network card, without and
//! with a keeper beside it ([`kept`]); and of libvfio-user's sample device, built ([`peer`]) from Debian's sources
//! of QEMU or from `--libvfio-user CHECKOUT`. [`guest`] does the same from a guest, beside QEMU's own devices.
//!
//! # What the numbers leave out
//!
//! The bare client's: the vCPU's way to QEMU and through it, which comes on top whoever serves. The server is a thread
//! of this process; libvfio-user's is a process, which counts for it or against it only as far as
//! the kernel's change from one address space to another does.

mod floor;
mod guest;
mod kept;
mod peer;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Result;
use device::{Claim, Model};
use endpoint::Endpoint;
use lab::LibvfioUser;
use nvme::{Controller, ControllerConfig, FileBacking, NamespaceConfig};
use pci::ConfigSpace;
use vfio_user::Server;

use super::doorbell::client::Client;
use super::{Report, Table, Variant, goal, machine, median, pinned, ratios, variants_of};

const CONFIG: u32 = 7;
/// Of its Command register, and memory decoding and bus mastering there.
const COMMAND: u64 = 4;
const ON: u16 = 6;
/// Posted writes before a read that waits for them: as many as a socket holds with room to spare.
const BURST: u32 = 64;

/// Where a server has what is read and written.
#[derive(Debug, Clone, Copy)]
struct Registers {
    name: &'static str,
    region: u32,
    read: u64,
    write: u64,
}

const FLOOR: Registers = Registers {
    name: "bare socket",
    region: 0,
    read: 0,
    write: 0,
};
/// Controller status, and the mask of interrupts.
const OURS: Registers = Registers {
    name: "vferry",
    region: 0,
    read: 0x1c,
    write: 0x0c,
};

pub(super) fn run(quick: bool, libvfio_user: Option<&Path>) -> Result<Report> {
    let (rounds, count) = if quick { (3, 2000) } else { (31, 20_000) };
    let from_guest = guest::run(if quick { 1 } else { 15 }, count)?;
    let folder = tempfile::Builder::new().prefix("vferry-").tempdir()?;
    // The client, too: it is what QEMU's thread for messages is, which has the processor of who serves.
    pinned::run_on(pinned::two()?[0])?;
    let mut ours = Client::connect(&serve(folder.path())?)?;
    ours.write(CONFIG, COMMAND, &ON.to_le_bytes())?;
    let floor = Client::connect(&floor::start(folder.path())?)?;
    let mut alone = Client::connect(&kept::serve_alone(folder.path())?)?;
    let mut with_keeper = Client::connect(&kept::serve_kept(folder.path())?)?;
    for card in [&mut alone, &mut with_keeper] {
        card.write(CONFIG, COMMAND, &ON.to_le_bytes())?;
    }
    let mut clients = vec![
        (FLOOR, floor),
        (OURS, ours),
        (kept::ENDS, alone),
        (kept::KEPT, with_keeper),
    ];
    let mut sample = None;
    let peer = match peer::program(libvfio_user, quick, folder.path())? {
        Ok(LibvfioUser { program, origin }) => {
            let (process, client) = peer::start(&program, folder.path())?;
            sample = Some(process);
            clients.push((peer::SAMPLE, client));
            format!("of {origin}")
        }
        Err(why) => format!("skipped, {why}"),
    };
    let mut runs: [Vec<_>; 2] = [0, 1].map(|_| {
        let names = clients.iter().map(|(registers, _)| registers.name);
        names.map(|name| (name, Vec::new())).collect()
    });
    let of = clients.len();
    // The first round warms up.
    for round in 0..=rounds {
        for turn in 0..of {
            let which = (round + turn) % of;
            let (registers, client) = &mut clients[which];
            let values = [
                reads(client, *registers, count)?,
                writes(client, *registers, count)?,
            ];
            for (runs, value) in runs.iter_mut().zip(values) {
                if round > 0 {
                    runs[which].1.push(value);
                }
            }
        }
    }
    drop((clients, sample));
    let [reads, writes] = runs.map(variants_of);
    let goals = goals(&reads, &writes);
    Ok(Report {
        goals,
        name: "mmio",
        machine: format!(
            "{}, {count} accesses a run; libvfio-user: {peer}",
            machine()?
        ),
        tables: [
            Table {
                what: "register reads per second",
                variants: reads,
            },
            Table {
                what: "posted register writes per second, each 64 followed by a read",
                variants: writes,
            },
        ]
        .into_iter()
        .chain(from_guest)
        .collect(),
        ..Report::default()
    })
}

fn goals(reads: &[Variant], writes: &[Variant]) -> Vec<String> {
    [("reads", reads), ("posted writes", writes)]
        .map(|(what, table)| {
            let runs = |name: &str| {
                let variant = table.iter().find(|variant| variant.name == name);
                variant.map_or(&[][..], |variant| &variant.runs)
            };
            let times = |one: &str, other: &str| median(&ratios(runs(one), runs(other)));
            let what = format!("at least twice libvfio-user's {what} from the same client");
            let is = times(OURS.name, peer::SAMPLE.name);
            let floor = format!(
                "The floor is the kernel's way from one thread to the other and back, which the bare socket has \
                 alone: vferry does {:.3} of what that does",
                times(OURS.name, FLOOR.name)
            );
            if is.is_nan() {
                return format!("Goal: {what}. Not measured here. {floor}.");
            }
            let least = times(FLOOR.name, peer::SAMPLE.name);
            let floor = format!(
                "{floor}, and that {least:.3} times libvfio-user's. libvfio-user's is a process, the others are threads \
                 of the client's."
            );
            goal(&what, is, is >= 2.0, &floor)
        })
        .into()
}

/// Per second.
fn reads(client: &mut Client, at: Registers, count: u32) -> Result<f64> {
    let began = Instant::now();
    for _ in 0..count {
        client.read(at.region, at.read)?;
    }
    Ok(f64::from(count) / began.elapsed().as_secs_f64())
}

fn writes(client: &mut Client, at: Registers, count: u32) -> Result<f64> {
    let began = Instant::now();
    for write in 1..=count {
        client.write(at.region, at.write, &0_u32.to_le_bytes())?;
        if write.is_multiple_of(BURST) || write == count {
            client.read(at.region, at.read)?;
        }
    }
    Ok(f64::from(count) / began.elapsed().as_secs_f64())
}

/// A controller as it is served; its connection ends with the client.
fn serve(folder: &Path) -> Result<PathBuf> {
    let disk = folder.join("disk");
    std::fs::write(&disk, [0; 4096])?;
    let mut controller = Controller::new(ControllerConfig {
        serial: "bench".into(),
        queues: 1,
        namespaces: vec![NamespaceConfig {
            backing: Box::new(FileBacking::open(&disk)?),
            block_size: 512,
        }],
    })?;
    controller.acquire(Claim::Start)?;
    let space = ConfigSpace::of(&nvme::spec::pci::LAYOUT);
    let endpoint = Endpoint::new("disk0", space, Box::new(controller))?;
    let socket = folder.join("disk0.sock");
    let server = Server::bind(&socket)?;
    let mut frontend = endpoint.frontend();
    std::thread::Builder::new()
        .name("vfio-disk0".into())
        .spawn(move || server.serve_one(&mut frontend))?;
    Ok(socket)
}
