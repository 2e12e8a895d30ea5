//! A guest that behaves, and what a migration learns of it.

use control_device::spec::{Location, Promise};
use control_device::{Coverage, Outcome, Stopped, Unavailable};
use device::{Model, Reset};

use crate::driver::{self, Driver};
use crate::machine::{LONG, Machine, RAM, SHORT, done, halted, quiesced};

#[test]
fn a_migration_goes_through_every_step() {
    let mut m = Machine::new();
    let mut driver = Driver::load(&mut m);

    let asked = m.control.track(LONG).unwrap();
    assert!(!asked.is_ready());
    driver.run(&mut m);
    assert!(asked.is_ready());
    let tracked = m.tracked(asked);
    let promises = [Promise::Table, Promise::TableAfterQuiesce].map(done);
    assert_eq!(tracked.promises(), promises);
    assert_eq!(tracked.table_refused(), None);
    assert_eq!(tracked.coverage(0), Coverage::Table);
    assert_eq!(tracked.coverage(1), Coverage::None, "it runs");
    driver.map(&m, 7);

    let asked = tracked.quiesce(LONG).unwrap();
    driver.map(&m, 200);
    driver.run(&mut m);
    let quiesced = quiesced(asked);
    assert_eq!(driver.stopped, [true; 2]);
    assert_eq!(quiesced.outcomes(), [done(Stopped::Verified); 2]);
    assert_eq!(quiesced.coverage(0), Coverage::Table);
    assert_eq!(quiesced.coverage(1), Coverage::Table);
    assert_eq!(m.marked(&quiesced), Ok(vec![7, 200]));

    let asked = quiesced.end(LONG);
    driver.run(&mut m);
    assert_eq!(asked.wait().0, [done(()); 2]);
    assert_eq!(driver.stopped, [false; 2]);
    assert!(!driver.tracking);
}

#[test]
fn each_migration_begins_with_an_empty_table() {
    let mut m = Machine::new();
    let mut driver = Driver::load(&mut m);
    for page in [3, 9] {
        let asked = m.control.track(LONG).unwrap();
        driver.run(&mut m);
        let tracked = m.tracked(asked);
        driver.map(&m, page);
        let mut pages = Vec::new();
        tracked
            .mark(&halted(), &*m.memory, &mut |page| pages.push(page))
            .unwrap();
        assert_eq!(pages, [page]);
        let asked = tracked.end(LONG);
        driver.run(&mut m);
        asked.wait();
    }
}

#[test]
fn a_guest_that_hangs_after_its_promise_has_said_all() {
    let mut m = Machine::new();
    let mut driver = Driver::load(&mut m);
    let asked = m.control.track(LONG).unwrap();
    driver.run(&mut m);
    let tracked = m.tracked(asked);
    driver.map(&m, 11);
    // From here on the driver does nothing any more.
    let quiesced = quiesced(tracked.quiesce(SHORT).unwrap());
    assert_eq!(quiesced.outcomes(), [Outcome::Silent; 2]);
    assert_eq!(quiesced.coverage(0), Coverage::Table);
    assert_eq!(quiesced.coverage(1), Coverage::None);
    assert_eq!(m.marked(&quiesced), Ok(vec![11]));
}

#[test]
fn dummy_writes_need_no_table_but_a_stopped_device() {
    let mut m = Machine::new();
    let mut driver = Driver::load(&mut m);
    driver.promises = [driver::TOUCH_AFTER_QUIESCE; 2];
    let asked = m.control.track(LONG).unwrap();
    driver.run(&mut m);
    let asked = m.tracked(asked).quiesce(LONG).unwrap();
    driver.run(&mut m);
    let quiesced = asked.wait(|index| match index {
        0 => Stopped::Verified,
        _ => Stopped::StillBusMaster,
    });
    assert_eq!(quiesced.coverage(0), Coverage::Touched);
    assert_eq!(
        quiesced.coverage(1),
        Coverage::None,
        "its word is worth nothing"
    );
    assert!(quiesced.is_stopped(0));
    assert!(!quiesced.is_stopped(1));
    assert_eq!(m.marked(&quiesced), Ok(vec![]));
}

#[test]
fn devices_are_answered_for_one_by_one() {
    let mut m = Machine::new();
    Driver::load(&mut m);
    let asked = m.control.quiesce(LONG).unwrap();
    let request = m.read(driver::REQUEST);
    driver::answer(&mut m, 0, request, driver::FAILED);
    assert!(!asked.is_ready());
    driver::answer(&mut m, 1, request, driver::DECLINED);
    let quiesced = quiesced(asked);
    let outcomes = [Outcome::Failed { detail: 110 }, Outcome::Declined];
    assert_eq!(quiesced.outcomes(), outcomes);
    assert_eq!(quiesced.coverage(0), Coverage::None);
}

#[test]
fn an_answer_ends_the_wait_of_another_thread() {
    let mut m = Machine::new();
    let mut driver = Driver::load(&mut m);
    let asked = m.control.quiesce(LONG).unwrap();
    let waiting = std::thread::spawn(move || quiesced(asked).outcomes().to_vec());
    driver.run(&mut m);
    assert_eq!(waiting.join().unwrap(), [done(Stopped::Verified); 2]);
}

#[test]
fn a_migration_that_is_dropped_tells_the_guest_that_it_is_over() {
    let mut m = Machine::new();
    let mut driver = Driver::load(&mut m);
    let asked = m.control.quiesce(LONG).unwrap();
    driver.run(&mut m);
    assert_eq!(driver.stopped, [true; 2]);
    drop(asked);
    driver.run(&mut m);
    assert_eq!(driver.stopped, [false; 2]);
    // And the next one may begin.
    assert!(m.control.quiesce(LONG).is_ok());
}

#[test]
fn a_guest_that_missed_commands_carries_out_the_current_one() {
    let mut m = Machine::new();
    let mut driver = Driver::load(&mut m);
    drop(m.control.quiesce(LONG).unwrap());
    let asked = m.control.track(LONG).unwrap();
    driver.run(&mut m);
    assert_eq!(m.tracked(asked).promises(), promises_of(&driver));
}

fn promises_of(driver: &Driver) -> [Outcome<Promise>; 2] {
    assert_eq!(
        driver.promises,
        [driver::TABLE, driver::TABLE_AFTER_QUIESCE]
    );
    [Promise::Table, Promise::TableAfterQuiesce].map(done)
}

#[test]
fn only_one_migration_speaks_with_the_guest() {
    let mut m = Machine::new();
    Driver::load(&mut m);
    let asked = m.control.track(LONG).unwrap();
    assert_eq!(m.control.track(LONG).err(), Some(Unavailable::Busy));
    assert_eq!(m.control.quiesce(LONG).err(), Some(Unavailable::Busy));
    assert_eq!(m.control.end(LONG).err(), Some(Unavailable::Busy));
    assert_eq!(m.control.place(&[]), Err(Unavailable::Busy));
    drop(asked);
    assert_eq!(m.control.place(&[]), Ok(()));
}

#[test]
fn nothing_is_asked_of_a_driver_that_did_not_take_it() {
    let mut m = Machine::new();
    assert_eq!(m.control.track(LONG).err(), Some(Unavailable::NoDriver));
    assert_eq!(m.control.quiesce(LONG).err(), Some(Unavailable::NoDriver));
    assert_eq!(m.control.driver(), None);
    m.write(driver::DRIVER, driver::READY);
    assert_eq!(m.control.driver(), Some(0));
    assert_eq!(m.control.track(LONG).err(), Some(Unavailable::NotOffered));
    assert_eq!(m.control.quiesce(LONG).err(), Some(Unavailable::NotOffered));
    assert_eq!(m.read(driver::REQUEST), 0);
    assert_eq!(m.interrupts(), 0);
    // What is refused leaves the way free.
    m.write(driver::DRIVER, driver::READY | driver::ALL);
    assert!(m.control.track(LONG).is_ok());
}

#[test]
fn a_new_place_of_a_device_rings_once() {
    let mut m = Machine::new();
    Driver::load(&mut m);
    assert_eq!(m.read(0x100), u32::MAX);
    let place = Location {
        segment: 0,
        bus: 1,
        device: 2,
        function: 3,
    };
    for rings in [1, 0] {
        m.control.place(&[Some(place)]).unwrap();
        assert_eq!(m.interrupts(), rings);
    }
    assert_eq!(m.read(0x100), 0x0113);
    assert_eq!(m.read(0x104), 0x10ed_8086);
    assert_eq!(m.read(0x120), u32::MAX);
}

#[test]
fn a_driver_that_comes_in_the_middle_is_told() {
    let mut m = Machine::new();
    Driver::load(&mut m);
    let asked = m.control.quiesce(LONG).unwrap();
    assert_eq!(m.interrupts(), 1);
    m.device.reset(Reset::Function);
    assert_eq!(m.interrupts(), 0);
    let mut driver = Driver::load(&mut m);
    driver.run(&mut m);
    assert_eq!(quiesced(asked).outcomes(), [done(Stopped::Verified); 2]);
}

#[test]
fn a_table_is_out_of_reach_of_a_function_that_is_no_bus_master() {
    let mut m = Machine::new();
    let mut driver = Driver::load(&mut m);
    let asked = m.control.track(LONG).unwrap();
    driver.run(&mut m);
    let tracked = asked.wait(RAM, || None::<device::FlatMemory>);
    assert_eq!(
        tracked.table_refused(),
        Some(control_device::TableError::OutOfReach)
    );
    assert_eq!(tracked.coverage(0), Coverage::None);
}
