//! `cargo xtask bench mmio`
//!
//! A bare vfio-user client reads a register of 32 bits over and over, and writes one by posted writes,
//! as QEMU does for each access of a guest to a register that is trapped: of the `NVMe` controller as
//! it is served, beside [`floor`], a socket at whose other end somebody answers to reads and does
//! nothing else: what the kernel and two threads that wait for each other take; and of a network card, without and
//! with a keeper beside it ([`kept`]). With `--libvfio-user`
//! also beside that library's sample device. [`guest`] does the same from a guest, beside QEMU's own
//! devices.
//!
//! # What the numbers leave out
//!
//! The bare client's: the vCPU's way to QEMU and through it, which comes on top whoever serves. The server is a thread
//! of this process; libvfio-user's is a process, which counts for it or against it only as far as
//! the kernel's change from one address space to another does.

mod floor;
mod guest;
mod kept;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use device::{Claim, Model};
use endpoint::Endpoint;
use nvme::{Controller, ControllerConfig, FileBacking, NamespaceConfig};
use pci::ConfigSpace;
use vfio_user::Server;

use super::doorbell::client::Client;
use super::{Report, Table, Variant, goal, machine, median, pinned, ratios, variants_of};

const CONFIG: u32 = 7;
/// Of its Command register, and memory decoding and bus mastering there.
const COMMAND: u64 = 4;
const ON: u16 = 6;
/// How long a server may take to listen.
const START: Duration = Duration::from_secs(10);
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
/// Its pins.
const SAMPLE: Registers = Registers {
    name: "libvfio-user's sample",
    region: 2,
    read: 0,
    write: 0,
};

/// Kills the sample server when dropped.
struct Sample(Child);

impl Drop for Sample {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

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
    if let Some(program) = libvfio_user {
        let (child, client) = start_sample(program, folder.path())?;
        sample = Some(child);
        clients.push((SAMPLE, client));
    }
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
    let skipped = match libvfio_user {
        Some(_) => "",
        None => "; libvfio-user: skipped, no `--libvfio-user PROGRAM`",
    };
    let goals = goals(&[&reads, &writes]);
    Ok(Report {
        goals,
        name: "mmio",
        machine: format!("{}, {count} accesses a run{skipped}", machine()?),
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

/// Of reads and posted writes.
fn goals(tables: &[&[Variant]; 2]) -> Vec<String> {
    let rates = |name: &str| {
        let found = tables.map(|table| table.iter().find(|variant| variant.name == name));
        let [Some(reads), Some(writes)] = found else {
            return None;
        };
        Some([&reads.runs[..], &writes.runs])
    };
    let least = |name: &str| {
        let (ours, others) = (rates(OURS.name)?, rates(name)?);
        let least = |at: usize| median(&ratios(ours[at], others[at]));
        Some(least(0).min(least(1)))
    };
    let floor = least(FLOOR.name).unwrap_or(f64::NAN);
    let floor = format!(
        "The floor is the kernel's way from one thread to the other and back, which the bare socket has alone: of \
         its reads and writes vferry does {floor:.3} or more."
    );
    vec![match least(SAMPLE.name) {
        Some(is) => goal(
            "at least twice libvfio-user's reads and posted writes from the same client",
            is,
            is >= 2.0,
            &floor,
        ),
        None => format!(
            "Goal: at least twice libvfio-user's reads and posted writes from the same client. Not measured here: there \
             was no `--libvfio-user PROGRAM`. {floor}"
        ),
    }]
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

fn start_sample(program: &Path, folder: &Path) -> Result<(Sample, Client)> {
    let socket = folder.join("sample.sock");
    let mut command = Command::new(program);
    command.arg(&socket).stdout(Stdio::null());
    let child = command.spawn().with_context(|| {
        format!(
            "cannot start {}: `--libvfio-user` takes the program that libvfio-user's build leaves \
             in build/samples/gpio-pci-idio-16",
            program.display()
        )
    })?;
    let mut sample = Sample(child);
    let deadline = Instant::now() + START;
    while !socket.exists() {
        if let Some(status) = sample.0.try_wait()? {
            anyhow::bail!("{} ended ({status})", program.display());
        }
        ensure!(
            Instant::now() < deadline,
            "{} does not listen within {START:?}",
            program.display()
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok((sample, Client::connect(&socket)?))
}
