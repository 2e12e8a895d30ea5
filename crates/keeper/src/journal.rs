//! What a conversation and what serves it have come to, in memory that outlives the process.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, SealFlags};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

use crate::layout::{BODY, MAGIC, rare, slot, word};

/// Largest state and reply that a journal may be made for.
const MAX: usize = 64 << 20;

/// How much a journal has room for. What is not used costs no memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Longest state, in bytes.
    pub state: usize,
    /// Longest of what seldom changes, in bytes.
    pub rare: usize,
    /// Longest reply, in bytes.
    pub reply: usize,
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

/// Two slots, one of which is in force. The slot in force is whole at any instant.
///
/// One process uses it at a time, and in that one thread at a time.
#[derive(Debug)]
pub struct Journal {
    file: File,
    map: MmapRegion<()>,
    limits: Limits,
}

/// A message that was carried out.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// Its length in the stream.
    pub len: u64,
    /// What is to be answered.
    pub reply: Option<&'a [u8]>,
}

/// What is in force of the conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    /// Where in the stream the last message that was carried out ends.
    pub(crate) taken: u64,
    pub(crate) messages: u64,
    /// Length of the reply to that one.
    pub(crate) reply: Option<usize>,
}

impl Journal {
    /// A new one, at the beginning of a conversation, with nothing in force.
    ///
    /// # Errors
    /// When the system refuses, or there is to be too much room.
    pub fn create(limits: Limits) -> Result<Self, JournalError> {
        fits("a journal's state", limits.state, MAX)?;
        fits("what seldom changes", limits.rare, MAX)?;
        fits("a journal's reply", limits.reply, MAX)?;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(rustix::fs::memfd_create("journal", flags).map_err(io::Error::from)?);
        file.set_len(size(limits) as u64)?;
        // Nobody who has it can make an access to the mapping a fault.
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&file, seals).map_err(io::Error::from)?;
        let journal = Self::map(file, limits)?;
        journal.set(word::MAX_STATE, limits.state as u64);
        journal.set(word::MAX_RARE, limits.rare as u64);
        journal.set(word::MAX_REPLY, limits.reply as u64);
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
        if len < BODY || !seals.contains(SealFlags::SHRINK) {
            return Err(JournalError::Unusable("it may change its length"));
        }
        let head = Self::map_len(file.try_clone()?, BODY)?;
        let read = |at| word_of(&head, at).load(Ordering::Acquire);
        let limit = |at| usize::try_from(read(at)).unwrap_or(usize::MAX);
        let limits = Limits {
            state: limit(word::MAX_STATE),
            rare: limit(word::MAX_RARE),
            reply: limit(word::MAX_REPLY),
        };
        if read(word::MAGIC) != MAGIC {
            return Err(JournalError::Unusable("another version wrote it"));
        }
        let most = limits.state.max(limits.rare).max(limits.reply);
        if most > MAX || size(limits) != len {
            return Err(JournalError::Unusable("its length is another"));
        }
        let journal = Self::map(file, limits)?;
        journal.check()?;
        Ok(journal)
    }

    /// What it has room for.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Whether anything has been put into it.
    pub fn is_empty(&self) -> bool {
        self.word(word::IN_FORCE) == 0
    }

    /// The state in force.
    pub fn state(&self) -> Vec<u8> {
        let base = self.slot(self.word(word::IN_FORCE));
        let len = self.len_at(base + slot::LENGTH, self.limits.state);
        self.bytes(base + slot::STATE, len)
    }

    /// What is in force of what seldom changes.
    pub fn rare(&self) -> Vec<u8> {
        let base = self.rare_place(self.rare_number());
        let len = self.len_at(base + rare::LENGTH, self.limits.rare);
        self.bytes(base + rare::BYTES, len)
    }

    /// Puts a state in force, and with it what seldom changes, if that has, and that `message` is carried
    /// out, if one is: all by one store.
    ///
    /// # Errors
    /// When there is no room; all is as it was then.
    pub fn put(
        &self,
        state: &[u8],
        seldom: Option<&[u8]>,
        message: Option<Message<'_>>,
    ) -> Result<(), JournalError> {
        fits("a state", state.len(), self.limits.state)?;
        let mut position = self.position();
        if let Some(Message { len, reply }) = message {
            position.taken += len;
            position.messages += 1;
            position.reply = reply.map(<[u8]>::len);
            if let Some(reply) = reply {
                fits("a reply", reply.len(), self.limits.reply)?;
                self.write(self.reply_place(position.messages), reply);
            }
        }
        let mut rare_number = self.rare_number();
        if let Some(seldom) = seldom {
            fits("what seldom changes", seldom.len(), self.limits.rare)?;
            rare_number += 1;
            let base = self.rare_place(rare_number);
            self.set(base + rare::LENGTH, seldom.len() as u64);
            self.write(base + rare::BYTES, seldom);
        }
        let number = self.word(word::IN_FORCE) + 1;
        let base = self.slot(number);
        let reply = position.reply.map_or(0, |len| len as u64 + 1);
        for (at, value) in [
            (slot::NUMBER, number),
            (slot::TAKEN, position.taken),
            (slot::MESSAGES, position.messages),
            (slot::REPLY, reply),
            (slot::RARE, rare_number),
            (slot::LENGTH, state.len() as u64),
        ] {
            self.set(base + at, value);
        }
        self.write(base + slot::STATE, state);
        self.set(word::IN_FORCE, number);
        Ok(())
    }

    /// Writes down how far its owner has come with what the state in force says that it is about to do:
    /// 1 to 3.
    pub fn set_stage(&self, stage: u8) {
        let number = self.word(word::IN_FORCE);
        self.set(word::STAGE, number << 2 | u64::from(stage & 3));
    }

    /// How far that is; 0 if nothing was written since the state was put in force.
    pub fn stage(&self) -> u8 {
        let stage = self.word(word::STAGE);
        if stage >> 2 == self.word(word::IN_FORCE) {
            stage.to_le_bytes()[0] & 3
        } else {
            0
        }
    }

    /// What is in force is behind what has come of it, and stays so: nobody is to go on from it.
    pub fn give_up(&self) {
        self.set(word::GIVEN_UP, 1);
    }

    /// A word that is its owner's, apart from all else; 0 at the beginning.
    pub fn mark(&self) -> u64 {
        self.word(word::MARK)
    }

    /// Writes that.
    pub fn set_mark(&self, mark: u64) {
        self.set(word::MARK, mark);
    }

    pub(crate) fn position(&self) -> Position {
        let base = self.slot(self.word(word::IN_FORCE));
        let reply = self.word(base + slot::REPLY);
        Position {
            taken: self.word(base + slot::TAKEN),
            messages: self.word(base + slot::MESSAGES),
            reply: reply
                .checked_sub(1)
                .and_then(|len| usize::try_from(len).ok()),
        }
    }

    /// The reply to the last message.
    pub(crate) fn reply(&self, position: Position) -> Option<Vec<u8>> {
        let len = position.reply?.min(self.limits.reply);
        Some(self.bytes(self.reply_place(position.messages), len))
    }

    pub(crate) fn word(&self, at: usize) -> u64 {
        word_of(&self.map, at).load(Ordering::Acquire)
    }

    /// Writes a word in one piece, after all that was written before.
    pub(crate) fn set(&self, at: usize, value: u64) {
        word_of(&self.map, at).store(value, Ordering::Release);
    }

    fn check(&self) -> Result<(), JournalError> {
        let number = self.word(word::IN_FORCE);
        let base = self.slot(number);
        let over = |at, limit: usize| self.word(at) > limit as u64;
        let damaged = number != self.word(base + slot::NUMBER)
            || over(base + slot::LENGTH, self.limits.state)
            || over(base + slot::REPLY, self.limits.reply + 1)
            || over(
                self.rare_place(self.rare_number()) + rare::LENGTH,
                self.limits.rare,
            );
        if self.word(word::GIVEN_UP) != 0 {
            return Err(JournalError::Unusable("its writer has given it up"));
        }
        if damaged {
            return Err(JournalError::Unusable("the slot in force is damaged"));
        }
        Ok(())
    }

    fn map(file: File, limits: Limits) -> Result<Self, JournalError> {
        let map = Self::map_len(file.try_clone()?, size(limits))?;
        Ok(Self { file, map, limits })
    }

    fn map_len(file: File, len: usize) -> Result<MmapRegion<()>, JournalError> {
        MmapRegion::from_file(FileOffset::new(file, 0), len)
            .map_err(|error| io::Error::other(error).into())
    }

    fn rare_number(&self) -> u64 {
        self.word(self.slot(self.word(word::IN_FORCE)) + slot::RARE)
    }

    fn len_at(&self, at: usize, limit: usize) -> usize {
        usize::try_from(self.word(at)).map_or(limit, |len| len.min(limit))
    }

    fn slot(&self, number: u64) -> usize {
        BODY + odd(number) * slot_room(self.limits)
    }

    fn rare_place(&self, number: u64) -> usize {
        BODY + 2 * slot_room(self.limits) + odd(number) * rare_room(self.limits)
    }

    fn reply_place(&self, number: u64) -> usize {
        let before = 2 * slot_room(self.limits) + 2 * rare_room(self.limits);
        BODY + before + odd(number) * room(self.limits.reply)
    }

    fn bytes(&self, at: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let place = self.map.get_slice(at, len).expect("within the mapping");
        place.copy_to(&mut bytes);
        bytes
    }

    fn write(&self, at: usize, bytes: &[u8]) {
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

fn odd(number: u64) -> usize {
    usize::from(!number.is_multiple_of(2))
}

/// Each on cache lines of its own.
fn room(len: usize) -> usize {
    len.next_multiple_of(64)
}

fn slot_room(limits: Limits) -> usize {
    room(slot::STATE + limits.state)
}

fn rare_room(limits: Limits) -> usize {
    room(rare::BYTES + limits.rare)
}

fn size(limits: Limits) -> usize {
    BODY + 2 * (slot_room(limits) + rare_room(limits) + room(limits.reply))
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
        state: 50,
        rare: 20,
        reply: 30,
    };

    fn reopened(journal: &Journal) -> Result<Journal, JournalError> {
        Journal::open(journal.file.try_clone().unwrap().into())
    }

    fn message(len: u64, reply: Option<&[u8]>) -> Message<'_> {
        Message { len, reply }
    }

    #[test]
    fn all_that_is_put_counts_from_one_store_on() {
        let journal = Journal::create(LIMITS).unwrap();
        assert!(reopened(&journal).unwrap().is_empty());
        journal.put(b"old", Some(b"rare"), None).unwrap();
        journal
            .put(b"new", Some(b"else"), Some(message(16, Some(b"yes"))))
            .unwrap();
        // As if the process had died just before that store.
        journal.set(word::IN_FORCE, 1);
        let found = reopened(&journal).unwrap();
        assert_eq!(
            (found.state(), found.rare()),
            (b"old".into(), b"rare".into())
        );
        assert_eq!(
            (found.position().taken, found.reply(found.position())),
            (0, None)
        );
        journal.set(word::IN_FORCE, 2);
        let found = reopened(&journal).unwrap();
        assert_eq!(
            (found.state(), found.rare()),
            (b"new".into(), b"else".into())
        );
        let position = found.position();
        assert_eq!((position.taken, position.messages), (16, 1));
        assert_eq!(found.reply(position).as_deref(), Some(&b"yes"[..]));
    }

    #[test]
    fn what_is_not_put_anew_stays() {
        let journal = Journal::create(LIMITS).unwrap();
        journal
            .put(b"one", Some(b"rare"), Some(message(7, Some(b""))))
            .unwrap();
        journal.put(b"two", None, None).unwrap();
        journal.put(b"three", None, None).unwrap();
        let position = journal.position();
        assert_eq!(
            (journal.state(), journal.rare()),
            (b"three".into(), b"rare".into())
        );
        assert_eq!(journal.reply(position).as_deref(), Some(&b""[..]));
    }

    #[test]
    fn a_stage_is_of_the_state_that_it_was_written_for() {
        let journal = Journal::create(LIMITS).unwrap();
        journal.put(b"", None, None).unwrap();
        journal.set_stage(2);
        assert_eq!(reopened(&journal).unwrap().stage(), 2);
        journal.put(b"", None, None).unwrap();
        assert_eq!(journal.stage(), 0);
    }

    #[test]
    fn what_was_given_up_is_refused() {
        let journal = Journal::create(LIMITS).unwrap();
        journal.put(b"old", None, None).unwrap();
        journal.give_up();
        assert!(matches!(reopened(&journal), Err(JournalError::Unusable(_))));
    }

    #[test]
    fn what_is_damaged_is_refused() {
        let damage = |at, value| {
            let journal = Journal::create(LIMITS).unwrap();
            journal.put(b"state", Some(b"rare"), None).unwrap();
            let at = at + if at < BODY { 0 } else { slot_room(LIMITS) };
            journal.set(at, value);
            reopened(&journal).map(drop)
        };
        assert!(damage(word::MARK, 5).is_ok());
        for at in [slot::LENGTH, slot::NUMBER, slot::REPLY] {
            assert!(damage(BODY + at, u64::MAX).is_err());
        }
        assert!(damage(word::MAX_STATE, 1 << 20).is_err());
        let file = rustix::fs::memfd_create("none", MemfdFlags::CLOEXEC).unwrap();
        assert!(Journal::open(file).is_err());
    }

    #[test]
    fn there_is_no_more_room_than_there_is() {
        let journal = Journal::create(LIMITS).unwrap();
        journal.put(&[1; 50], Some(&[2; 20]), None).unwrap();
        assert!(journal.put(&[0; 51], None, None).is_err());
        assert!(journal.put(b"", Some(&[0; 21]), None).is_err());
        assert!(
            journal
                .put(b"", None, Some(message(1, Some(&[0; 31]))))
                .is_err()
        );
        assert_eq!(journal.state(), [1; 50]);
    }
}
