//! What the destination does.

use ferry::commit::{DestinationThen, FailedAt, Word};

use crate::action::ByDestination;
use crate::state::{
    Destination, DestinationQemu, Lease, SourceQemu, State, ToDestination, ToSource,
};
use crate::{Mutant, Protocol};

impl Protocol {
    pub(crate) fn by_destination(&self, mut s: State, action: ByDestination) -> Option<State> {
        use ByDestination as B;
        use Destination as D;
        match (action, s.destination) {
            (B::Load, at) => {
                let sent = s.source_qemu == SourceQemu::Copied;
                // LOAD is a question to vferry.
                if !sent || s.destination_qemu != DestinationQemu::Incoming || at == D::Dead {
                    return None;
                }
                s.destination_qemu = DestinationQemu::Loaded;
            }
            (B::RunLate, _) => {
                if !std::mem::take(&mut s.cont_pending) {
                    return None;
                }
                run_there(&mut s);
            }
            (B::DropCont, D::Dead) if s.cont_pending => s.cont_pending = false,
            (B::Hear, D::Waiting) => return self.hear(s),
            (B::LoseSource, D::Waiting) => {
                let l = s.link;
                let ended = !l.source_end && l.to_destination.is_none() || l.severed;
                let withdrawn = s.word == Word::Withdrawn;
                if !ended && !withdrawn && s.destination_qemu != DestinationQemu::Ended {
                    return None;
                }
                self.fail(&mut s, FailedAt::BeforeRun);
            }
            (B::Claim, D::Told) if s.destination_qemu == DestinationQemu::Loaded => {
                let checked = self.disk && self.mutant != Some(Mutant::LeaseNotChecked);
                if checked && s.lease != Lease::HandedOver {
                    s.seen.claim_refused = true;
                    self.fail(&mut s, FailedAt::BeforeRun);
                } else {
                    s.lease = Lease::Destination;
                    s.destination = D::Claimed;
                }
            }
            (B::Fail, D::Told | D::Claimed) => self.fail(&mut s, FailedAt::BeforeRun),
            (B::Cont, D::Claimed) if s.destination_qemu == DestinationQemu::Loaded => {
                s.destination = D::Ran;
                run_there(&mut s);
            }
            (B::Cont, D::Waiting)
                if self.mutant == Some(Mutant::RunWithoutWord)
                    && s.destination_qemu == DestinationQemu::Loaded =>
            {
                s.destination = D::Ran;
                run_there(&mut s);
            }
            (B::ContUnanswered, D::Claimed) => {
                s.cont_pending = s.destination_qemu == DestinationQemu::Loaded;
                s.seen.trouble = true;
                self.fail(&mut s, FailedAt::RunUnanswered);
            }
            (B::TellRunning, D::Ran) => {
                say(&mut s, ToSource::Running);
                s.destination = D::Done;
                s.link.close_destination();
            }
            (B::EndQemu | B::EndQemuUnanswered, D::Ending) => {
                if action == B::EndQemu {
                    s.destination_qemu = DestinationQemu::Ended;
                    s.cont_pending = false;
                }
                s.destination = D::GivingBack;
            }
            (B::GiveBack, D::GivingBack) => {
                if s.lease == Lease::Destination {
                    s.lease = Lease::HandedOver;
                }
                s.word = Word::Withdrawn;
                s.destination = D::Telling;
            }
            (B::TellGaveUp, D::Telling) => {
                say(&mut s, ToSource::Abort);
                s.destination = D::GaveUp;
                s.link.close_destination();
            }
            _ => return None,
        }
        Some(s)
    }

    fn hear(&self, mut s: State) -> Option<State> {
        if s.link.severed {
            return None;
        }
        match s.link.to_destination.take()? {
            ToDestination::Run => {
                let late = self.mutant == Some(Mutant::WithdrawnWordTaken);
                if s.word.take() || late {
                    s.destination = Destination::Told;
                } else {
                    self.fail(&mut s, FailedAt::BeforeRun);
                }
            }
            ToDestination::Abort => self.fail(&mut s, FailedAt::BeforeRun),
        }
        Some(s)
    }

    fn fail(&self, s: &mut State, at: FailedAt) {
        s.seen.trouble = true;
        let then = match self.mutant {
            Some(Mutant::SilenceBroken) => DestinationThen::GiveUp,
            _ => ferry::commit::destination(at),
        };
        match then {
            DestinationThen::GiveUp => s.destination = Destination::Ending,
            DestinationThen::KeepSilent => {
                s.destination = Destination::Silent;
                s.link.close_destination();
            }
        }
    }
}

fn say(s: &mut State, message: ToSource) {
    if s.link.source_end {
        s.link.to_source = Some(message);
    }
}

/// QEMU runs the VM, if it has it still.
fn run_there(s: &mut State) {
    if s.destination_qemu != DestinationQemu::Loaded {
        return;
    }
    s.destination_qemu = DestinationQemu::Running;
    s.seen.ran_there = true;
    if s.destination != Destination::Dead {
        s.word = Word::Ran;
    }
}
