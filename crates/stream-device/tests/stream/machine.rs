//! The world around a device, and a driver of it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use device::{Access, FlatMemory, GuestMemory, Interrupts, ManualClock, Model, Progress};
use stream_device::StreamDevice;
use stream_device::spec::registers::{
    CHANNEL_BASE, CHANNEL_STRIDE, CONTROL, DONE_LOW, ENTRIES, RATE, RING_LOW, RUN, SEQUENCE_LOW,
    TAIL,
};
use stream_device::spec::{Completion, Descriptor, ENTRY_LEN, word};

pub(crate) const MEMORY_BASE: u64 = 0x10_0000;
const MEMORY_LEN: usize = 4 << 20;
/// Where the driver's data lies.
pub(crate) const DATA: u64 = MEMORY_BASE + 0x10_0000;
const RINGS: u64 = 0x8000;

#[derive(Debug, Default)]
struct Vectors(Mutex<Vec<u16>>);

impl Interrupts for Vectors {
    fn signal(&self, vector: u16) {
        self.0.lock().unwrap().push(vector);
    }
}

/// One device in its world.
pub(crate) struct Machine {
    pub(crate) device: StreamDevice,
    pub(crate) memory: Arc<FlatMemory>,
    pub(crate) bus_master: bool,
    clock: ManualClock,
    vectors: Vectors,
}

impl Machine {
    pub(crate) fn new() -> Self {
        Self::with(Arc::new(FlatMemory::new(MEMORY_BASE, MEMORY_LEN)))
    }

    /// A machine that the guest whose memory this is has moved to.
    pub(crate) fn with(memory: Arc<FlatMemory>) -> Self {
        Self {
            device: StreamDevice::new(),
            memory,
            bus_master: true,
            clock: ManualClock::default(),
            vectors: Vectors::default(),
        }
    }

    pub(crate) fn read(&mut self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.call(|d, access| d.read(0, offset, &mut data, access));
        u32::from_le_bytes(data)
    }

    pub(crate) fn write(&mut self, offset: u64, value: u32) {
        self.call(|d, access| d.write(0, offset, &value.to_le_bytes(), access));
    }

    pub(crate) fn poll(&mut self) -> Progress {
        self.call(StreamDevice::poll)
    }

    /// Time passes, and the device is polled as its owner does.
    pub(crate) fn pass(&mut self, time: Duration) {
        self.clock.advance(time);
        while self.poll() == Progress::More {}
    }

    pub(crate) fn call<R>(&mut self, f: impl FnOnce(&mut StreamDevice, &Access<'_>) -> R) -> R {
        let memory: &dyn GuestMemory = &*self.memory;
        let access = Access {
            memory: self.bus_master.then_some(memory),
            interrupts: &self.vectors,
            clock: &self.clock,
            ledger: None,
        };
        f(&mut self.device, &access)
    }

    /// How often the vector was signalled since the last time this was asked.
    pub(crate) fn signals(&self) -> usize {
        std::mem::take(&mut *self.vectors.0.lock().unwrap()).len()
    }

    /// Whether write number `sequence` is what `len` bytes at `address` hold.
    pub(crate) fn holds(&self, address: u64, len: u64, sequence: u64) -> bool {
        (address..address + len)
            .step_by(8)
            .all(|at| self.load(at) == word(sequence, at))
    }

    pub(crate) fn load(&self, address: u64) -> u64 {
        let mut bytes = [0; 8];
        self.memory.read(address, &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    }
}

/// A driver of one channel.
pub(crate) struct Driver {
    channel: u64,
    entries: u32,
    posted: u32,
    taken: u32,
}

impl Driver {
    /// Starts `channel` with a ring of so many entries; its first write has number `sequence`.
    pub(crate) fn start(
        m: &mut Machine,
        channel: u64,
        (entries, control): (u32, u32),
        sequence: u32,
    ) -> Self {
        let this = Self {
            channel,
            entries,
            posted: 0,
            taken: 0,
        };
        m.write(this.register(CONTROL), 0);
        m.write(this.register(RING_LOW), this.ring().try_into().unwrap());
        m.write(this.register(DONE_LOW), this.done().try_into().unwrap());
        m.write(this.register(ENTRIES), entries);
        m.write(this.register(SEQUENCE_LOW), sequence);
        m.write(this.register(CONTROL), RUN | control);
        this
    }

    pub(crate) fn register(&self, register: u64) -> u64 {
        CHANNEL_BASE + CHANNEL_STRIDE * self.channel + register
    }

    fn ring(&self) -> u64 {
        MEMORY_BASE + 2 * RINGS * self.channel
    }

    fn done(&self) -> u64 {
        self.ring() + RINGS
    }

    pub(crate) fn put(&self, m: &Machine, slot: u32, address: u64, len: u32) {
        let at = self.ring() + ENTRY_LEN * u64::from(slot % self.entries);
        let descriptor = Descriptor { address, len };
        m.memory.write(at, &descriptor.to_bytes()).unwrap();
    }

    /// Puts a descriptor into the ring, and tells the device.
    pub(crate) fn post(&mut self, m: &mut Machine, address: u64, len: u32) {
        self.put(m, self.posted, address, len);
        self.posted += 1;
        m.write(self.register(TAIL), self.posted);
    }

    /// The next completion, if there is one.
    pub(crate) fn take(&mut self, m: &Machine) -> Option<Completion> {
        let mut bytes = [0; 16];
        let at = self.done() + ENTRY_LEN * u64::from(self.taken % self.entries);
        m.memory.read(at, &mut bytes).unwrap();
        let completion = Completion::from_bytes(bytes);
        (completion.count == self.taken + 1).then(|| {
            self.taken += 1;
            completion
        })
    }
}

/// Lets the device write as much as it likes.
pub(crate) fn unleash(m: &mut Machine) {
    m.write(RATE, 1_000_000);
}
