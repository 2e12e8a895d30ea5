//! NVM commands (section 6).
//!
//! What takes long is done in steps, and [`Command::done`](crate::state::Command) says how far it
//! is. Nothing is left in flight between two steps: a step that has returned has moved its data
//! and has the backing's answer.

use std::io;

use device::GuestMemory;

use crate::admin::MAX_TRANSFER;
use crate::budget::Budget;
use crate::commands::Step;
use crate::controller::Controller;
use crate::spec::commands::{
    ALL_NAMESPACES, DEAC, DSM_DEALLOCATE, DSM_RANGE_LEN, DSM_RANGES, DsmRange, FUA, PRINFO,
    Submission, io as opcode,
};
use crate::spec::status::Status;
use crate::state::Command;

/// Bytes of one step.
const STEP: u64 = 256 << 10;
/// What giving back a range is counted as, in bytes: the file system has work with it.
const RANGE_COST: usize = 32 << 10;

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
    fn step(&self, done: u64) -> (u64, u64) {
        let done = done.min(self.len);
        (self.start + done, STEP.min(self.len - done))
    }
}

impl Controller {
    /// Does a part of an I/O command.
    pub(crate) fn io_command(
        &mut self,
        command: &mut Command,
        memory: &dyn GuestMemory,
        budget: &mut Budget,
    ) -> Result<Step, Status> {
        match command.entry.opcode() {
            opcode::FLUSH => self.flush(&command.entry, budget),
            opcode::READ => self.read_blocks(command, memory, budget),
            opcode::WRITE => self.write_blocks(command, memory, budget),
            opcode::COMPARE => self.compare_blocks(command, memory, budget),
            opcode::WRITE_ZEROES => self.zero_blocks(command, budget),
            opcode::DATASET_MANAGEMENT => self.manage_dataset(command, memory, budget),
            _ => Err(Status::INVALID_OPCODE),
        }
    }

    /// Flush (6.8): what was completed before is durable, of one namespace or of all.
    fn flush(&mut self, entry: &Submission, budget: &mut Budget) -> Result<Step, Status> {
        if entry.nsid() == ALL_NAMESPACES {
            budget.spend_all();
            self.make_all_durable()?;
        } else {
            self.state.namespace(entry.nsid())?;
            self.make_durable(entry.nsid() as usize - 1, budget)?;
        }
        Ok(Step::Done(0))
    }

    /// Read (6.9).
    fn read_blocks(
        &mut self,
        command: &mut Command,
        memory: &dyn GuestMemory,
        budget: &mut Budget,
    ) -> Result<Step, Status> {
        let span = self.transfer(&command.entry)?;
        if command.done == 0 {
            // Force unit access: what is read is what is durable (6.9).
            if command.entry.cdw(12) & FUA != 0 {
                self.make_durable(span.backing, budget)?;
            }
            self.state.usage.reads = self.state.usage.reads.saturating_add(1);
        }
        let (offset, len) = span.step(command.done);
        let data = self.load(span.backing, offset, len)?;
        self.pieces
            .resolve(memory, &command.entry, size(span.len))?;
        self.pieces.each(command.done, data, |address, range| {
            memory.write(address, &self.buffer[range])
        })?;
        Ok(advance(command, span, len, budget))
    }

    /// Write (6.15).
    fn write_blocks(
        &mut self,
        command: &mut Command,
        memory: &dyn GuestMemory,
        budget: &mut Budget,
    ) -> Result<Step, Status> {
        let span = self.transfer(&command.entry)?;
        let (offset, len) = span.step(command.done);
        self.receive(command, span, len, memory)?;
        let written = self.backings[span.backing].write(offset, &self.buffer[..size(len)]);
        self.written(&written)?;
        self.counters.bytes_written += len;
        let usage = &mut self.state.usage;
        usage.sectors_written = usage.sectors_written.saturating_add(len >> 9);
        let step = advance(command, span, len, budget);
        if step != Step::More {
            self.state.usage.writes = self.state.usage.writes.saturating_add(1);
            self.force_if_asked(&command.entry, span.backing, budget)?;
        }
        Ok(step)
    }

    /// Compare (6.6).
    fn compare_blocks(
        &mut self,
        command: &mut Command,
        memory: &dyn GuestMemory,
        budget: &mut Budget,
    ) -> Result<Step, Status> {
        let span = self.transfer(&command.entry)?;
        let (offset, len) = span.step(command.done);
        let data = self.load(span.backing, offset, len)?;
        let ours = std::mem::take(&mut self.buffer);
        let theirs = self.receive(command, span, len, memory);
        let same = theirs.map(|()| self.buffer[..data] == ours[..data]);
        self.buffer = ours;
        if !same? {
            return Err(Status::COMPARE_FAILURE);
        }
        if command.done == 0 {
            self.state.usage.reads = self.state.usage.reads.saturating_add(1);
        }
        Ok(advance(command, span, len, budget))
    }

    /// Write Zeroes (6.16). It transfers no data, so it may be longer than a transfer.
    fn zero_blocks(&mut self, command: &mut Command, budget: &mut Budget) -> Result<Step, Status> {
        let span = self.span(&command.entry)?;
        let deallocate = command.entry.cdw(12) & DEAC != 0;
        let rest = span.len - command.done.min(span.len);
        let start = span.start + command.done.min(span.len);
        let zeroed = self.backings[span.backing].zero(start, rest, deallocate);
        let len = if self.written(&zeroed)? {
            budget.spend(0, RANGE_COST);
            rest
        } else {
            let (offset, len) = span.step(command.done);
            self.buffer.clear();
            self.buffer.resize(size(len), 0);
            let written = self.backings[span.backing].write(offset, &self.buffer);
            self.written(&written)?;
            len
        };
        command.done += len;
        if command.done < span.len {
            budget.spend(0, size(len));
            return Ok(Step::More);
        }
        self.force_if_asked(&command.entry, span.backing, budget)?;
        Ok(Step::Done(0))
    }

    /// Dataset Management (6.7). All but deallocation is a hint.
    fn manage_dataset(
        &mut self,
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
        let list = size(ranges) * DSM_RANGE_LEN;
        self.pieces.resolve(memory, &command.entry, list)?;
        self.buffer.clear();
        self.buffer.resize(list, 0);
        let buffer = &mut self.buffer;
        self.pieces.each(0, list, |address, range| {
            memory.read(address, &mut buffer[range])
        })?;
        while command.done < ranges && !budget.is_used_up() {
            let range = self
                .buffer
                .as_chunks::<DSM_RANGE_LEN>()
                .0
                .get(size(command.done));
            let range = DsmRange::parse(range.ok_or(Status::INVALID_FIELD)?);
            let end = range.slba.checked_add(range.blocks.into());
            if end.is_none_or(|end| end > namespace.blocks) {
                return Err(Status::LBA_OUT_OF_RANGE);
            }
            let shift = namespace.block_shift;
            let (start, len) = (range.slba << shift, u64::from(range.blocks) << shift);
            let given_back = self.backings[backing].zero(start, len, true);
            self.written(&given_back)?;
            command.done += 1;
            budget.spend(1, RANGE_COST);
        }
        if command.done < ranges {
            return Ok(Step::More);
        }
        self.force_if_asked(&command.entry, backing, budget)?;
        Ok(Step::Done(0))
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

    /// Reads from the backing to the buffer; returns the bytes.
    fn load(&mut self, backing: usize, offset: u64, len: u64) -> Result<usize, Status> {
        let bytes = size(len);
        self.buffer.resize(bytes, 0);
        if self.backings[backing]
            .read(offset, &mut self.buffer)
            .is_err()
        {
            self.media_error();
            return Err(Status::UNRECOVERED_READ);
        }
        self.counters.bytes_read += len;
        let usage = &mut self.state.usage;
        usage.sectors_read = usage.sectors_read.saturating_add(len >> 9);
        Ok(bytes)
    }

    /// Reads the next `len` bytes of a command's data from guest memory to the buffer.
    fn receive(
        &mut self,
        command: &Command,
        span: Span,
        len: u64,
        memory: &dyn GuestMemory,
    ) -> Result<(), Status> {
        self.pieces
            .resolve(memory, &command.entry, size(span.len))?;
        self.buffer.resize(size(len), 0);
        let buffer = &mut self.buffer;
        self.pieces
            .each(command.done, size(len), |address, range| {
                memory.read(address, &mut buffer[range])
            })?;
        Ok(())
    }

    /// Without a volatile write cache every write is durable when it completes; with one, those
    /// that say so are.
    fn force_if_asked(
        &mut self,
        entry: &Submission,
        backing: usize,
        budget: &mut Budget,
    ) -> Result<(), Status> {
        let asked = entry.opcode() != opcode::DATASET_MANAGEMENT && entry.cdw(12) & FUA != 0;
        if asked || !self.state.features.write_cache {
            self.make_durable(backing, budget)?;
        }
        Ok(())
    }

    fn make_durable(&mut self, backing: usize, budget: &mut Budget) -> Result<(), Status> {
        self.counters.flushes += 1;
        budget.spend_all();
        let flushed = self.backings[backing].flush();
        self.written(&flushed)
    }

    pub(crate) fn make_all_durable(&mut self) -> Result<(), Status> {
        for backing in 0..self.backings.len() {
            self.make_durable(backing, &mut Budget::default())?;
        }
        Ok(())
    }

    /// What the guest is told of a failed write.
    fn written<T: Copy>(&mut self, result: &io::Result<T>) -> Result<T, Status> {
        match result {
            Ok(value) => Ok(*value),
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                Err(Status::CAPACITY_EXCEEDED)
            }
            Err(_) => {
                self.media_error();
                Err(Status::WRITE_FAULT)
            }
        }
    }

    fn media_error(&mut self) {
        let errors = &mut self.state.usage.media_errors;
        *errors = errors.saturating_add(1);
    }
}

/// Takes note of `len` bytes that are done.
fn advance(command: &mut Command, span: Span, len: u64, budget: &mut Budget) -> Step {
    budget.spend(0, size(len));
    command.done += len;
    if command.done < span.len {
        Step::More
    } else {
        Step::Done(0)
    }
}

fn size(len: u64) -> usize {
    usize::try_from(len).expect("lengths are at most 256 MiB, and addresses have 64 bits")
}
