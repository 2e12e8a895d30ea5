//! One channel's work.

use device::{GuestMemory, PAGE_SIZE};

use crate::spec::registers::{
    CONTROL, DONE_HIGH, DONE_LOW, ENTRIES, HEAD, RING_HIGH, RING_LOW, SEQUENCE_HIGH, SEQUENCE_LOW,
    STATUS, TAIL,
};
use crate::spec::registers::{CYCLIC, FAULT, RUN};
use crate::spec::{
    BAD_ADDRESS, BAD_DESCRIPTOR, Completion, Descriptor, ENTRY_LEN, MAX_ENTRIES, MAX_LEN, WRITTEN,
    word,
};
use crate::state::Channel;

/// Room for what one descriptor asks for.
pub(crate) type Buffer = Box<[u8; MAX_LEN as usize]>;

impl Channel {
    pub(crate) fn read(&self, register: u64) -> u32 {
        match register {
            CONTROL => (u32::from(self.run) * RUN) | (u32::from(self.cyclic) * CYCLIC),
            STATUS => u32::from(self.fault) * FAULT,
            RING_LOW => low(self.ring),
            RING_HIGH => high(self.ring),
            DONE_LOW => low(self.done),
            DONE_HIGH => high(self.done),
            ENTRIES => self.entries,
            TAIL => self.tail,
            HEAD => self.head,
            SEQUENCE_LOW => low(self.sequence),
            SEQUENCE_HIGH => high(self.sequence),
            _ => 0,
        }
    }

    pub(crate) fn write(&mut self, register: u64, value: u32) {
        match register {
            CONTROL => self.control(value),
            TAIL if self.run && value.wrapping_sub(self.head) <= self.entries => self.tail = value,
            _ if self.run => {}
            RING_LOW => set_low(&mut self.ring, value),
            RING_HIGH => set_high(&mut self.ring, value),
            DONE_LOW => set_low(&mut self.done, value),
            DONE_HIGH => set_high(&mut self.done, value),
            ENTRIES => self.entries = value,
            SEQUENCE_LOW => set_low(&mut self.sequence, value),
            SEQUENCE_HIGH => set_high(&mut self.sequence, value),
            _ => {}
        }
    }

    fn control(&mut self, value: u32) {
        let run = value & RUN != 0;
        if self.run && run {
            return;
        }
        self.run = run;
        self.cyclic = value & CYCLIC != 0;
        if run {
            (self.tail, self.head, self.fault) = (0, 0, false);
            if !self.can_run() {
                self.stop();
            }
        }
    }

    /// Whether its rings are such that it may run.
    pub(crate) fn can_run(&self) -> bool {
        let aligned = |address: u64| address.is_multiple_of(ENTRY_LEN);
        let size = self.entries.is_power_of_two() && self.entries <= MAX_ENTRIES;
        size && aligned(self.ring) && aligned(self.done)
    }

    fn stop(&mut self) {
        (self.run, self.fault) = (false, true);
    }

    /// Whether a descriptor is waiting.
    pub(crate) fn has_work(&self) -> bool {
        self.run && (self.cyclic || self.head != self.tail)
    }

    /// Carries out the next descriptor, which there must be. How many pages that touched, or
    /// tried to.
    pub(crate) fn turn(&mut self, memory: &dyn GuestMemory, buffer: &mut Buffer) -> u32 {
        let Some(descriptor) = self.next(memory) else {
            self.stop();
            return 0;
        };
        let status = fill(memory, descriptor, self.sequence, buffer);
        let goes_on = if self.cyclic {
            status == WRITTEN
        } else {
            self.complete(memory, status).is_some()
        };
        if goes_on {
            self.head = self.head.wrapping_add(1);
            self.sequence = self.sequence.wrapping_add(1);
        } else {
            self.stop();
        }
        pages(descriptor)
    }

    fn next(&self, memory: &dyn GuestMemory) -> Option<Descriptor> {
        let mut bytes = [0; 16];
        let at = self.entry(self.ring)?;
        memory.read(at, &mut bytes).ok()?;
        Some(Descriptor::from_bytes(bytes))
    }

    fn complete(&self, memory: &dyn GuestMemory, status: u32) -> Option<()> {
        let completion = Completion {
            sequence: self.sequence,
            count: self.head.wrapping_add(1),
            status,
        };
        let at = self.entry(self.done)?;
        memory.store_u64(at, completion.sequence).ok()?;
        memory.store_u64(at + 8, completion.tag()).ok()
    }

    /// The address of the entry of `ring` whose turn it is, if the ring does not wrap.
    fn entry(&self, ring: u64) -> Option<u64> {
        let index = self.head & (self.entries - 1);
        let at = ring.checked_add(u64::from(index) * ENTRY_LEN)?;
        at.checked_add(ENTRY_LEN - 1).map(|_| at)
    }
}

/// Writes what `descriptor` asks for.
fn fill(
    memory: &dyn GuestMemory,
    descriptor: Descriptor,
    sequence: u64,
    buffer: &mut Buffer,
) -> u32 {
    if !descriptor.is_sound() {
        return BAD_DESCRIPTOR;
    }
    let (words, _) = buffer.as_chunks_mut::<8>();
    let len = descriptor.len as usize;
    for (place, address) in words
        .iter_mut()
        .take(len / 8)
        .zip((descriptor.address..).step_by(8))
    {
        *place = word(sequence, address).to_le_bytes();
    }
    match memory.write(descriptor.address, &buffer[..len]) {
        Ok(()) => WRITTEN,
        Err(_) => BAD_ADDRESS,
    }
}

/// Pages that it reaches into; one for a descriptor that is none, so that those cost something.
fn pages(descriptor: Descriptor) -> u32 {
    if !descriptor.is_sound() {
        return 1;
    }
    let first = descriptor.address / PAGE_SIZE;
    let last = (descriptor.address + u64::from(descriptor.len) - 1) / PAGE_SIZE;
    u32::try_from(last - first + 1).expect("no descriptor is that long")
}

fn low(value: u64) -> u32 {
    u32::try_from(value & u64::from(u32::MAX)).expect("32 bits are left")
}

fn high(value: u64) -> u32 {
    low(value >> 32)
}

fn set_low(value: &mut u64, bits: u32) {
    *value = *value & !u64::from(u32::MAX) | u64::from(bits);
}

fn set_high(value: &mut u64, bits: u32) {
    *value = *value & u64::from(u32::MAX) | u64::from(bits) << 32;
}
