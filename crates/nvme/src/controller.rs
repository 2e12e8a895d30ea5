//! The controller as its owner drives it.

use std::io;
use std::os::fd::BorrowedFd;

use device::{Access, Claim, Model, Progress, Reset, StateError, StateRecord};

use crate::backing::Backing;
use crate::counters::Counters;
use crate::identity::{ConfigError, ControllerConfig};
use crate::prp::Pieces;
use crate::saved;
use crate::spec::logs::Event;
use crate::spec::pci::REGISTER_BAR;
use crate::state::{ControllerState, Shutdown};

/// An `NVMe` controller.
///
/// Its owner calls [`poll`](Model::poll) when [`needs_poll`](Model::needs_poll) says so after
/// register accesses, when the last poll asked for more, and when memory becomes accessible.
pub struct Controller {
    pub(crate) state: ControllerState,
    /// One for each namespace of the state.
    pub(crate) backings: Vec<Box<dyn Backing>>,
    pub(crate) counters: Counters,
    pub(crate) pieces: Pieces,
    /// The backings may be used.
    pub(crate) acquired: bool,
    /// Data between backing and guest memory.
    pub(crate) buffer: Vec<u8>,
    /// Vectors whose message is due, one bit for each. None is left when a call returns.
    pub(crate) raised: u32,
    /// The queue whose turn it is.
    pub(crate) next_queue: usize,
    /// The command under way whose turn it is.
    pub(crate) next_command: usize,
    /// A register access has left work behind.
    pub(crate) work_left: bool,
}

impl Controller {
    /// A controller as after power-on.
    ///
    /// # Errors
    /// When there can be no controller as `config` says.
    pub fn new(config: ControllerConfig) -> Result<Self, ConfigError> {
        let (identity, namespaces, backings) = config.check()?;
        Ok(Self {
            state: ControllerState::new(identity, &namespaces),
            backings,
            acquired: false,
            counters: Counters::default(),
            pieces: Pieces::default(),
            buffer: Vec::new(),
            raised: 0,
            next_queue: 0,
            next_command: 0,
            work_left: false,
        })
    }

    /// The live state.
    pub fn state(&self) -> &ControllerState {
        &self.state
    }

    /// What this controller has done since it was made, or since its state was loaded.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Sends the messages that are due.
    fn deliver(&mut self, access: &Access<'_>) {
        let mut raised = std::mem::take(&mut self.raised);
        while raised != 0 {
            let vector = raised.trailing_zeros();
            raised &= raised - 1;
            self.counters.interrupts += 1;
            access
                .interrupts
                .signal(u16::try_from(vector).expect("a word has 32 bits"));
        }
    }

    /// A shutdown is complete when no command is under way and all is durable (7.6.2).
    fn finish_shutdown(&mut self) {
        let registers = &mut self.state.registers;
        let idle = self.state.commands.iter().all(Option::is_none);
        if registers.shutdown != Shutdown::Occurring || !(idle || registers.fatal) {
            return;
        }
        registers.shutdown = Shutdown::Complete;
        for backing in &self.backings {
            self.counters.flushes += 1;
            // The guest can do nothing about it any more; the operator can.
            if backing.flush().is_err() {
                self.state.usage.media_errors += 1;
            }
        }
    }

    /// Undoes an [`acquire`](Model::acquire) of the first backings. After a start nobody waits for
    /// them: they are taken again with the rest, or go with the process.
    fn give_back(&mut self, count: usize, claim: Claim<'_>) {
        if let Claim::Arrive(migration) | Claim::TakeBack(migration) = claim {
            for backing in &mut self.backings[..count] {
                // If this fails too, its lease says that it is held here, and it stays so.
                let _ = backing.release(migration);
            }
        }
    }

    /// Takes over larger backings, as after a move to a host where they have grown.
    fn notice_growth(&mut self) {
        let mut grown = false;
        for (namespace, backing) in self.state.namespaces.iter_mut().zip(&self.backings) {
            let Some(namespace) = namespace else { break };
            let blocks = backing.len() >> namespace.block_shift;
            if blocks > namespace.blocks {
                namespace.blocks = blocks;
                namespace.changed = true;
                grown = true;
            }
        }
        if grown {
            self.state.raise(Event::NamespaceAttributeChanged);
        }
    }
}

impl Model for Controller {
    fn read(&mut self, bar: u8, offset: u64, data: &mut [u8], _access: &Access<'_>) {
        data.fill(0);
        if bar == REGISTER_BAR {
            self.state.read_registers(offset, data);
        }
    }

    fn write(&mut self, bar: u8, offset: u64, data: &[u8], _access: &Access<'_>) {
        if bar == REGISTER_BAR {
            self.work_left |= self.state.write_registers(offset, data);
        }
    }

    /// Both kinds leave what a power cycle would: who the controller is, its logs and counters.
    fn reset(&mut self, _kind: Reset) {
        self.state.power_on();
        self.work_left = false;
    }

    fn poll(&mut self, access: &Access<'_>) -> Progress {
        self.work_left = false;
        if !self.acquired {
            return Progress::Idle(None);
        }
        let mut more = false;
        if let Some(memory) = access.memory {
            more = self.work(memory);
            self.state.report_events(memory, &mut self.raised);
        }
        self.finish_shutdown();
        self.deliver(access);
        if more {
            Progress::More
        } else {
            Progress::Idle(None)
        }
    }

    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn needs_poll(&self) -> bool {
        self.work_left
    }

    fn acquire(&mut self, claim: Claim<'_>) -> io::Result<()> {
        if self.acquired {
            return Ok(());
        }
        for index in 0..self.backings.len() {
            if let Err(error) = self.backings[index].acquire(claim) {
                self.give_back(index, claim);
                return Err(error);
            }
        }
        if let Err(unfit) = saved::fits(&self.state, &self.backings) {
            self.give_back(self.backings.len(), claim);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, unfit));
        }
        self.acquired = true;
        self.work_left = true;
        Ok(())
    }

    fn release(&mut self, migration: &str) -> io::Result<()> {
        if !self.acquired {
            return Ok(());
        }
        for index in 0..self.backings.len() {
            let Err(error) = self.backings[index].release(migration) else {
                continue;
            };
            for backing in &mut self.backings[..index] {
                if let Err(lost) = backing.acquire(Claim::TakeBack(migration)) {
                    // As if all had been released: what is still held is taken back with the rest.
                    self.acquired = false;
                    let why = format!("{error}; then {lost}");
                    return Err(io::Error::new(error.kind(), why));
                }
            }
            return Err(error);
        }
        self.acquired = false;
        Ok(())
    }

    fn save(&self) -> Result<StateRecord, StateError> {
        saved::save(&self.state)
    }

    /// Serial number, queues and namespaces come with the state: the guest's driver knows them.
    fn load(&mut self, record: &StateRecord) -> Result<(), StateError> {
        let state = saved::load(record)?;
        for backing in &mut self.backings {
            backing.measure().map_err(|error| saved::body(&error))?;
        }
        saved::fits(&state, &self.backings).map_err(|unfit| saved::body(&unfit))?;
        let reissued = state.commands.iter().flatten().count();
        self.counters = Counters {
            reissued: reissued as u64,
            ..Counters::default()
        };
        self.state = state;
        self.work_left = true;
        Ok(())
    }

    fn resume(&mut self, access: &Access<'_>) {
        self.notice_growth();
        // A message of an entry that the driver has not taken may have been lost.
        for queue in self.state.completion.iter().flatten() {
            if let Some(vector) = queue.vector.filter(|_| queue.waiting() != 0) {
                self.raised |= 1 << vector;
            }
        }
        self.deliver(access);
        self.work_left = true;
    }

    fn inspect(&self) -> serde_json::Value {
        // All keys are strings and all values numbers.
        serde_json::to_value(self.counters).unwrap_or_default()
    }
}

impl std::fmt::Debug for Controller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Controller")
            .field("state", &self.state)
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}
