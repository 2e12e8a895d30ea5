//! For tests: a process that dies at any moment.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use crate::{DmaError, FlatMemory, GuestMemory, Ledger, Stage, Writes};

/// Guest memory and ledger as a process has them that dies after some of what it does to them: whatever comes
/// after that does not happen.
#[derive(Debug)]
pub struct Mortal {
    memory: Arc<FlatMemory>,
    left: Cell<usize>,
    entry: RefCell<Option<Entry>>,
}

/// What was put down last.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The model's state.
    pub state: Vec<u8>,
    /// What was to be written with it.
    pub writes: Writes,
    /// How far that has come.
    pub stage: Stage,
}

impl Mortal {
    /// One that dies after `left` things that it does, and has put nothing down yet.
    pub fn new(memory: Arc<FlatMemory>, left: usize) -> Self {
        Self {
            memory,
            left: Cell::new(left),
            entry: RefCell::new(None),
        }
    }

    /// How many things it does before it dies.
    pub fn left(&self) -> usize {
        self.left.get()
    }

    /// It dies after so many: another process, which finds what this one has left.
    pub fn set_left(&self, left: usize) {
        self.left.set(left);
    }

    /// What it has put down, if anything.
    pub fn entry(&self) -> Option<Entry> {
        self.entry.borrow().clone()
    }

    fn lives(&self) -> bool {
        let left = self.left.get();
        self.left.set(left.saturating_sub(1));
        left > 0
    }
}

impl GuestMemory for Mortal {
    fn read(&self, iova: u64, buf: &mut [u8]) -> Result<(), DmaError> {
        self.memory.read(iova, buf)
    }

    fn write(&self, iova: u64, data: &[u8]) -> Result<(), DmaError> {
        // What is in buffers counts only with the words that follow.
        if self.left.get() > 0 {
            self.memory.write(iova, data)?;
        }
        Ok(())
    }

    fn store_u64(&self, iova: u64, value: u64) -> Result<(), DmaError> {
        if self.lives() {
            self.memory.store_u64(iova, value)?;
        }
        Ok(())
    }

    fn store_u32(&self, iova: u64, value: u32) -> Result<(), DmaError> {
        if self.lives() {
            self.memory.store_u32(iova, value)?;
        }
        Ok(())
    }
}

impl Ledger for Mortal {
    fn put(&self, state: &[u8], writes: &Writes) {
        if self.lives() {
            self.entry.replace(Some(Entry {
                state: state.to_vec(),
                writes: writes.clone(),
                stage: Stage::Begun,
            }));
        }
    }

    fn set_stage(&self, stage: Stage) {
        if self.lives()
            && let Some(entry) = &mut *self.entry.borrow_mut()
        {
            entry.stage = stage;
        }
    }
}
