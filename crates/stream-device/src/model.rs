//! The function as a [`Model`].

use std::os::fd::BorrowedFd;

use device::{Access, GuestMemory, Model, Progress, Reset, StateError, StateRecord};

use crate::channel::Buffer;
use crate::pace::{BURST, Pace, STEP};
use crate::saved;
use crate::spec::registers::{
    CHANNEL_BASE, CHANNEL_COUNT, CHANNEL_STRIDE, CHANNELS, MAGIC, MAGIC_VALUE, MAX_RATE, RATE,
    VERSION, VERSION_VALUE,
};
use crate::spec::{MAX_LEN, pci};
use crate::state::{Channel, StreamState};

/// The vector.
const VECTOR: u16 = 0;

/// The streaming device without its configuration space.
#[derive(Debug)]
pub struct StreamDevice {
    state: StreamState,
    pace: Pace,
    /// Whose turn it is.
    turn: usize,
    /// No call was asked for: a descriptor that comes now has to.
    resting: bool,
    /// Pages written, or tried, for reports.
    pages: u64,
    buffer: Buffer,
}

impl Default for StreamDevice {
    fn default() -> Self {
        Self {
            state: StreamState::default(),
            pace: Pace::default(),
            turn: 0,
            resting: true,
            pages: 0,
            buffer: Box::new([0; MAX_LEN as usize]),
        }
    }
}

impl StreamDevice {
    /// As after power-on.
    pub fn new() -> Self {
        Self::default()
    }

    /// The live state.
    pub fn state(&self) -> &StreamState {
        &self.state
    }

    fn has_work(&self) -> bool {
        self.state.rate > 0 && self.state.channels.iter().any(Channel::has_work)
    }

    /// Lets the channels take turns as long as the pace and the burst last. Whether the driver is to
    /// be told of it.
    fn work(&mut self, memory: &dyn GuestMemory) -> bool {
        let mut told = false;
        let mut pages = 0;
        while self.pace.may() && pages < BURST {
            let turns = (0..CHANNEL_COUNT).map(|by| (self.turn + by) % CHANNEL_COUNT);
            let mut working = turns.filter(|at| self.state.channels[*at].has_work());
            let Some(at) = working.next() else {
                break;
            };
            self.turn = (at + 1) % CHANNEL_COUNT;
            let channel = &mut self.state.channels[at];
            // A channel that faults touches none, and is done for.
            let touched = channel.turn(memory, &mut self.buffer);
            self.pace.spend(touched);
            pages += touched;
            told |= !channel.cyclic;
        }
        self.pages = self.pages.wrapping_add(pages.into());
        told
    }
}

impl Model for StreamDevice {
    fn read(&mut self, bar: u8, offset: u64, data: &mut [u8], _: &Access<'_>) {
        let Some((word, at)) = register(bar, offset, data.len())
            .and_then(|at| Some((<&mut [u8; 4]>::try_from(&mut *data).ok()?, at)))
        else {
            data.fill(0xff);
            return;
        };
        let value = match at {
            Register::Device(MAGIC) => MAGIC_VALUE,
            Register::Device(VERSION) => VERSION_VALUE,
            Register::Device(CHANNELS) => u32::try_from(CHANNEL_COUNT).expect("there are few"),
            Register::Device(RATE) => self.state.rate,
            Register::Device(_) => 0,
            Register::Channel(channel, at) => self.state.channels[channel].read(at),
        };
        *word = value.to_le_bytes();
    }

    fn write(&mut self, bar: u8, offset: u64, data: &[u8], _: &Access<'_>) {
        let Ok(word) = <[u8; 4]>::try_from(data) else {
            return;
        };
        let value = u32::from_le_bytes(word);
        match register(bar, offset, data.len()) {
            Some(Register::Device(RATE)) => self.state.rate = value.min(MAX_RATE),
            Some(Register::Channel(channel, at)) => self.state.channels[channel].write(at, value),
            _ => {}
        }
    }

    fn reset(&mut self, _: Reset) {
        self.state = StreamState::default();
    }

    fn poll(&mut self, access: &Access<'_>) -> Progress {
        self.resting = true;
        let Some(memory) = access.memory.filter(|_| self.has_work()) else {
            self.pace.rest();
            return Progress::Idle(None);
        };
        self.pace.look(access.clock.now(), self.state.rate);
        if self.work(memory) {
            access.interrupts.signal(VECTOR);
        }
        if !self.has_work() {
            return Progress::Idle(None);
        }
        self.resting = false;
        if self.pace.may() {
            Progress::More
        } else {
            Progress::Idle(Some(STEP))
        }
    }

    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn needs_poll(&self) -> bool {
        self.resting && self.has_work()
    }

    fn save(&self) -> Result<StateRecord, StateError> {
        saved::save(&self.state)
    }

    fn load(&mut self, record: &StateRecord) -> Result<(), StateError> {
        self.state = saved::load(record)?;
        self.pace = Pace::default();
        self.resting = true;
        Ok(())
    }

    fn inspect(&self) -> serde_json::Value {
        serde_json::json!({ "pages": self.pages })
    }

    fn resume(&mut self, access: &Access<'_>) {
        // One may have been lost on the way; a repeated one is harmless.
        if self.state.channels.iter().any(|channel| channel.run) {
            access.interrupts.signal(VECTOR);
        }
    }
}

/// Where an access goes.
enum Register {
    /// Offset in the BAR.
    Device(u64),
    /// Number of the channel, and offset in its registers.
    Channel(usize, u64),
}

fn register(bar: u8, offset: u64, len: usize) -> Option<Register> {
    let there = bar == pci::REGISTER_BAR && offset < pci::REGISTER_BAR_SIZE;
    if !there || len != 4 || !offset.is_multiple_of(4) {
        return None;
    }
    let Some(within) = offset.checked_sub(CHANNEL_BASE) else {
        return Some(Register::Device(offset));
    };
    let channel = usize::try_from(within / CHANNEL_STRIDE).ok()?;
    Some(if channel < CHANNEL_COUNT {
        Register::Channel(channel, within % CHANNEL_STRIDE)
    } else {
        Register::Device(offset)
    })
}
