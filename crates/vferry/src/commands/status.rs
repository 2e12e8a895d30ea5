//! `vferry status`.

use std::os::unix::net::UnixStream;

use anyhow::Context;

use crate::config::Config;
use crate::control::{Control, Reply, Request, Status};

/// Asks the VM's process, and prints what it says.
pub(super) fn print(config: &Config, json: bool) -> anyhow::Result<()> {
    let status = ask(config)?;
    if json {
        println!("{}", serde_json::to_string(&status)?);
    } else {
        print_text(&status);
    }
    Ok(())
}

/// Asks the VM's process.
pub(super) fn ask(config: &Config) -> anyhow::Result<Status> {
    let mut control = connect(config)?;
    control.writer()?.send(&Request::Status)?;
    match control.receive()? {
        Some(Reply::Status(status)) => Ok(status),
        Some(Reply::Failed { why }) => anyhow::bail!("{why}"),
        _ => anyhow::bail!("the VM's process did not answer"),
    }
}

/// Reaches the process that serves the VM of `config`.
pub(super) fn connect(config: &Config) -> anyhow::Result<Control> {
    let path = &config.control;
    let stream = UnixStream::connect(path).with_context(|| {
        let (name, origin) = (&config.name, config.origin.path.display());
        format!("VM `{name}` is not served on this host (nobody listens on {}): start `vferry run {origin}` first", path.display())
    })?;
    Ok(Control::new(stream))
}

fn print_text(status: &Status) {
    let yes = |connected| {
        if connected {
            "connected to QEMU"
        } else {
            "waiting for QEMU"
        }
    };
    println!("VM {}: devices {}", status.vm, status.stage);
    if let Some(deaths @ 1..) = status.deaths {
        println!("  {deaths} processes that served it have died: see the log for why");
    }
    if let unheld @ 1.. = status.unheld {
        println!(
            "  NOT SAFE FROM DEATH: {unheld} descriptors are not held beside it, for want of room (see the log, and \
             LimitNOFILE= or `ulimit -n`): if the process that serves it dies, it is lost"
        );
    }
    if let Some(why) = &status.upgrade_refused {
        println!(
            "  the next program did not serve it when it was to ({why}): see the log for what it said"
        );
    }
    if status.migrating {
        println!(
            "  a migration is under way, {} pages marked",
            status.pages_marked
        );
    }
    if let Some(unsettled) = &status.unsettled {
        println!(
            "  the VM is kept paused here, as it may run at the other host ({}): see `vferry resolve`",
            unsettled.why
        );
    }
    println!("  sidecar: {}", yes(status.sidecar_connected));
    if let Some(driver) = status.guest_driver {
        println!(
            "  guest: {}",
            if driver {
                "can help a migration"
            } else {
                "has no driver for the control device"
            }
        );
    }
    for device in &status.devices {
        println!("  device {}: {}", device.name, yes(device.connected));
        if let Some(fault) = &device.fault {
            println!("    after its last halt: {fault}");
        }
    }
}
