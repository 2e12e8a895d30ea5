//! The controller as its owner drives it.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use device::{Access, Ahead, Claim, Model, Progress, Reset, StateError, StateRecord};

use crate::backing::Backing;
use crate::commands::Notes;
use crate::counters::Counters;
use crate::engine::{self, Engine, Operation};
use crate::flights::{Flights, Owner};
use crate::identity::{ConfigError, ControllerConfig};
use crate::live::{self, Live};
use crate::prp::Pieces;
use crate::saved;
use crate::spec::logs::Event;
use crate::spec::pci::REGISTER_BAR;
use crate::state::{COMMANDS, ControllerState, Shutdown};

/// How long the backings may take to end what is under way. QEMU waits meanwhile, and whoever asks it
/// for something has no more than ten seconds of patience.
const DRAIN: Duration = Duration::from_secs(4);
/// When to look whether a shutdown is done, where no descriptor tells.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// When to try again what the system had no room for.
const RETRY: Duration = Duration::from_millis(1);
/// Why a controller can neither be saved nor let go of its backings.
const UNDER_WAY: &str = "operations on its disks are under way: it is to be drained first";

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
    acquired: bool,
    /// What is under way on the backings.
    pub(crate) flights: Flights,
    /// Of the commands under way, by their slot.
    pub(crate) notes: [Notes; COMMANDS],
    /// Backings that are durable already, while a shutdown is occurring.
    flushed: usize,
    /// Nothing is begun: the state is to be saved. Until the guest runs again.
    drained: bool,
    /// Completions that are due, and the state that comes of them. None is left when a call returns.
    pub(crate) ahead: Ahead,
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
    /// A controller as after power-on, with the best engine that there is here.
    ///
    /// # Errors
    /// When there can be no controller as `config` says.
    pub fn new(config: ControllerConfig) -> Result<Self, ConfigError> {
        Self::with_engine(config, engine::best())
    }

    /// A controller as after power-on, whose operations `engine` carries out.
    ///
    /// # Errors
    /// When there can be no controller as `config` says.
    pub fn with_engine(
        config: ControllerConfig,
        engine: Box<dyn Engine>,
    ) -> Result<Self, ConfigError> {
        let (identity, namespaces, backings) = config.check()?;
        Ok(Self {
            state: ControllerState::new(identity, &namespaces),
            backings,
            acquired: false,
            counters: Counters::default(),
            pieces: Pieces::default(),
            flights: Flights::new(engine),
            notes: [Notes::default(); COMMANDS],
            flushed: 0,
            drained: false,
            ahead: Ahead::default(),
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

    /// Operations on backings that were begun and have not ended.
    pub fn under_way(&self) -> usize {
        self.flights.len()
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

    /// A shutdown is complete when no command is under way and all is durable (7.6.2). Needs no
    /// guest memory. Says when to look again, if nothing else tells.
    fn shut_down(&mut self, has_memory: bool) -> Option<Duration> {
        let fatal = self.state.registers.fatal;
        let idle = self.state.commands.iter().all(Option::is_none);
        let occurring = self.state.registers.shutdown == Shutdown::Occurring;
        if !occurring || !(idle || fatal) || self.drained {
            return None;
        }
        // Commands go no further after a fatal error.
        self.flights.disown(|owner| owner != Owner::Shutdown);
        loop {
            self.flights.collect();
            while let Some(landed) = self.flights.land(|_| true) {
                self.flushed += 1;
                // The guest can do nothing about it any more; the operator can.
                if self.flights.take_failure(landed.backing) || landed.result.is_err() {
                    self.media_error();
                }
            }
            if !self.flights.is_empty() {
                // Without memory the owner does not wait for the descriptor.
                return (!has_memory).then_some(LOOK_AGAIN);
            }
            let Some(backing) = self.backings.get(self.flushed) else {
                self.flushed = 0;
                self.state.registers.shutdown = Shutdown::Complete;
                return None;
            };
            self.counters.flushes += 1;
            let on = (self.flushed, &**backing);
            let (owner, flush) = (Owner::Shutdown, Operation::Flush);
            self.flights.begin(owner, flush, Vec::new(), on);
            self.flights.submit();
        }
    }

    /// The state is another one, in which commands may be under way.
    fn begin_anew(&mut self) {
        let reissued = self.state.commands.iter().flatten().count();
        self.counters = Counters {
            reissued: reissued as u64,
            ..Counters::default()
        };
        self.forget_flights();
        self.work_left = true;
    }

    /// What was under way is forgotten, by a reset or for another state.
    fn forget_flights(&mut self) {
        self.flights.disown(|_| true);
        self.notes = [Notes::default(); COMMANDS];
        self.flushed = 0;
    }

    /// The guest runs, as it has done something.
    fn wake(&mut self) {
        if self.drained {
            self.drained = false;
            self.work_left = true;
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

    /// Makes all backings durable that are to go. Not if one could not be at any time, and the
    /// guest does not know: the other host would find that all is well with it.
    fn make_durable_for_release(&mut self) -> io::Result<()> {
        for (index, backing) in self.backings.iter().enumerate() {
            let mut why = None;
            if !self.flights.has_failure(index)
                && let Err(error) = backing.flush()
            {
                self.flights.keep_failure(index);
                why = Some(error);
            }
            if self.flights.has_failure(index) {
                let said = why.as_ref().map(|e| format!(" ({e})")).unwrap_or_default();
                let kind = why.map_or(io::ErrorKind::Other, |error| error.kind());
                let told = format!(
                    "{} has reported an error{said} in making durable what the guest wrote, of \
                     which the guest has yet to be told: its next flush will fail. Look at the \
                     disk, and migrate again after the guest has flushed",
                    backing.name()
                );
                return Err(io::Error::new(kind, told));
            }
        }
        Ok(())
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
        self.wake();
        if bar == REGISTER_BAR {
            self.state.read_registers(offset, data);
        }
    }

    fn write(&mut self, bar: u8, offset: u64, data: &[u8], _access: &Access<'_>) {
        self.wake();
        if bar == REGISTER_BAR {
            let was_ready = self.state.registers.ready;
            self.work_left |= self.state.write_registers(offset, data);
            let registers = &self.state.registers;
            if was_ready && !registers.ready {
                self.forget_flights();
            } else if registers.shutdown != Shutdown::Occurring {
                self.flights.disown(|owner| owner == Owner::Shutdown);
                self.flushed = 0;
            }
        }
    }

    /// Both kinds leave what a power cycle would: who the controller is, its logs and counters.
    fn reset(&mut self, _kind: Reset) {
        self.state.power_on();
        self.forget_flights();
        self.drained = false;
        self.work_left = false;
    }

    fn poll(&mut self, access: &Access<'_>) -> Progress {
        self.work_left = false;
        if !self.acquired {
            // Nothing is under way; what was told of it before is of no use.
            self.flights.clear();
            return Progress::Idle(None);
        }
        let mut more = false;
        if let Some(memory) = access.memory {
            self.drained = false;
            more = self.work(memory, access.ledger);
            let (writes, raised) = (&mut self.ahead.writes, &mut self.raised);
            self.state.report_events(writes, raised);
            self.tell(memory, access.ledger);
        }
        let wait = self.shut_down(access.memory.is_some());
        let submitted = self.flights.submit();
        self.deliver(access);
        match more {
            true => Progress::More,
            false if submitted => Progress::Idle(wait),
            false => Progress::Idle(Some(RETRY)),
        }
    }

    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        self.flights.descriptor()
    }

    /// Without its backings it begins nothing whose end could be told.
    fn poll_read(&self) -> bool {
        self.acquired
    }

    fn needs_poll(&self) -> bool {
        self.work_left
    }

    /// Commands whose operations these were begin them again when the controller goes on.
    fn drain(&mut self) -> io::Result<()> {
        self.forget_flights();
        self.drained = true;
        self.flights.drain(DRAIN, &self.backings)
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
        self.drained = false;
        self.work_left = true;
        Ok(())
    }

    fn files(&self) -> Vec<File> {
        let files = self.backings.iter();
        files.filter_map(|backing| backing.apart()).collect()
    }

    fn waits_for_files(&self) -> bool {
        true
    }

    fn release(&mut self, migration: &str) -> io::Result<()> {
        if !self.acquired {
            return Ok(());
        }
        if !self.flights.is_empty() {
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, UNDER_WAY));
        }
        self.make_durable_for_release()?;
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
        if !self.flights.is_empty() {
            return Err(StateError::Encode(UNDER_WAY.into()));
        }
        saved::save(&self.state)
    }

    /// Serial number, queues and namespaces come with the state: the guest's driver knows them.
    fn load(&mut self, record: &StateRecord) -> Result<(), StateError> {
        let state = saved::load(record)?;
        for backing in &mut self.backings {
            backing.measure().map_err(|error| saved::body(&error))?;
        }
        saved::fits(&state, &self.backings).map_err(|unfit| saved::body(&unfit))?;
        self.state = state;
        self.begin_anew();
        Ok(())
    }

    fn live(&self, state: &mut Vec<u8>) -> bool {
        live::write(&self.state, self.flights.failures(), state);
        true
    }

    /// The process before has ended, and with it all that the system had of it: an operation that was under way is
    /// done again, and nothing old comes to lie over what is written from here on. A file that has become shorter
    /// meanwhile is one that fails, as it would be if that process had lived.
    fn take_over(&mut self, live: &[u8]) -> Result<(), StateError> {
        let Live { state, failed } = live::read(live)?;
        saved::are_as_many(&state, &self.backings).map_err(|unfit| saved::body(&unfit))?;
        for (index, backing) in self.backings.iter_mut().enumerate() {
            if failed & 1 << index != 0 || backing.has_failed_unseen() {
                self.flights.keep_failure(index);
            }
        }
        self.state = state;
        self.begin_anew();
        self.acquired = self.backings.iter().all(|backing| backing.is_acquired());
        Ok(())
    }

    fn resume(&mut self, access: &Access<'_>) {
        self.drained = false;
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

    fn work_done(&self) -> u64 {
        self.counters.io_commands
    }

    fn inspect(&self) -> serde_json::Value {
        // All keys are strings and all values numbers.
        let mut shown = serde_json::to_value(self.counters).unwrap_or_default();
        shown["engine"] = self.flights.engine_name().into();
        shown
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
