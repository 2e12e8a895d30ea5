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

/// Steps of what damaged things were left to.
const AMID_DAMAGE: usize = 8;
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

/// Where the rings are unless the input moves them: [`RING_ENTRIES`] descriptors each.
const RX_RINGS: u64 = MEMORY_BASE + 0x4000;
const TX_RINGS: u64 = MEMORY_BASE + 0x6000;
const RING_STRIDE: u64 = 0x1000;
const RING_ENTRIES: u16 = 64;
/// From here on there is only data.
const DATA: u64 = MEMORY_BASE + 0x8000;

impl World {
    /// Random numbers hardly ever make a ring that works, so most operations make something that
    /// does, and the input decides about its details.
    fn step(&mut self, operation: u8, input: &mut Input<'_>) {
        match operation % 24 {
            0 => self.write(input.word().into(), &input.array::<4>()),
            1 => self.write(input.word().into(), &input.array::<8>()),
            2 => self.read(input),
            3 => {
                let address = MEMORY_BASE + u64::from(input.word());
                self.store(address, &input.array::<16>());
            }
            4..7 => self.start_queue(input),
            7..10 => self.move_tail(input),
            10..13 => self.describe_data(input),
            13 if input.odd() => self.describe_context(input),
            13 => self.large_send(input),
            14 => self.post_buffers(input),
            15 | 16 => self.frame(input),
            17 | 18 => self.ask(input),
            19 => {
                self.poll();
            }
            20 => self.save_and_load(input),
            21 => self
                .clock
                .advance(Duration::from_micros(input.word().into())),
            22 => self.change(input),
            _ if input.byte().unwrap_or(0) < 32 => self.vf.reset(Reset::Function),
            _ => {
                self.poll();
            }
        }
    }

    /// Enables a queue, sometimes with a register as the input wants it.
    fn start_queue(&mut self, input: &mut Input<'_>) {
        let number = u64::from(input.byte().unwrap_or(0) % 2);
        let (registers, rings) = if input.odd() {
            (0x1000, RX_RINGS)
        } else {
            (0x2000, TX_RINGS)
        };
        let queue = registers + 0x40 * number;
        let ring = (rings + RING_STRIDE * number).to_le_bytes();
        self.write(queue, &ring);
        self.write(queue + 8, &(16 * u32::from(RING_ENTRIES)).to_le_bytes());
        let kib = 1 + input.word() % 4;
        self.write(queue + 0x14, &(1 << 25 | u32::from(kib)).to_le_bytes());
        self.write(
            queue + 0x28,
            &(1 << 25 | u32::from(input.odd()) << 30).to_le_bytes(),
        );
        self.write(0x0120, &[0x80, 0x80, 0x81, 0x81]);
        self.write(0x0108, &[7, 0, 0, 0]);
        let changed = input.byte().unwrap_or(0);
        if changed < 64 {
            self.write(queue + 4 * u64::from(changed % 16), &input.array::<4>());
        }
    }

    fn move_tail(&mut self, input: &mut Input<'_>) {
        let registers = if input.odd() { 0x1018 } else { 0x2018 };
        let queue = registers + 0x40 * u64::from(input.odd());
        let tail = input.word() % (RING_ENTRIES + 1);
        self.write(queue, &u32::from(tail).to_le_bytes());
    }

    /// Transmit data: mostly within memory, of the advanced type, and the end of its frame.
    fn describe_data(&mut self, input: &mut Input<'_>) {
        let slot = tx_slot(input);
        let address = DATA + u64::from(input.word() & 0x7fff);
        let len = u32::from(input.word() % 0x4400);
        let flags = input.byte().unwrap_or(0);
        let kind = if flags.is_multiple_of(16) {
            0x5 << 20
        } else {
            0x3 << 20
        };
        let end = if flags & 0x30 == 0 { 0 } else { 0x0900_0000 };
        let offload = u32::from(input.byte().unwrap_or(0)) << 24 & 0xc000_0000;
        let command = len | kind | end | 1 << 29 | offload;
        let info = u32::from(input.word() & 0x3f0);
        let mut descriptor = address.to_le_bytes().to_vec();
        descriptor.extend(command.to_le_bytes());
        descriptor.extend(info.to_le_bytes());
        self.store(slot, &descriptor);
    }

    fn describe_context(&mut self, input: &mut Input<'_>) {
        let slot = tx_slot(input);
        let lens = u32::from(input.word()) << 16 | 14 << 9 | 0x14 << u32::from(input.odd());
        let flags = u32::from(input.word() & 0x1c00);
        let sizes = u32::from(input.word() % 0x1000) << 16 | 0x14 << 8;
        for (word, offset) in [lens, 0, flags | 0x2020_0000, sizes]
            .into_iter()
            .zip([0, 4, 8, 12])
        {
            self.store(slot + offset, &word.to_le_bytes());
        }
    }

    /// A TCP frame with its context, which is hardly ever found by chance.
    fn large_send(&mut self, input: &mut Input<'_>) {
        let mut headers = [0; 54];
        headers[12..15].copy_from_slice(&[0x08, 0x00, 0x45]);
        headers[23] = 6;
        headers[46] = 0x50;
        if input.byte().unwrap_or(0) < 64 {
            let at = usize::from(input.word()) % headers.len();
            headers[at] = input.byte().unwrap_or(0);
        }
        self.store(DATA, &headers);
        let mss = u32::from(input.word() % 2_000);
        let len = u32::from(input.word() % 0x8000);
        let words = [14 << 9 | 0x14, 0, 0x2020_0c00, mss << 16 | 0x14 << 8];
        let data = [0x1_8000, 0, 0xab30_0000 | len, 0x300];
        for (word, offset) in words.into_iter().chain(data).zip((0..).step_by(4)) {
            self.store(TX_RINGS + offset, &u32::to_le_bytes(word));
        }
        self.write(0x2010, &[0; 4]);
        self.write(0x2018, &[2, 0, 0, 0]);
    }

    fn post_buffers(&mut self, input: &mut Input<'_>) {
        let ring = RX_RINGS + RING_STRIDE * u64::from(input.odd());
        let base = DATA + u64::from(input.word() & 0x3fff);
        for index in 0..u64::from(RING_ENTRIES) {
            self.store(ring + 16 * index, &(base + 0x100 * index).to_le_bytes());
        }
    }

    fn frame(&self, input: &mut Input<'_>) {
        let len = usize::from(input.word()) % 10_000;
        let mut frame = input.take(len.min(60)).to_vec();
        frame.resize(len, 0x5a);
        if input.byte().unwrap_or(0) < 192 && len > 14 {
            frame[..6].fill(0xff);
            let types = [[0x08, 0x00], [0x86, 0xdd], [0x81, 0x00], [0x08, 0x06]];
            frame[12..14].copy_from_slice(&types[usize::from(input.word() % 4)]);
        }
        self.wire().incoming.push_back(frame);
    }

    /// A mailbox request, mostly one that is known.
    fn ask(&mut self, input: &mut Input<'_>) {
        let request = u32::from(input.byte().unwrap_or(0) % 0x14);
        let info = u32::from(input.byte().unwrap_or(0)) << 16;
        let info = if request == 1 { 0 } else { info };
        self.write(0x0200, &(request | info).to_le_bytes());
        let first = if input.odd() {
            input.word() % 10
        } else {
            input.word()
        };
        self.write(0x0204, &u32::from(first).to_le_bytes());
        self.write(0x02fc, &[if input.odd() { 1 } else { 5 }, 0, 0, 0]);
        self.write(0x02fc, &[2, 0, 0, 0]);
    }

    fn store(&self, address: u64, data: &[u8]) {
        // Reaching over the end of memory is part of the game.
        let _ = self.memory.write(address, data);
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
        if input.byte().unwrap_or(0) % 2 == 1 {
            self.take_over(input);
        }
    }

    /// It goes on in a new one, as where a process has died. So does, for some steps, one to which damaged things
    /// were left; what comes of that nobody can say.
    fn take_over(&mut self, input: &mut Input<'_>) {
        let mut left = Vec::new();
        assert!(self.vf.live(&mut left));
        let mut successor = function(&self.wire);
        successor
            .take_over(&left)
            .expect("what was left is gone on with");
        for _ in 0..input.byte().unwrap_or(0) % 4 {
            let at = usize::from(input.word()) % left.len();
            left[at] = input.byte().unwrap_or(0xff);
        }
        left.truncate(left.len() - usize::from(input.byte().unwrap_or(0) == 7));
        let mut damaged = function(&self.wire);
        if damaged.take_over(&left).is_ok() {
            self.vf = damaged;
            self.call(Vf::resume);
            for _ in 0..AMID_DAMAGE {
                self.poll();
            }
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
            ledger: None,
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

fn tx_slot(input: &mut Input<'_>) -> u64 {
    let ring = TX_RINGS + RING_STRIDE * u64::from(input.odd());
    ring + 16 * u64::from(input.word() % RING_ENTRIES)
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
