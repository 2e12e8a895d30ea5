//! What people do.

use ferry::commit::{Other, Safety, Way, safety};

use crate::action::ByOperator;
use crate::state::{
    Cli, Destination, DestinationQemu, Devices, Heir, Lease, Source, SourceQemu, State,
};
use crate::{Mutant, Operator, Protocol};

impl Protocol {
    pub(crate) fn by_operator(&self, mut s: State, action: ByOperator) -> Option<State> {
        use ByOperator as B;
        // That takes no time in which somebody could look.
        if s.heir == Heir::Comes {
            return None;
        }
        match action {
            B::Cancel if can_cancel(&s) => {
                s.cancelled = true;
                s.seen.trouble = true;
            }
            B::Leave if s.cli == Cli::Waiting => s.cli = Cli::Gone,
            B::Ask | B::AskInVain => return ask(s, action == B::Ask),
            B::Resolve(way) => return self.resolve(s, way),
            B::RawCont => {
                let paused = s.source_qemu == SourceQemu::Completed;
                let rash = self.disk && self.operator == Operator::Rash;
                if !rash || !paused || !matches!(s.source, Source::Unsettled(_)) {
                    return None;
                }
                s.seen.by_operator = true;
                self.run_here(&mut s);
            }
            B::EndVferryThere if may_end_there(&s) && s.destination != Destination::Dead => {
                s.destination = Destination::Dead;
                s.link.close_destination();
            }
            // With vferry gone, its QEMU answers that it is paused, and nobody tells it to run.
            B::EndQemuThere if may_end_there(&s) && !s.cont_pending => {
                use DestinationQemu::{Incoming, Loaded};
                let ended = matches!(s.destination_qemu, Incoming | Loaded);
                if !ended || s.destination != Destination::Dead {
                    return None;
                }
                s.destination_qemu = DestinationQemu::Ended;
            }
            B::EndQemuHere if s.source == Source::Dead && s.runs_there() => {
                if s.source_qemu == SourceQemu::Ended {
                    return None;
                }
                s.source_qemu = SourceQemu::Ended;
                s.source_cont_pending = false;
            }
            B::StartAnew if may_start_anew(&s) => {
                s.source = Source::Dead;
                s.source_qemu = SourceQemu::Ended;
                s.source_cont_pending = false;
                s.destination = Destination::Dead;
                s.destination_qemu = DestinationQemu::Ended;
                s.cont_pending = false;
                s.link.close_source();
                s.link.close_destination();
                s.seen.started_anew = true;
            }
            _ => return None,
        }
        Some(s)
    }

    fn resolve(&self, mut s: State, way: Way) -> Option<State> {
        let Source::Unsettled(other) = s.source else {
            return None;
        };
        let safety = safety(way, other);
        if s.source_qemu == SourceQemu::Ended {
            return None;
        }
        match way {
            Way::RunHere => {
                // A careful operator ends what is there, as a word may still come.
                let ended = s.destination_qemu == DestinationQemu::Ended;
                let looks =
                    self.mutant == Some(Mutant::LookOnly) || self.operator == Operator::Rash;
                let seen_to = ended || looks && !s.runs_there();
                match safety {
                    Safety::Right => {}
                    Safety::IfSeenTo if seen_to => s.seen.by_operator = true,
                    _ => return None,
                }
                // Refused where the other host has the disk.
                if !self.take_disk_back(&mut s) {
                    return None;
                }
                s.source = Source::TakingBack;
            }
            Way::GiveUpHere => {
                let right = safety == Safety::Right;
                let seen_to = safety == Safety::IfSeenTo && s.runs_there();
                if !right && !seen_to {
                    return None;
                }
                s.source_qemu = SourceQemu::Ended;
                s.source_cont_pending = false;
                s.source = Source::Dead;
                s.seen.given_up_here = true;
            }
        }
        Some(s)
    }
}

/// `vferry resolve` asks over a connection of its own. What is once known stays true.
fn ask(mut s: State, answered: bool) -> Option<State> {
    let Source::Unsettled(known @ (Other::Silent | Other::CannotSay)) = s.source else {
        return None;
    };
    if s.destination == Destination::Dead || s.link.severed {
        return None;
    }
    let said = Other::from(s.word.ask());
    s.source = Source::Unsettled(if answered { said } else { known });
    Some(s)
}

/// The source is through, and the VM is not seen to run at the destination.
fn may_end_there(s: &State) -> bool {
    let through = matches!(
        s.source,
        Source::Unsettled(_) | Source::Dead | Source::RunsOn | Source::Left
    );
    through && !s.runs_there()
}

/// The VM works nowhere, and cannot.
fn may_start_anew(s: &State) -> bool {
    let is_lost_here = s.source == Source::Dead
        || s.source_qemu == SourceQemu::Ended
        || s.source == Source::Left
        || (s.lease == Lease::Destination && s.devices == Devices::HandedOver);
    let gone_there =
        s.destination == Destination::Dead || s.destination_qemu == DestinationQemu::Ended;
    is_lost_here && gone_there && !s.works_here() && !s.works_there() && !s.seen.started_anew
}

fn can_cancel(s: &State) -> bool {
    s.cli == Cli::Waiting && !s.cancelled && s.source != Source::Dead
}
