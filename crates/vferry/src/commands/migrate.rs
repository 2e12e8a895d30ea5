//! `vferry migrate`.

use std::time::Duration;

use ferry::report::{DeviceReport, Progress};
use ferry::{Phase, Report};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

use super::status::connect;
use crate::config::Config;
use crate::control::{Reply, Request};

/// Asks the VM's process to migrate it, and shows how that goes.
pub(super) fn migrate(config: &Config, options: &super::Migrate) -> anyhow::Result<()> {
    let mut control = connect(config)?;
    let mut writer = control.writer()?;
    writer.send(&Request::Migrate {
        to: options.to.clone(),
        verify: options.verify,
        compare: options.compare.into(),
        strategy: options.strategy,
        downtime_limit_ms: options.downtime_limit_ms,
    })?;
    cancel_on_signal(writer)?;
    let display = Display::new(options.json);
    loop {
        match control.receive()? {
            Some(Reply::Progress(progress)) => display.show(&progress)?,
            Some(Reply::Done { report }) => return display.done(&report),
            Some(Reply::Failed { why }) => {
                display.end();
                if options.json {
                    println!(
                        "{}",
                        serde_json::to_string(&Reply::Failed { why: why.clone() })?
                    );
                }
                anyhow::bail!("{why}");
            }
            Some(
                Reply::Status(_)
                | Reply::Prospect(_)
                | Reply::Rehearsed(_)
                | Reply::HandsOver(_)
                | Reply::Resolve(_),
            ) => {}
            None => {
                display.end();
                anyhow::bail!(
                    "the VM's process ended in the middle of the migration; its log says why. \
                     QMP `query-status` on both hosts tells where the VM is. Where there is a `[keeper]`, another \
                     process serves it: `vferry status`"
                )
            }
        }
    }
}

/// The first Ctrl-C cancels and waits for the word that the VM runs on; a second one leaves.
fn cancel_on_signal(mut writer: crate::control::Writer) -> anyhow::Result<()> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM])?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for (count, _) in signals.forever().enumerate() {
                if count > 0 || writer.send(&Request::Cancel).is_err() {
                    std::process::exit(130);
                }
                eprintln!("\ncancelling; once more to leave without waiting");
            }
        })?;
    Ok(())
}

struct Display {
    bar: ProgressBar,
    json: bool,
}

impl Display {
    fn new(json: bool) -> Self {
        let bar = if json {
            ProgressBar::hidden()
        } else {
            ProgressBar::new(1)
        };
        let style = "{prefix:>8} {bar:30} {bytes}/{total_bytes} {msg}";
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { bar, json }
    }

    fn show(&self, progress: &Progress) -> anyhow::Result<()> {
        if self.json {
            println!(
                "{}",
                serde_json::to_string(&Reply::Progress(progress.clone()))?
            );
        }
        match progress {
            Progress::Phase { phase } => self.bar.set_prefix(phase.name()),
            Progress::Memory {
                transferred,
                total,
                remaining,
                mbps,
                marked,
            } => {
                self.bar.set_length(*total);
                self.bar.set_position(total.saturating_sub(*remaining));
                self.bar.set_message(format!(
                    "sent {} at {mbps:.0} Mbit/s, {marked} pages marked",
                    HumanBytes(*transferred)
                ));
            }
        }
        Ok(())
    }

    fn end(&self) {
        self.bar.finish_and_clear();
    }

    fn done(&self, report: &Report) -> anyhow::Result<()> {
        self.end();
        if self.json {
            println!(
                "{}",
                serde_json::to_string(&Reply::Done {
                    report: report.clone()
                })?
            );
        } else {
            print_report(report);
        }
        let faults = report.devices.iter();
        let faults = faults.filter_map(|device| Some((&device.name, device.fault.as_ref()?)));
        let faults: Vec<_> = faults
            .map(|(name, why)| format!("`{name}`: {why}"))
            .collect();
        if !faults.is_empty() {
            anyhow::bail!(
                "the VM runs at the destination, but not all of its devices do: {}. Unbinding and \
                 binding their drivers in the guest starts them",
                faults.join("; ")
            );
        }
        match report.stale_pages {
            Some(stale) if stale > 0 => {
                anyhow::bail!(
                    "{stale} pages of guest memory arrived stale: the VM at the destination is damaged"
                )
            }
            _ => Ok(()),
        }
    }
}

fn print_device(device: &DeviceReport) {
    print!(
        "  device {:13} {}, pages known by {}",
        device.name, device.strategy, device.dirty_log
    );
    if let Some(ms) = device.quiesce_ms {
        print!(", stopped by the guest in {ms:.1} ms");
    }
    if let Some(ms) = device.restart_ms {
        print!(", started in {ms:.1} ms");
    }
    if let Some(times) = &device.recovered {
        print!(
            ", reset by the guest after {:.1} ms, programmed after {:.1} ms, started after {:.1} ms",
            times.reset_ms, times.answered_ms, times.started_ms
        );
        match times.worked_ms {
            Some(ms) => print!(", at work after {ms:.1} ms"),
            None => print!(", idle since"),
        }
    }
    if let Some(why) = &device.why {
        print!(", as {why}");
    }
    println!();
}

fn print_report(report: &Report) {
    println!(
        "The VM runs at the destination (strategy {}).",
        report.strategy
    );
    println!(
        "  VM pause            {:8.1} ms, as QEMU reports it",
        report.vm_pause_ms
    );
    println!("  devices halted      {:8.1} ms", report.devices_paused_ms);
    for device in &report.devices {
        print_device(device);
    }
    for phase in Phase::ALL {
        if let Some(ms) = report.phases_ms.get(&phase) {
            println!("  phase {phase:13} {ms:8.1} ms");
        }
    }
    for (source, marks) in &report.pages_marked {
        println!(
            "  pages marked        {:8} by {source} ({} after the halt)",
            marks.total(),
            marks.at_halt
        );
    }
    if let Some(compared) = &report.compared {
        println!(
            "  pages differing     {:8}, compared and sent in {:.1} ms, which QEMU does not count",
            compared.pages, compared.took_ms
        );
    }
    println!(
        "  memory sent         {} in {} passes",
        HumanBytes(report.transferred),
        report.passes
    );
    if let Some(stale) = report.stale_pages {
        println!("  stale pages         {stale:8}");
        for [address, bytes] in &report.stale_ranges {
            println!("    {bytes:#x} bytes at {address:#x}");
        }
    }
    println!("This host's QEMU keeps the VM paused (`postmigrate`): end it when you like.");
}
