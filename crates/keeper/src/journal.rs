//! What a conversation has come to, in memory that outlives the process.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, SealFlags};
use vm_memory::{FileOffset, MmapRegion, ReadVolatile, VolatileMemory};

use crate::MAX_REPLY;
use crate::layout::{INBOX, MAGIC, slot, word};

/// Largest request and state that a journal may be made for.
const MAX: usize = 64 << 20;

/// How much a journal has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Longest request, in bytes.
    pub request: usize,
    /// Longest saved state, in bytes.
    pub state: usize,
}

/// Why there is no journal, or nothing more goes in.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The system has no memory or descriptor left.
    #[error("the journal's memory: {0}")]
    System(#[from] io::Error),
    /// It is none, of another version, or damaged.
    #[error(
        "this is no journal that can be gone on with ({0}): end the VM's QEMU and start both anew"
    )]
    Unusable(&'static str),
    /// There is no room.
    #[error("{what} of {len} bytes does not go into a journal with room for {room}")]
    TooLong {
        /// What is too long.
        what: &'static str,
        /// Its length.
        len: usize,
        /// What there is room for.
        room: usize,
    },
}

/// Two slots, one of which is in force, and an inbox. The slot in force is whole at any instant.
///
/// One process uses it at a time.
#[derive(Debug)]
pub struct Journal {
    file: File,
    map: MmapRegion<()>,
    limits: Limits,
}

/// What a slot holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) number: u64,
    pub(crate) taken: u64,
    pub(crate) state: Vec<u8>,
    pub(crate) reply: Option<Vec<u8>>,
}

impl Journal {
    /// A new one, at the beginning of a conversation, with `state` in force.
    ///
    /// # Errors
    /// When the system refuses, or `state` is too long.
    pub fn create(limits: Limits, state: &[u8]) -> Result<Self, JournalError> {
        fits("a journal's request", limits.request, MAX)?;
        fits("a journal's state", limits.state, MAX)?;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(rustix::fs::memfd_create("journal", flags).map_err(io::Error::from)?);
        file.set_len(size(limits) as u64)?;
        // Nobody who has it can make an access to the mapping a fault.
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&file, seals).map_err(io::Error::from)?;
        let journal = Self::map(file, limits)?;
        journal.set(word::MAX_REQUEST, limits.request as u64);
        journal.set(word::MAX_STATE, limits.state as u64);
        // The number of no slot, so that the slots' first number is 1 and an intent is void.
        journal.set(word::INTENT_AT, u64::MAX);
        journal.write(&journal.next(0, 0, state, None)?);
        journal.put_in_force(1);
        journal.set(word::MAGIC, MAGIC);
        Ok(journal)
    }

    /// One that another process has left.
    ///
    /// # Errors
    /// When it cannot be gone on with.
    pub fn open(fd: OwnedFd) -> Result<Self, JournalError> {
        let file = File::from(fd);
        let len = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
        let seals = rustix::fs::fcntl_get_seals(&file).map_err(io::Error::from)?;
        if len < INBOX || !seals.contains(SealFlags::SHRINK) {
            return Err(JournalError::Unusable("it may change its length"));
        }
        let head = Self::map_len(file.try_clone()?, INBOX)?;
        let read = |at| word_of(&head, at).load(Ordering::Acquire);
        let limit = |at| usize::try_from(read(at)).unwrap_or(usize::MAX);
        let limits = Limits {
            request: limit(word::MAX_REQUEST),
            state: limit(word::MAX_STATE),
        };
        if read(word::MAGIC) != MAGIC {
            return Err(JournalError::Unusable("another version wrote it"));
        }
        if limits.request > MAX || limits.state > MAX || size(limits) != len {
            return Err(JournalError::Unusable("its length is another"));
        }
        let journal = Self::map(file, limits)?;
        journal.in_force()?;
        Ok(journal)
    }

    /// What it has room for.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    fn map(file: File, limits: Limits) -> Result<Self, JournalError> {
        let map = Self::map_len(file.try_clone()?, size(limits))?;
        Ok(Self { file, map, limits })
    }

    fn map_len(file: File, len: usize) -> Result<MmapRegion<()>, JournalError> {
        MmapRegion::from_file(FileOffset::new(file, 0), len)
            .map_err(|error| io::Error::other(error).into())
    }

    pub(crate) fn word(&self, at: usize) -> u64 {
        word_of(&self.map, at).load(Ordering::Acquire)
    }

    /// Writes a word in one piece, after all that was written before.
    pub(crate) fn set(&self, at: usize, value: u64) {
        word_of(&self.map, at).store(value, Ordering::Release);
    }

    /// The outcome of the last request.
    pub(crate) fn in_force(&self) -> Result<Outcome, JournalError> {
        let number = self.word(word::IN_FORCE);
        let base = self.slot(number);
        let lengths = self.word(base + slot::LENGTHS);
        let state = usize::try_from(lengths & u64::from(u32::MAX)).unwrap_or(usize::MAX);
        let reply = usize::try_from(lengths >> 32).unwrap_or(usize::MAX);
        let damaged = JournalError::Unusable("the slot in force is damaged");
        if state > self.limits.state || reply > MAX_REPLY + 1 {
            return Err(damaged);
        }
        let body = base + slot::BODY;
        let outcome = Outcome {
            number: self.word(base + slot::NUMBER),
            taken: self.word(base + slot::TAKEN),
            state: self.bytes(body, state),
            reply: reply
                .checked_sub(1)
                .map(|len| self.bytes(body + state, len)),
        };
        let whole = u64::from(outcome.check()) == self.word(base + slot::CHECK);
        if !whole || outcome.number != number {
            return Err(damaged);
        }
        Ok(outcome)
    }

    /// The outcome of a request that ends where `taken` bytes of the stream have been taken.
    pub(crate) fn next(
        &self,
        number: u64,
        taken: u64,
        state: &[u8],
        reply: Option<&[u8]>,
    ) -> Result<Outcome, JournalError> {
        fits("a state", state.len(), self.limits.state)?;
        fits("a reply", reply.map_or(0, <[u8]>::len), MAX_REPLY)?;
        Ok(Outcome {
            number: number + 1,
            taken,
            state: state.to_vec(),
            reply: reply.map(<[u8]>::to_vec),
        })
    }

    /// Writes the slot that is not in force.
    pub(crate) fn write(&self, outcome: &Outcome) {
        let base = self.slot(outcome.number);
        self.set(base + slot::NUMBER, outcome.number);
        self.set(base + slot::TAKEN, outcome.taken);
        self.set(base + slot::LENGTHS, outcome.lengths());
        self.set(base + slot::CHECK, u64::from(outcome.check()));
        let body = base + slot::BODY;
        self.put(body, &outcome.state);
        self.put(
            body + outcome.state.len(),
            outcome.reply.as_deref().unwrap_or_default(),
        );
    }

    /// From this store on, that slot counts.
    pub(crate) fn put_in_force(&self, number: u64) {
        self.set(word::IN_FORCE, number);
    }

    /// Bytes `at..at + len` of the inbox, which are within it.
    pub(crate) fn inbox(&self, at: usize, len: usize) -> Vec<u8> {
        self.bytes(INBOX + at, len)
    }

    pub(crate) fn put_inbox(&self, at: usize, byte: u8) {
        self.put(INBOX + at, &[byte]);
    }

    /// One `read` right into bytes `at..at + len` of the inbox.
    pub(crate) fn read_inbox(
        &self,
        mut from: BorrowedFd<'_>,
        at: usize,
        len: usize,
    ) -> io::Result<usize> {
        let mut place = self
            .map
            .get_slice(INBOX + at, len)
            .map_err(io::Error::other)?;
        from.read_volatile(&mut place).map_err(io::Error::other)
    }

    fn slot(&self, number: u64) -> usize {
        let room = slot_room(self.limits);
        INBOX
            + self.limits.request.next_multiple_of(8)
            + if number.is_multiple_of(2) { 0 } else { room }
    }

    fn bytes(&self, at: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let place = self.map.get_slice(at, len).expect("within the mapping");
        place.copy_to(&mut bytes);
        bytes
    }

    fn put(&self, at: usize, bytes: &[u8]) {
        let place = self
            .map
            .get_slice(at, bytes.len())
            .expect("within the mapping");
        place.copy_from(bytes);
    }
}

impl AsFd for Journal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Outcome {
    fn lengths(&self) -> u64 {
        let reply = self.reply.as_ref().map_or(0, |reply| reply.len() + 1);
        self.state.len() as u64 | (reply as u64) << 32
    }

    fn check(&self) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        for word in [self.number, self.taken, self.lengths()] {
            hasher.update(&word.to_le_bytes());
        }
        hasher.update(&self.state);
        hasher.update(self.reply.as_deref().unwrap_or_default());
        hasher.finalize()
    }
}

fn size(limits: Limits) -> usize {
    INBOX + limits.request.next_multiple_of(8) + 2 * slot_room(limits)
}

fn slot_room(limits: Limits) -> usize {
    (slot::BODY + limits.state + MAX_REPLY).next_multiple_of(8)
}

fn fits(what: &'static str, len: usize, room: usize) -> Result<(), JournalError> {
    if len > room {
        return Err(JournalError::TooLong { what, len, room });
    }
    Ok(())
}

fn word_of(map: &MmapRegion<()>, at: usize) -> &AtomicU64 {
    map.get_atomic_ref(at)
        .expect("within the mapping, and aligned")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        request: 100,
        state: 50,
    };

    fn reopened(journal: &Journal) -> Result<Journal, JournalError> {
        Journal::open(journal.file.try_clone().unwrap().into())
    }

    #[test]
    fn a_slot_counts_from_the_one_store_on_that_puts_it_in_force() {
        let journal = Journal::create(LIMITS, b"old").unwrap();
        let next = journal.next(1, 16, b"new", Some(b"yes")).unwrap();
        journal.write(&next);
        let found = reopened(&journal).unwrap().in_force().unwrap();
        assert_eq!((&*found.state, found.reply), (&b"old"[..], None));
        journal.put_in_force(2);
        assert_eq!(reopened(&journal).unwrap().in_force().unwrap(), next);
    }

    #[test]
    fn no_reply_and_an_empty_one_are_two_things() {
        let journal = Journal::create(LIMITS, b"").unwrap();
        let next = journal.next(1, 16, b"", Some(b"")).unwrap();
        journal.write(&next);
        journal.put_in_force(2);
        assert_eq!(journal.in_force().unwrap().reply.as_deref(), Some(&b""[..]));
    }

    #[test]
    fn what_is_damaged_is_refused() {
        let journal = Journal::create(LIMITS, b"state").unwrap();
        journal.put(journal.slot(1) + slot::BODY, b"S");
        assert!(matches!(reopened(&journal), Err(JournalError::Unusable(_))));
        let journal = Journal::create(LIMITS, b"state").unwrap();
        journal.set(journal.slot(1) + slot::LENGTHS, u64::MAX);
        assert!(matches!(reopened(&journal), Err(JournalError::Unusable(_))));
        let journal = Journal::create(LIMITS, b"state").unwrap();
        journal.set(word::MAX_STATE, 1 << 20);
        assert!(matches!(reopened(&journal), Err(JournalError::Unusable(_))));
        let file = rustix::fs::memfd_create("none", MemfdFlags::CLOEXEC).unwrap();
        assert!(Journal::open(file).is_err());
    }

    #[test]
    fn there_is_no_more_room_than_there_is() {
        let journal = Journal::create(LIMITS, &[0; 50]).unwrap();
        assert!(journal.next(1, 0, &[0; 51], None).is_err());
        assert!(journal.next(1, 0, b"", Some(&[0; MAX_REPLY + 1])).is_err());
        assert!(Journal::create(LIMITS, &[0; 51]).is_err());
    }
}
