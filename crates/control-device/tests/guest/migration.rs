//! The control device on its way to another host.

use std::sync::Arc;

use control_device::{Outcome, Unavailable};
use device::{Model, StateError, StateRecord};

use crate::driver::{self, Driver, REQUEST};
use crate::machine::{LONG, Machine, done, quiesced};

const GOLDEN: &str = include_str!("../golden/control-device-v1.json");

/// A guest whose devices are stopped, and which has left its host.
fn left() -> (Machine, Driver) {
    let mut m = Machine::new();
    let mut driver = Driver::load(&mut m);
    let place = control_device::spec::Location {
        segment: 0,
        bus: 1,
        device: 0,
        function: 0,
    };
    m.control.place(&[Some(place)]).unwrap();
    let asked = m.control.track(LONG).unwrap();
    driver.run(&mut m);
    let asked = m.tracked(asked).quiesce(LONG).unwrap();
    driver.run(&mut m);
    quiesced(asked).leave();
    (m, driver)
}

fn arrive(record: &StateRecord, from: &Machine) -> Machine {
    let mut there = Machine::with_memory(Arc::clone(&from.memory));
    there.device.load(record).unwrap();
    there.resume();
    there
}

#[test]
fn a_state_of_version_1_loads_and_saves_as_it_was() {
    let golden: StateRecord = serde_json::from_str(GOLDEN).unwrap();
    assert_eq!(
        (golden.name.as_str(), golden.version),
        ("control-device", 1)
    );
    let mut m = Machine::new();
    m.device.load(&golden).unwrap();
    let again = serde_json::to_string_pretty(&m.device.save().unwrap()).unwrap();
    assert_eq!(again, GOLDEN.trim_end());
    // It holds what it says: devices that were stopped.
    assert_eq!(m.read(REQUEST), 0x220);
    assert_eq!(m.read(driver::ack(1)), 0x221);
    assert_eq!(m.read(0x100), 0x0100);
}

#[test]
fn the_guest_is_told_the_end_where_it_arrives() {
    let (here, mut driver) = left();
    let record = here.device.save().unwrap();
    let mut there = arrive(&record, &here);
    assert_eq!(there.device.state(), here.device.state());
    // The doorbell of the arrival alone does nothing.
    driver.run(&mut there);
    assert_eq!(driver.stopped, [true; 2]);

    let asked = there.control.end(LONG).unwrap().unwrap();
    driver.run(&mut there);
    assert_eq!(asked.wait().0, [done(()); 2]);
    assert_eq!(driver.stopped, [false; 2]);
    // Once is enough.
    assert!(there.control.end(LONG).unwrap().is_none());
    // And back again.
    assert!(there.control.track(LONG).is_ok());
}

/// As when the process that served the VM has died, and another goes on where it left off.
fn taken_over(from: &Machine) -> Machine {
    let mut live = Vec::new();
    assert!(from.device.live(&mut live));
    let mut next = Machine::with_memory(Arc::clone(&from.memory));
    next.device.take_over(&live).unwrap();
    next.resume();
    next
}

#[test]
fn a_guest_whose_host_process_died_is_told_that_it_is_over() {
    let (here, mut driver) = left();
    let mut next = taken_over(&here);
    driver.run(&mut next);
    assert_eq!((driver.stopped, driver.tracking), ([false; 2], false));
    // It can be asked again, by the process that is there.
    let asked = next.control.quiesce(LONG).unwrap();
    driver.run(&mut next);
    assert_eq!(quiesced(asked).outcomes().len(), 2);
    assert_eq!(driver.stopped, [true; 2]);
}

#[test]
fn nothing_is_over_for_a_guest_that_was_not_asked() {
    let mut m = Machine::new();
    Driver::load(&mut m);
    let next = taken_over(&m);
    assert_eq!(next.device.state(), m.device.state());
}

#[test]
fn a_live_state_that_is_damaged_or_another_devices_is_refused() {
    let (here, _) = left();
    let mut live = Vec::new();
    here.device.live(&mut live);
    let whole = live.clone();
    let mut next = Machine::new();
    for len in 0..whole.len() {
        next.device.take_over(&whole[..len]).unwrap_err();
    }
    let text = String::from_utf8(whole).unwrap();
    let other = text.replace("control-device", "nvme");
    next.device.take_over(other.as_bytes()).unwrap_err();
    assert_eq!(next.device.state(), Machine::new().device.state());
}

#[test]
fn a_doorbell_is_rung_once_more_on_arrival() {
    let (here, _) = left();
    let mut there = arrive(&here.device.save().unwrap(), &here);
    assert_eq!(there.interrupts(), 1);
    assert_eq!(there.interrupts(), 0);
}

#[test]
fn a_guest_that_comes_back_is_told_the_end_here() {
    let (mut here, mut driver) = left();
    let asked = here.control.end(LONG).unwrap().unwrap();
    driver.run(&mut here);
    assert_eq!(asked.wait().0, [done(()); 2]);
    assert_eq!(driver.stopped, [false; 2]);
}

#[test]
fn an_answer_given_at_the_source_is_not_taken_for_one_to_the_destination() {
    let (here, _) = left();
    let there = arrive(&here.device.save().unwrap(), &here);
    let asked = there
        .control
        .end(std::time::Duration::ZERO)
        .unwrap()
        .unwrap();
    assert_eq!(asked.wait().0, [Outcome::Silent; 2]);
}

#[test]
fn a_state_that_comes_while_the_guest_is_asked_ends_the_wait() {
    let (here, _) = left();
    let record = here.device.save().unwrap();
    let mut m = Machine::new();
    Driver::load(&mut m);
    let asked = m.control.quiesce(LONG).unwrap();
    assert_eq!(m.control.track(LONG).err(), Some(Unavailable::Busy));
    m.device.load(&record).unwrap();
    assert!(asked.is_ready());
    assert_eq!(quiesced(asked).outcomes(), [Outcome::Silent; 2]);
}

#[test]
fn a_state_that_does_not_hold_together_is_refused() {
    let (here, _) = left();
    let record = here.device.save().unwrap();
    let before = Machine::new().device.state();
    for (path, value) in [
        ("/devices/0/identity", 1_u32),
        ("/devices/0/ack", 0x220),
        ("/devices/1/ack", 0x001),
        ("/features", 0x0f),
        ("/driver", 0x07),
        ("/driver", 0x8000_000f),
        ("/request", 0x221),
        ("/request", 0x020),
        ("/request", 0x2f0),
    ] {
        let mut damaged = record.clone();
        *damaged.body.pointer_mut(path).unwrap() = value.into();
        let mut m = Machine::new();
        let refused = m.device.load(&damaged);
        assert!(
            matches!(refused, Err(StateError::Body { .. })),
            "{path} {value:#x}"
        );
        assert_eq!(m.device.state(), before);
    }
}
