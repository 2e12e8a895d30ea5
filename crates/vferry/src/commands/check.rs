//! `vferry check`.

use ferry::source::Prospect;

use super::status::connect;
use crate::config::Config;
use crate::control::{Reply, Request};

/// Asks the VM's process whether it could be migrated, and prints what it says.
pub(super) fn check(config: &Config, options: &super::Check) -> anyhow::Result<()> {
    let mut control = connect(config)?;
    control.writer()?.send(&Request::Check {
        to: options.to.clone(),
        compare: options.compare.into(),
        strategy: options.strategy,
    })?;
    let reply = control.receive()?;
    if options.json
        && let Some(reply) = &reply
    {
        println!("{}", serde_json::to_string(reply)?);
    }
    match reply {
        Some(Reply::Prospect(prospect)) if !options.json => {
            print!("{}", text(&config.name, &options.to, &prospect));
            Ok(())
        }
        Some(Reply::Prospect(_)) => Ok(()),
        Some(Reply::Failed { why }) => anyhow::bail!("{why}"),
        _ => anyhow::bail!("the VM's process did not answer"),
    }
}

fn text(vm: &str, to: &str, prospect: &Prospect) -> String {
    let head = format!(
        "VM {vm} can be migrated to {to}, by strategy {}.\n",
        prospect.strategy
    );
    prospect.devices.iter().fold(head, |text, device| {
        let (name, known_by) = (&device.name, &device.dirty_log);
        let how = match known_by.as_str() {
            "comparison" => "all of memory is compared while the VM stands still".into(),
            "guest" => "the guest tells what it writes".into(),
            other => format!("what it writes is known by {other}"),
        };
        text + &format!("  device {name:13} {how}\n")
    })
}

#[cfg(test)]
mod tests {
    use ferry::Strategy;
    use ferry::source::DeviceProspect;

    use super::*;

    #[test]
    fn each_device_is_told_with_who_knows_its_writes() {
        let device = |name: &str, dirty_log: &str| DeviceProspect {
            name: name.into(),
            dirty_log: dirty_log.into(),
        };
        let prospect = Prospect {
            strategy: Strategy::Recovery,
            devices: vec![device("net0", "device"), device("net1", "comparison")],
        };
        assert_eq!(
            text("web1", "tcp:192.0.2.2:7800", &prospect),
            "VM web1 can be migrated to tcp:192.0.2.2:7800, by strategy recovery.\n  \
             device net0          what it writes is known by device\n  \
             device net1          all of memory is compared while the VM stands still\n"
        );
    }
}
