//! `vferry resolve`.

use ferry::commit::{Other, Safety, Way};

use super::status::connect;
use crate::config::Config;
use crate::control::{Reply, Request};
use crate::resolution::{Resolution, WayOut};

/// Asks the VM's process what can be done, or to do it, and prints what it says.
pub(super) fn resolve(config: &Config, options: &super::Resolve) -> anyhow::Result<()> {
    let way = match (options.run_here, options.give_up_here) {
        (true, _) => Some(Way::RunHere),
        (_, true) => Some(Way::GiveUpHere),
        _ => None,
    };
    let mut control = connect(config)?;
    control.writer()?.send(&Request::Resolve { way })?;
    let resolution = match control.receive()? {
        Some(Reply::Resolve(resolution)) => resolution,
        Some(Reply::Failed { why }) => anyhow::bail!("{why}"),
        _ => anyhow::bail!("the VM's process did not answer"),
    };
    if options.json {
        println!("{}", serde_json::to_string(&resolution)?);
    } else {
        print!("{}", text(&config.name, &resolution));
    }
    Ok(())
}

fn text(vm: &str, resolution: &Resolution) -> String {
    match resolution {
        Resolution::Settled { stage } => {
            format!("VM {vm}: nothing is to be resolved. Its devices here are {stage}.\n")
        }
        Resolution::Taken { now, .. } => format!("VM {vm}: {now}\n"),
        Resolution::Open {
            unsettled,
            to,
            silence,
            ways,
        } => {
            let other = match unsettled.other {
                Other::Runs => "it runs the VM",
                Other::WillNot => "it does not run the VM and never will",
                Other::CannotSay => "it cannot say whether the VM runs there",
                Other::Silent => "it cannot be asked",
            };
            let at = to.as_ref().map(|to| format!(" ({to})"));
            let why = silence.as_ref().map(|why| format!(": {why}"));
            let head = format!(
                "VM {vm} is paused here: a migration ended in its last step ({}).\n\
                 The other host{}: {other}{}.\n",
                unsettled.why,
                at.unwrap_or_default(),
                why.unwrap_or_default()
            );
            ways.iter()
                .map(way)
                .fold(head, |text, way| text + "\n" + &way)
        }
    }
}

fn way(way: &WayOut) -> String {
    let option = match way.way {
        Way::RunHere => "--run-here",
        Way::GiveUpHere => "--give-up-here",
    };
    let advice = match way.safety {
        Safety::Right => " (this is the way)",
        Safety::IfSeenTo => "",
        Safety::LosesVm => " (loses the VM)",
        Safety::Refused => " (refused)",
    };
    format!(
        "{option}{advice}\n  does:   {}\n  before: {}\n  costs:  {}\n",
        way.does, way.needs, way.costs
    )
}

#[cfg(test)]
mod tests {
    use ferry::vm::Unsettled;

    use super::*;

    fn open(other: Other) -> String {
        let unsettled = Unsettled {
            migration: "0".repeat(32),
            other,
            why: "the other host's vferry did not answer within 30s".into(),
        };
        let resolution = Resolution::Open {
            ways: WayOut::all(other),
            unsettled,
            to: Some("tcp:192.0.2.1:7000".into()),
            silence: None,
        };
        text("web", &resolution)
    }

    #[test]
    fn both_ways_are_printed_with_what_each_costs() {
        for other in [Other::Runs, Other::WillNot, Other::CannotSay, Other::Silent] {
            let text = open(other);
            for word in ["--run-here", "--give-up-here", "tcp:192.0.2.1:7000", "30s"] {
                assert!(text.contains(word), "{word}: {text}");
            }
            assert_eq!(text.matches("costs:").count(), 2, "{text}");
        }
    }

    #[test]
    fn who_runs_the_vm_decides_which_way_is_the_one() {
        let chosen = |other| {
            let text = open(other);
            let line = text
                .lines()
                .find(|line| line.ends_with("(this is the way)"));
            line.map(|line| line.split(' ').next().unwrap_or_default().to_owned())
        };
        assert_eq!(chosen(Other::Runs).as_deref(), Some("--give-up-here"));
        assert_eq!(chosen(Other::WillNot).as_deref(), Some("--run-here"));
        assert_eq!(chosen(Other::Silent), None);
    }
}
