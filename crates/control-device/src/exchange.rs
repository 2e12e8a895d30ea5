//! Requests and answers: what a register access means, without locks, memory or time.
//!
//! Besides the [`ControlState`] it keeps what belongs to a migration under way on this host and may
//! be lost with it.

use crate::spec::registers as reg;
use crate::spec::{
    Answer, Command, Location, MAGIC_VALUE, NOWHERE, READY, Request, VERSION_VALUE, features,
};
use crate::state::{ControlState, DeviceState, TableRegisters};

/// The deadline of an `END` for whose answers nobody waits, milliseconds.
const UNATTENDED_END_MS: u32 = 5_000;

#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) state: ControlState,
    /// An answer to the current request still counts.
    open: bool,
    /// Answers to the current request, by device.
    replies: Vec<Option<Reply>>,
    /// The table's registers as they were when the first promise was made that needs them.
    taken: Option<TableRegisters>,
    /// Lives of the driver: what one promised, the next does not keep.
    life: u64,
    /// The doorbell is to be rung.
    pub(crate) doorbell: bool,
    /// A migration speaks with the guest.
    pub(crate) in_use: bool,
    dropped: Dropped,
}

/// An answer that counts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reply {
    pub(crate) answer: Answer,
    pub(crate) detail: u32,
    pub(crate) micros: u32,
}

/// The answers that count to one request, taken at one moment.
#[derive(Debug)]
pub(crate) struct Replies {
    pub(crate) by_device: Vec<Option<Reply>>,
    /// The table that their promises speak of.
    pub(crate) table: Option<TableRegisters>,
    /// The life of the driver that gave them.
    pub(crate) life: u64,
}

/// Answers that did not count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Dropped {
    /// Of another epoch, with an unknown result, of a feature not taken, or without a driver.
    foreign: u64,
    /// The device had answered.
    repeated: u64,
    /// Nobody waited any more.
    late: u64,
}

impl Exchange {
    pub(crate) fn new(state: ControlState) -> Self {
        Self {
            replies: vec![None; state.devices.len()],
            state,
            open: false,
            taken: None,
            life: 0,
            doorbell: false,
            in_use: false,
            dropped: Dropped::default(),
        }
    }

    /// The guest reads a register.
    pub(crate) fn read(&self, offset: u64) -> u32 {
        let state = &self.state;
        match offset {
            reg::MAGIC => MAGIC_VALUE,
            reg::VERSION => VERSION_VALUE,
            reg::FEATURES => state.features,
            reg::DRIVER => state.driver,
            reg::REQUEST => state.request.word(),
            reg::DEADLINE => state.deadline_ms,
            reg::DEVICES => u32::try_from(state.devices.len()).unwrap_or(u32::MAX),
            reg::TABLE_LOW => low(state.table.directory),
            reg::TABLE_HIGH => low(state.table.directory >> 32),
            reg::TABLE_CHUNKS => state.table.chunks,
            _ => self.read_device(offset).unwrap_or(0),
        }
    }

    /// The guest writes a register.
    pub(crate) fn write(&mut self, offset: u64, value: u32) {
        let table = &mut self.state.table;
        match offset {
            reg::DRIVER => self.write_driver(value),
            reg::TABLE_LOW => {
                table.directory = table.directory >> 32 << 32 | u64::from(value);
            }
            reg::TABLE_HIGH => {
                table.directory = u64::from(value) << 32 | u64::from(low(table.directory));
            }
            reg::TABLE_CHUNKS => table.chunks = value,
            _ => self.write_device(offset, value),
        }
    }

    /// Any reset: what the guest wrote is gone, what the host wrote stays.
    pub(crate) fn reset(&mut self) {
        self.state.table = TableRegisters::default();
        self.write_driver(0);
    }

    /// Another state takes the place of this one.
    pub(crate) fn load(&mut self, state: ControlState) {
        self.state = state;
        self.new_life();
        self.open = false;
    }

    /// Asks the guest for something.
    pub(crate) fn post(&mut self, command: Command, deadline_ms: u32) -> Request {
        let state = &mut self.state;
        state.request = state.request.next(command);
        state.deadline_ms = deadline_ms;
        for device in &mut state.devices {
            // An answer of 2^24 epochs ago.
            if state.request.answered_by(device.ack).is_some() {
                device.ack = 0;
            }
        }
        self.replies.fill(None);
        if command == Command::Track {
            self.taken = None;
        }
        self.open = true;
        self.doorbell = true;
        state.request
    }

    /// Whether every device has answered `request`, or none can any more.
    pub(crate) fn is_answered(&self, request: Request) -> bool {
        !self.is_open(request) || self.replies.iter().all(Option::is_some)
    }

    /// Ends the time for answers to `request`.
    pub(crate) fn close(&mut self, request: Request) -> Replies {
        let mut by_device = vec![None; self.replies.len()];
        if self.is_open(request) {
            self.open = false;
            std::mem::swap(&mut by_device, &mut self.replies);
        }
        Replies {
            by_device,
            table: self.taken,
            life: self.life,
        }
    }

    /// A number for this life of the driver.
    pub(crate) fn life(&self) -> u64 {
        self.life
    }

    /// The features that the driver has taken; `None` without a driver.
    pub(crate) fn driver(&self) -> Option<u32> {
        (self.state.driver & READY != 0).then_some(self.state.driver & !READY)
    }

    /// Whether the guest has been told to do something of which it was not told the end.
    pub(crate) fn is_under_way(&self) -> bool {
        matches!(
            self.state.request.command(),
            Command::Track | Command::Quiesce
        )
    }

    /// Tells the guest that what it was asked for is over, if it was asked for anything: whether it was.
    /// Nobody waits for its answers.
    pub(crate) fn leave_unattended(&mut self) -> bool {
        let under_way = self.is_under_way();
        if under_way {
            self.post(Command::End, UNATTENDED_END_MS);
        }
        under_way
    }

    /// What reports show.
    pub(crate) fn inspect(&self) -> serde_json::Value {
        let Dropped {
            foreign,
            repeated,
            late,
        } = self.dropped;
        let request = self.state.request;
        let devices = self.state.devices.iter();
        let answered = devices.filter(|device| request.answered_by(device.ack).is_some());
        serde_json::json!({
            "driver": self.driver(),
            "epoch": request.epoch(),
            "command": format!("{:?}", request.command()).to_lowercase(),
            "devices_answered": answered.count(),
            "answers_dropped": { "foreign": foreign, "repeated": repeated, "late": late },
        })
    }

    fn is_open(&self, request: Request) -> bool {
        self.open && request == self.state.request
    }

    fn read_device(&self, offset: u64) -> Option<u32> {
        let (index, register) = device_register(offset)?;
        let device = self.state.devices.get(index)?;
        match register {
            reg::FUNCTION => Some(device.function),
            reg::IDENTITY => Some(device.identity),
            reg::ACK => Some(device.ack),
            reg::DETAIL => Some(device.detail),
            reg::MICROS => Some(device.micros),
            _ => None,
        }
    }

    fn write_device(&mut self, offset: u64, value: u32) {
        let Some((index, register)) = device_register(offset) else {
            return;
        };
        match (register, self.state.devices.get_mut(index)) {
            (reg::ACK, _) => self.answer(index, value),
            (reg::DETAIL, Some(device)) => device.detail = value,
            (reg::MICROS, Some(device)) => device.micros = value,
            _ => {}
        }
    }

    fn write_driver(&mut self, value: u32) {
        self.state.driver = value & (READY | self.state.features);
        if value & READY == 0 {
            self.state.driver = 0;
            // A state from elsewhere may have brought fewer.
            self.state.features = features::ALL;
        }
        self.new_life();
        for device in &mut self.state.devices {
            *device = DeviceState {
                ack: 0,
                detail: 0,
                micros: 0,
                ..*device
            };
        }
        if self.driver().is_some() && self.state.request != Request::NONE {
            self.doorbell = true;
        }
    }

    fn new_life(&mut self) {
        self.life = self.life.wrapping_add(1);
        self.replies.fill(None);
        self.taken = None;
    }

    fn answer(&mut self, index: usize, word: u32) {
        let request = self.state.request;
        let driver = self.driver();
        let Some(device) = self.state.devices.get_mut(index) else {
            count(&mut self.dropped.foreign);
            return;
        };
        let taken = |needed: u32| driver.is_some_and(|taken| taken & needed == needed);
        let answer = request
            .answered_by(word)
            .filter(|answer| taken(needed(*answer)));
        let Some(answer) = answer else {
            count(&mut self.dropped.foreign);
            return;
        };
        if request.answered_by(device.ack).is_some() {
            count(&mut self.dropped.repeated);
            return;
        }
        device.ack = word;
        if !self.open {
            count(&mut self.dropped.late);
            return;
        }
        if needed(answer) & features::TABLE != 0 {
            self.taken.get_or_insert(self.state.table);
        }
        if let Some(reply) = self.replies.get_mut(index) {
            *reply = Some(Reply {
                answer,
                detail: device.detail,
                micros: device.micros,
            });
        }
    }

    /// The host tells where a device is, or that it does not know.
    pub(crate) fn place(&mut self, index: usize, location: Option<Location>) {
        let function = location.map_or(NOWHERE, Location::word);
        let ready = self.driver().is_some();
        if let Some(device) = self.state.devices.get_mut(index)
            && device.function != function
        {
            device.function = function;
            self.doorbell |= ready;
        }
    }
}

/// The feature that an answer presumes.
fn needed(answer: Answer) -> u32 {
    match answer {
        Answer::Promised(promise) => promise.feature(),
        Answer::Done | Answer::Failed | Answer::Declined => 0,
    }
}

/// The device and the register in its block.
fn device_register(offset: u64) -> Option<(usize, u64)> {
    let offset = offset.checked_sub(reg::DEVICE_BASE)?;
    let index = usize::try_from(offset / reg::DEVICE_STRIDE).ok()?;
    Some((index, offset % reg::DEVICE_STRIDE))
}

fn low(value: u64) -> u32 {
    u32::try_from(value & u64::from(u32::MAX)).unwrap_or(u32::MAX)
}

fn count(counter: &mut u64) {
    *counter = counter.saturating_add(1);
}
