//! What can be done for a VM that is kept paused at its source, as the destination may run it, and
//! what each way out costs.

use ferry::commit::{Other, Safety, Way, safety};
use ferry::vm::Unsettled;
use serde::{Deserialize, Serialize};

/// Where a VM is, and the ways out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "resolution", rename_all = "kebab-case")]
pub enum Resolution {
    /// It is known where the VM is.
    Settled {
        /// Where this side's devices are in the life cycle.
        stage: String,
    },
    /// It is kept paused here.
    Open {
        /// Since when and why.
        unsettled: Unsettled,
        /// Where the other host's vferry listens, if that is known.
        to: Option<String>,
        /// Why that could not be asked, if it could not.
        silence: Option<String>,
        /// The ways out.
        ways: Vec<WayOut>,
    },
    /// A way out was taken.
    Taken {
        /// Which.
        way: Way,
        /// What is to be known or done now.
        now: String,
    },
}

/// A way out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WayOut {
    /// Which.
    pub way: Way,
    /// What is to be thought of it.
    pub safety: Safety,
    /// What it does.
    pub does: String,
    /// What must be true before.
    pub needs: String,
    /// What it costs.
    pub costs: String,
}

/// What is to be seen to on the other host before the VM runs on here.
const SEE_TO: &str = "on the other host, end `vferry run` of this VM, then ask its QEMU by QMP \
     `query-status`. If it says `running`, take the other way. If it is paused, end it: a look is \
     not enough, as the word to run may still be on its way. If there is no QEMU any more, the VM \
     may have run there until it ended: what it did meanwhile would be lost";

impl WayOut {
    /// All, for what is known of the other host.
    pub fn all(other: Other) -> Vec<Self> {
        vec![
            Self::of(Way::RunHere, other),
            Self::of(Way::GiveUpHere, other),
        ]
    }

    fn of(way: Way, other: Other) -> Self {
        let safety = safety(way, other);
        let does = match way {
            Way::RunHere => "the VM runs on here, from where it was paused",
            Way::GiveUpHere => "this host's QEMU ends, and with it this copy of the VM",
        };
        let needs = match (way, safety) {
            (Way::RunHere, Safety::Refused) => {
                "the other host must not run the VM, but says that it does: refused"
            }
            (Way::RunHere, Safety::IfSeenTo) => SEE_TO,
            (Way::GiveUpHere, Safety::IfSeenTo) => {
                "look whether the other host runs the VM: its QEMU says `running` to QMP \
                 `query-status`, and `vferry status` there says that the devices run"
            }
            (_, Safety::Right) => "nothing: the other host has said it itself",
            (_, Safety::LosesVm) => "nothing",
            (Way::GiveUpHere, Safety::Refused) => "nothing that can be had",
        };
        let costs = match (way, safety) {
            (Way::RunHere, Safety::Refused) => {
                "two copies of the VM would run, with one address and one disk"
            }
            (Way::RunHere, Safety::IfSeenTo) => {
                "the pause until now. If the other host runs the VM nevertheless, two copies run: a \
                 disk that vferry serves refuses the second, nothing else does"
            }
            (Way::RunHere, _) => "the pause until now",
            (Way::GiveUpHere, Safety::Right) => "nothing: the VM runs at the other host",
            (Way::GiveUpHere, Safety::LosesVm) => {
                "the VM: the other host has said that it does not run it and never will. What is not \
                 on its disk is lost, and it has to be started anew"
            }
            (Way::GiveUpHere, _) => {
                "the VM, if the other host does not run it: what is not on its disk is lost then, \
                 and it has to be started anew"
            }
        };
        Self {
            way,
            safety,
            does: does.into(),
            needs: needs.into(),
            costs: costs.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Other; 4] = [Other::Runs, Other::WillNot, Other::CannotSay, Other::Silent];

    #[test]
    fn one_way_is_always_open() {
        for other in ALL {
            let ways = WayOut::all(other);
            let open = ways.iter().filter(|way| way.safety != Safety::Refused);
            assert!(open.count() >= 1, "{other:?}");
            assert!(
                ways.iter()
                    .all(|way| !way.needs.is_empty() && !way.costs.is_empty())
            );
        }
    }

    #[test]
    fn who_has_to_look_is_told_at_what() {
        for other in [Other::CannotSay, Other::Silent] {
            for way in WayOut::all(other) {
                assert_eq!(way.safety, Safety::IfSeenTo);
                assert!(way.needs.contains("query-status"), "{way:?}");
            }
        }
    }

    #[test]
    fn what_loses_the_vm_says_so() {
        let ways = WayOut::all(Other::WillNot);
        let give_up = &ways[1];
        assert_eq!(give_up.safety, Safety::LosesVm);
        assert!(give_up.costs.contains("lost"), "{give_up:?}");
    }
}
