//! A process dies at any moment, and another of the same host goes on with the function.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use device::{
    Access, DmaError, FlatMemory, GuestMemory, Ledger, ManualClock, Model, Stage, Writes,
};

use crate::frames::{pattern, udp, udp_to};
use crate::machine::{MAC, Machine, Vectors};
use crate::ring_driver::{Driver, Options};

/// Memory and ledger as a process has them that dies after `left` of what it does to them: whatever comes
/// after that does not happen.
struct Mortal {
    memory: Arc<FlatMemory>,
    left: Cell<usize>,
    state: RefCell<Vec<u8>>,
    writes: RefCell<Writes>,
    stage: Cell<Stage>,
}

impl Mortal {
    fn new(m: &Machine, left: usize) -> Self {
        let mut state = Vec::new();
        assert!(m.vf.live(&mut state));
        Self {
            memory: Arc::clone(&m.memory),
            left: Cell::new(left),
            state: RefCell::new(state),
            writes: RefCell::default(),
            stage: Cell::new(Stage::Done),
        }
    }

    fn lives(&self) -> bool {
        let lives = self.left.get() > 0;
        self.left.set(self.left.get().saturating_sub(1));
        lives
    }

    /// One call, and what its owner puts down after it.
    fn call(&self, m: &mut Machine, act: impl FnOnce(&mut ixgbevf::Vf, &Access<'_>)) {
        let access = Access {
            memory: Some(self),
            interrupts: &Vectors::default(),
            clock: &ManualClock::default(),
            ledger: Some(self),
        };
        act(&mut m.vf, &access);
        let mut state = Vec::new();
        m.vf.live(&mut state);
        self.put(&state, &Writes::default());
    }

    /// Another process with what this one has left.
    fn successor(&self) -> Machine {
        let mut there = Machine::with_memory(Arc::clone(&self.memory));
        there.vf.take_over(&self.state.borrow()).unwrap();
        self.left.set(usize::MAX);
        let writes = self.writes.borrow().clone();
        writes.finish(self, self.stage.get(), self).unwrap();
        there.resume();
        there
    }
}

impl GuestMemory for Mortal {
    fn read(&self, iova: u64, buf: &mut [u8]) -> Result<(), DmaError> {
        self.memory.read(iova, buf)
    }

    fn write(&self, iova: u64, data: &[u8]) -> Result<(), DmaError> {
        // What is in buffers counts only with the words that follow.
        if self.left.get() > 0 {
            self.memory.write(iova, data)?;
        }
        Ok(())
    }

    fn store_u64(&self, iova: u64, value: u64) -> Result<(), DmaError> {
        if self.lives() {
            self.memory.store_u64(iova, value)?;
        }
        Ok(())
    }

    fn store_u32(&self, iova: u64, value: u32) -> Result<(), DmaError> {
        if self.lives() {
            self.memory.store_u32(iova, value)?;
        }
        Ok(())
    }
}

impl Ledger for Mortal {
    fn put(&self, state: &[u8], writes: &Writes) {
        if self.lives() {
            self.state.replace(state.to_vec());
            self.writes.replace(writes.clone());
            self.stage.set(Stage::Begun);
        }
    }

    fn set_stage(&self, stage: Stage) {
        if self.lives() {
            self.stage.set(stage);
        }
    }
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
            let mortal = Mortal::new(&m, left);
            for count in 100..104 {
                m.arrive(&frame(count));
            }
            mortal.call(&mut m, |vf, access| {
                let _ = vf.poll(access);
            });
            assert!(
                left + 1 < STEPS || mortal.left.get() > 0,
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
            let mut there = mortal.successor();
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
        let mortal = Mortal::new(&m, left);
        let frames: Vec<_> = (0..6).map(|n| udp(&[n; 300])).collect();
        {
            let mut quiet = Machine::with_memory(Arc::clone(&m.memory));
            for frame in &frames {
                driver.send_plain(&mut quiet, 0, frame);
            }
        }
        let tail = driver.tx_tail(0).to_le_bytes();
        mortal.call(&mut m, |vf, access| {
            vf.write(0, 0x2018, &[tail[0], tail[1], 0, 0], access);
        });
        let mut sent = m.sent();
        let mut reported = driver.sent(&m, 0);
        let mut there = mortal.successor();
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
