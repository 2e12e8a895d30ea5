//! A process dies at any moment, and another of the same host goes on with the function.

use std::sync::Arc;

use device::{Access, Ledger, ManualClock, Model, Mortal, Writes};

use crate::frames::{pattern, udp, udp_to};
use crate::machine::{MAC, Machine, Vectors};
use crate::ring_driver::{Driver, Options};

/// A process that dies after `left` of what it does to memory and ledger, where its state is.
fn mortal(m: &Machine, left: usize) -> Mortal {
    let mortal = Mortal::new(Arc::clone(&m.memory), usize::MAX);
    let mut state = Vec::new();
    assert!(m.vf.live(&mut state));
    mortal.put(&state, &Writes::default());
    mortal.set_left(left);
    mortal
}

/// One call, and what its owner puts down after it.
fn call(mortal: &Mortal, m: &mut Machine, act: impl FnOnce(&mut ixgbevf::Vf, &Access<'_>)) {
    let access = Access {
        memory: Some(mortal),
        interrupts: &Vectors::default(),
        clock: &ManualClock::default(),
        ledger: Some(mortal),
    };
    act(&mut m.vf, &access);
    let mut state = Vec::new();
    m.vf.live(&mut state);
    mortal.put(&state, &Writes::default());
}

/// Another process with what this one has left.
fn successor(mortal: &Mortal, m: &Machine) -> Machine {
    let mut there = Machine::with_memory(Arc::clone(&m.memory));
    let left = mortal.entry().unwrap();
    there.vf.take_over(&left.state).unwrap();
    mortal.set_left(usize::MAX);
    left.writes.finish(mortal, left.stage, mortal).unwrap();
    there.resume();
    there
}

/// More than what is done to memory and ledger in one call.
const STEPS: usize = 40;

fn frame(number: u8) -> Vec<u8> {
    // Some take two descriptors.
    udp_to(
        MAC,
        7,
        &[
            &[number; 2][..],
            &pattern(100 + 460 * usize::from(number % 3)),
        ]
        .concat(),
    )
}

/// The number in a frame that has arrived whole.
fn number(bytes: &[u8]) -> u8 {
    let number = bytes[42];
    assert_eq!(bytes, frame(number), "no frame is damaged");
    number
}

#[test]
fn what_is_received_is_there_once_and_whole_or_not_at_all() {
    for left in 0..STEPS {
        // The driver takes what it finds, and refills, before there is a successor, or after.
        for driver_is_fast in [true, false] {
            let (mut m, mut driver) = Driver::up(Options {
                buffer_kib: 1,
                ..Options::default()
            });
            // Descriptors have been used before, and hold what is left of that.
            for round in 0..60 {
                m.arrive(&frame(round));
                m.settle();
                assert!((0..2).any(|queue| driver.receive(&mut m, queue).is_some()));
            }
            let mortal = mortal(&m, left);
            for count in 100..104 {
                m.arrive(&frame(count));
            }
            call(&mortal, &mut m, |vf, access| {
                let _ = vf.poll(access);
            });
            assert!(
                left + 1 < STEPS || mortal.left() > 0,
                "all moments are tried"
            );
            let mut seen = Vec::new();
            let mut take = |m: &mut Machine, driver: &mut Driver| {
                for queue in 0..2 {
                    while let Some(received) = driver.receive(m, queue) {
                        seen.push(number(&received.bytes));
                    }
                }
            };
            if driver_is_fast {
                // Its doorbells are answered by the successor only.
                let mut nobody = Machine::with_memory(Arc::clone(&m.memory));
                take(&mut nobody, &mut driver);
            }
            let mut there = successor(&mortal, &m);
            let tail = |there: &mut Machine, queue| there.read(0x1018 + 0x40 * queue);
            for queue in 0..2 {
                let (next, at) = (driver.tail(queue as usize), tail(&mut there, queue));
                if driver_is_fast && u32::from(next) != at {
                    there.write(0x1018 + 0x40 * queue, next.into());
                }
            }
            // Enough for the driver to come by every descriptor again.
            for count in 104..254 {
                there.arrive(&frame(count));
                there.settle();
                take(&mut there, &mut driver);
            }
            let is_new = |number: &u8| *number >= 104;
            assert_eq!(seen.iter().filter(|n| is_new(n)).count(), 150, "{left}");
            let mut sorted = seen.clone();
            sorted.sort_unstable();
            sorted.dedup();
            assert_eq!(sorted.len(), seen.len(), "none arrives twice");
        }
    }
}

#[test]
fn what_is_sent_is_sent_and_reported_whenever_the_process_dies() {
    for left in 0..STEPS {
        let (mut m, mut driver) = Driver::up(Options::default());
        for _ in 0..50 {
            driver.send_plain(&mut m, 0, &udp(&pattern(60)));
            assert_eq!(driver.sent(&m, 0), 1);
        }
        m.sent();
        let mortal = mortal(&m, left);
        let frames: Vec<_> = (0..6).map(|n| udp(&[n; 300])).collect();
        {
            let mut quiet = Machine::with_memory(Arc::clone(&m.memory));
            for frame in &frames {
                driver.send_plain(&mut quiet, 0, frame);
            }
        }
        let tail = driver.tx_tail(0).to_le_bytes();
        call(&mortal, &mut m, |vf, access| {
            vf.write(0, 0x2018, &[tail[0], tail[1], 0, 0], access);
        });
        let mut sent = m.sent();
        let mut reported = driver.sent(&m, 0);
        let mut there = successor(&mortal, &m);
        // The message that it died over comes again.
        there.write(0x2018, driver.tx_tail(0).into());
        there.settle();
        reported += driver.sent(&there, 0);
        sent.extend(there.sent());
        assert_eq!(reported, frames.len(), "{left}");
        for frame in &sent {
            assert!(frames.contains(frame), "no frame is damaged");
        }
        for frame in &frames {
            assert!(sent.contains(frame), "none that was kept back is lost");
        }
    }
}
