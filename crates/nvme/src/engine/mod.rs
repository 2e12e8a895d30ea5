//! Who carries out operations on backings, several at a time if it can.
//!
//! What is begun ends at any later time, in any order. An operation's number is never used again, so
//! that one that ends late is not taken for another.

mod ring;

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use crate::backing::Backing;

pub use ring::Ring;

/// Most operations under way at a time.
pub const PLACES: usize = 16;

/// What is to be done with a backing, in bytes within it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Fill the first `len` bytes of the buffer from `offset` on.
    Read {
        /// Where in the backing.
        offset: u64,
        /// At most as much as the buffer holds.
        len: usize,
    },
    /// Write the first `len` bytes of the buffer at `offset`.
    Write {
        /// Where in the backing.
        offset: u64,
        /// At most as much as the buffer holds.
        len: usize,
    },
    /// Make durable what was written by operations that have ended.
    Flush,
    /// Make a range read as zeros. See [`Backing::zero`].
    Zero {
        /// Where in the backing.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Give back its room.
        deallocate: bool,
    },
}

/// An operation to be begun.
#[derive(Debug)]
pub struct Request {
    /// Its number.
    pub id: u64,
    /// The backing's index.
    pub backing: usize,
    /// What is to be done.
    pub operation: Operation,
    /// The data. It belongs to the operation until that has ended.
    pub buffer: Vec<u8>,
}

/// An operation that has ended.
#[derive(Debug)]
pub struct Finished {
    /// Its number.
    pub id: u64,
    /// How it went. [`Unsupported`](io::ErrorKind::Unsupported) says that there is no way to zero
    /// a range but to write, and that nothing was done.
    pub result: io::Result<()>,
    /// The request's buffer.
    pub buffer: Vec<u8>,
}

/// Who carries out operations.
pub trait Engine: Send {
    /// Begins an operation. It may have to be [submitted](Self::submit).
    fn begin(&mut self, request: Request, backing: &dyn Backing);

    /// Hands on all that was begun. `false` if that is to be tried again, a little later.
    fn submit(&mut self) -> bool {
        true
    }

    /// What operators know it by.
    fn name(&self) -> &'static str {
        "synchronous"
    }

    /// An operation that has ended.
    fn finished(&mut self) -> Option<Finished>;

    /// Waits until one has ended; `false` if none has within this time.
    fn wait(&mut self, timeout: Duration) -> bool;

    /// Readable when an operation has ended since the last [`clear`](Self::clear).
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Makes the descriptor unreadable. What has ended is to be looked for after it.
    fn clear(&mut self) {}
}

/// The system's ring where there is one, else one operation after the other.
pub fn best() -> Box<dyn Engine> {
    match Ring::new() {
        Ok(ring) => Box::new(ring),
        // Old, or forbidden: containers often are not given it.
        Err(_) => Box::new(Synchronous::default()),
    }
}

/// One operation after the other: each has ended when it was begun.
#[derive(Debug, Default)]
pub struct Synchronous(VecDeque<Finished>);

impl Engine for Synchronous {
    fn begin(&mut self, request: Request, backing: &dyn Backing) {
        self.0.push_back(perform(request, backing));
    }

    fn finished(&mut self) -> Option<Finished> {
        self.0.pop_front()
    }

    fn wait(&mut self, _timeout: Duration) -> bool {
        !self.0.is_empty()
    }
}

/// Carries out an operation and waits for its end.
pub fn perform(request: Request, backing: &dyn Backing) -> Finished {
    let Request {
        id,
        operation,
        mut buffer,
        ..
    } = request;
    let too_short = || io::Error::from(io::ErrorKind::InvalidInput);
    let result = match operation {
        Operation::Read { offset, len } => match buffer.get_mut(..len) {
            Some(data) => backing.read(offset, data),
            None => Err(too_short()),
        },
        Operation::Write { offset, len } => match buffer.get(..len) {
            Some(data) => backing.write(offset, data),
            None => Err(too_short()),
        },
        Operation::Flush => backing.flush(),
        Operation::Zero {
            offset,
            len,
            deallocate,
        } => match backing.zero(offset, len, deallocate) {
            Ok(false) => Err(io::ErrorKind::Unsupported.into()),
            result => result.map(|_| ()),
        },
    };
    Finished { id, result, buffer }
}
