//! The wrong order does not compile.

#[test]
fn the_wrong_order_does_not_compile() {
    let cases = trybuild::TestCases::new();
    cases.pass("tests/order/right.rs");
    cases.compile_fail("tests/order/mark_before_halt.rs");
    cases.compile_fail("tests/order/save_before_mark.rs");
    cases.compile_fail("tests/order/hand_over_before_mark.rs");
    cases.compile_fail("tests/order/run_on_after_hand_over.rs");
    cases.compile_fail("tests/order/run_before_load.rs");
    cases.compile_fail("tests/order/run_before_claim.rs");
    cases.compile_fail("tests/order/resume_without_taking_back.rs");
}
