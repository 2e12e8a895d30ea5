//! What the source does.

use ferry::commit::{Heard, Other, SourceThen};

use crate::action::BySource;
use crate::state::{
    DestinationQemu, Devices, Heir, Lease, Source, SourceQemu, State, ToDestination, ToSource,
};
use crate::{Mutant, Protocol};

impl Protocol {
    pub(crate) fn by_source(&self, mut s: State, action: BySource) -> Option<State> {
        use BySource as B;
        match action {
            B::Stop if s.source_qemu == SourceQemu::Copying => {
                // Nobody answers its hook: QEMU fails at SAVE, if not before.
                if s.source == Source::Dead {
                    return None;
                }
                s.source_qemu = SourceQemu::Stopped;
            }
            B::Halt | B::Mark | B::Copy => return self.hook(s, action),
            B::Complete => {
                let acknowledged = s.destination_qemu != DestinationQemu::Incoming
                    && s.destination_qemu != DestinationQemu::Ended;
                if s.source_qemu != SourceQemu::Copied || !acknowledged {
                    return None;
                }
                s.source_qemu = SourceQemu::Completed;
            }
            B::FailToMigrate => {
                use SourceQemu::{Copied, Copying, Stopped};
                if !matches!(s.source_qemu, Copying | Stopped | Copied) {
                    return None;
                }
                s.seen.trouble = true;
                self.run_here(&mut s);
            }
            B::RunLate => {
                if !std::mem::take(&mut s.source_cont_pending) {
                    return None;
                }
                if s.source_qemu == SourceQemu::Completed {
                    self.run_here(&mut s);
                }
            }
            B::Succeed => {
                if std::mem::replace(&mut s.heir, Heir::Nobody) != Heir::Comes {
                    return None;
                }
                // They are as they were before they were halted, and go on.
                if s.devices != Devices::HandedOver {
                    s.devices = Devices::Running;
                }
                s.source = Source::TakingBack;
            }
            _ if s.source == Source::Dead => return None,
            B::Cont | B::ContUnanswered | B::CancelQemu | B::SeeRunning | B::SeeNothing => {
                return self.take_back(s, action);
            }
            _ => return self.send(s, action),
        }
        Some(s)
    }

    /// The stop hook, and what QEMU does when it has returned.
    fn hook(&self, mut s: State, action: BySource) -> Option<State> {
        if s.source_qemu != SourceQemu::Stopped {
            return None;
        }
        let alive = s.source != Source::Dead;
        let early = self.mutant == Some(Mutant::MarkBeforeHalt);
        match action {
            BySource::Halt if alive && s.devices == Devices::Running && !early => {
                s.devices = Devices::Halted;
            }
            BySource::Mark if alive && s.devices == Devices::Halted && !early => {
                s.devices = Devices::Marked;
            }
            BySource::Mark if alive && s.devices == Devices::Running && early => {
                s.seen.marked_before_halt = true;
                s.devices = Devices::Marked;
            }
            BySource::Copy => {
                let early = self.mutant == Some(Mutant::CopyBeforeMark);
                if s.devices != Devices::Marked && !(early && s.devices == Devices::Halted) {
                    return None;
                }
                // Its SAVE needs somebody to ask.
                if !alive {
                    return None;
                }
                s.seen.copied_before_mark |= s.devices != Devices::Marked;
                s.devices = Devices::Marked;
                s.source_qemu = SourceQemu::Copied;
            }
            _ => return None,
        }
        Some(s)
    }

    /// From QEMU's `migrate` to what came of the word.
    fn send(&self, mut s: State, action: BySource) -> Option<State> {
        use BySource as B;
        match (action, s.source) {
            (B::SeeCompleted, Source::Sending) => {
                let early = self.mutant == Some(Mutant::WordBeforeCompletion)
                    && s.source_qemu == SourceQemu::Copied;
                if s.source_qemu != SourceQemu::Completed && !early {
                    return None;
                }
                s.source = Source::Completed;
            }
            (B::GiveUp, Source::Sending | Source::Completed) => give_up(&mut s),
            (B::HandOver, Source::Completed) => {
                s.devices = Devices::HandedOver;
                if self.mutant != Some(Mutant::WordBeforeRelease) {
                    s.lease = Lease::HandedOver;
                }
                s.source = Source::HandedOver;
            }
            (B::HandOver, Source::Waiting)
                if self.mutant == Some(Mutant::WordBeforeRelease) && s.lease == Lease::Source =>
            {
                s.lease = Lease::HandedOver;
            }
            (B::SendWord, Source::HandedOver) => {
                let l = &mut s.link;
                if l.destination_end {
                    l.to_destination = Some(ToDestination::Run);
                }
                s.source = Source::Waiting;
            }
            (B::FailToSendWord, Source::HandedOver) => {
                s.link.half = true;
                s.seen.trouble = true;
                self.heard(&mut s, Heard::NotSent);
            }
            (B::Hear, Source::Waiting) => {
                if s.link.severed {
                    return None;
                }
                let heard = match s.link.to_source.take()? {
                    ToSource::Running => Heard::Running,
                    ToSource::Abort => Heard::GaveUp,
                };
                self.heard(&mut s, heard);
            }
            (B::HearNothing, Source::Waiting) => {
                s.seen.trouble = true;
                self.heard(&mut s, Heard::Nothing);
            }
            _ => return None,
        }
        Some(s)
    }

    fn heard(&self, s: &mut State, heard: Heard) {
        let then = match (self.mutant, heard) {
            (Some(Mutant::NoFence), Heard::Nothing) => SourceThen::RunHere,
            _ => ferry::commit::source(heard),
        };
        match then {
            SourceThen::Leave => {
                s.source = Source::Left;
                s.link.close_source();
            }
            SourceThen::RunHere => give_up(s),
            SourceThen::StayPaused => {
                s.source = Source::Unsettled(Other::Silent);
                s.link.close_source();
            }
        }
    }

    /// After a failure: the VM is let run here, and seen to run.
    fn take_back(&self, mut s: State, action: BySource) -> Option<State> {
        use BySource as B;
        let cancels = self.mutant == Some(Mutant::CancelAfterWord)
            && s.source == Source::Waiting
            && s.cancelled;
        if s.source != Source::TakingBack && !(cancels && action == B::Cont) {
            return None;
        }
        match action {
            B::CancelQemu => {
                use SourceQemu::{Copied, Copying, Stopped};
                if !matches!(s.source_qemu, Copying | Stopped | Copied) {
                    return None;
                }
                self.run_here(&mut s);
            }
            B::Cont | B::ContUnanswered if s.source_qemu == SourceQemu::Completed => {
                if !self.take_disk_back(&mut s) {
                    return None;
                }
                if action == B::Cont {
                    self.run_here(&mut s);
                } else if s.source_cont_pending {
                    return None;
                } else {
                    s.source_cont_pending = true;
                }
            }
            B::SeeRunning if s.source_qemu == SourceQemu::Running => {
                if !self.take_disk_back(&mut s) {
                    return None;
                }
                s.devices = Devices::Running;
                s.source = Source::RunsOn;
                s.link.close_source();
            }
            // Time is up, or the disk is not to be had.
            B::SeeNothing
                if s.source_qemu != SourceQemu::Running || !self.take_disk_back(&mut s.clone()) =>
            {
                let other = match s.lease {
                    Lease::Destination if self.disk => Other::CannotSay,
                    _ => Other::WillNot,
                };
                s.source = Source::Unsettled(other);
                s.link.close_source();
            }
            _ => return None,
        }
        Some(s)
    }

    /// QEMU runs the VM, and so do its devices, if they may.
    pub(crate) fn run_here(&self, s: &mut State) {
        s.source_qemu = SourceQemu::Running;
        s.seen.forked |= s.seen.ran_there && !s.seen.by_operator;
        if s.source != Source::Dead && self.take_disk_back(s) {
            s.devices = Devices::Running;
        }
    }

    /// Whether the devices have, or now have back, what only one host may have.
    pub(crate) fn take_disk_back(&self, s: &mut State) -> bool {
        if s.devices != Devices::HandedOver {
            return true;
        }
        let checked = self.disk && self.mutant != Some(Mutant::LeaseNotChecked);
        if checked && s.lease == Lease::Destination {
            return false;
        }
        s.lease = Lease::Source;
        s.devices = Devices::Marked;
        true
    }
}

/// The other side is told, if it can still be, and the VM let run here.
fn give_up(s: &mut State) {
    s.seen.trouble = true;
    let l = &mut s.link;
    if l.destination_end && !l.half && l.to_destination.is_none() {
        l.to_destination = Some(ToDestination::Abort);
    }
    s.source = Source::TakingBack;
}
