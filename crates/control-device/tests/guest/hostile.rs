//! Guests that do not behave.

use control_device::{Coverage, Outcome, Stopped, TableError};
use device::{GuestMemory, Model, Reset};
use proptest::prelude::*;

use crate::driver::{self, DIRECTORY, DONE, Driver, REQUEST, answer};
use crate::machine::{LONG, Machine, SHORT, done, quiesced};

fn dropped(m: &Machine, kind: &str) -> u64 {
    m.device.inspect()["answers_dropped"][kind]
        .as_u64()
        .unwrap()
}

#[test]
fn silence_is_no_answer() {
    let mut m = Machine::new();
    Driver::load(&mut m);
    let tracked = m.tracked(m.control.track(SHORT).unwrap());
    assert_eq!(tracked.promises(), [Outcome::Silent; 2]);
    assert_eq!(tracked.coverage(0), Coverage::None);
    let quiesced = quiesced(tracked.quiesce(SHORT).unwrap());
    assert_eq!(quiesced.outcomes(), [Outcome::Silent; 2]);
    assert_eq!(m.marked(&quiesced), Ok(vec![]));
    assert_eq!(quiesced.end(SHORT).wait().0, [Outcome::Silent; 2]);
}

#[test]
fn a_late_answer_changes_nothing_and_the_guest_is_told_the_end() {
    let mut m = Machine::new();
    let mut driver = Driver::load(&mut m);
    let quiesced = quiesced(m.control.quiesce(SHORT).unwrap());
    driver.run(&mut m);
    assert_eq!(driver.stopped, [true; 2]);
    assert_eq!(quiesced.outcomes(), [Outcome::Silent; 2]);
    assert_eq!(dropped(&m, "late"), 2);
    let asked = quiesced.end(LONG);
    driver.run(&mut m);
    assert_eq!(asked.wait().0, [done(()); 2]);
    assert_eq!(driver.stopped, [false; 2]);
}

#[test]
fn a_promise_that_comes_late_is_not_relied_upon() {
    let mut m = Machine::new();
    let mut driver = Driver::load(&mut m);
    let tracked = m.tracked(m.control.track(SHORT).unwrap());
    driver.run(&mut m);
    driver.map(&m, 7);
    assert_eq!(tracked.coverage(0), Coverage::None);
}

#[test]
fn the_first_answer_counts_whatever_the_second_says() {
    let mut m = Machine::new();
    Driver::load(&mut m);
    let asked = m.control.quiesce(LONG).unwrap();
    let request = m.read(REQUEST);
    answer(&mut m, 0, request, DONE);
    answer(&mut m, 0, request, driver::FAILED);
    answer(&mut m, 1, request, driver::FAILED);
    answer(&mut m, 1, request, DONE);
    let quiesced = quiesced(asked);
    let failed = Outcome::Failed { detail: 110 };
    assert_eq!(quiesced.outcomes(), [done(Stopped::Verified), failed]);
    assert_eq!(dropped(&m, "repeated"), 2);
    assert_eq!(m.read(driver::ack(0)), request | DONE);
}

#[test]
fn an_answer_to_an_old_epoch_is_none_to_the_next() {
    let mut m = Machine::new();
    Driver::load(&mut m);
    let first = m.control.quiesce(LONG).unwrap();
    let old = m.read(REQUEST);
    drop(first);
    let asked = m.control.quiesce(SHORT).unwrap();
    let request = m.read(REQUEST);
    assert_ne!(old, request);
    answer(&mut m, 0, old, DONE);
    answer(&mut m, 1, request + 0x100, DONE);
    assert_eq!(quiesced(asked).outcomes(), [Outcome::Silent; 2]);
    assert_eq!(dropped(&m, "foreign"), 2);
    assert_eq!(m.read(driver::ack(0)), 0);
}

#[test]
fn an_old_answer_given_in_time_does_not_count_for_the_next_epoch() {
    let mut m = Machine::new();
    let mut driver = Driver::load(&mut m);
    let first = m.control.quiesce(LONG).unwrap();
    driver.run(&mut m);
    assert!(first.is_ready());
    drop(first);
    let asked = m.control.quiesce(SHORT).unwrap();
    assert_eq!(quiesced(asked).outcomes(), [Outcome::Silent; 2]);
}

#[test]
fn answers_that_are_none_are_dropped() {
    let mut m = Machine::new();
    Driver::load(&mut m);
    let asked = m.control.quiesce(SHORT).unwrap();
    let request = m.read(REQUEST);
    for result in [0, 2, 3, 4, 13] {
        answer(&mut m, 0, request, result);
    }
    answer(
        &mut m,
        0,
        driver::TRACK << 4 | request & !0xf0,
        driver::TABLE,
    );
    for index in [2, 31, 100] {
        answer(&mut m, index, request, DONE);
    }
    assert_eq!(quiesced(asked).outcomes(), [Outcome::Silent; 2]);
    assert_eq!(dropped(&m, "foreign"), 9);
}

#[test]
fn a_promise_needs_the_feature_it_presumes() {
    let mut m = Machine::new();
    // TOUCH alone.
    m.write(driver::DRIVER, driver::READY | 0b010);
    let asked = m.control.track(SHORT).unwrap();
    let request = m.read(REQUEST);
    answer(&mut m, 0, request, driver::TABLE);
    answer(&mut m, 1, request, driver::TABLE_AFTER_QUIESCE);
    assert_eq!(m.tracked(asked).promises(), [Outcome::Silent; 2]);
}

#[test]
fn garbage_as_the_tables_address_refuses_the_table_and_nothing_else() {
    for (directory, chunks) in [
        (1, 1),
        (DIRECTORY, 0),
        (DIRECTORY, 2),
        (DIRECTORY, u32::MAX),
        (u64::MAX, 1),
        (0xffff_ffff_ffff_f000, 1),
        (1 << 40, 1),
    ] {
        let mut m = Machine::new();
        Driver::load(&mut m);
        let asked = m.control.track(LONG).unwrap();
        let request = m.read(REQUEST);
        driver::set_table(&mut m, directory, chunks);
        answer(&mut m, 0, request, driver::TABLE);
        answer(&mut m, 1, request, driver::TOUCH_AFTER_QUIESCE);
        let tracked = m.tracked(asked);
        assert!(tracked.table_refused().is_some(), "{directory:#x} {chunks}");
        assert_eq!(tracked.coverage(0), Coverage::None);
        let asked = tracked.quiesce(LONG).unwrap();
        let request = m.read(REQUEST);
        answer(&mut m, 0, request, DONE);
        answer(&mut m, 1, request, DONE);
        let quiesced = quiesced(asked);
        assert_eq!(quiesced.coverage(0), Coverage::None);
        assert_eq!(quiesced.coverage(1), Coverage::Touched);
        assert_eq!(m.marked(&quiesced), Ok(vec![]));
    }
}

#[test]
fn a_directory_that_turns_bad_is_seen_when_it_counts() {
    let mut m = Machine::new();
    let mut driver = Driver::load(&mut m);
    let asked = m.control.track(LONG).unwrap();
    driver.run(&mut m);
    let asked = m.tracked(asked).quiesce(LONG).unwrap();
    driver.run(&mut m);
    let quiesced = quiesced(asked);
    m.memory.write(DIRECTORY, &[0xff; 8]).unwrap();
    let refused = TableError::Chunk {
        index: 0,
        address: u64::MAX,
    };
    assert_eq!(m.marked(&quiesced), Err(refused));
}

#[test]
fn registers_of_the_table_are_taken_with_the_first_promise() {
    let mut m = Machine::new();
    let mut driver = Driver::load(&mut m);
    let asked = m.control.track(LONG).unwrap();
    driver.run(&mut m);
    driver::set_table(&mut m, u64::MAX, u32::MAX);
    let tracked = m.tracked(asked);
    assert_eq!(tracked.table_refused(), None);
    driver.map(&m, 5);
    let quiesced = quiesced(tracked.quiesce(SHORT).unwrap());
    assert_eq!(m.marked(&quiesced), Ok(vec![5]));
}

#[test]
fn a_driver_that_leaves_takes_its_promises_with_it() {
    let leave: [fn(&mut Machine); 3] = [
        |m| m.write(driver::DRIVER, 0),
        |m| m.write(driver::DRIVER, driver::READY | driver::ALL),
        |m| m.device.reset(Reset::Bus),
    ];
    for leave in leave {
        let mut m = Machine::new();
        let mut driver = Driver::load(&mut m);
        let asked = m.control.track(LONG).unwrap();
        driver.run(&mut m);
        let asked = m.tracked(asked).quiesce(LONG).unwrap();
        driver.run(&mut m);
        let quiesced = quiesced(asked);
        assert!(quiesced.is_stopped(0));
        leave(&mut m);
        assert!(!quiesced.is_stopped(0));
        assert_eq!(quiesced.coverage(0), Coverage::None);
        assert_eq!(m.marked(&quiesced), Err(TableError::Void));
    }
}

#[test]
fn a_driver_that_leaves_takes_back_what_it_answered() {
    let mut m = Machine::new();
    let mut driver = Driver::load(&mut m);
    let asked = m.control.quiesce(SHORT).unwrap();
    driver.run(&mut m);
    m.device.reset(Reset::Bus);
    assert_eq!(quiesced(asked).outcomes(), [Outcome::Silent; 2]);
}

#[derive(Debug, Clone)]
enum Step {
    Write(u64, u32),
    Answer(u64, u32, u32),
    Memory(u64, u64),
    Reset,
    Track,
    Quiesce,
}

fn step() -> impl Strategy<Value = Step> {
    let register = prop_oneof![
        Just(driver::DRIVER),
        0x20..0x2cu64,
        0x100..0x140u64,
        any::<u64>()
    ];
    let value = prop_oneof![
        any::<u32>(),
        Just(driver::READY | driver::ALL),
        0..0x10_000u32
    ];
    prop_oneof![
        (register, value).prop_map(|(at, value)| Step::Write(at, value)),
        (0..3u64, 0..16u32, 0..3u32).prop_map(|(i, result, old)| Step::Answer(i, result, old)),
        (
            0..0x800u64,
            prop_oneof![any::<u64>(), (0..0x100u64).prop_map(|page| page << 12)]
        )
            .prop_map(|(at, value)| Step::Memory(at * 8, value)),
        Just(Step::Reset),
        Just(Step::Track),
        Just(Step::Quiesce),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever the guest does, nothing panics, every wait ends, a device counts as stopped only if
    /// it answered this very request, and a saved state loads.
    #[test]
    fn no_guest_breaks_the_host(steps in proptest::collection::vec(step(), 0..60)) {
        let mut m = Machine::new();
        Driver::load(&mut m);
        let mut tracked = None;
        for step in steps {
            match step {
                Step::Write(at, value) => m.write(at, value),
                Step::Answer(index, result, old) => {
                    let request = m.read(REQUEST);
                    answer(&mut m, index, request.wrapping_sub(old << 8), result);
                }
                Step::Memory(at, value) => m.memory.write(at, &value.to_le_bytes()).unwrap(),
                Step::Reset => m.device.reset(Reset::Function),
                Step::Track => {
                    tracked = None;
                    if let Ok(asked) = m.control.track(std::time::Duration::ZERO) {
                        let request = m.read(REQUEST);
                        answer(&mut m, 0, request, driver::TABLE);
                        tracked = Some(m.tracked(asked));
                    }
                }
                Step::Quiesce => if let Some(tracked) = tracked.take()
                    && let Ok(asked) = tracked.quiesce(std::time::Duration::ZERO)
                {
                    let quiesced = quiesced(asked);
                    prop_assert!(!quiesced.is_stopped(0) && !quiesced.is_stopped(1));
                    if let Ok(pages) = m.marked(&quiesced) {
                        prop_assert!(pages.iter().all(|page| *page < crate::machine::RAM >> 12));
                    }
                }
            }
        }
        let saved = m.device.save().unwrap();
        let mut there = Machine::new();
        there.device.load(&saved).unwrap();
        prop_assert_eq!(there.device.state(), m.device.state());
    }
}
