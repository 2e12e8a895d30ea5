//! `cargo xtask demo`

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::{Args, ValueEnum};
use ferry::Strategy;
use lab::{Kernel, Lab, progress_on_stderr};
use load_format::DiskReport;
use testbed::{
    Devices, Help, Migration, NetworkSummary, Options, Plug, Programs, Rehearsed, Spread, Summary,
    Testbed, summarise,
};

use crate::device::{self, Device};

/// How long the guest may take to stop devices that it tracks: an emulated guest under full load
/// spends much of its time in the hooks.
const TRACKED_QUIESCE: Duration = Duration::from_secs(10);
/// UDP packets per second to a guest that has a disk to check as well: its two vCPUs are emulated.
const PACKETS_BESIDE_DISK: u32 = 500;

/// A live migration of a Linux guest with a device under load, on the lab.
#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// What the guest has, each under its own load: `nic`, `nvme`, or `nic,nvme`.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "nic")]
    device: Vec<Device>,
    /// Go there and back, so many times, instead of there only.
    #[arg(long, value_name = "N")]
    round_trips: Option<usize>,
    /// Guest memory, with M or G behind the number.
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = memory)]
    memory: u64,
    /// How the report is printed on standard output.
    #[arg(long, value_enum, default_value_t = Form::Text)]
    report: Form,
    /// LOSES DATA: switch off one law of migration. The demo must fail then, and see stale pages.
    #[arg(long, value_enum)]
    control: Option<Control>,
    /// How the device goes over. With `cooperative`, the guest has vferry's module.
    #[arg(long)]
    strategy: Option<Strategy>,
    /// Who knows which pages devices write. All but `device` add a device that writes in all the ways
    /// in which drivers map memory, and switch the logs of all device models off.
    #[arg(long, value_enum, default_value_t = Tracking::Device)]
    tracking: Tracking,
    /// Do not compare guest memory: pauses are those of everyday use then.
    #[arg(long)]
    no_verify: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    Text,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Tracking {
    /// The device models.
    Device,
    /// The guest alone, by its table of DMA pages.
    Table,
    /// The guest alone, by its dummy writes.
    Touch,
    /// Nobody: both hosts compare memory at the end.
    Digests,
    /// LOSES DATA: nobody. The demo must fail then, and see stale pages.
    Nobody,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Control {
    /// Mark first and halt afterwards.
    NaiveOrder,
    /// Do not log what devices write.
    NoLog,
}

pub(crate) fn run(demo: &Demo) -> Result<ExitCode> {
    let began = Instant::now();
    let step = |what: &str| eprintln!("demo: [{:5.1} s] {what}", began.elapsed().as_secs_f64());
    step("the lab");
    let mut lab = Lab::ensure(&progress_on_stderr)?;
    let guest = demo.help();
    let blind = demo.tracking != Tracking::Device;
    if guest != Help::NoDevice {
        step("the headers of the guest's kernel, and its modules");
        lab = lab.with_kernel(Kernel::default(), &progress_on_stderr)?;
    }
    step("building vferry and the guest's load");
    let programs = Programs::build()?;
    let defaults = Options::default();
    let options = Options {
        memory: demo.memory,
        verify: !demo.no_verify,
        unsound_control: demo.unsound_control().map(str::to_owned),
        stream: blind.then(String::new),
        quiesce_deadline: if blind {
            TRACKED_QUIESCE
        } else {
            defaults.quiesce_deadline
        },
        dirty_log_of_guest: blind,
        compare: (blind && demo.tracking != Tracking::Digests).then_some("never"),
        strategy: demo.strategy,
        packets_per_second: if demo.devices() == Devices::NicAndDisk {
            PACKETS_BESIDE_DISK
        } else {
            defaults.packets_per_second
        },
        // Who reports the error that the guest recovers from.
        devices: demo.devices(),
        plug: if demo.strategy == Some(Strategy::Recovery) {
            Plug::RootPort
        } else {
            defaults.plug
        },
        guest,
        ..defaults
    };
    step("booting a stock Linux guest with vferry's devices, and loading it");
    let mut testbed = Testbed::start(lab, programs, options)?;
    let rehearsed = if demo.strategy == Some(Strategy::Cooperative) {
        step("rehearsal: the guest stops and starts its devices without a migration");
        let rehearsed = Rehearsed::of(&testbed.rehearse()?);
        testbed.reset_counts()?;
        rehearsed
    } else {
        None
    };
    let count = demo.round_trips.map_or(1, |trips| 2 * trips);
    let mut migrations = Vec::new();
    for number in 1..=count {
        step(&format!("migration {number} of {count}, under load"));
        let migration = testbed.migrate()?;
        step(&line(&migration));
        migrations.push(migration);
    }
    let summary = summarise(&testbed, &migrations)?;
    match demo.report {
        Form::Json => {
            let mut report = serde_json::to_value(&summary)?;
            report["rehearsed"] = serde_json::to_value(rehearsed)?;
            println!("{report}");
        }
        Form::Text => print(&summary, rehearsed.as_ref()),
    }
    let faults = summary.faults();
    for fault in &faults {
        eprintln!("demo: FAULT: {fault}");
    }
    Ok(if faults.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

impl Demo {
    /// What the guest has of vferry's.
    fn help(&self) -> Help {
        match self.tracking {
            Tracking::Table => Help::Module("method=table".into()),
            Tracking::Touch => Help::Module("method=touch".into()),
            Tracking::Digests | Tracking::Nobody => Help::NoDriver,
            Tracking::Device if self.strategy == Some(Strategy::Cooperative) => {
                Help::Module(String::new())
            }
            Tracking::Device => Help::NoDevice,
        }
    }

    fn devices(&self) -> Devices {
        device::all(&self.device)
    }

    fn unsound_control(&self) -> Option<&'static str> {
        match self.control {
            Some(Control::NaiveOrder) => Some("naive-order"),
            Some(Control::NoLog) => Some("no-log"),
            None if self.tracking == Tracking::Nobody => Some("no-log"),
            None => None,
        }
    }
}

/// `512M`, `4G`.
fn memory(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'M') => (&text[..text.len() - 1], 20),
        Some(b'G') => (&text[..text.len() - 1], 30),
        _ => ("", 0),
    };
    let bytes = digits
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(1 << shift));
    bytes
        .filter(|bytes| *bytes >= 192 << 20)
        .ok_or_else(|| format!("`{text}`: write a size such as 512M or 4G, at least 192M"))
}

fn line(migration: &Migration) -> String {
    let stale = match migration.report.stale_pages {
        Some(stale) => format!(", {stale} stale pages"),
        None => String::new(),
    };
    let outage =
        |what: &str, ms: Option<f64>| ms.map_or(String::new(), |ms| format!(", {what} {ms:.0} ms"));
    format!(
        "VM pause {:.0} ms{}{}{stale}",
        migration.report.vm_pause_ms,
        outage("silence of the NIC", migration.outage_ms()),
        outage("of the disk", migration.disk_outage_ms),
    )
}

fn print(summary: &Summary, rehearsed: Option<&Rehearsed>) {
    let spread = |what: &str, spread: &Spread| {
        println!(
            "  {what:38} {:9.1} ms median, {:9.1} ms at most",
            spread.median, spread.max
        );
    };
    println!(
        "{} migrations, strategy {}",
        summary.migrations, summary.strategy
    );
    println!("phases");
    for (phase, times) in &summary.phases_ms {
        spread(phase.name(), times);
    }
    for fallback in &summary.fallbacks {
        println!("not as asked for: {fallback}");
    }
    println!("outage");
    spread("VM pause, as QEMU reports it", &summary.vm_pause_ms);
    if let Some(network) = &summary.network {
        spread(
            "longest silence of the NIC, either way",
            &network.device_outage_ms,
        );
        spread("  to the guest", &network.silence_to_guest_ms);
        spread("  from the guest", &network.silence_from_guest_ms);
    }
    if let Some(disk) = &summary.disk {
        spread("longest silence of the disk", &disk.outage_ms);
    }
    if let Some(split) = &summary.split {
        spread("  guest stops its device", &split.guest_quiesce_ms);
        spread("  VM pause", &split.vm_pause_ms);
        spread("  guest starts its device", &split.guest_restart_ms);
        spread("  the rest", &split.rest_ms);
    }
    for (device, split) in &summary.recovery {
        println!("{device}, from its halt on:");
        spread("  it is halted", &split.devices_paused_ms);
        spread("  the guest resets it", &split.guest_resets_ms);
        spread("  it is programmed", &split.programmed_ms);
        spread("  its driver starts it", &split.driver_starts_ms);
        spread("  its first work", &split.first_work_ms);
    }
    if let Some(Rehearsed { stop_ms, start_ms }) = rehearsed {
        println!(
            "  without a migration, the guest stops it in {stop_ms:.1} ms and starts it in {start_ms:.1} ms"
        );
    }
    if let Some(network) = &summary.network {
        print_network(network);
    }
    if let Some(disk) = &summary.disk {
        print_disk(&disk.load);
    }
    if let Some(pages) = summary.pages_compared {
        println!("pages compared and sent   {pages:9}");
    }
    for (source, [precopy, at_halt]) in &summary.pages_marked_by {
        println!("pages marked by {source}: {precopy} while the VM ran, {at_halt} after the halt");
    }
    match summary.stale_pages {
        Some(stale) => println!("stale pages: {stale}"),
        None => println!("stale pages: not looked for"),
    }
    let interrupts = summary.interrupts;
    println!(
        "interrupts: {} raised after arrival, of which at most {} spurious; {} lost",
        interrupts.raised, interrupts.spurious, interrupts.lost
    );
    let alive = if summary.guest_alive {
        "alive"
    } else {
        "NOT WELL"
    };
    println!("the guest is {alive}");
}

fn print_network(summary: &NetworkSummary) {
    println!("packets         sent       lost  duplicated  reordered    damaged");
    let rows = [
        ("UDP to guest", summary.udp_to_guest),
        ("UDP from guest", summary.udp_from_guest),
        ("ICMP echo", summary.icmp),
    ];
    for (name, udp) in rows {
        println!(
            "  {name:14} {:8} {:8} {:11} {:10} {:10}",
            udp.sent, udp.lost, udp.duplicated, udp.reordered, udp.damaged
        );
    }
    println!(
        "  UDP lost outside of the outages   {:8}",
        summary.udp_lost_outside_outage
    );
    let [down, up] = summary.tcp_bytes;
    let right = if summary.tcp_content_ok {
        "all right"
    } else {
        "WRONG"
    };
    println!("TCP: {down} bytes to the guest, {up} from it, content {right}");
}

fn print_disk(load: &DiskReport) {
    let DiskReport {
        reads,
        writes,
        durable_writes,
        flushes,
        zeroes,
        discards,
        checked_blocks,
        wrong_blocks,
        io_errors,
        ..
    } = load;
    println!(
        "disk: {reads} reads, {writes} writes, {durable_writes} durable ones, {flushes} flushes, \
         {zeroes} zeroed, {discards} discarded"
    );
    println!("  {checked_blocks} blocks checked, {wrong_blocks} wrong; {io_errors} I/O errors");
}
