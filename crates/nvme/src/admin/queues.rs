//! Creating and deleting I/O queues (sections 5.3 to 5.6).

use crate::commands::Step;
use crate::spec::commands::{Submission, high, low};
use crate::spec::pci::MSIX_VECTORS;
use crate::spec::registers::{MAX_ENTRIES, PAGE, cc};
use crate::spec::status::Status;
use crate::state::{CompletionQueue, ControllerState, SubmissionQueue};

/// CDW11 of both Create commands: PC, physically contiguous.
const CONTIGUOUS: u32 = 1;
/// CDW11 of Create I/O Completion Queue: IEN, interrupts enabled.
const INTERRUPTS: u32 = 1 << 1;

impl ControllerState {
    pub(crate) fn create_completion(&mut self, entry: &Submission) -> Result<u32, Status> {
        let queue = self.new_queue_id(entry, |state, queue| state.completion[queue].is_some())?;
        let sized = self.registers.cc & cc::IOCQES == cc::IOCQES_16;
        let (base, entries) = memory_of(entry, sized)?;
        let vector = high(entry.cdw(11));
        if vector >= MSIX_VECTORS {
            return Err(Status::INVALID_VECTOR);
        }
        let vector = (entry.cdw(11) & INTERRUPTS != 0).then_some(vector);
        self.completion[queue] = Some(CompletionQueue::new(base, entries, vector));
        Ok(0)
    }

    pub(crate) fn create_submission(&mut self, entry: &Submission) -> Result<u32, Status> {
        let queue = self.new_queue_id(entry, |state, queue| state.submission[queue].is_some())?;
        let completion = high(entry.cdw(11));
        if completion == 0 || completion > self.identity.queues {
            return Err(Status::INVALID_QUEUE_ID);
        }
        if self.completion[usize::from(completion)].is_none() {
            return Err(Status::COMPLETION_QUEUE_INVALID);
        }
        let sized = self.registers.cc & cc::IOSQES == cc::IOSQES_64;
        let (base, entries) = memory_of(entry, sized)?;
        self.submission[queue] = Some(SubmissionQueue::new(base, entries, completion));
        Ok(0)
    }

    pub(crate) fn delete_completion(&mut self, entry: &Submission) -> Result<u32, Status> {
        let queue = self.io_queue_id(entry)?;
        if self.completion[queue].is_none() {
            return Err(Status::INVALID_QUEUE_ID);
        }
        let mut used = self.submission.iter().flatten();
        if used.any(|sq| usize::from(sq.completion) == queue) {
            return Err(Status::INVALID_QUEUE_DELETION);
        }
        self.completion[queue] = None;
        Ok(0)
    }

    /// Delete I/O Submission Queue (5.6): commands under way are completed before it is. Meanwhile
    /// none is taken from it, and no operation begun; see [`is_being_deleted`](Self::is_being_deleted).
    pub(crate) fn delete_submission(&mut self, entry: &Submission) -> Result<Step, Status> {
        let queue = self.io_queue_id(entry)?;
        if self.submission[queue].is_none() {
            return Err(Status::INVALID_QUEUE_ID);
        }
        let mut commands = self.commands.iter().flatten();
        if commands.any(|command| usize::from(command.sq) == queue) {
            return Ok(Step::Waits);
        }
        self.submission[queue] = None;
        Ok(Step::Done(0))
    }

    /// CDW10 names an I/O queue that may exist.
    fn io_queue_id(&self, entry: &Submission) -> Result<usize, Status> {
        let queue = low(entry.cdw(10));
        if (1..=self.identity.queues).contains(&queue) {
            Ok(queue.into())
        } else {
            Err(Status::INVALID_QUEUE_ID)
        }
    }

    fn new_queue_id(
        &self,
        entry: &Submission,
        exists: impl FnOnce(&Self, usize) -> bool,
    ) -> Result<usize, Status> {
        let queue = self.io_queue_id(entry)?;
        if exists(self, queue) {
            return Err(Status::INVALID_QUEUE_ID);
        }
        Ok(queue)
    }
}

/// Where a new queue lies, and its entries.
fn memory_of(entry: &Submission, sized: bool) -> Result<(u64, u16), Status> {
    let entries = u32::from(high(entry.cdw(10))) + 1;
    if !sized || !(2..=MAX_ENTRIES).contains(&entries) {
        return Err(Status::INVALID_QUEUE_SIZE);
    }
    if entry.cdw(11) & CONTIGUOUS == 0 {
        return Err(Status::INVALID_FIELD);
    }
    if !entry.prp1().is_multiple_of(PAGE) {
        return Err(Status::PRP_OFFSET_INVALID);
    }
    let entries = u16::try_from(entries).expect("it is at most 1024");
    Ok((entry.prp1(), entries))
}
