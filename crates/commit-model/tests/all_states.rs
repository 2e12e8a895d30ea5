//! Every state of the protocol as it is built.

use std::collections::HashMap;

use commit_model::{Action, Operator, Protocol, State};
use stateright::{Checker, Model};

/// With a disk, a keeper, and whom.
type Configuration = (bool, bool, Operator);

const CONFIGURATIONS: [Configuration; 4] = [
    (false, false, Operator::Careful),
    (true, false, Operator::Careful),
    (true, false, Operator::Rash),
    (true, true, Operator::Careful),
];

fn protocol((disk, keeper, operator): Configuration) -> Protocol {
    Protocol {
        disk,
        keeper,
        operator,
        mutant: None,
    }
}

fn check(configuration: Configuration) {
    let checker = protocol(configuration).checker().threads(2);
    let checker = checker.spawn_bfs().join();
    checker.assert_properties();
    println!(
        "disk {}, keeper {}, operator {:?}: all {} states seen, by {} steps",
        configuration.0,
        configuration.1,
        configuration.2,
        checker.unique_state_count(),
        checker.state_count()
    );
}

#[test]
fn no_vm_runs_twice() {
    check((false, false, Operator::Careful));
}

#[test]
fn no_vm_with_a_disk_runs_twice() {
    check((true, false, Operator::Careful));
}

#[test]
fn no_vm_runs_twice_whose_process_another_takes_over() {
    check((false, true, Operator::Careful));
    check((true, true, Operator::Careful));
}

#[test]
fn a_disk_guards_itself_against_rash_operators() {
    check((true, false, Operator::Rash));
}

/// From each state, with no more mishaps and nothing healed, what the two sides and an operator do
/// can lead to a VM that works on one host. That of a dead process starts anew.
#[test]
fn no_state_is_without_a_way_out() {
    for configuration in CONFIGURATIONS {
        let protocol = protocol(configuration);
        let (states, before) = explore(&protocol);
        let mut good: Vec<bool> = states.iter().map(State::is_settled).collect();
        let mut next: Vec<usize> = (0..states.len()).filter(|at| good[*at]).collect();
        while let Some(at) = next.pop() {
            for &from in &before[at] {
                if !std::mem::replace(&mut good[from], true) {
                    next.push(from);
                }
            }
        }
        let stuck = good.iter().position(|good| !good);
        assert!(stuck.is_none(), "stuck: {:#?}", stuck.map(|at| &states[at]));
        println!(
            "{configuration:?}: none of {} states is stuck",
            states.len()
        );
    }
}

/// All states, and from which each is reached without mishap.
fn explore(protocol: &Protocol) -> (Vec<State>, Vec<Vec<usize>>) {
    let mut states = protocol.init_states();
    let mut number: HashMap<State, usize> = states.iter().cloned().zip(0..).collect();
    let mut before = vec![Vec::new(); states.len()];
    let mut at = 0;
    while at < states.len() {
        for (action, state) in protocol.next_steps(&states[at]) {
            let next = *number.entry(state.clone()).or_insert_with(|| {
                states.push(state);
                before.push(Vec::new());
                states.len() - 1
            });
            if !matches!(action, Action::Mishap(_)) {
                before[next].push(at);
            }
        }
        at += 1;
    }
    (states, before)
}
