//! NVM commands (section 6).
//!
//! What a command has to do with a backing is done in steps, each an operation, one at a time; of
//! several commands, several are under way. [`Command::done`](crate::state::Command) says what of
//! it has ended, so a command whose operation is lost does that step again.

use std::io;

use device::GuestMemory;

use crate::admin::MAX_TRANSFER;
use crate::budget::Budget;
use crate::commands::Step;
use crate::controller::Controller;
use crate::engine::Operation;
use crate::flights::{BUFFER, Landed};
use crate::spec::commands::{
    ALL_NAMESPACES, DEAC, DSM_DEALLOCATE, DSM_RANGE_LEN, DSM_RANGES, DsmRange, FUA, PRINFO,
    Submission, io as opcode,
};
use crate::spec::status::Status;
use crate::state::Command;

/// Bytes that are compared at a time.
const PAGE: usize = 4096;

/// What a command on blocks is about, in bytes.
#[derive(Debug, Clone, Copy)]
struct Span {
    /// Index of the namespace's backing.
    backing: usize,
    start: u64,
    len: u64,
}

impl Span {
    /// What the next step does: its offset in the backing, and its length.
    fn step(&self, done: u64) -> (u64, usize) {
        let done = done.min(self.len);
        (self.start + done, size(self.len - done).min(BUFFER))
    }
}

impl Controller {
    /// Takes the next step of an I/O command.
    pub(crate) fn io_command(
        &mut self,
        slot: usize,
        command: &mut Command,
        memory: &dyn GuestMemory,
        budget: &mut Budget,
    ) -> Result<Step, Status> {
        match command.entry.opcode() {
            opcode::FLUSH => self.flush(slot, command, budget),
            opcode::READ | opcode::COMPARE => self.read_blocks(slot, command, budget),
            opcode::WRITE => self.write_blocks(slot, command, memory, budget),
            opcode::WRITE_ZEROES => self.zero_blocks(slot, command, budget),
            opcode::DATASET_MANAGEMENT => self.manage_dataset(slot, command, memory, budget),
            _ => Err(Status::INVALID_OPCODE),
        }
    }

    /// Takes the result of a command's operation.
    pub(crate) fn landed(
        &mut self,
        slot: usize,
        command: &mut Command,
        landed: &Landed,
        memory: &dyn GuestMemory,
    ) -> Result<(), Status> {
        let opcode = (command.sq != 0).then(|| command.entry.opcode());
        match landed.operation {
            Operation::Read { len, .. } => self.took_blocks(command, len, landed, memory)?,
            Operation::Write { len, .. } => {
                self.written(&landed.result)?;
                command.done += len as u64;
                if opcode == Some(opcode::WRITE) {
                    self.counters.bytes_written += len as u64;
                    let usage = &mut self.state.usage;
                    usage.sectors_written = usage.sectors_written.saturating_add(len as u64 >> 9);
                }
            }
            Operation::Flush => {
                // Whatever it says itself: an earlier failure is told in its place.
                if self.flights.take_failure(landed.backing) {
                    self.media_error();
                    return Err(Status::WRITE_FAULT);
                }
                self.written(&landed.result)?;
                if matches!(opcode, None | Some(opcode::FLUSH)) {
                    command.done += 1;
                } else {
                    self.notes[slot].forced = true;
                }
            }
            Operation::Zero { len, .. } => {
                let error = landed.result.as_ref().err().map(io::Error::kind);
                let impossible = error == Some(io::ErrorKind::Unsupported);
                if !impossible {
                    self.written(&landed.result)?;
                }
                if opcode == Some(opcode::DATASET_MANAGEMENT) {
                    // To give back a range is a hint.
                    command.done += 1;
                } else if impossible {
                    self.notes[slot].writes_zeros = true;
                } else {
                    command.done += len;
                }
            }
        }
        Ok(())
    }

    /// Flush (6.8): what was completed before is durable, of one namespace or of all.
    fn flush(
        &mut self,
        slot: usize,
        command: &Command,
        budget: &mut Budget,
    ) -> Result<Step, Status> {
        let nsid = command.entry.nsid();
        if nsid == ALL_NAMESPACES {
            return self.make_all_durable(slot, command, budget);
        }
        self.state.namespace(nsid)?;
        if command.done > 0 {
            return Ok(Step::Done(0));
        }
        self.make_durable(slot, command, nsid as usize - 1, budget)
    }

    /// Read (6.9) and Compare (6.6).
    fn read_blocks(
        &mut self,
        slot: usize,
        command: &Command,
        budget: &mut Budget,
    ) -> Result<Step, Status> {
        let span = self.transfer(&command.entry)?;
        if command.done >= span.len {
            self.state.usage.reads = self.state.usage.reads.saturating_add(1);
            return Ok(Step::Done(0));
        }
        // Force unit access: what is read is what is durable (6.9).
        let force = command.entry.opcode() == opcode::READ && command.entry.cdw(12) & FUA != 0;
        if force && command.done == 0 && !self.notes[slot].forced {
            return self.make_durable(slot, command, span.backing, budget);
        }
        if !self.may_begin(command)? {
            return Ok(Step::Waits);
        }
        let (offset, len) = span.step(command.done);
        let read = Operation::Read { offset, len };
        let buffer = self.flights.buffer();
        Ok(self.begin(slot, read, buffer, span.backing, budget))
    }

    /// Takes what was read: to guest memory, or to be compared with what is there.
    fn took_blocks(
        &mut self,
        command: &mut Command,
        len: usize,
        landed: &Landed,
        memory: &dyn GuestMemory,
    ) -> Result<(), Status> {
        let span = self.transfer(&command.entry)?;
        if landed.result.is_err() {
            self.media_error();
            return Err(Status::UNRECOVERED_READ);
        }
        self.counters.bytes_read += len as u64;
        let usage = &mut self.state.usage;
        usage.sectors_read = usage.sectors_read.saturating_add(len as u64 >> 9);
        self.pieces
            .resolve(memory, &command.entry, size(span.len))?;
        let data = &landed.buffer;
        let mut same = true;
        if command.entry.opcode() == opcode::COMPARE {
            let mut page = [0; PAGE];
            self.pieces.each(command.done, len, |address, range| {
                for (ours, ahead) in data[range].chunks(PAGE).zip((0..).step_by(PAGE)) {
                    let theirs = &mut page[..ours.len()];
                    memory.read(address.wrapping_add(ahead), theirs)?;
                    same &= ours == theirs;
                }
                Ok(())
            })?;
        } else {
            self.pieces.each(command.done, len, |address, range| {
                memory.write(address, &data[range])
            })?;
        }
        if !same {
            return Err(Status::COMPARE_FAILURE);
        }
        command.done += len as u64;
        Ok(())
    }

    /// Write (6.15).
    fn write_blocks(
        &mut self,
        slot: usize,
        command: &Command,
        memory: &dyn GuestMemory,
        budget: &mut Budget,
    ) -> Result<Step, Status> {
        let span = self.transfer(&command.entry)?;
        if command.done >= span.len {
            let step = self.force_if_asked(slot, command, span.backing, budget)?;
            if step == Step::Done(0) {
                self.state.usage.writes = self.state.usage.writes.saturating_add(1);
            }
            return Ok(step);
        }
        if !self.may_begin(command)? {
            return Ok(Step::Waits);
        }
        let (offset, len) = span.step(command.done);
        self.pieces
            .resolve(memory, &command.entry, size(span.len))?;
        let mut buffer = self.flights.buffer();
        let received = self.pieces.each(command.done, len, |address, range| {
            memory.read(address, &mut buffer[range])
        });
        if let Err(error) = received {
            self.flights.recycle(buffer);
            return Err(error.into());
        }
        let write = Operation::Write { offset, len };
        Ok(self.begin(slot, write, buffer, span.backing, budget))
    }

    /// Write Zeroes (6.16). It transfers no data, so it may be longer than a transfer.
    fn zero_blocks(
        &mut self,
        slot: usize,
        command: &Command,
        budget: &mut Budget,
    ) -> Result<Step, Status> {
        let span = self.span(&command.entry)?;
        if command.done >= span.len {
            return self.force_if_asked(slot, command, span.backing, budget);
        }
        if !self.may_begin(command)? {
            return Ok(Step::Waits);
        }
        let (offset, len) = span.step(command.done);
        if self.notes[slot].writes_zeros {
            let mut buffer = self.flights.buffer();
            buffer[..len].fill(0);
            let write = Operation::Write { offset, len };
            return Ok(self.begin(slot, write, buffer, span.backing, budget));
        }
        let zero = Operation::Zero {
            offset,
            len: span.len - command.done,
            deallocate: command.entry.cdw(12) & DEAC != 0,
        };
        Ok(self.begin(slot, zero, Vec::new(), span.backing, budget))
    }

    /// Dataset Management (6.7). All but deallocation is a hint.
    fn manage_dataset(
        &mut self,
        slot: usize,
        command: &mut Command,
        memory: &dyn GuestMemory,
        budget: &mut Budget,
    ) -> Result<Step, Status> {
        let namespace = *self.state.namespace(command.entry.nsid())?;
        let backing = command.entry.nsid() as usize - 1;
        if command.entry.cdw(11) & DSM_DEALLOCATE == 0 {
            return Ok(Step::Done(0));
        }
        let ranges = u64::from(command.entry.cdw(10) & DSM_RANGES) + 1;
        if command.done >= ranges {
            return self.force_if_asked(slot, command, backing, budget);
        }
        if !self.may_begin(command)? {
            return Ok(Step::Waits);
        }
        let list = size(ranges) * DSM_RANGE_LEN;
        self.pieces.resolve(memory, &command.entry, list)?;
        let mut range = [0; DSM_RANGE_LEN];
        let at = command.done * DSM_RANGE_LEN as u64;
        self.pieces.each(at, DSM_RANGE_LEN, |address, part| {
            memory.read(address, &mut range[part])
        })?;
        let range = DsmRange::parse(&range);
        let end = range.slba.checked_add(range.blocks.into());
        if end.is_none_or(|end| end > namespace.blocks) {
            return Err(Status::LBA_OUT_OF_RANGE);
        }
        let zero = Operation::Zero {
            offset: range.slba << namespace.block_shift,
            len: u64::from(range.blocks) << namespace.block_shift,
            deallocate: true,
        };
        Ok(self.begin(slot, zero, Vec::new(), backing, budget))
    }

    /// The span of a command that transfers data, which MDTS limits.
    fn transfer(&self, entry: &Submission) -> Result<Span, Status> {
        let span = self.span(entry)?;
        if span.len > MAX_TRANSFER {
            return Err(Status::INVALID_FIELD);
        }
        Ok(span)
    }

    fn span(&self, entry: &Submission) -> Result<Span, Status> {
        let namespace = self.state.namespace(entry.nsid())?;
        if entry.cdw(12) & PRINFO != 0 {
            return Err(Status::INVALID_FIELD);
        }
        let end = entry.slba().checked_add(entry.blocks());
        if end.is_none_or(|end| end > namespace.blocks) {
            return Err(Status::LBA_OUT_OF_RANGE);
        }
        // Within the backing, so that nothing is shifted out.
        Ok(Span {
            backing: entry.nsid() as usize - 1,
            start: entry.slba() << namespace.block_shift,
            len: entry.blocks() << namespace.block_shift,
        })
    }

    /// Without a volatile write cache every write is durable when it completes; with one, those
    /// that say so are.
    fn force_if_asked(
        &mut self,
        slot: usize,
        command: &Command,
        backing: usize,
        budget: &mut Budget,
    ) -> Result<Step, Status> {
        let entry = &command.entry;
        let asked = entry.opcode() != opcode::DATASET_MANAGEMENT && entry.cdw(12) & FUA != 0;
        if (asked || !self.state.features.write_cache) && !self.notes[slot].forced {
            return self.make_durable(slot, command, backing, budget);
        }
        Ok(Step::Done(0))
    }

    fn make_durable(
        &mut self,
        slot: usize,
        command: &Command,
        backing: usize,
        budget: &mut Budget,
    ) -> Result<Step, Status> {
        if !self.may_begin(command)? {
            return Ok(Step::Waits);
        }
        self.counters.flushes += 1;
        Ok(self.begin(slot, Operation::Flush, Vec::new(), backing, budget))
    }

    /// One namespace after the other; `done` counts them.
    pub(crate) fn make_all_durable(
        &mut self,
        slot: usize,
        command: &Command,
        budget: &mut Budget,
    ) -> Result<Step, Status> {
        let backing = size(command.done);
        if backing >= self.backings.len() {
            return Ok(Step::Done(0));
        }
        self.make_durable(slot, command, backing, budget)
    }

    /// What the guest is told of a failed write.
    fn written(&mut self, result: &io::Result<()>) -> Result<(), Status> {
        match result {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                Err(Status::CAPACITY_EXCEEDED)
            }
            Err(_) => {
                self.media_error();
                Err(Status::WRITE_FAULT)
            }
        }
    }

    pub(crate) fn media_error(&mut self) {
        let errors = &mut self.state.usage.media_errors;
        *errors = errors.saturating_add(1);
    }
}

fn size(len: u64) -> usize {
    usize::try_from(len).expect("lengths are at most 256 MiB, and addresses have 64 bits")
}
