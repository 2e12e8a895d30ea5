//! One entry for fuzzers and property tests: bytes in, anything a guest, a network or a damaged
//! state can do out of them.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use device::{
    Access, FlatMemory, FrameLink, GuestMemory, Interrupts, ManualClock, Model, Offloads, Progress,
    Reset, RxFrame, Sent, StateRecord, TxFrame,
};

use crate::{Vf, VfConfig};

const MEMORY_BASE: u64 = 0x1_0000;
const MEMORY_LEN: usize = 0x1_0000;
/// More than one call can send within its budget, and few enough to be called bounded.
const FRAMES_PER_CALL: usize = 2 * (256 + 64) + 2;

/// Interprets `bytes` as a sequence of register accesses, memory contents, frames, saves and loads
/// against one function, and lets it run.
///
/// Its promise is kept by not panicking.
///
/// # Panics
/// When the function does more in one call than its budget allows, when a state that it saved does
/// not load, or when it does not come to rest.
pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let wire = Arc::new(Mutex::new(Wire::default()));
    let mut world = World {
        vf: function(&wire),
        wire,
        memory: FlatMemory::new(MEMORY_BASE, MEMORY_LEN),
        bus_master: true,
        clock: ManualClock::default(),
    };
    while let Some(operation) = input.byte() {
        world.step(operation, &mut input);
    }
    world.settle();
}

fn function(wire: &Arc<Mutex<Wire>>) -> Vf {
    let config = VfConfig {
        mac: [2, 0, 0, 0, 0, 1],
        queue_pairs: 2,
    };
    Vf::new(
        config,
        Box::new(FuzzLink {
            wire: Arc::clone(wire),
            shown: None,
        }),
    )
    .expect("the configuration is right")
}

struct World {
    vf: Vf,
    wire: Arc<Mutex<Wire>>,
    memory: FlatMemory,
    bus_master: bool,
    clock: ManualClock,
}

impl World {
    fn step(&mut self, operation: u8, input: &mut Input<'_>) {
        match operation % 16 {
            0 => self.write(input.word().into(), &input.array::<4>()),
            1 => self.write(input.word().into(), &input.array::<8>()),
            2 => {
                // A ring within memory, enabled: what random numbers hardly ever make.
                let (base, len) = if input.odd() {
                    (0x1000, 0x28)
                } else {
                    (0x2000, 0x28)
                };
                let queue = base + 0x40 * u64::from(input.word() % 2);
                let page = u32::from(input.word() & 0xff) << 8;
                self.write(queue, &(0x1_0000 + page).to_le_bytes());
                self.write(
                    queue + 8,
                    &(128 * u32::from(input.word() % 8)).to_le_bytes(),
                );
                self.write(queue + 0x14, &(1 << 25 | 1_u32).to_le_bytes());
                self.write(queue + len, &(1_u32 << 25).to_le_bytes());
            }
            3 => {
                let tail = if input.odd() { 0x1018 } else { 0x2018 };
                self.write(
                    tail + 0x40 * u64::from(input.word() % 2),
                    &[input.byte().unwrap_or(0) % 64, 0, 0, 0],
                );
            }
            4 => self.read(input),
            5 | 6 => {
                let address = MEMORY_BASE + u64::from(input.word());
                let content = input.array::<16>();
                // Reaching over the end of memory is part of the game.
                let _ = self.memory.write(address, &content);
            }
            7 => {
                // An advanced data or context descriptor with the rest as it comes.
                let mut content = input.array::<16>();
                content[2..8].copy_from_slice(&[1, 0, 0, 0, 0, 0]);
                content[10] = if input.odd() { 0x30 } else { 0x20 };
                content[11] |= 0x20;
                let _ = self
                    .memory
                    .write(MEMORY_BASE + u64::from(input.word() & !0xf), &content);
            }
            8 | 9 => {
                let len = usize::from(input.word()) % 10_000;
                let mut frame = input.take(len.min(80)).to_vec();
                frame.resize(len, 0x5a);
                if input.odd() && len > 6 {
                    frame[..6].fill(0xff);
                }
                self.wire().incoming.push_back(frame);
            }
            10 | 11 => {
                self.poll();
            }
            12 => self.save_and_load(input),
            13 => self
                .clock
                .advance(Duration::from_micros(input.word().into())),
            14 => self.change(input),
            _ => {
                let kind = if input.odd() {
                    Reset::Bus
                } else {
                    Reset::Function
                };
                self.vf.reset(kind);
            }
        }
    }

    fn change(&mut self, input: &mut Input<'_>) {
        let what = input.byte().unwrap_or(0);
        self.bus_master ^= what & 1 != 0;
        let mut wire = self.wire();
        wire.up ^= what & 2 != 0;
        wire.full ^= what & 4 != 0;
        wire.offloads = Offloads {
            checksum: what & 8 != 0,
            tcp_segments: what & 16 != 0,
        };
    }

    fn read(&mut self, input: &mut Input<'_>) {
        let len = [1, 2, 4, 8, 3, 0][usize::from(input.byte().unwrap_or(0)) % 6];
        let offset = u64::from(input.word());
        let mut data = [0; 8];
        self.call(|vf, access| vf.read(0, offset, &mut data[..len], access));
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.call(|vf, access| vf.write(0, offset & 0x3fff, data, access));
    }

    fn poll(&mut self) -> Progress {
        self.call(Vf::poll)
    }

    /// The function goes on in a new one; a damaged state is refused or taken, as it comes.
    fn save_and_load(&mut self, input: &mut Input<'_>) {
        let record = self.vf.save().expect("every state can be saved");
        let mut successor = function(&self.wire);
        successor.load(&record).expect("what was saved loads");
        assert_eq!(successor.state(), self.vf.state());
        let mut text = record.body.to_string().into_bytes();
        for _ in 0..input.byte().unwrap_or(0) % 4 {
            let at = usize::from(input.word()) % text.len();
            text[at] = input.byte().unwrap_or(b'9');
        }
        if let Ok(body) = serde_json::from_slice(&text) {
            let _ = successor.load(&StateRecord { body, ..record });
        }
        self.vf = successor;
        self.call(Vf::resume);
    }

    /// A function that nothing happens to comes to rest.
    fn settle(&mut self) {
        self.wire().full = false;
        for _ in 0..100_000 {
            if let Progress::Idle(wait) = self.poll() {
                let Some(wait) = wait else {
                    return;
                };
                self.clock.advance(wait);
            }
        }
        panic!("the function does not come to rest");
    }

    fn call<R>(&mut self, f: impl FnOnce(&mut Vf, &Access<'_>) -> R) -> R {
        self.wire().sent = 0;
        let memory: &dyn GuestMemory = &self.memory;
        let access = Access {
            memory: self.bus_master.then_some(memory),
            interrupts: &NoInterrupts,
            clock: &self.clock,
        };
        let result = f(&mut self.vf, &access);
        let sent = self.wire().sent;
        assert!(sent <= FRAMES_PER_CALL, "{sent} frames in one call");
        result
    }

    fn wire(&self) -> MutexGuard<'_, Wire> {
        lock(&self.wire)
    }
}

/// The fuzzer's bytes; zeros when they are used up.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).first().copied()
    }

    fn odd(&mut self) -> bool {
        self.byte().unwrap_or(0) & 1 != 0
    }

    fn word(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let taken = self.take(N);
        array[..taken.len()].copy_from_slice(taken);
        array
    }
}

struct NoInterrupts;

impl Interrupts for NoInterrupts {
    fn signal(&self, _vector: u16) {}
}

#[derive(Debug)]
struct Wire {
    incoming: VecDeque<Vec<u8>>,
    sent: usize,
    up: bool,
    full: bool,
    offloads: Offloads,
}

impl Default for Wire {
    fn default() -> Self {
        Self {
            incoming: VecDeque::new(),
            sent: 0,
            up: true,
            full: false,
            offloads: Offloads::default(),
        }
    }
}

struct FuzzLink {
    wire: Arc<Mutex<Wire>>,
    /// What `peek` shows; it has to outlive the lock.
    shown: Option<Vec<u8>>,
}

impl FrameLink for FuzzLink {
    fn peek(&mut self) -> Option<RxFrame<'_>> {
        if self.shown.is_none() {
            self.shown = lock(&self.wire).incoming.pop_front();
        }
        let bytes = self.shown.as_deref()?;
        Some(RxFrame {
            bytes,
            checksums_good: bytes.len() % 2 == 0,
        })
    }

    fn consume(&mut self) {
        self.shown = None;
    }

    fn send(&mut self, _frame: TxFrame<'_>) -> Sent {
        let mut wire = lock(&self.wire);
        if wire.full {
            return Sent::Full;
        }
        wire.sent += 1;
        Sent::Taken
    }

    fn flush(&mut self) {}

    fn is_up(&self) -> bool {
        lock(&self.wire).up
    }

    fn offloads(&self) -> Offloads {
        lock(&self.wire).offloads
    }

    fn announce(&mut self, _mac: [u8; 6]) {}

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

fn lock(wire: &Mutex<Wire>) -> MutexGuard<'_, Wire> {
    wire.lock().unwrap_or_else(PoisonError::into_inner)
}
