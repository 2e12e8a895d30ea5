//! Saving, loading, and going on elsewhere.

use std::time::Duration;

use device::{Model, StateError, StateRecord};
use serde_json::json;
use stream_device::spec::registers::{CYCLIC, RATE};

use crate::machine::{DATA, Driver, Machine};

const GOLDEN: &str = include_str!("../golden/stream-v1.json");
type Damage = fn(&mut serde_json::Value);

const LONG: Duration = Duration::from_secs(1);

/// The same guest on another host.
fn move_away(m: &Machine) -> Machine {
    let text = serde_json::to_string(&m.device.save().unwrap()).unwrap();
    let record: StateRecord = serde_json::from_str(&text).unwrap();
    let mut there = Machine::with(m.memory.clone());
    there.device.load(&record).unwrap();
    assert_eq!(there.device.save().unwrap(), record);
    there.call(stream_device::StreamDevice::resume);
    there
}

/// A device in the middle of its work.
fn busy() -> (Machine, Driver) {
    let mut m = Machine::new();
    m.write(RATE, 2000);
    let cyclic = Driver::start(&mut m, 5, (2, CYCLIC), 7);
    cyclic.put(&m, 0, DATA, 4096);
    cyclic.put(&m, 1, DATA + 0x1000, 4096);
    let mut driver = Driver::start(&mut m, 0, (16, 0), 100);
    for page in 0..10 {
        driver.post(&mut m, DATA + 0x2000 + 0x1000 * page, 4096);
    }
    m.pass(LONG);
    m.pass(Duration::from_millis(4));
    (m, driver)
}

#[test]
fn descriptors_are_carried_out_once_wherever_the_device_is() {
    let (m, mut driver) = busy();
    let here = m.device.state().channels[0].head;
    assert!((1..10).contains(&here), "{here} done here");
    let mut there = move_away(&m);
    assert_eq!(there.signals(), 1, "one may have been lost");
    assert!(there.device.needs_poll());
    there.pass(LONG);
    there.pass(Duration::from_millis(20));
    for page in 0..10 {
        assert_eq!(driver.take(&there).unwrap().sequence, 100 + page);
        assert!(there.holds(DATA + 0x2000 + 0x1000 * page, 4096, 100 + page));
    }
    assert_eq!(driver.take(&there), None);
    let cyclic = there.device.state().channels[5];
    assert!(there.holds(
        DATA,
        4096,
        cyclic.sequence - 1 - u64::from(cyclic.head - 1) % 2
    ));
}

#[test]
fn a_state_of_version_1_loads_and_saves_as_it_was() {
    let golden: StateRecord = serde_json::from_str(GOLDEN).unwrap();
    assert_eq!((golden.name.as_str(), golden.version), ("stream", 1));
    let mut m = Machine::new();
    m.device.load(&golden).unwrap();
    let again = serde_json::to_string_pretty(&m.device.save().unwrap()).unwrap();
    assert_eq!(again, GOLDEN.trim_end());
    // It holds what it says.
    assert_eq!(m.read(RATE), 2000);
    assert_eq!(m.device.state(), busy().0.device.state());
}

#[test]
fn a_state_that_no_device_can_be_in_is_refused_whole() {
    let damages: [(&str, Damage); 6] = [
        ("channels", |body| {
            drop(body["channels"].as_array_mut().unwrap().pop());
        }),
        ("rate", |body| body["rate"] = json!(1_000_001)),
        ("rings", |body| body["channels"][0]["entries"] = json!(3)),
        ("rings", |body| body["channels"][5]["entries"] = json!(0)),
        ("waiting", |body| body["channels"][0]["tail"] = json!(30)),
        ("unknown", |body| body["more"] = json!(1)),
    ];
    for (why, damage) in damages {
        let (mut m, _) = busy();
        let before = m.device.state().clone();
        let mut record = m.device.save().unwrap();
        damage(&mut record.body);
        let error = m.device.load(&record).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
        assert_eq!(*m.device.state(), before);
    }
    let (m, _) = busy();
    let mut record = m.device.save().unwrap();
    record.version = 2;
    let error = Machine::new().device.load(&record).unwrap_err();
    assert!(matches!(error, StateError::Version { .. }));
}
