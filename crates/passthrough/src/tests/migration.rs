//! A function whose driver on the host can stop it and read its state goes over by that.

use ::device::lifecycle::{Halted, Running};
use ::device::{Hardware, Model, Run, StateError};
use endpoint::{Carry, EndpointError, Endpoints};
use rustix::io::Errno;

use super::{Vm, opened};
use crate::fake::{Data, Has, RESUMING, RUNNING, RUNNING_P2P, STOP, STOP_COPY, When};
use crate::migration::MAX_STATE;

fn with_data(data: Data) -> Has {
    Has { data, ..Has::all() }
}

/// Everything up to the state, which is taken away.
fn sent(vm: &Vm) -> Result<Vec<endpoint::EndpointState>, EndpointError> {
    let halted = Running::new(vm.endpoints.clone()).halt().unwrap();
    vm.endpoint().open_log().unwrap();
    let marked = halted.mark(&mut |_, _| {}).unwrap();
    let state = marked.save(&vec![Carry::State]);
    assert_eq!(vm.fake.state(), STOP, "whatever came of it");
    drop(marked.resume());
    state
}

#[test]
fn only_one_that_can_be_stopped_and_read_has_a_state() {
    let has_state = |has| opened(has).1.has_state();
    assert!(has_state(Has::all()));
    assert!(!has_state(Has::little()));
    let states = |states| Has {
        states,
        ..Has::all()
    };
    assert!(has_state(states(1)));
    assert!(!has_state(states(2)), "no STOP_COPY");
    let expects = |expects| Has {
        expects,
        ..Has::all()
    };
    assert!(has_state(expects(MAX_STATE as u64)));
    assert!(!has_state(expects(MAX_STATE as u64 + 1)), "too much of it");
    let (_, function) = opened(Has::little());
    let error = function.save().unwrap_err();
    assert!(matches!(error, StateError::NotReadable(_)), "{error}");
}

#[test]
fn its_state_goes_from_one_host_to_another() {
    let there = Vm::new(Has::all());
    there.map(0, 100);
    let waiting = Halted::waiting(there.endpoints.clone()).unwrap();
    let here = Vm::running(Has::all());
    here.fake.journal();
    let state = sent(&here).unwrap();
    assert_eq!(
        here.fake.journal(),
        [
            "state 5, bus mastering on",
            "state 1, bus mastering on",
            "log starts",
            "reported in state 1, bus mastering on",
            "state 3, bus mastering on",
            "state 1, bus mastering on",
            // Given up: it runs on here.
            "state 5, bus mastering on",
            "state 2, bus mastering on",
        ]
    );
    there.fake.journal();
    let arrived = waiting.load(state).unwrap();
    assert_eq!(there.fake.loaded(), b"state");
    assert_eq!(there.fake.state(), STOP, "until the VM runs");
    let ready = arrived.claim("m1").unwrap();
    assert!(!there.fake.writes(1));
    ready.run();
    assert_eq!(
        there.fake.journal(),
        [
            "state 4, bus mastering off",
            "state 1, bus mastering off",
            "state 5, bus mastering on",
            "state 2, bus mastering on",
        ]
    );
    assert!(there.fake.writes(1));
}

#[test]
fn one_without_the_optional_state_is_stopped_at_once() {
    let vm = Vm::running(Has {
        states: 1,
        ..Has::all()
    });
    vm.fake.journal();
    let halted = Running::new(vm.endpoints.clone()).halt().unwrap();
    assert_eq!(vm.fake.journal(), ["state 1, bus mastering on"]);
    halted.resume();
    assert_eq!(vm.fake.state(), RUNNING);
}

#[test]
fn none_is_stopped_before_all_leave_each_other_alone() {
    let [first, second] = [Vm::running(Has::all()), Vm::running(Has::all())];
    let both = [first.endpoint().clone(), second.endpoint().clone()];
    second.fake.fail(When::Refuses(RUNNING_P2P), Errno::BUSY);
    first.fake.journal();
    let failed = Running::new(Endpoints(both.into())).halt().unwrap_err();
    assert!(failed.error.to_string().contains("RUNNING_P2P"));
    let states = ["state 5, bus mastering on", "state 2, bus mastering on"];
    assert_eq!(first.fake.journal(), states, "and back");
    let _halted = failed.back_to.halt().unwrap();
    assert_eq!([first.fake.state(), second.fake.state()], [STOP; 2]);
}

/// What arrives is as large as what is carried, and what is larger is refused here.
#[test]
fn a_state_is_carried_up_to_its_limit() {
    let data = vec![7; MAX_STATE];
    let there = Vm::new(Has::all());
    let waiting = Halted::waiting(there.endpoints.clone()).unwrap();
    let state = sent(&Vm::running(with_data(Data::Bytes(data.clone())))).unwrap();
    waiting.load(state).unwrap();
    assert!(there.fake.loaded() == data);

    for data in [Data::Bytes(vec![7; MAX_STATE + 1]), Data::Endless] {
        let vm = Vm::running(with_data(data));
        let error = sent(&vm).unwrap_err().to_string();
        assert!(
            error.contains("larger than") && error.contains("recovery"),
            "{error}"
        );
        assert_eq!(vm.fake.state(), RUNNING, "it runs on");
        assert!(vm.fake.writes(1));
    }
}

#[test]
fn a_function_that_falls_silent_is_not_waited_for() {
    let vm = Vm::running(with_data(Data::Silent));
    let error = sent(&vm).unwrap_err().to_string();
    assert!(error.contains("said nothing"), "{error}");
    assert_eq!(vm.fake.state(), RUNNING, "it runs on");
}

#[test]
fn a_function_that_offers_nothing_to_read_has_no_state_to_send() {
    let vm = Vm::running(with_data(Data::Missing));
    let error = sent(&vm).unwrap_err().to_string();
    assert!(error.contains("no state to read"), "{error}");
    assert_eq!(vm.fake.state(), RUNNING, "it runs on");
}

#[test]
fn one_that_is_not_stopped_runs_on() {
    let vm = Vm::running(Has::all());
    vm.fake.fail(When::Refuses(STOP), Errno::BUSY);
    let failed = Running::new(vm.endpoints.clone()).halt().unwrap_err();
    let error = failed.error.to_string();
    assert!(error.contains("did not go to STOP"), "{error}");
    assert!(error.contains("RUNNING_P2P"), "{error}");
    assert_eq!(vm.fake.state(), RUNNING);
    assert!(vm.fake.writes(1));
}

#[test]
fn one_that_fails_itself_is_reset_and_said_to_be() {
    // On its way to a halt.
    let vm = Vm::running(Has::all());
    vm.fake.fail(When::Breaks(STOP), Errno::IO);
    let failed = Running::new(vm.endpoints.clone()).halt().unwrap_err();
    let error = failed.error.to_string();
    assert!(
        error.contains("was reset") && error.contains("STOP"),
        "{error}"
    );
    assert!(vm.fake.journal().contains(&"reset".to_owned()));
    assert_eq!(vm.fake.state(), RUNNING);
    // While it is read: it stays halted as the others do, until all go on.
    let vm = Vm::running(Has::all());
    vm.fake.fail(When::Breaks(STOP_COPY), Errno::IO);
    let error = sent(&vm).unwrap_err().to_string();
    assert!(
        error.contains("was reset") && error.contains("STOP_COPY"),
        "{error}"
    );
    assert_eq!(vm.fake.state(), RUNNING);
    // And where it cannot be reset either, that is said.
    let vm = Vm::running(Has::all());
    vm.fake.fail(When::Breaks(STOP), Errno::IO);
    vm.fake
        .fail(When::Call(crate::vfio::RESET), Errno::TIMEDOUT);
    let failed = Running::new(vm.endpoints.clone()).halt().unwrap_err();
    assert!(failed.error.to_string().contains("could not be reset"));
}

#[test]
fn a_state_that_the_function_does_not_take_leaves_it_as_after_a_reset() {
    let bad = |there: &Vm, data: &[u8], why: &str| {
        let waiting = Halted::waiting(there.endpoints.clone()).unwrap();
        let here = Vm::running(with_data(Data::Bytes(data.to_vec())));
        let state = sent(&here).unwrap();
        let failed = waiting.load(state).unwrap_err();
        let error = failed.error.to_string();
        assert!(error.contains(why), "{error}");
        assert_eq!(there.fake.state(), STOP);
        assert!(there.fake.loaded().is_empty());
        failed.back_to
    };
    let there = Vm::new(Has::all());
    let waiting = bad(&there, b"bad", "was reset");
    // It takes another.
    let state = sent(&Vm::running(Has::all())).unwrap();
    waiting.load(state).unwrap();
    assert_eq!(there.fake.loaded(), b"state");

    let there = Vm::new(Has::all());
    there.fake.fail(When::Refuses(RESUMING), Errno::NOMEM);
    bad(&there, b"good", "did not go to RESUMING");
}

#[test]
fn a_state_of_another_function_never_reaches_it() {
    let mut state = sent(&Vm::running(Has::all())).unwrap();
    state[0].model.as_mut().unwrap().body["device"] = 0x1234.into();
    let there = Vm::new(Has::all());
    let waiting = Halted::waiting(there.endpoints.clone()).unwrap();
    there.fake.journal();
    let error = waiting.load(state).unwrap_err().error.to_string();
    assert!(error.contains("8086:1234"), "{error}");
    assert_eq!(
        there.fake.journal(),
        [""; 0],
        "the kernel was asked nothing"
    );
}

/// Its driver starts it anew: the state is not asked for, and the function is stopped all the same.
#[test]
fn one_that_is_left_to_its_driver_is_reset_while_it_is_stopped() {
    let (fake, mut function) = opened(Has::all());
    function.set_bus_master(true).unwrap();
    function.run(Run::Off).unwrap();
    function.set_bus_master(false).unwrap();
    assert!(fake.is_bus_master(), "its driver on the host may need it");
    function.reset(::device::Reset::Bus);
    assert!(function.is_untouched());
    assert_eq!(fake.state(), STOP, "as it was");
    assert!(!fake.is_bus_master());
    function.set_bus_master(true).unwrap();
    function.run(Run::On).unwrap();
    assert_eq!(fake.state(), RUNNING);
    assert!(fake.is_bus_master());
}

#[test]
fn bus_mastering_is_as_the_guest_left_it_when_it_runs_again() {
    let vm = Vm::running(Has::all());
    let halted = Running::new(vm.endpoints.clone()).halt().unwrap();
    vm.set_bus_master(false);
    halted.resume();
    assert!(!vm.fake.is_bus_master());
    assert_eq!(vm.fake.state(), RUNNING);
}

#[test]
fn signals_change_nothing() {
    let vm = Vm::running(Has::all());
    vm.fake.interrupt(4);
    let state = sent(&vm).unwrap();
    assert!(state[0].model.is_some());
}
