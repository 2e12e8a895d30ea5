//! What must hold, always.

use stateright::{Model, Property};

use crate::state::{Lease, Source, SourceQemu, State};
use crate::{Action, Operator, Protocol};

/// The VM runs twice.
pub const ONE_COPY: &str = "at most one copy of the VM runs";
/// The VM runs twice, and both copies' devices work.
pub const ONE_WORKS: &str = "at most one copy of the VM has devices that work";
/// The source went on from before what the destination had done.
pub const NO_FORK: &str = "the source goes on by itself only where the destination never has";
/// Halt, then mark.
pub const HALT_FIRST: &str = "never marked before halted";
/// Mark, then copy.
pub const MARK_FIRST: &str = "never copied before marked";
/// Copy, then the word.
pub const COPY_FIRST: &str = "never told to run before copied";
/// The disk.
pub const ONE_WRITER: &str = "who writes the disk has its lease";
/// The lease comes before the word.
pub const DISK_FREE: &str = "who is told to run may have the disk";
/// Somebody or something can always go on.
pub const WAY_OUT: &str =
    "where nothing goes on by itself, the VM works on one host or an operator has a way out";
/// A migration that nothing befalls succeeds.
pub const ARRIVES: &str = "without trouble the VM arrives";
/// What the command and the log are told.
pub const TRUTH: &str = "what is told is true";

impl Protocol {
    pub(crate) fn properties_of(&self) -> Vec<Property<Self>> {
        let mut all = vec![
            Property::always(ONE_WORKS, |_, s: &State| {
                !(s.works_here() && s.works_there())
            }),
            Property::always(HALT_FIRST, |_, s: &State| !s.seen.marked_before_halt),
            Property::always(MARK_FIRST, |_, s: &State| !s.seen.copied_before_mark),
            Property::always(COPY_FIRST, |_, s: &State| {
                use SourceQemu::{Copied, Copying, Stopped};
                let sending = matches!(s.source_qemu, Copying | Stopped | Copied);
                !(s.source == Source::Waiting && sending)
            }),
            Property::always(ONE_WRITER, |m: &Self, s: &State| {
                let here = !s.works_here() || s.lease == Lease::Source;
                let there = !s.works_there() || s.lease == Lease::Destination;
                !m.disk || here && there
            }),
            Property::always(WAY_OUT, |m: &Self, s: &State| {
                !m.is_quiet(s) || s.is_settled() || m.has_way_out(s)
            }),
            Property::always(ARRIVES, |m: &Self, s: &State| {
                !m.is_quiet(s) || s.seen.trouble || s.source == Source::Left && s.works_there()
            }),
            Property::always(TRUTH, |_, s: &State| match s.source {
                Source::Left => s.seen.ran_there,
                Source::RunsOn => s.works_here() || s.source_qemu == SourceQemu::Ended,
                _ => true,
            }),
            Property::sometimes("the VM arrives", |_, s: &State| {
                s.source == Source::Left && s.works_there()
            }),
            Property::sometimes("the VM stays", |_, s: &State| s.source == Source::RunsOn),
            Property::sometimes("the source does not know", |_, s: &State| {
                matches!(s.source, Source::Unsettled(_))
            }),
            Property::sometimes(
                "an operator lets the VM run on at the source",
                |_, s: &State| s.seen.by_operator && s.source == Source::RunsOn,
            ),
            Property::sometimes("an operator ends the source's copy", |_, s: &State| {
                s.seen.given_up_here && s.works_there()
            }),
            Property::sometimes("the VM is lost and started anew", |_, s: &State| {
                s.seen.started_anew
            }),
        ];
        if self.operator == Operator::Careful {
            all.push(Property::always(ONE_COPY, |_, s: &State| {
                !(s.runs_here() && s.runs_there())
            }));
            all.push(Property::always(NO_FORK, |_, s: &State| !s.seen.forked));
            all.push(Property::always(DISK_FREE, |_, s: &State| {
                !s.seen.claim_refused
            }));
        }
        all
    }

    /// Neither side does anything more by itself.
    pub fn is_quiet(&self, s: &State) -> bool {
        let mut all = Action::OF_PROTOCOL.iter();
        all.all(|action| self.next_state(s, *action).is_none())
    }

    fn has_way_out(&self, s: &State) -> bool {
        let mut all = Action::WAYS_OUT.iter();
        all.any(|action| self.next_state(s, *action).is_some())
    }
}

impl State {
    /// The VM works on one host, or was started anew.
    pub fn is_settled(&self) -> bool {
        let one = self.works_here() != self.works_there();
        let not_two = !(self.runs_here() && self.runs_there());
        self.seen.started_anew || one && not_two
    }
}
