//! `vferry rehearse`.

use super::status::connect;
use crate::config::Config;
use crate::control::{Reply, Request};
use crate::rehearsal::{Answer, Rehearsal};

/// Asks the VM's process to ask the guest, and prints what the guest did. Fails unless it did all.
pub(super) fn rehearse(config: &Config, options: &super::Rehearse) -> anyhow::Result<()> {
    let mut control = connect(config)?;
    control.writer()?.send(&Request::Rehearse {
        hold_ms: options.hold_ms,
        stopped_ms: options.stopped_ms,
    })?;
    let rehearsal = match control.receive()? {
        Some(Reply::Rehearsed(rehearsal)) => rehearsal,
        Some(Reply::Failed { why }) => anyhow::bail!("{why}"),
        _ => anyhow::bail!("the VM's process did not answer"),
    };
    if options.json {
        println!("{}", serde_json::to_string(&rehearsal)?);
    } else {
        print_text(&rehearsal);
    }
    let all_done = rehearsal.devices.iter().all(|device| {
        let answers = [&device.track, &device.stop, &device.start];
        answers.iter().all(|a| matches!(a, Answer::Done(_)))
    });
    anyhow::ensure!(all_done, "the guest cannot help with every device");
    Ok(())
}

fn print_text(rehearsal: &Rehearsal) {
    for device in &rehearsal.devices {
        println!("device {}", device.name);
        for (what, answer) in [
            ("known writes", &device.track),
            ("stop", &device.stop),
            ("start", &device.start),
        ] {
            match answer {
                Answer::Done(ms) => println!("  {what:12}  yes, in {ms:.1} ms"),
                Answer::No(why) => println!("  {what:12}  no: {why}"),
            }
        }
    }
}
