//! Saving, loading, and going on elsewhere.

use std::time::Duration;

use device::{Model, Progress, StateError, StateRecord};
use proptest::prelude::*;

use crate::frames::{pattern, udp, udp_to};
use crate::machine::{MAC, Machine};
use crate::offload::{check_segments, tso};
use crate::ring_driver::{Driver, Options};

const GOLDEN: &str = include_str!("../golden/ixgbevf-v1.json");

/// The same guest on another host.
fn move_away(m: &Machine) -> Machine {
    let mut there = Machine::with_memory(std::sync::Arc::clone(&m.memory));
    let text = serde_json::to_string(&m.vf.save().unwrap()).unwrap();
    let record: StateRecord = serde_json::from_str(&text).unwrap();
    there.vf.load(&record).unwrap();
    assert_eq!(there.vf.state(), m.vf.state());
    there.resume();
    there
}

/// A function in the middle of its work, with something in every part of its state.
fn busy() -> (Machine, Driver) {
    let (mut m, mut driver) = Driver::up(Options {
        max_frame: 9_018,
        ..Options::default()
    });
    Driver::granted(&mut m, &[0x0001_0004, 5]);
    Driver::granted(&mut m, &[0x0001_0004, 4095]);
    Driver::granted(&mut m, &[0x0002_0003, 0x0ff0_0010]);
    Driver::granted(&mut m, &[0x0001_0006, 0x0000_0002, 0x0700]);
    Driver::set_xcast(&mut m, 2);
    m.write(0x0820, 0x8000_0040);
    m.write(0x2078, 0x1000);
    for port in 0..5 {
        m.arrive(&udp_to(MAC, port, &pattern(3_000)));
    }
    m.settle();
    m.cable().room = Some(1);
    driver.send_plain(&mut m, 0, &udp(&pattern(100)));
    driver.send_plain(&mut m, 1, &udp(&pattern(200)));
    (m, driver)
}

/// What neighbours said is no frame that the network has brought.
#[test]
fn a_driver_that_starts_a_fresh_function_hears_again_what_the_guest_had_heard() {
    for again in [true, false] {
        let mut m = Machine::new();
        let mut driver = Driver::probe(&mut m);
        let said = udp_to(MAC, 9, b"said before");
        m.vf.remember(std::slice::from_ref(&said), again);
        assert_eq!(m.vf.heard(), std::slice::from_ref(&said));
        m.settle();
        driver.open(&mut m, Options::default());
        m.settle();
        let heard: Vec<_> = (0..2)
            .filter_map(|queue| driver.receive(&mut m, queue))
            .collect();
        assert_eq!(heard.len(), usize::from(again));
        assert_eq!(m.vf.work_done(), 0);
        // The guest may have forgotten it before its link was up: again, for a while.
        let mut times = 0;
        while let Progress::Idle(Some(after)) = m.poll() {
            m.clock.advance(after);
            m.settle();
            times += (0..2)
                .filter(|queue| driver.receive(&mut m, *queue).is_some())
                .count();
        }
        assert_eq!(times, if again { 6 } else { 0 });
        assert_eq!(m.vf.work_done(), 0);
        assert_eq!(m.vf.counters().said_again, if again { 7 } else { 0 });
        driver.send_plain(&mut m, 0, &udp(b"new"));
        m.settle();
        assert_eq!(m.vf.work_done(), 1);
    }
}

/// It is said again when there is DMA again; until then nobody looks at the clock.
#[test]
fn a_function_without_dma_waits_for_nothing() {
    let mut m = Machine::new();
    let mut driver = Driver::probe(&mut m);
    m.vf.remember(&[udp_to(MAC, 9, b"said before")], true);
    driver.open(&mut m, Options::default());
    m.settle();
    m.bus_master = false;
    m.clock.advance(Duration::from_secs(1));
    assert_eq!(m.poll(), Progress::Idle(None));
    m.bus_master = true;
    m.settle();
    assert_eq!(m.vf.counters().said_again, 2);
}

#[test]
fn a_state_of_version_1_loads_and_saves_as_it_was() {
    let golden: StateRecord = serde_json::from_str(GOLDEN).unwrap();
    assert_eq!((golden.name.as_str(), golden.version), ("ixgbevf", 1));
    let mut m = Machine::new();
    m.vf.load(&golden).unwrap();
    let again = serde_json::to_string_pretty(&m.vf.save().unwrap()).unwrap();
    assert_eq!(again, GOLDEN.trim_end());
    // It holds what it says.
    assert_eq!(m.read(0x2018), 2);
    assert_eq!(m.read(0x0120), 0x8181_8080);
    assert!(m.vf.state().filter.vlans.contains(4095));
}

#[test]
fn a_busy_function_comes_back_as_it_was_saved() {
    let (m, _) = busy();
    let state = m.vf.state();
    assert_ne!(state.interrupts.awaiting_rearm, 0);
    assert_ne!(state.statistics.rx_frames, 0);
    assert!(state.tx[1].ring.head != state.tx[1].ring.tail);
    move_away(&m);
}

#[test]
fn traffic_goes_on_elsewhere_and_nothing_is_lost() {
    let (mut here, mut driver) = Driver::up(Options::default());
    let mut sent = Vec::new();
    let mut received = Vec::new();
    for round in 0..20_u8 {
        here.cable().room = Some(2);
        for number in 0..4_u8 {
            let frame = udp(&[&[round, number][..], &pattern(80)].concat());
            driver.send_plain(&mut here, usize::from(number % 2), &frame);
            let inward = udp_to(
                MAC,
                number.into(),
                &[&[round, number][..], &pattern(70)].concat(),
            );
            here.arrive(&inward);
        }
        here.poll();
        sent.extend(here.sent());
        let mut there = move_away(&here);
        there.settle();
        sent.extend(there.sent());
        for queue in 0..2 {
            driver.sent(&there, queue);
            while let Some(frame) = driver.receive(&mut there, queue) {
                received.push(frame.bytes);
            }
        }
        here = there;
    }
    let numbers = |frames: &[Vec<u8>]| {
        let mut numbers: Vec<_> = frames.iter().map(|f| [f[42], f[43]]).collect();
        numbers.sort_unstable();
        numbers
    };
    let all: Vec<_> = (0..20).flat_map(|r| (0..4).map(move |n| [r, n])).collect();
    assert_eq!(numbers(&sent), all);
    assert_eq!(numbers(&received), all);
}

#[test]
fn a_large_send_goes_on_at_the_segment_where_it_was() {
    let (mut m, mut driver) = Driver::up(Options::default());
    let (frame, mut order) = tso(false, None, 3_000, 100);
    order.parts = vec![&frame];
    m.cable().room = Some(7);
    driver.send(&mut m, 0, &order);
    let mut there = move_away(&m);
    // There, the link could take it whole; here, a part of it is gone.
    there.cable().offloads.tcp_segments = true;
    there.settle();
    let frames = [m.sent(), there.sent()].concat();
    check_segments(&frames, &pattern(3_000), 100, None, false);
    assert_eq!(driver.sent(&there, 0), 1);
}

#[test]
fn resume_raises_every_vector_that_the_driver_may_be_waiting_for() {
    let (mut m, _) = Driver::up(Options::default());
    m.write(0x0104, 1); // Its message may be the one that is lost.
    m.write(0x010c, 2); // The driver does not want this one.
    let there = move_away(&m);
    let mut signalled = there.signalled();
    signalled.sort_unstable();
    assert_eq!(signalled, [0, 2]);
    let vectors = there.vf.counters().vectors;
    assert_eq!(vectors.map(|v| v.reraised), [1, 0, 1]);
    assert_eq!(vectors.map(|v| v.raised), [1, 0, 1]);
    assert_eq!(vectors.map(|v| v.awaiting_rearm), [true, false, true]);
}

#[test]
fn resume_of_a_closed_interface_raises_nothing() {
    let (mut m, driver) = Driver::up(Options::default());
    driver.close(&mut m);
    assert!(move_away(&m).signalled().is_empty());
}

#[test]
fn resume_announces_every_address() {
    let (mut m, _) = Driver::up(Options::default());
    Driver::granted(&mut m, &[0x0001_0006, 0x0000_0002, 0x0700]);
    let there = move_away(&m);
    assert_eq!(there.cable().announced, [MAC, [2, 0, 0, 0, 0, 7]]);
}

#[test]
fn a_link_that_is_down_there_is_noticed() {
    let (m, _) = Driver::up(Options::default());
    let mut there = Machine::with_memory(std::sync::Arc::clone(&m.memory));
    there.cable().down = true;
    there.vf.load(&m.vf.save().unwrap()).unwrap();
    there.resume();
    assert_eq!((there.read(0x0200), there.read(0x0010)), (0x2000_0100, 0));
    assert!(there.signalled().contains(&2));
}

#[test]
fn records_of_others_and_damaged_ones_are_refused_and_change_nothing() {
    let (mut m, _) = busy();
    let before = m.vf.state().clone();
    let good = m.vf.save().unwrap();
    let refuse = |m: &mut Machine, change: &dyn Fn(&mut StateRecord)| {
        let mut record = good.clone();
        change(&mut record);
        m.vf.load(&record).unwrap_err()
    };
    assert!(matches!(
        refuse(&mut m, &|r| r.name = "nvme-ctrl".into()),
        StateError::Name { .. }
    ));
    assert!(matches!(
        refuse(&mut m, &|r| r.version = 2),
        StateError::Version { found: 2, .. }
    ));
    let damages: &[(&str, serde_json::Value)] = &[
        ("/mac", serde_json::json!([1, 2, 3, 4, 5, 6])),
        ("/mac", serde_json::json!([0, 0, 0, 0, 0, 0])),
        ("/queue_pairs", 0.into()),
        ("/queue_pairs", 8.into()),
        ("/mailbox/api", 6.into()),
        ("/mailbox/events", 1.into()),
        ("/mailbox/memory", serde_json::json!([])),
        ("/interrupts/vteims", 8.into()),
        ("/interrupts/unsent", 8.into()),
        ("/interrupts/awaiting_rearm", 8.into()),
        ("/interrupts/vtivar/0", u32::MAX.into()),
        ("/interrupts/vteitr/0", 1.into()),
        ("/filter/mode", 4.into()),
        (
            "/filter/macvlans",
            serde_json::json!(vec![[2, 0, 0, 0, 0, 1]; 17]),
        ),
        ("/filter/macvlans", serde_json::json!([[1, 0, 0, 0, 0, 1]])),
        ("/filter/vlans", serde_json::json!([4096])),
        ("/filter/multicast", serde_json::json!([2, 1])),
        ("/filter/multicast", serde_json::json!([1, 1])),
        ("/filter/max_frame", u32::MAX.into()),
        ("/rx/0/ring/base", 8.into()),
        ("/rx/0/ring/len", u32::MAX.into()),
        ("/rx/0/ring/head", 65_536.into()),
        ("/tx/0/ring/control", u32::MAX.into()),
        ("/tx", serde_json::json!([])),
        ("/statistics/vfgorc", u64::MAX.into()),
        ("/link_up", serde_json::Value::Null),
    ];
    for (pointer, value) in damages {
        let error = refuse(&mut m, &|r| {
            *r.body.pointer_mut(pointer).unwrap() = value.clone();
        });
        assert!(
            matches!(error, StateError::Body { .. }),
            "{pointer} = {value}"
        );
        assert_eq!(m.vf.state(), &before);
    }
    refuse(&mut m, &|r| r.body["unheard_of"] = 1.into());
    let mut nested = serde_json::Value::Null;
    for _ in 0..100 {
        nested = serde_json::json!([nested]);
    }
    refuse(&mut m, &|r| r.body = nested.clone());
    assert_eq!(m.vf.state(), &before);
    m.vf.load(&good).unwrap();
}

proptest! {
    #[test]
    fn damaged_bytes_are_refused_or_make_a_state_that_saves_as_it_was_loaded(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)
    ) {
        let mut text = GOLDEN.as_bytes().to_vec();
        for (at, byte) in changes {
            let at = at.index(text.len());
            text[at] = byte;
        }
        let Ok(record) = serde_json::from_slice::<StateRecord>(&text) else {
            return Ok(());
        };
        let mut m = Machine::new();
        if m.vf.load(&record).is_ok() {
            prop_assert_eq!(m.vf.save().unwrap(), record);
            m.arrive(&udp(&pattern(100)));
            m.resume();
            m.settle();
        }
    }
}
