//! The arithmetic of queues (section 4.1). Indices are below the number of entries: doorbells with
//! others are refused when they are written.

use device::{DmaError, GuestMemory, Writes};

use crate::spec::commands::{COMPLETION_LEN, Completion, SUBMISSION_LEN, Submission};
use crate::state::{CompletionQueue, SubmissionQueue};

/// A doorbell was written with a value that it cannot have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InvalidValue;

impl SubmissionQueue {
    pub(crate) fn new(base: u64, entries: u16, completion: u16) -> Self {
        Self {
            base,
            entries,
            head: 0,
            tail: 0,
            completion,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.head == self.tail
    }

    /// Takes the tail doorbell's value: it may not pass the head.
    pub(crate) fn ring(&mut self, value: u32) -> Result<(), InvalidValue> {
        let tail = index(value, self.entries)?;
        let waiting = distance(self.head, self.tail, self.entries);
        let added = distance(self.tail, tail, self.entries);
        if waiting + added >= self.entries {
            return Err(InvalidValue);
        }
        self.tail = tail;
        Ok(())
    }

    /// Reads the entry at the head, without taking it.
    pub(crate) fn peek(&self, memory: &dyn GuestMemory) -> Result<Submission, DmaError> {
        let mut bytes = [0; SUBMISSION_LEN];
        let offset = u64::from(self.head) * SUBMISSION_LEN as u64;
        memory.read(self.base.wrapping_add(offset), &mut bytes)?;
        Ok(Submission::parse(&bytes))
    }

    pub(crate) fn take(&mut self) {
        self.head = next(self.head, self.entries);
    }
}

impl CompletionQueue {
    pub(crate) fn new(base: u64, entries: u16, vector: Option<u16>) -> Self {
        Self {
            base,
            entries,
            head: 0,
            tail: 0,
            phase: true,
            vector,
        }
    }

    /// Entries that the driver has not taken.
    pub(crate) fn waiting(&self) -> u16 {
        distance(self.head, self.tail, self.entries)
    }

    /// Entries that may be written.
    pub(crate) fn room(&self) -> u16 {
        self.entries - 1 - self.waiting()
    }

    /// Takes the head doorbell's value: it may not pass the tail.
    pub(crate) fn ring(&mut self, value: u32) -> Result<(), InvalidValue> {
        let head = index(value, self.entries)?;
        if distance(self.head, head, self.entries) > self.waiting() {
            return Err(InvalidValue);
        }
        self.head = head;
        Ok(())
    }

    /// An entry that is to be written: its phase tag becomes visible after all the rest. Either half may be
    /// written again as long as the controller has not heard that the driver has taken it: the driver never writes there,
    /// and does not look at an entry a second time.
    pub(crate) fn post(&mut self, completion: Completion, writes: &mut Writes) {
        let offset = u64::from(self.tail) * COMPLETION_LEN as u64;
        let address = self.base.wrapping_add(offset);
        let (first, second) = Completion {
            phase: self.phase,
            ..completion
        }
        .halves();
        writes.store_u64(address, first);
        writes.store_u64(address.wrapping_add(8), second);
        self.tail = next(self.tail, self.entries);
        self.phase ^= self.tail == 0;
    }
}

fn index(value: u32, entries: u16) -> Result<u16, InvalidValue> {
    // Bits 31:16 of a doorbell are reserved, and written as zeros.
    let value = u16::try_from(value).map_err(|_| InvalidValue)?;
    if value < entries {
        Ok(value)
    } else {
        Err(InvalidValue)
    }
}

/// Steps from one index to another, around the end.
fn distance(from: u16, to: u16, entries: u16) -> u16 {
    if to >= from {
        to - from
    } else {
        entries - from + to
    }
}

fn next(index: u16, entries: u16) -> u16 {
    if index + 1 >= entries { 0 } else { index + 1 }
}

#[cfg(test)]
mod tests {
    use device::FlatMemory;

    use super::*;
    use crate::spec::status::Status;

    #[test]
    fn a_tail_may_not_pass_the_head() {
        let mut queue = SubmissionQueue::new(0, 4, 0);
        assert_eq!(queue.ring(4), Err(InvalidValue));
        assert_eq!(queue.ring(0x1_0000), Err(InvalidValue));
        assert_eq!(queue.ring(3), Ok(()));
        assert_eq!(queue.ring(0), Err(InvalidValue), "a fourth entry of four");
        queue.take();
        assert_eq!(queue.ring(0), Ok(()));
        assert_eq!((queue.head, queue.tail), (1, 0));
        assert_eq!(
            queue.ring(0),
            Ok(()),
            "the same value again changes nothing"
        );
    }

    #[test]
    fn a_head_may_not_pass_the_tail() {
        let mut queue = CompletionQueue::new(0, 4, None);
        assert_eq!(queue.ring(1), Err(InvalidValue));
        for _ in 0..3 {
            queue.post(completion(), &mut Writes::default());
        }
        assert_eq!(queue.room(), 0);
        assert_eq!(queue.ring(2), Ok(()));
        assert_eq!((queue.room(), queue.waiting()), (2, 1));
        assert_eq!(queue.ring(0), Err(InvalidValue));
    }

    #[test]
    fn the_phase_tag_changes_with_each_pass() {
        let memory = FlatMemory::new(0, 4096);
        let mut queue = CompletionQueue::new(0, 2, None);
        let mut phases = Vec::new();
        for slot in [0, 1, 0, 1] {
            let mut writes = Writes::default();
            queue.post(completion(), &mut writes);
            writes.make(&memory, None, b"").unwrap();
            let mut status = [0; 2];
            memory.read(16 * slot + 14, &mut status).unwrap();
            phases.push(status[0] & 1);
        }
        assert_eq!(phases, [1, 1, 0, 0]);
    }

    fn completion() -> Completion {
        Completion {
            result: 0,
            sq_head: 0,
            sq: 0,
            cid: 0,
            status: Status::SUCCESS,
            phase: false,
        }
    }
}
