//! A protocol that is wrong in one place: the checker finds what comes of it. Were it not so, what
//! it says of the right one would be worth nothing.

use commit_model::properties::{
    COPY_FIRST, DISK_FREE, HALT_FIRST, MARK_FIRST, NO_FORK, ONE_COPY, ONE_WORKS, ONE_WRITER,
};
use commit_model::{Mutant, Operator, Protocol};
use stateright::{Checker, HasDiscoveries, Model};

/// Breaks the protocol, and looks for what must not be. The same is not found in the right one.
fn breaks(mutant: Mutant, disk: bool, operator: Operator, property: &'static str) {
    let look = |mutant| {
        let protocol = Protocol {
            disk,
            keeper: true,
            operator,
            mutant,
        };
        let checker = protocol.checker().threads(2);
        let checker = checker.finish_when(HasDiscoveries::AllOf([property].into()));
        checker.spawn_bfs().join().discovery(property)
    };
    let Some(path) = look(Some(mutant)) else {
        panic!("{mutant:?} is not seen to break `{property}`");
    };
    let steps = path.into_actions();
    println!(
        "{mutant:?} breaks `{property}` in {} steps: {steps:?}",
        steps.len()
    );
    assert!(
        look(None).is_none(),
        "the protocol breaks `{property}` by itself"
    );
}

#[test]
fn without_the_fence_the_source_runs_on_beside_the_destination() {
    breaks(Mutant::NoFence, false, Operator::Careful, ONE_COPY);
}

#[test]
fn a_cancel_after_the_word_runs_the_vm_twice() {
    breaks(Mutant::CancelAfterWord, false, Operator::Careful, ONE_COPY);
}

#[test]
fn a_word_before_qemu_has_completed_runs_the_vm_twice() {
    breaks(
        Mutant::WordBeforeCompletion,
        false,
        Operator::Careful,
        COPY_FIRST,
    );
    breaks(
        Mutant::WordBeforeCompletion,
        false,
        Operator::Careful,
        ONE_COPY,
    );
}

#[test]
fn a_destination_that_runs_without_the_word_runs_the_vm_twice() {
    breaks(Mutant::RunWithoutWord, false, Operator::Careful, ONE_COPY);
    // One copy has ended when the other goes on: the same work is done twice.
    breaks(Mutant::RunWithoutWord, false, Operator::Careful, NO_FORK);
}

#[test]
fn a_destination_that_gives_up_while_qemu_may_run_the_vm_runs_it_twice() {
    breaks(Mutant::SilenceBroken, false, Operator::Careful, ONE_COPY);
}

#[test]
fn a_word_that_was_withdrawn_must_not_be_taken() {
    breaks(
        Mutant::WithdrawnWordTaken,
        false,
        Operator::Careful,
        ONE_COPY,
    );
}

#[test]
fn a_look_at_the_other_host_does_not_do_as_the_word_may_come_late() {
    breaks(Mutant::LookOnly, false, Operator::Careful, ONE_COPY);
}

#[test]
fn the_swapped_laws_are_seen() {
    breaks(Mutant::MarkBeforeHalt, false, Operator::Careful, HALT_FIRST);
    breaks(Mutant::CopyBeforeMark, false, Operator::Careful, MARK_FIRST);
}

#[test]
fn the_disk_is_let_go_of_before_the_word() {
    breaks(
        Mutant::WordBeforeRelease,
        true,
        Operator::Careful,
        DISK_FREE,
    );
}

#[test]
fn without_the_lease_rash_operators_damage_the_disk() {
    breaks(Mutant::LeaseNotChecked, true, Operator::Rash, ONE_WORKS);
    breaks(Mutant::LeaseNotChecked, true, Operator::Rash, ONE_WRITER);
}

#[test]
fn another_process_that_goes_on_whenever_one_dies_runs_the_vm_twice() {
    breaks(Mutant::HeirAfterWord, false, Operator::Careful, ONE_COPY);
}
