//! The way of a command: taken from its queue, worked on in steps, completed.

use device::{GuestMemory, Ledger, Writes};

use crate::budget::Budget;
use crate::controller::Controller;
use crate::engine::Operation;
use crate::flights::Owner;
use crate::live;
use crate::spec::commands::{Completion, admin, low};
use crate::spec::registers::QUEUES;
use crate::spec::status::Status;
use crate::state::{COMMANDS, Command, ControllerState, EVENT_REQUESTS, Shutdown};

/// Words of completions that are not kept waiting for the end of a call.
const MANY: usize = 64;
/// Words of the completions that one turn of all commands and queues adds: each command may abort a request.
const MOST: usize = 2 * (COMMANDS + QUEUES + EVENT_REQUESTS);
const _: () = assert!(
    MANY + MOST <= Writes::MAX_WORDS,
    "all that is told at once fits"
);

/// What giving back a range is counted as, in bytes: the file system has work with it.
const RANGE_COST: usize = 32 << 10;

/// What became of a command in one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// It is done, with this result.
    Done(u32),
    /// An operation on a backing was begun, whose end is its next step.
    Begun,
    /// It waits for what others do.
    Waits,
    /// It waits for an event, as an entry of the state's own; it has no completion now.
    Held,
}

/// What is known of a command under way beyond the state. It is found out again when it is lost.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Notes {
    /// What it had to find durable, or make durable, is.
    pub(crate) forced: bool,
    /// The backing cannot zero a range but by writing.
    pub(crate) writes_zeros: bool,
}

impl Controller {
    /// Works as far as the call's budget allows; says whether there is more to do at once.
    pub(crate) fn work(&mut self, memory: &dyn GuestMemory, ledger: Option<&dyn Ledger>) -> bool {
        let mut budget = Budget::default();
        while self.is_working() && !budget.is_used_up() {
            let landed = self.land(memory);
            let went_on = self.go_on(memory, &mut budget);
            let took = self.take_commands(memory, &mut budget);
            if self.ahead.writes.len() >= MANY {
                self.tell(memory, ledger);
            }
            if !landed && !went_on && !took {
                break;
            }
        }
        // All that was begun goes to the system at once, and some of it has ended by then.
        self.flights.submit();
        self.flights.clear();
        let landed = self.land(memory);
        self.is_working() && (landed || budget.is_used_up())
    }

    pub(crate) fn is_working(&self) -> bool {
        let registers = &self.state.registers;
        registers.ready && !registers.fatal && registers.shutdown != Shutdown::Complete
    }

    /// Takes the results of operations that have ended, all of them: they were in the budget when
    /// they were begun.
    fn land(&mut self, memory: &dyn GuestMemory) -> bool {
        let mut any = self.flights.collect();
        let command = |owner| matches!(owner, Owner::Command(_));
        while let Some(landed) = self.flights.land(command) {
            any = true;
            if let Owner::Command(slot) = landed.owner
                && self.is_working()
                && let Some(mut command) = self.state.commands[slot]
            {
                match self.landed(slot, &mut command, &landed, memory) {
                    Ok(()) => self.state.commands[slot] = Some(command),
                    Err(status) => self.fail(slot, status),
                }
                self.flights.recycle(landed.buffer);
            } else {
                self.flights.drop_unseen(landed);
            }
        }
        any
    }

    /// One step of each command under way.
    fn go_on(&mut self, memory: &dyn GuestMemory, budget: &mut Budget) -> bool {
        let mut any = false;
        for _ in 0..COMMANDS {
            if budget.is_used_up() {
                break;
            }
            let slot = self.next_command;
            self.next_command = (slot + 1) % COMMANDS;
            any |= self.step(slot, memory, budget);
        }
        any
    }

    /// One command of each queue that has any, while there is room for them and their completions.
    fn take_commands(&mut self, memory: &dyn GuestMemory, budget: &mut Budget) -> bool {
        let mut any = false;
        for _ in 0..QUEUES {
            if budget.is_used_up() || !self.is_working() {
                break;
            }
            let queue = self.next_queue;
            self.next_queue = (queue + 1) % QUEUES;
            let free = self.state.commands.iter().position(Option::is_none);
            if let Some(slot) = free
                && let Some(command) = self.state.take_command(queue, memory)
            {
                any = true;
                self.state.commands[slot] = Some(command);
                self.notes[slot] = Notes::default();
                self.step(slot, memory, budget);
            }
        }
        any
    }

    /// Takes the next step of a slot's command, if there is one that has no operation under way.
    /// Says whether that has changed anything.
    fn step(&mut self, slot: usize, memory: &dyn GuestMemory, budget: &mut Budget) -> bool {
        let Some(mut command) = self.state.commands[slot] else {
            return false;
        };
        if self.flights.has(Owner::Command(slot)) {
            return false;
        }
        let step = if command.entry.unsupported_flags() != 0 {
            Err(Status::INVALID_FIELD)
        } else if command.sq == 0 {
            self.admin_command(slot, &command, memory, budget)
        } else {
            self.io_command(slot, &mut command, memory, budget)
        };
        if step == Ok(Step::Waits) {
            return false;
        }
        budget.spend(1, 0);
        match step {
            Ok(Step::Begun | Step::Waits) => self.state.commands[slot] = Some(command),
            Ok(Step::Held) => self.state.commands[slot] = None,
            Ok(Step::Done(result)) => {
                self.state.commands[slot] = None;
                self.complete(&command, Status::SUCCESS, result);
            }
            Err(status) => self.fail(slot, status),
        }
        true
    }

    fn fail(&mut self, slot: usize, status: Status) {
        if let Some(command) = self.state.commands[slot].take() {
            self.complete(&command, status, 0);
        }
    }

    /// Begins an operation of a slot's command, for which there is a place.
    pub(crate) fn begin(
        &mut self,
        slot: usize,
        operation: Operation,
        buffer: Vec<u8>,
        backing: usize,
        budget: &mut Budget,
    ) -> Step {
        match operation {
            Operation::Read { len, .. } | Operation::Write { len, .. } => budget.spend(0, len),
            // May take long where it is waited for: the lock is to be given up after it.
            Operation::Flush => budget.spend_all(),
            Operation::Zero { .. } => budget.spend(0, RANGE_COST),
        }
        let on = (backing, &*self.backings[backing]);
        let owner = Owner::Command(slot);
        self.flights.begin(owner, operation, buffer, on);
        Step::Begun
    }

    /// Whether the next operation of a command may be begun.
    pub(crate) fn may_begin(&self, command: &Command) -> Result<bool, Status> {
        // Its queue goes, and with it all that would only begin now (5.6).
        if self.state.is_being_deleted(command.sq) {
            return Err(Status::SQ_DELETED);
        }
        Ok(self.flights.has_place())
    }

    /// Completes a command that is in no slot any more. The driver is [told](Self::tell) later.
    pub(crate) fn complete(&mut self, command: &Command, status: Status, result: u32) {
        if command.sq == 0 {
            self.counters.admin_commands += 1;
        } else {
            self.counters.io_commands += 1;
        }
        if status != Status::SUCCESS {
            self.counters.errors += 1;
            self.state.command_error(command.sq, &command.entry, status);
        }
        let (sq, cid) = (command.sq, command.entry.cid());
        let (writes, raised) = (&mut self.ahead.writes, &mut self.raised);
        self.state.post(sq, cid, status, result, writes, raised);
    }

    /// Writes the completions that there are, once the state that comes of them is put down: a driver is never
    /// ahead of that. What of them a process that dies has not written, its successor writes.
    pub(crate) fn tell(&mut self, memory: &dyn GuestMemory, ledger: Option<&dyn Ledger>) {
        if self.ahead.writes.is_empty() {
            return;
        }
        let (state, failed) = (&self.state, self.flights.failures());
        let live = |bytes: &mut Vec<u8>| live::write(state, failed, bytes);
        if self.ahead.make(live, memory, ledger).is_err() {
            // A driver that never hears of its command: nothing but a reset helps (9.5).
            self.state.registers.fatal = true;
        }
        self.ahead.writes.clear();
    }
}

impl ControllerState {
    /// Takes the next command of a queue, unless its completion might find no room.
    fn take_command(&mut self, queue: usize, memory: &dyn GuestMemory) -> Option<Command> {
        // A shutdown waits for what is under way, not for more.
        let sq = self.submission[queue].filter(|_| self.registers.shutdown == Shutdown::None)?;
        if sq.is_empty() || self.is_being_deleted(sq_id(queue)?) || !self.has_room(sq.completion) {
            return None;
        }
        let Ok(entry) = sq.peek(memory) else {
            // Without its entry, a command cannot even be refused.
            self.registers.fatal = true;
            return None;
        };
        self.submission[queue].as_mut()?.take();
        Some(Command {
            sq: sq_id(queue)?,
            entry,
            done: 0,
        })
    }

    /// Whether a command to delete this queue is under way.
    pub(crate) fn is_being_deleted(&self, sq: u16) -> bool {
        self.commands.iter().flatten().any(|command| {
            let entry = &command.entry;
            (command.sq, entry.opcode(), low(entry.cdw(10))) == (0, admin::DELETE_SQ, sq)
        })
    }

    /// Whether a completion queue has room for one more than the commands under way will need.
    pub(crate) fn has_room(&self, cq: u16) -> bool {
        let Some(queue) = self.completion_queue(cq) else {
            return false;
        };
        usize::from(queue.room()) > self.needed(cq)
    }

    /// Completions that the commands under way will need of a queue.
    pub(crate) fn needed(&self, cq: u16) -> usize {
        let of_queue = |command: &&Command| {
            let sq = self.submission.get(usize::from(command.sq));
            sq.and_then(Option::as_ref)
                .is_some_and(|sq| sq.completion == cq)
        };
        self.commands.iter().flatten().filter(of_queue).count()
    }

    pub(crate) fn completion_queue(&self, cq: u16) -> Option<&crate::state::CompletionQueue> {
        self.completion.get(usize::from(cq))?.as_ref()
    }

    /// Adds a completion for a command of `sq` to `writes`, and its vector to those to be raised.
    pub(crate) fn post(
        &mut self,
        sq: u16,
        cid: u16,
        status: Status,
        result: u32,
        writes: &mut Writes,
        raised: &mut u32,
    ) {
        // A queue that is gone takes its commands with it.
        let Some(queue) = self.submission.get(usize::from(sq)).copied().flatten() else {
            return;
        };
        let Some(cq) = self.completion[usize::from(queue.completion)].as_mut() else {
            return;
        };
        let completion = Completion {
            result,
            sq_head: queue.head,
            sq,
            cid,
            status,
            phase: false,
        };
        if cq.room() == 0 {
            // As in `tell`.
            self.registers.fatal = true;
            return;
        }
        cq.post(completion, writes);
        if let Some(vector) = cq.vector {
            *raised |= 1 << vector;
        }
    }
}

fn sq_id(queue: usize) -> Option<u16> {
    u16::try_from(queue).ok()
}
