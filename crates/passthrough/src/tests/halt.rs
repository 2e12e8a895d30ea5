//! A halt is one only when nothing is under way any more.

use ::device::lifecycle::Running;

use super::Vm;
use crate::fake::Has;

/// What a function waits for may never come: it is reset then, and its driver has to hear of that.
#[test]
fn a_function_that_waits_without_end_is_reset() {
    let vm = Vm::running(Has::little());
    vm.fake.journal();
    vm.fake.waits(false);
    let halted = Running::new(vm.endpoints.clone()).halt().unwrap();
    assert_eq!(vm.fake.journal(), ["reset"]);
    assert!(!vm.fake.is_bus_master());
    halted.resume();
    let fault = vm.endpoint().fault().unwrap();
    assert!(fault.contains("reset to be halted"), "{fault}");
    assert!(vm.fake.is_bus_master(), "its driver may go on");
    // It has: what comes next is no matter of this halt.
    let halted = Running::new(vm.endpoints.clone()).halt().unwrap();
    halted.resume();
    assert_eq!(vm.endpoint().fault(), None);
    assert_eq!(vm.fake.journal(), Vec::<String>::new());
}

#[test]
fn what_a_reset_does_not_end_is_no_halt() {
    let vm = Vm::running(Has::little());
    vm.fake.waits(true);
    let failed = Running::new(vm.endpoints.clone()).halt().unwrap_err();
    let why = failed.error.to_string();
    assert!(why.contains("still under way"), "{why}");
}
