//! The way of a command: taken from its queue, worked on in steps, completed.

use device::GuestMemory;

use crate::budget::Budget;
use crate::controller::Controller;
use crate::spec::commands::Completion;
use crate::spec::registers::QUEUES;
use crate::spec::status::Status;
use crate::state::{COMMANDS, Command, ControllerState, Shutdown};

/// What became of a command in one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// It is done, with this result.
    Done(u32),
    /// There is more to do.
    More,
    /// It waits for an event, as an entry of the state's own; it has no completion now.
    Held,
}

impl Controller {
    /// Works as far as the call's budget allows; says whether there is more to do.
    pub(crate) fn work(&mut self, memory: &dyn GuestMemory) -> bool {
        let mut budget = Budget::default();
        while self.is_working() && !budget.is_used_up() {
            let went_on = self.go_on(memory, &mut budget);
            let took = self.take_commands(memory, &mut budget);
            if !went_on && !took {
                return false;
            }
        }
        self.is_working()
    }

    fn is_working(&self) -> bool {
        let registers = &self.state.registers;
        registers.ready && !registers.fatal && registers.shutdown != Shutdown::Complete
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
            if let Some(command) = self.state.commands[slot].take() {
                any = true;
                self.step(slot, command, memory, budget);
            }
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
                self.step(slot, command, memory, budget);
            }
        }
        any
    }

    /// Does a part of `command`, for which `slot` is free.
    fn step(
        &mut self,
        slot: usize,
        mut command: Command,
        memory: &dyn GuestMemory,
        budget: &mut Budget,
    ) {
        budget.spend(1, 0);
        let entry = command.entry;
        let step = if entry.unsupported_flags() != 0 {
            Err(Status::INVALID_FIELD)
        } else if command.sq == 0 {
            self.admin_command(&entry, memory)
        } else {
            self.io_command(&mut command, memory, budget)
        };
        match step {
            Ok(Step::More) => self.state.commands[slot] = Some(command),
            Ok(Step::Held) => {}
            Ok(Step::Done(result)) => self.complete(&command, Status::SUCCESS, result, memory),
            Err(status) => self.complete(&command, status, 0, memory),
        }
    }

    /// Completes a command that is in no slot any more.
    pub(crate) fn complete(
        &mut self,
        command: &Command,
        status: Status,
        result: u32,
        memory: &dyn GuestMemory,
    ) {
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
        self.state
            .post(memory, sq, cid, status, result, &mut self.raised);
    }
}

impl ControllerState {
    /// Takes the next command of a queue, unless its completion might find no room.
    fn take_command(&mut self, queue: usize, memory: &dyn GuestMemory) -> Option<Command> {
        // A shutdown waits for what is under way, not for more.
        let sq = self.submission[queue].filter(|_| self.registers.shutdown == Shutdown::None)?;
        if sq.is_empty() || !self.has_room(sq.completion) {
            return None;
        }
        let Ok(entry) = sq.peek(memory) else {
            // Without its entry, a command cannot even be refused.
            self.registers.fatal = true;
            return None;
        };
        self.submission[queue].as_mut()?.take();
        Some(Command {
            sq: u16::try_from(queue).ok()?,
            entry,
            done: 0,
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

    /// Writes a completion for a command of `sq`, and notes the vector to be raised.
    pub(crate) fn post(
        &mut self,
        memory: &dyn GuestMemory,
        sq: u16,
        cid: u16,
        status: Status,
        result: u32,
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
        if cq.room() == 0 || cq.post(memory, completion).is_err() {
            // A driver that never hears of its command: nothing but a reset helps (9.5).
            self.registers.fatal = true;
            return;
        }
        if let Some(vector) = cq.vector {
            *raised |= 1 << vector;
        }
    }
}
