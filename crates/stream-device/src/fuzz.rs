//! A world in which a byte string decides about all that a guest and a damaged state can do.
//!
//! The property tests and the fuzz targets run it; what it promises beyond what it asserts is kept
//! by not panicking.

use std::cell::Cell;
use std::time::Duration;

use device::{
    Access, DmaError, FlatMemory, GuestMemory, Interrupts, ManualClock, Model, Progress, Reset,
    StateRecord,
};

use crate::model::StreamDevice;
use crate::pace::BURST;
use crate::spec::registers::{
    CHANNEL_BASE, CHANNEL_COUNT, CHANNEL_STRIDE, CONTROL, CYCLIC, DONE_LOW, ENTRIES, RATE,
    RING_LOW, RUN, TAIL,
};
use crate::spec::{Descriptor, ENTRY_LEN, MAX_LEN, pci};

const MEMORY_BASE: u64 = 0x10_0000;
const MEMORY_LEN: u64 = 256 << 10;
/// Where rings lie unless the input moves them; descriptors, then completions.
const RING_STRIDE: u64 = 0x1000;
const DATA: u64 = MEMORY_BASE + 0x1_0000;
/// Most bytes that one call may write: its burst, all of a descriptor beyond it, and for each page
/// of 4096 bytes a descriptor's completion; a piece may be as short as a word.
const BYTES_PER_CALL: u64 = BURST as u64 * 4096 + MAX_LEN as u64 + (BURST as u64 + 8) * ENTRY_LEN;

/// Runs one input to its end.
///
/// # Panics
/// When the device writes more in one call than its burst, when a state that it saved does not
/// load, or when it asks to be called at once for ever.
pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let mut world = World {
        device: StreamDevice::new(),
        memory: Metered::new(),
        bus_master: true,
        clock: ManualClock::default(),
    };
    while let Some(operation) = input.byte() {
        world.step(operation, &mut input);
    }
    world.settle();
}

struct World {
    device: StreamDevice,
    memory: Metered,
    bus_master: bool,
    clock: ManualClock,
}

impl World {
    /// Random numbers hardly ever make a ring that works, so most operations make something that
    /// does, and the input decides about its details.
    fn step(&mut self, operation: u8, input: &mut Input<'_>) {
        match operation % 10 {
            0 => {
                let (offset, value) = (u64::from(input.word()), input.array::<8>());
                let len = [4, 4, 4, 1, 2, 8, 3, 0][usize::from(input.byte().unwrap_or(0)) % 8];
                let bar = u8::from(input.byte().unwrap_or(0) > 250) * 2;
                self.call(|d, access| d.write(bar, offset, &value[..len], access));
            }
            1 => {
                let (offset, mut data) = (u64::from(input.word()), [0; 8]);
                let len = [4, 1, 2, 8, 3, 0][usize::from(input.byte().unwrap_or(0)) % 6];
                self.call(|d, access| d.read(0, offset, &mut data[..len], access));
            }
            2 => self.start(input),
            3 | 4 => self.describe(input),
            5 => {
                let channel = channel(input);
                let tail = u32::from(input.word());
                self.set(channel, TAIL, tail);
            }
            6 | 7 => {
                self.clock
                    .advance(Duration::from_micros(input.word().into()));
                self.poll();
            }
            8 => self.save_and_load(input),
            _ => match input.byte().unwrap_or(0) {
                0..40 => self.device.reset(Reset::Function),
                40..128 => self.bus_master ^= true,
                _ => {
                    let rate = u32::from_le_bytes(input.array());
                    self.write(RATE, rate);
                }
            },
        }
    }

    fn start(&mut self, input: &mut Input<'_>) {
        let channel = channel(input);
        let kind = input.byte().unwrap_or(0);
        let ring = MEMORY_BASE + 2 * RING_STRIDE * channel;
        self.set(channel, CONTROL, 0);
        self.set(channel, RING_LOW, low(ring));
        self.set(channel, DONE_LOW, low(ring + RING_STRIDE));
        self.set(channel, ENTRIES, 1 << (kind % 11));
        self.set(channel, CONTROL, RUN | if kind >= 128 { CYCLIC } else { 0 });
    }

    fn describe(&mut self, input: &mut Input<'_>) {
        let channel = channel(input);
        let at = MEMORY_BASE
            + 2 * RING_STRIDE * channel
            + u64::from(input.byte().unwrap_or(0) % 64) * ENTRY_LEN;
        let kind = input.byte().unwrap_or(0);
        let place = u64::from(input.word());
        let descriptor = match kind % 8 {
            0 => Descriptor {
                address: u64::from_le_bytes(input.array()),
                len: u32::try_from(place).expect("16 bits are few"),
            },
            // Over its own rings, or over the end of memory.
            1 => Descriptor {
                address: MEMORY_BASE + place * 8 % MEMORY_LEN,
                len: MAX_LEN,
            },
            _ => Descriptor {
                address: DATA + place * 8 % 0x2_0000,
                len: 8 << (kind % 10),
            },
        };
        // All of it is memory.
        let _ = self.memory.memory.write(at, &descriptor.to_bytes());
    }

    fn set(&mut self, channel: u64, register: u64, value: u32) {
        self.write(CHANNEL_BASE + channel * CHANNEL_STRIDE + register, value);
    }

    fn write(&mut self, offset: u64, value: u32) {
        let value = value.to_le_bytes();
        self.call(|d, access| d.write(pci::REGISTER_BAR, offset, &value, access));
    }

    fn poll(&mut self) -> Progress {
        self.call(StreamDevice::poll)
    }

    /// The device goes on in a new one; a damaged state is refused or taken, as it comes.
    fn save_and_load(&mut self, input: &mut Input<'_>) {
        let record = self.device.save().expect("every state can be saved");
        let mut successor = StreamDevice::new();
        successor.load(&record).expect("what was saved loads");
        assert_eq!(successor.save().as_ref(), Ok(&record));
        let mut text = record.body.to_string().into_bytes();
        for _ in 0..input.byte().unwrap_or(0) % 4 {
            let at = usize::from(input.word()) % text.len();
            text[at] = input.byte().unwrap_or(b'9');
        }
        if let Ok(body) = serde_json::from_slice(&text) {
            let _ = successor.load(&StateRecord { body, ..record });
        }
        self.device = successor;
        self.call(StreamDevice::resume);
    }

    /// While no time passes, the device wants to be called only a few times.
    fn settle(&mut self) {
        for _ in 0..4 {
            if self.poll() != Progress::More {
                return;
            }
        }
        panic!("the device does not come to rest");
    }

    fn call<R>(&mut self, f: impl FnOnce(&mut StreamDevice, &Access<'_>) -> R) -> R {
        self.memory.written.set(0);
        let memory: &dyn GuestMemory = &self.memory;
        let access = Access {
            memory: self.bus_master.then_some(memory),
            interrupts: &OneVector,
            clock: &self.clock,
            ledger: None,
        };
        let result = f(&mut self.device, &access);
        let written = self.memory.written.get();
        assert!(written <= BYTES_PER_CALL, "{written} bytes in one call");
        result
    }
}

fn channel(input: &mut Input<'_>) -> u64 {
    u64::from(input.byte().unwrap_or(0)) % CHANNEL_COUNT as u64
}

fn low(address: u64) -> u32 {
    u32::try_from(address).expect("memory lies low")
}

/// Memory that counts what is written.
struct Metered {
    memory: FlatMemory,
    written: Cell<u64>,
}

impl Metered {
    fn new() -> Self {
        let len = usize::try_from(MEMORY_LEN).expect("it is small");
        Self {
            memory: FlatMemory::new(MEMORY_BASE, len),
            written: Cell::new(0),
        }
    }

    fn count(&self, len: usize) {
        self.written.set(self.written.get() + len as u64);
    }
}

impl GuestMemory for Metered {
    fn read(&self, iova: u64, buf: &mut [u8]) -> Result<(), DmaError> {
        self.memory.read(iova, buf)
    }

    fn write(&self, iova: u64, data: &[u8]) -> Result<(), DmaError> {
        self.count(data.len());
        self.memory.write(iova, data)
    }

    fn store_u64(&self, iova: u64, value: u64) -> Result<(), DmaError> {
        self.count(8);
        self.memory.store_u64(iova, value)
    }

    fn store_u32(&self, iova: u64, value: u32) -> Result<(), DmaError> {
        self.count(4);
        self.memory.store_u32(iova, value)
    }
}

struct OneVector;

impl Interrupts for OneVector {
    fn signal(&self, vector: u16) {
        assert_eq!(vector, 0, "there is one vector");
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
