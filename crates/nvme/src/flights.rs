//! Operations on backings that are under way, and for whom.
//!
//! They are not part of the state: whoever loses them does them again. What for an operation was
//! begun may end sooner than the operation does (a reset of the controller, a loaded state); then
//! it is nobody's, its result is dropped, and no other is begun before it has ended: else what an
//! old write wrote might lie over what a newer one did.
//!
//! An error of a write is not dropped with the rest. The system tells once of what did not reach
//! the disk, and calls the next attempt to make it durable a success. What nobody was there to be
//! told is kept, until the guest is told in place of such a success.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use crate::backing::Backing;
use crate::engine::{Engine, Finished, Operation, PLACES, Request};
use crate::state::MAX_NAMESPACES;

/// Bytes of a buffer, and so of one operation with data.
pub(crate) const BUFFER: usize = 256 << 10;

/// For whom an operation is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    /// The command in this slot of the state.
    Command(usize),
    /// The shutdown of the controller.
    Shutdown,
    /// Nobody any more.
    Nobody,
}

/// An operation that was begun.
struct Flight {
    id: u64,
    owner: Owner,
    backing: usize,
    operation: Operation,
    /// Its end, once it is known.
    end: Option<Finished>,
}

/// An operation that has ended.
pub(crate) struct Landed {
    pub(crate) owner: Owner,
    pub(crate) backing: usize,
    pub(crate) operation: Operation,
    pub(crate) result: io::Result<()>,
    pub(crate) buffer: Vec<u8>,
}

/// All operations under way, at most [`PLACES`].
pub(crate) struct Flights {
    engine: Box<dyn Engine>,
    list: Vec<Flight>,
    /// Buffers to be used again, as many as were ever needed at a time.
    buffers: Vec<Vec<u8>>,
    /// Never used twice: 64 bits do not run out.
    next_id: u64,
    /// Backings that have failed to write or to make durable, which the guest does not know: one
    /// bit for each. It outlasts every reset, as what is lost does.
    flush_failed: u32,
}

const _: () = assert!(MAX_NAMESPACES <= 32, "each backing has its bit");

impl Flights {
    pub(crate) fn new(engine: Box<dyn Engine>) -> Self {
        Self {
            engine,
            list: Vec::with_capacity(PLACES),
            buffers: Vec::new(),
            next_id: 0,
            flush_failed: 0,
        }
    }

    /// Whether one more may be begun.
    pub(crate) fn has_place(&self) -> bool {
        let nobodys = |flight: &Flight| flight.owner == Owner::Nobody;
        self.list.len() < PLACES && !self.list.iter().any(nobodys)
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Whether one is under way for `owner`.
    pub(crate) fn has(&self, owner: Owner) -> bool {
        self.list.iter().any(|flight| flight.owner == owner)
    }

    /// A buffer of [`BUFFER`] bytes, with anything in it.
    pub(crate) fn buffer(&mut self) -> Vec<u8> {
        self.buffers.pop().unwrap_or_else(|| vec![0; BUFFER])
    }

    /// Gives back a buffer.
    pub(crate) fn recycle(&mut self, buffer: Vec<u8>) {
        if buffer.len() == BUFFER && self.buffers.len() < PLACES {
            self.buffers.push(buffer);
        }
    }

    /// Begins an operation on the backing of this index.
    pub(crate) fn begin(
        &mut self,
        owner: Owner,
        operation: Operation,
        buffer: Vec<u8>,
        (index, backing): (usize, &dyn Backing),
    ) {
        let id = self.next_id;
        self.next_id += 1;
        self.list.push(Flight {
            id,
            owner,
            backing: index,
            operation,
            end: None,
        });
        let request = Request {
            id,
            backing: index,
            operation,
            buffer,
        };
        self.engine.begin(request, backing);
    }

    /// Hands on what was begun; `false` if that is to be tried again.
    pub(crate) fn submit(&mut self) -> bool {
        self.engine.submit()
    }

    /// Takes note of what has ended; says whether anything has. What is nobody's goes.
    pub(crate) fn collect(&mut self) -> bool {
        let mut any = false;
        while let Some(finished) = self.engine.finished() {
            any = true;
            let mut flights = self.list.iter_mut();
            match flights.find(|flight| flight.id == finished.id) {
                Some(flight) => flight.end = Some(finished),
                None => self.recycle(finished.buffer),
            }
        }
        while let Some(landed) = self.land(|owner| owner == Owner::Nobody) {
            self.drop_unseen(landed);
        }
        any
    }

    /// Drops what nobody is told of, but for an error that only the next flush can tell.
    pub(crate) fn drop_unseen(&mut self, landed: Landed) {
        let failed = match (&landed.result, landed.operation) {
            (Ok(()), _) | (_, Operation::Read { .. }) => false,
            (Err(error), Operation::Zero { .. }) => error.kind() != io::ErrorKind::Unsupported,
            (Err(_), Operation::Write { .. } | Operation::Flush) => true,
        };
        if failed {
            self.keep_failure(landed.backing);
        }
        self.recycle(landed.buffer);
    }

    /// The guest is to be told that this backing could not make durable what it should have.
    pub(crate) fn keep_failure(&mut self, backing: usize) {
        self.flush_failed |= 1 << backing;
    }

    /// Backings with such a failure, one bit for each.
    pub(crate) fn failures(&self) -> u32 {
        self.flush_failed
    }

    /// Whether there is such a failure that the guest does not know of.
    pub(crate) fn has_failure(&self, backing: usize) -> bool {
        self.flush_failed & 1 << backing != 0
    }

    /// The same, for who tells it now.
    pub(crate) fn take_failure(&mut self, backing: usize) -> bool {
        let failed = self.has_failure(backing);
        self.flush_failed &= !(1 << backing);
        failed
    }

    /// Takes one that has ended, of an owner who can take it now.
    pub(crate) fn land(&mut self, takes: impl Fn(Owner) -> bool) -> Option<Landed> {
        let ended = |flight: &Flight| flight.end.is_some() && takes(flight.owner);
        let at = self.list.iter().position(ended)?;
        let Flight {
            owner,
            backing,
            operation,
            end,
            ..
        } = self.list.remove(at);
        let Finished { result, buffer, .. } = end?;
        Some(Landed {
            owner,
            backing,
            operation,
            result,
            buffer,
        })
    }

    /// Nobody waits any more for those of these owners.
    pub(crate) fn disown(&mut self, whose: impl Fn(Owner) -> bool) {
        for flight in &mut self.list {
            if whose(flight.owner) {
                flight.owner = Owner::Nobody;
            }
        }
    }

    /// Waits until nothing is under way; the results are dropped, also if it takes too long, but for
    /// errors of what was written.
    pub(crate) fn drain(
        &mut self,
        timeout: Duration,
        backings: &[Box<dyn Backing>],
    ) -> io::Result<()> {
        let deadline = Instant::now() + timeout;
        self.disown(|_| true);
        loop {
            self.collect();
            let Some(flight) = self.list.first() else {
                return Ok(());
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if !self.engine.wait(left) {
                let name = backings.get(flight.backing).map(|backing| backing.name());
                let why = format!(
                    "{} does not answer: {} operations on this device's disks have been under way \
                     for {timeout:?}. Find out what its file system or block device waits for",
                    name.unwrap_or_default(),
                    self.list.len(),
                );
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
        }
    }

    pub(crate) fn engine_name(&self) -> &'static str {
        self.engine.name()
    }

    pub(crate) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.engine.descriptor()
    }

    pub(crate) fn clear(&mut self) {
        self.engine.clear();
    }
}
