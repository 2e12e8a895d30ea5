//! What nobody has asked for: at any moment, and any number of times.

use crate::action::Mishap;
use crate::state::{Destination, DestinationQemu, Heir, Source, SourceQemu, State};
use crate::{Mutant, Protocol};

impl Protocol {
    pub(crate) fn mishap(&self, mut s: State, mishap: Mishap) -> Option<State> {
        use Mishap as M;
        let before = s.clone();
        s.seen.trouble = true;
        match mishap {
            M::SourceDies => self.source_dies(&mut s),
            M::SourceQemuDies => source_qemu_dies(&mut s),
            M::DestinationDies => destination_dies(&mut s),
            M::DestinationQemuDies => destination_qemu_dies(&mut s),
            // Nobody is left to say that it is gone.
            M::SourceHostDies => {
                self.source_dies(&mut s);
                s.heir = Heir::Nobody;
                source_qemu_dies(&mut s);
                s.link.severed = true;
            }
            M::DestinationHostDies => {
                destination_dies(&mut s);
                destination_qemu_dies(&mut s);
                s.link.severed = true;
            }
            M::Cut | M::CutAndLose => {
                s.link.source_end = false;
                s.link.destination_end = false;
                if mishap == M::CutAndLose {
                    s.link.to_source = None;
                    s.link.to_destination = None;
                }
            }
            M::Sever => s.link.severed = true,
            M::Heal => s.link.severed = false,
        }
        s.seen.trouble &= before.seen.trouble || s != before;
        (s != before).then_some(s)
    }

    fn source_dies(&self, s: &mut State) {
        let has_let_go = match s.source {
            Source::Sending | Source::Completed => false,
            Source::HandedOver | Source::Waiting => self.mutant != Some(Mutant::HeirAfterWord),
            // It may have, and whether it has is not written down for another.
            _ => true,
        };
        if s.source != Source::Dead && self.keeper && !has_let_go {
            s.heir = Heir::Comes;
        }
        s.source = Source::Dead;
        s.link.close_source();
    }
}

fn source_qemu_dies(s: &mut State) {
    s.source_qemu = SourceQemu::Ended;
    s.source_cont_pending = false;
}

fn destination_dies(s: &mut State) {
    s.destination = Destination::Dead;
    s.link.close_destination();
}

fn destination_qemu_dies(s: &mut State) {
    s.destination_qemu = DestinationQemu::Ended;
    s.cont_pending = false;
}
