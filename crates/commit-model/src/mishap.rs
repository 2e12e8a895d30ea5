//! What nobody has asked for: at any moment, and any number of times.

use crate::Protocol;
use crate::action::Mishap;
use crate::state::{Destination, DestinationQemu, Source, SourceQemu, State};

impl Protocol {
    pub(crate) fn mishap(mut s: State, mishap: Mishap) -> Option<State> {
        use Mishap as M;
        let before = s.clone();
        s.seen.trouble = true;
        match mishap {
            M::SourceDies => source_dies(&mut s),
            M::SourceQemuDies => source_qemu_dies(&mut s),
            M::DestinationDies => destination_dies(&mut s),
            M::DestinationQemuDies => destination_qemu_dies(&mut s),
            // Nobody is left to say that it is gone.
            M::SourceHostDies => {
                source_dies(&mut s);
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
}

fn source_dies(s: &mut State) {
    s.source = Source::Dead;
    s.link.close_source();
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
