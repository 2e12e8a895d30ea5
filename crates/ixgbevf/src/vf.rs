//! The function as its owner drives it.

use std::ops::RangeInclusive;
use std::os::fd::BorrowedFd;

use device::{Access, Ahead, FrameLink, Model, Progress, Reset, StateError, StateRecord};

use crate::budget::Budget;
use crate::filter::is_unicast;
use crate::interrupts::Throttle;
use crate::live;
use crate::receive::{Receive, Received};
use crate::reminder::Reminder;
use crate::saved;
use crate::spec::pci::REGISTER_BAR;
use crate::spec::registers::{QUEUES, txdctl};
use crate::state::{Admin, VfState};
use crate::stats::Counters;
use crate::transmit::{Scratch, Transmit, Transmitted};

/// Queue pairs that a function can have: each has a vector, and one vector is the mailbox's.
pub const QUEUE_PAIRS: RangeInclusive<u8> = 1..=2;

/// What the administrator of the physical function decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VfConfig {
    /// The function's address.
    pub mac: [u8; 6],
    /// Queues each way that are offered to the driver, within [`QUEUE_PAIRS`].
    pub queue_pairs: u8,
}

/// Why a function cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The address is not that of one station.
    #[error(
        "the MAC address must be a unicast address: choose one whose first byte is even, such as 02:00:00:00:00:01"
    )]
    Mac,
    /// There are not as many queues, or none.
    #[error("an 82599 virtual function has 1 or 2 queue pairs, not {0}: choose one of these")]
    QueuePairs(u8),
}

/// An 82599 virtual function.
///
/// Its owner calls [`poll`](Model::poll) when [`needs_poll`](Model::needs_poll) says so after
/// register accesses, when [`poll_fd`](Model::poll_fd) is ready, when the time of the last poll's
/// answer has come, and when memory becomes accessible.
pub struct Vf {
    pub(crate) state: VfState,
    link: Box<dyn FrameLink>,
    pub(crate) throttle: Throttle,
    pub(crate) counters: Counters,
    scratch: Scratch,
    ahead: Ahead,
    /// The link's next frame waits for the driver.
    pub(crate) rx_stalled: bool,
    reminder: Reminder,
    outgoing: Outgoing,
    /// A register access has left work behind.
    pub(crate) work_left: bool,
    /// What the owner learned from the last poll.
    told: Told,
}

/// What the link has of what was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Outgoing {
    /// All, and it was asked to hand it on.
    #[default]
    HandedOn,
    /// All, and it was not asked yet.
    Queued,
    /// A frame waits for it.
    Blocked,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Told {
    throttled: u32,
    read: bool,
    write: bool,
}

impl Vf {
    /// A function as after power-on.
    ///
    /// # Errors
    /// When `config` is of no 82599 function.
    pub fn new(config: VfConfig, link: Box<dyn FrameLink>) -> Result<Self, ConfigError> {
        if !is_unicast(config.mac) {
            return Err(ConfigError::Mac);
        }
        if !QUEUE_PAIRS.contains(&config.queue_pairs) {
            return Err(ConfigError::QueuePairs(config.queue_pairs));
        }
        let admin = Admin {
            mac: config.mac,
            queue_pairs: config.queue_pairs,
        };
        Ok(Self {
            state: VfState::new(admin, link.is_up()),
            link,
            throttle: Throttle::default(),
            counters: Counters::default(),
            scratch: Scratch::default(),
            ahead: Ahead::default(),
            rx_stalled: false,
            reminder: Reminder::default(),
            outgoing: Outgoing::default(),
            work_left: true,
            told: Told::default(),
        })
    }

    /// The live state.
    pub fn state(&self) -> &VfState {
        &self.state
    }

    /// What this function has done since it was made, or since its state was loaded.
    pub fn counters(&self) -> Counters {
        self.counters.snapshot(&self.state.interrupts)
    }

    /// Takes note of the link's state.
    pub(crate) fn refresh_link(&mut self) {
        self.state.set_link(self.link.is_up());
    }

    /// Sends the interrupts that are due.
    pub(crate) fn deliver(&mut self, access: &Access<'_>) {
        let vectors = &mut self.counters.vectors;
        self.throttle
            .deliver(&mut self.state.interrupts, vectors, access);
    }

    /// Sends what a queue holds; says whether its budget ran out.
    pub(crate) fn transmit(&mut self, queue: usize, access: &Access<'_>) -> bool {
        let Some(memory) = access.memory else {
            return false;
        };
        let tx = &self.state.tx[queue];
        let works = queue < usize::from(self.state.admin.queue_pairs);
        if !works || tx.ring.control & txdctl::ENABLE == 0 || tx.ring.owned() == 0 {
            return false;
        }
        let mut run = Transmit {
            state: &mut self.state,
            queue,
            counters: &mut self.counters,
            link: &mut *self.link,
            memory,
            scratch: &mut self.scratch,
            ledger: access.ledger,
            ahead: &mut self.ahead,
            reported: false,
        };
        let end = run.run(&mut Budget::default());
        if run.reported {
            self.state.interrupts.tx_cause(queue);
        }
        if end == Transmitted::Blocked {
            self.outgoing = Outgoing::Blocked;
        } else if self.outgoing == Outgoing::HandedOn {
            self.outgoing = Outgoing::Queued;
        }
        end == Transmitted::More
    }

    /// Receives what the link holds; says whether the budget ran out.
    pub(crate) fn receive(&mut self, access: &Access<'_>) -> bool {
        let Some(memory) = access.memory else {
            self.rx_stalled = true;
            return false;
        };
        if self.reminder.is_needed() {
            let receives = self.state.receives();
            let now = access.clock.now();
            self.counters.said_again += self.reminder.run(&mut *self.link, receives, now);
        }
        let mut run = Receive {
            state: &mut self.state,
            counters: &mut self.counters,
            memory,
            ledger: access.ledger,
            ahead: &mut self.ahead,
        };
        let end = run.run(&mut *self.link, &mut Budget::default());
        self.rx_stalled = end == Received::Stalled;
        end == Received::More
    }

    /// Hands what was sent to the network.
    fn flush(&mut self) {
        self.link.flush();
        if self.outgoing == Outgoing::Queued {
            self.outgoing = Outgoing::HandedOn;
        }
    }

    fn replace_state(&mut self, state: VfState) {
        self.state = state;
        self.throttle.reset();
        self.rx_stalled = false;
        self.outgoing = Outgoing::Queued;
        self.work_left = true;
    }

    fn to_tell(&self) -> Told {
        Told {
            throttled: self.state.interrupts.due(),
            read: self.poll_read(),
            write: self.poll_write(),
        }
    }
}

impl Model for Vf {
    fn read(&mut self, bar: u8, offset: u64, data: &mut [u8], access: &Access<'_>) {
        data.fill(0);
        if bar == REGISTER_BAR {
            self.read_registers(offset, data);
            self.deliver(access);
        }
    }

    fn write(&mut self, bar: u8, offset: u64, data: &[u8], access: &Access<'_>) {
        if bar == REGISTER_BAR {
            self.write_registers(offset, data, access);
            self.deliver(access);
        }
    }

    /// A row of tails is one row of frames for the network.
    fn after_writes(&mut self, _: &Access<'_>) {
        if self.outgoing != Outgoing::HandedOn {
            self.flush();
        }
    }

    /// Both kinds return all but [`Admin`] to what it is after power-on: the PF of a real card
    /// keeps that through every reset of the function and of the machine it is given to, and a
    /// driver that wakes from suspend takes the address from there.
    fn reset(&mut self, kind: Reset) {
        let mut state = VfState::new(self.state.admin, self.link.is_up());
        if kind == Reset::Function {
            // What was agreed on over the mailbox is the physical function's to remember, and a
            // function-level reset of this one does not make it forget: the stock driver opens its
            // interface afterwards without a RESET message.
            state.mailbox.clear_to_send = self.state.mailbox.clear_to_send;
            state.mailbox.api = self.state.mailbox.api;
        }
        self.replace_state(state);
    }

    fn poll(&mut self, access: &Access<'_>) -> Progress {
        self.refresh_link();
        self.outgoing = Outgoing::Queued;
        let mut more = false;
        for queue in 0..QUEUES {
            more |= self.transmit(queue, access);
        }
        // Before the frames that are received take their time.
        self.flush();
        more |= self.receive(access);
        self.deliver(access);
        self.work_left = false;
        self.told = self.to_tell();
        if more {
            return Progress::More;
        }
        let now = access.clock.now();
        let due = self.throttle.next(&self.state.interrupts, now);
        // Without DMA nothing is received, and said again once there is.
        let again = access.memory.and_then(|_| self.reminder.next(now));
        Progress::Idle(due.into_iter().chain(again).min())
    }

    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        self.link.fd()
    }

    fn poll_read(&self) -> bool {
        !self.rx_stalled
    }

    fn poll_write(&self) -> bool {
        match self.outgoing {
            Outgoing::HandedOn => self.link.wants_write(),
            // What was not handed on yet will be, without a wait.
            Outgoing::Queued => false,
            Outgoing::Blocked => true,
        }
    }

    fn needs_poll(&self) -> bool {
        self.work_left || self.told != self.to_tell()
    }

    fn save(&self) -> Result<StateRecord, StateError> {
        saved::save(&self.state)
    }

    /// The address and the number of queues come with the state: the guest's driver knows them.
    fn load(&mut self, record: &StateRecord) -> Result<(), StateError> {
        let state = saved::load(record)?;
        self.counters = Counters::default();
        self.replace_state(state);
        Ok(())
    }

    fn live(&self, state: &mut Vec<u8>) -> bool {
        live::write(&self.state, state);
        true
    }

    fn take_over(&mut self, live: &[u8]) -> Result<(), StateError> {
        let state = live::read(live)?;
        self.replace_state(state);
        Ok(())
    }

    fn resume(&mut self, access: &Access<'_>) {
        self.refresh_link();
        let vectors = &mut self.counters.vectors;
        self.throttle
            .reraise(&mut self.state.interrupts, vectors, access);
        self.link.announce(self.state.admin.mac);
        for mac in self.state.filter.macvlans() {
            self.link.announce(*mac);
        }
        self.link.flush();
    }

    fn heard(&self) -> Vec<Vec<u8>> {
        self.link.heard()
    }

    fn remember(&mut self, heard: &[Vec<u8>], again: bool) {
        self.link.remember(heard);
        self.reminder = if again {
            Reminder::Waits
        } else {
            Reminder::NotNeeded
        };
    }

    /// What is received may be what the guest is [reminded](Model::remember) of.
    fn work_done(&self) -> u64 {
        self.counters.sent.frames
    }

    fn has_link(&mut self) -> bool {
        // An end that nobody has read yet is one.
        let _ = self.link.peek();
        self.link.look_for_end();
        self.link.is_up()
    }

    fn inspect(&self) -> serde_json::Value {
        // All keys are strings and all values numbers or booleans.
        serde_json::to_value(self.counters()).unwrap_or_default()
    }
}

impl std::fmt::Debug for Vf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vf")
            .field("state", &self.state)
            .field("counters", &self.counters)
            .field("rx_stalled", &self.rx_stalled)
            .field("outgoing", &self.outgoing)
            .finish_non_exhaustive()
    }
}
