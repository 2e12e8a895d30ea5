//! What a device model is.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use crate::{Clock, GuestMemory, Hardware, Interrupts, Ledger, StateError, StateRecord};

/// A PCI device's function without its configuration space.
///
/// A model is a state machine without threads: it acts only inside these calls, which its owner
/// makes one at a time. Its state is plain data apart from the code that works on it, and complete
/// whenever a call has returned, so it can be saved between any two calls.
///
/// All values that come from the guest (offsets, register values, descriptors) may be hostile. No
/// call may panic, allocate without bound, or loop longer than its budget; what the datasheet
/// leaves undefined is ignored.
pub trait Model: Send {
    /// The guest reads `data.len()` bytes (1, 2, 4 or 8) at `offset` of BAR `bar`.
    fn read(&mut self, bar: u8, offset: u64, data: &mut [u8], access: &Access<'_>);

    /// The guest writes `data` (1, 2, 4 or 8 bytes) at `offset` of BAR `bar`.
    fn write(&mut self, bar: u8, offset: u64, data: &[u8], access: &Access<'_>);

    /// The register accesses that came together are done. What a write begins and need not do for each
    /// by itself may be put off until here: in a row of doorbells, one word to the system for all.
    /// Nothing that the guest can see may wait for it.
    fn after_writes(&mut self, access: &Access<'_>) {
        let _ = access;
    }

    /// Returns the device to its state after power-on or a function-level reset.
    fn reset(&mut self, kind: Reset);

    /// Does work that is due: received frames, rest of a ring, an expired timer. Bounded; says
    /// when it wants to be called again.
    fn poll(&mut self, access: &Access<'_>) -> Progress;

    /// The descriptor whose readiness makes a [`poll`](Self::poll) worthwhile.
    fn poll_fd(&self) -> Option<BorrowedFd<'_>>;

    /// Whether [`poll_fd`](Self::poll_fd) is to be waited on for reading: not while the model could
    /// not take what it would bring (no buffers, halted), or its owner would spin.
    fn poll_read(&self) -> bool {
        true
    }

    /// Whether [`poll_fd`](Self::poll_fd) is to be waited on for writing too.
    fn poll_write(&self) -> bool {
        false
    }

    /// Whether a register access left something that only a [`poll`](Self::poll) finds out: rest
    /// of a ring, an earlier deadline, another answer of `poll_read` or `poll_write`. Saves the
    /// owner a wake-up per access where not.
    fn needs_poll(&self) -> bool {
        true
    }

    /// Waits until nothing is under way that the model has begun outside of itself, such as a
    /// disk's requests. What these have brought may be dropped, if the state says that they are to
    /// be done again. Called while halted, and before [`save`](Self::save).
    ///
    /// # Errors
    /// When that takes longer than the model is ready to wait.
    fn drain(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Takes what only one host may have at a time, such as a disk's file for writing. A model does
    /// not touch it before, and answers the guest as while halted until then.
    ///
    /// # Errors
    /// When somebody else has it, or may come to have it. The model must not run then.
    fn acquire(&mut self, claim: Claim<'_>) -> io::Result<()> {
        let _ = claim;
        Ok(())
    }

    /// The files among that, each opened once more, for reading: what is written back there, or forgotten of it, by
    /// somebody else beforehand need not be in [`release`](Self::release) or [`acquire`](Self::acquire).
    fn files(&self) -> Vec<File> {
        Vec::new()
    }

    /// Whether a message or a step may wait for such a file: how long that takes is for the disk to say.
    fn waits_for_files(&self) -> bool {
        false
    }

    /// Makes durable what it wrote to that, and lets go of it for the host at the other end of this
    /// migration. Called while halted and drained. Does nothing where nothing was acquired.
    ///
    /// # Errors
    /// When it cannot be made durable, or let go of: the model has it still.
    fn release(&mut self, migration: &str) -> io::Result<()> {
        let _ = migration;
        Ok(())
    }

    /// The real device that this stands for, if it does. Such a one asks for no memory and raises no
    /// interrupts through [`Access`].
    fn hardware(&mut self) -> Option<&mut dyn Hardware> {
        None
    }

    /// Whether [`save`](Self::save) has anything to say. A device whose state nobody can read is left
    /// to its driver, which starts a fresh one.
    fn has_state(&self) -> bool {
        true
    }

    /// Whether what the guest is connected with by this device can be reached: a network.
    fn has_link(&mut self) -> bool {
        true
    }

    /// The state that [`load`](Self::load) needs to go on from here on another host.
    ///
    /// # Errors
    /// When the device is in a state that cannot be carried.
    fn save(&self) -> Result<StateRecord, StateError>;

    /// Takes over a saved state, whole or not at all.
    ///
    /// # Errors
    /// When the record is of another device or version, or does not hold together.
    fn load(&mut self, record: &StateRecord) -> Result<(), StateError>;

    /// Writes the live state into `state`, as [`take_over`](Self::take_over) takes it; `false` if no other
    /// process can go on with this device. Called after every other call, and so must be quick.
    fn live(&self, state: &mut Vec<u8>) -> bool {
        let _ = state;
        false
    }

    /// Goes on from the live state that another process has left, in the same host and VM.
    ///
    /// # Errors
    /// When it is another version's, or does not hold together.
    fn take_over(&mut self, live: &[u8]) -> Result<(), StateError> {
        let _ = live;
        Err(StateError::NotReadable("device"))
    }

    /// What the guest was told by those that the device connects it with, and has to hear again when
    /// its driver has started a fresh device: a network's neighbours. Of a bounded length.
    fn heard(&self) -> Vec<Vec<u8>> {
        Vec::new()
    }

    /// Takes over what was [heard](Self::heard) by the device of another host; if `again`, the
    /// driver is told once it has started the device. May be anything.
    fn remember(&mut self, heard: &[Vec<u8>], again: bool) {
        let _ = (heard, again);
    }

    /// A count that grows whenever the device has done what it is there for: a frame sent, a command
    /// carried out; not what a driver does to start it, nor what it is told of its own accord.
    fn work_done(&self) -> u64 {
        0
    }

    /// What the model shows of itself in reports: counters, no guest data.
    fn inspect(&self) -> serde_json::Value {
        serde_json::Value::Null
    }

    /// Called once after [`load`](Self::load) when the VM is about to run here: raise interrupts
    /// that may have been lost on the way, announce addresses to the network.
    fn resume(&mut self, access: &Access<'_>);
}

/// By what right a model takes what only one host may have. A migration has a name that no other
/// has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim<'a> {
    /// The VM starts here.
    Start,
    /// It arrives by this migration, in which the source has let go.
    Arrive(&'a str),
    /// It stays, after having let go for this migration: if the other host has not taken it.
    TakeBack(&'a str),
}

/// What a model may use during one call.
#[derive(Clone, Copy)]
pub struct Access<'a> {
    /// Guest memory, or `None` while the function is not a bus master or is halted. Work that
    /// needs it stays where it is until a later [`Model::poll`].
    pub memory: Option<&'a dyn GuestMemory>,
    /// The function's interrupts.
    pub interrupts: &'a dyn Interrupts,
    /// Time.
    pub clock: &'a dyn Clock,
    /// Where the live state is to be put before the driver is told of what comes of it, if another process is
    /// to be able to go on with it.
    pub ledger: Option<&'a dyn Ledger>,
}

impl std::fmt::Debug for Access<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access")
            .field("memory", &self.memory.is_some())
            .finish_non_exhaustive()
    }
}

/// When a model wants its next [`Model::poll`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// At once: the budget of this call ran out.
    More,
    /// When its descriptor is ready, the guest writes to it, or this much time has passed.
    Idle(Option<Duration>),
}

/// What reset a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reset {
    /// The whole machine or the bus: everything, as after power-on.
    Bus,
    /// Function-level reset, asked for by the guest in configuration space.
    Function,
}
