//! That no case is missing, nor there twice.

use super::{At, CASES, Case, Fault, Party};

use At::{
    After, Arrived, Before, Check, Compare, Precopy, Prepare, Prepared, Quiesce, Recover, Running,
    Stopped, Word,
};
use Kind::{Cut, Hung, Interrupted, Killed, Without};
use Party::{
    Cli, ControlLink, DestinationQemu, DestinationUplink, DestinationVferry, SourceQemu,
    SourceUplink, SourceVferry, Stream,
};

/// The phases of a migration, and the points in each at which a fault may strike.
const PHASES: [&[At]; 10] = [
    &[Before, Check],
    &[Prepare, Prepared],
    &[Precopy],
    &[Quiesce],
    &[Stopped],
    &[Arrived],
    &[Compare],
    &[Word, Running],
    &[Recover],
    &[After],
];

/// What strikes, whatever it is short of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Killed,
    Hung,
    Without,
    Cut,
    Interrupted,
}

/// Each party, and all that can happen to one of its sort.
const PARTIES: [(Party, &[Kind]); 9] = [
    (SourceVferry, &[Killed, Hung, Without]),
    (DestinationVferry, &[Killed, Hung, Without]),
    (SourceQemu, &[Killed, Hung, Without]),
    (DestinationQemu, &[Killed, Hung, Without]),
    (Cli, &[Killed, Hung, Interrupted]),
    (ControlLink, &[Cut, Hung]),
    (Stream, &[Cut, Hung]),
    // A network that carries nothing any more, and says nothing, is all that an uplink sees of either.
    (SourceUplink, &[Cut]),
    (DestinationUplink, &[Cut]),
];

/// Why it is no fault of a migration.
fn is_none(phase: At, party: Party, kind: Kind) -> Option<&'static str> {
    match (party, kind) {
        (Stream, _) if matches!(phase, Before | Prepare) => Some("there is none yet"),
        (Stream, _) if matches!(phase, Compare | Word | Recover | After) => {
            Some("QEMU has ended it")
        }
        (DestinationVferry | DestinationQemu, Killed | Hung) | (DestinationUplink, _)
            if matches!(phase, Recover | After) =>
        {
            Some("the VM is there, and it is as without a migration")
        }
        _ => None,
    }
}

fn is(case: &Case, kind: Kind) -> bool {
    match case.fault {
        Fault::Killed => kind == Killed,
        Fault::Hung => kind == Hung,
        Fault::Without(_) => kind == Without,
        Fault::Cut => kind == Cut,
        Fault::Interrupted | Fault::InterruptedTwice => kind == Interrupted,
        Fault::Refuses(_) => false,
    }
}

#[test]
fn every_party_fails_in_every_phase_in_every_way_that_it_can() {
    let mut missing = Vec::new();
    for phase in PHASES {
        for (party, kinds) in PARTIES {
            for &kind in kinds {
                let here = |case: &&Case| phase.contains(&case.at) && case.party == party;
                let there_is = CASES.iter().filter(here).any(|case| is(case, kind));
                if !there_is && is_none(phase[0], party, kind).is_none() {
                    missing.push((phase[0], party, kind));
                }
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

/// The command does what it is told, and a network carries or does not.
#[test]
fn every_party_refuses_that_can() {
    for party in [
        SourceVferry,
        DestinationVferry,
        SourceQemu,
        DestinationQemu,
        ControlLink,
        Stream,
    ] {
        let refuses = |case: &Case| case.party == party && matches!(case.fault, Fault::Refuses(_));
        assert!(CASES.iter().any(refuses), "{party:?}");
    }
}

/// Of each case, what is done: what comes of it makes no other.
#[test]
fn none_is_there_twice() {
    let done = |case: &Case| (case.at, case.party, case.fault, case.by, case.with);
    for (at, case) in CASES.iter().enumerate() {
        let mut before = CASES[..at].iter();
        assert!(before.all(|other| done(other) != done(case)), "{case:?}");
    }
}
