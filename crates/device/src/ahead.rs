//! What is written down before it is done, so that another process can go on where this one dies.
//!
//! A driver that finds a descriptor done takes it and may reuse it at once. So a model that dies amid a
//! row of descriptors leaves a successor that must know exactly which of them the driver has been given.
//! The state as it is afterwards is put into a [`Ledger`] first, with the [`Writes`] that make it so; then they
//! are made; and a successor makes what is missing of them:
//!
//! | the ledger's [`Stage`] | the driver has seen | a successor |
//! |---|---|---|
//! | `Begun` | nothing | makes all writes |
//! | `Signalling` | any of the words that tell it | stores those that still hold what was put there before |
//! | `Done` | all | does nothing |
//!
//! What is put there before is no sign to the driver, and nothing that it would write there by itself.
//! Where the driver never writes, and reads a word only once (a queue of completions), the word itself can be
//! stored again, and is no [signal](Writes::signal_u64).

use crate::memory::{DmaError, GuestMemory};

/// Where a model's live state is put down. What is put is in force at once, and wholly.
pub trait Ledger {
    /// `state` is in force, but for `writes`, which are about to be made: [`Stage::Begun`].
    fn put(&self, state: &[u8], writes: &Writes);

    /// How far they are made.
    fn set_stage(&self, stage: Stage);
}

/// How far [`Writes`] have been made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Some that tell the driver nothing may have been.
    Begun,
    /// Some that tell it may have been.
    Signalling,
    /// All were.
    Done,
}

/// Words of guest memory that are about to be written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Writes {
    plain: Vec<Word>,
    /// What is in its place before, and the word itself.
    signals: Vec<(u64, Word)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Word {
    address: u64,
    value: u64,
    /// Eight bytes, else four.
    is_long: bool,
}

/// Bytes of a word in [`Writes::encode`].
const WORD: usize = 24;

impl Writes {
    /// No model tells of more at once.
    pub const MAX_WORDS: usize = 256;

    /// How many words there are.
    pub fn len(&self) -> usize {
        self.plain.len() + self.signals.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// None.
    pub fn clear(&mut self) {
        self.plain.clear();
        self.signals.clear();
    }

    /// Eight bytes that tell the driver nothing by themselves, or can be stored again.
    pub fn store_u64(&mut self, address: u64, value: u64) {
        self.plain.push(Word {
            address,
            value,
            is_long: true,
        });
    }

    /// Four bytes that can be stored again at any time.
    pub fn store_u32(&mut self, address: u64, value: u32) {
        self.plain.push(Word {
            address,
            value: value.into(),
            is_long: false,
        });
    }

    /// Eight bytes that tell the driver. `before` does not, and is never there otherwise.
    pub fn signal_u64(&mut self, address: u64, before: u64, value: u64) {
        let word = Word {
            address,
            value,
            is_long: true,
        };
        self.signals.push((before, word));
    }

    /// The same, four bytes.
    pub fn signal_u32(&mut self, address: u64, before: u32, value: u32) {
        let word = Word {
            address,
            value: value.into(),
            is_long: false,
        };
        self.signals.push((before.into(), word));
    }

    /// Makes them, after `state`, which comes of them, was put into the ledger, if there is one.
    ///
    /// # Errors
    /// When one cannot be; those after it are not made.
    pub fn make(
        &self,
        memory: &dyn GuestMemory,
        ledger: Option<&dyn Ledger>,
        state: &[u8],
    ) -> Result<(), DmaError> {
        if let Some(ledger) = ledger {
            ledger.put(state, self);
        }
        let made = self.make_put(memory, ledger);
        if let Some(ledger) = ledger {
            ledger.set_stage(Stage::Done);
        }
        made
    }

    fn make_put(
        &self,
        memory: &dyn GuestMemory,
        ledger: Option<&dyn Ledger>,
    ) -> Result<(), DmaError> {
        for word in &self.plain {
            word.store(memory)?;
        }
        if let Some(ledger) = ledger {
            for (before, word) in &self.signals {
                let value = *before;
                Word { value, ..*word }.store(memory)?;
            }
            ledger.set_stage(Stage::Signalling);
        }
        self.signals
            .iter()
            .try_for_each(|(_, word)| word.store(memory))
    }

    /// Makes what a process that died at `stage` has left undone, as far as `ledger` said.
    ///
    /// # Errors
    /// When one cannot be made.
    pub fn finish(
        &self,
        memory: &dyn GuestMemory,
        stage: Stage,
        ledger: &dyn Ledger,
    ) -> Result<(), DmaError> {
        let finished = match stage {
            Stage::Begun => self.make_put(memory, Some(ledger)),
            Stage::Done => return Ok(()),
            Stage::Signalling => self.signals.iter().try_for_each(|(before, word)| {
                if word.load(memory)? == *before {
                    word.store(memory)?;
                }
                Ok(())
            }),
        };
        ledger.set_stage(Stage::Done);
        finished
    }

    /// Appends them to `bytes`.
    pub fn encode(&self, bytes: &mut Vec<u8>) {
        let counts = [self.plain.len() as u64, self.signals.len() as u64];
        let plain = self.plain.iter().map(|word| (0, word));
        let signals = self.signals.iter().map(|(before, word)| (*before, word));
        bytes.extend(counts.into_iter().flat_map(u64::to_le_bytes));
        for (before, word) in plain.chain(signals) {
            // Addresses are even.
            let place = word.address | u64::from(word.is_long);
            for part in [place, word.value, before] {
                bytes.extend(part.to_le_bytes());
            }
        }
    }

    /// What was encoded; `None` if it was not.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let number = |at: usize| {
            let bytes = bytes.get(at..at.checked_add(8)?)?;
            Some(u64::from_le_bytes(bytes.try_into().ok()?))
        };
        let count = |at| {
            usize::try_from(number(at)?)
                .ok()
                .filter(|n| *n <= Self::MAX_WORDS)
        };
        let (plain, signals) = (count(0)?, count(8)?);
        let word = |index: usize| {
            let at = 16 + index * WORD;
            let (place, value, before) = (number(at)?, number(at + 8)?, number(at + 16)?);
            let word = Word {
                address: place & !1,
                value,
                is_long: place & 1 != 0,
            };
            Some((before, word))
        };
        let all: Vec<_> = (0..plain + signals).map(word).collect::<Option<_>>()?;
        let (first, rest) = all.split_at(plain);
        Some(Self {
            plain: first.iter().map(|(_, word)| *word).collect(),
            signals: rest.to_vec(),
        })
    }
}

/// What a driver is about to be told, and the state that comes of it; kept to be used again.
#[derive(Debug, Default)]
pub struct Ahead {
    /// What is to be written.
    pub writes: Writes,
    state: Vec<u8>,
}

impl Ahead {
    /// Makes the writes, after the state that comes of them, which `live` writes, was put into the ledger, if
    /// there is one.
    ///
    /// # Errors
    /// See [`Writes::make`].
    pub fn make(
        &mut self,
        live: impl FnOnce(&mut Vec<u8>),
        memory: &dyn GuestMemory,
        ledger: Option<&dyn Ledger>,
    ) -> Result<(), DmaError> {
        self.state.clear();
        if ledger.is_some() {
            live(&mut self.state);
        }
        self.writes.make(memory, ledger, &self.state)
    }
}

impl Word {
    fn store(&self, memory: &dyn GuestMemory) -> Result<(), DmaError> {
        let Self { address, value, .. } = *self;
        match u32::try_from(value) {
            Ok(value) if !self.is_long => memory.store_u32(address, value),
            _ => memory.store_u64(address, value),
        }
    }

    fn load(&self, memory: &dyn GuestMemory) -> Result<u64, DmaError> {
        let mut bytes = [0; 8];
        let len = if self.is_long { 8 } else { 4 };
        memory.read(self.address, &mut bytes[..len])?;
        Ok(u64::from_le_bytes(bytes))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{FlatMemory, Mortal};

    fn word(memory: &FlatMemory, at: u64) -> u64 {
        let mut bytes = [0; 8];
        memory.read(at, &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    }

    fn writes() -> Writes {
        let mut writes = Writes::default();
        writes.store_u64(0, 0x11);
        writes.store_u64(24, 0x22);
        writes.store_u32(64, 0x55);
        writes.signal_u64(8, 0xbe, 0x33);
        writes.signal_u32(44, 0xbf, 0x44);
        writes
    }

    #[test]
    fn whenever_the_process_dies_all_is_done_once_or_nothing_was() {
        // Put, three plain, two before, a stage, two signals, a stage.
        for left in 0..=10 {
            // The driver refills what it has been told of, at once and before the successor is there.
            for driver_is_fast in [false, true] {
                let memory = Arc::new(FlatMemory::new(0, 128));
                let mortal = Mortal::new(Arc::clone(&memory), left);
                writes().make(&mortal, Some(&mortal), b"").unwrap();
                let memory = &*memory;
                let told = word(memory, 8) == 0x33;
                if told && driver_is_fast {
                    memory.store_u64(0, 0x77).unwrap();
                    memory.store_u64(8, 0).unwrap();
                }
                let Some(entry) = mortal.entry() else {
                    assert_eq!((left, word(memory, 0)), (0, 0));
                    continue;
                };
                let mut put = Vec::new();
                entry.writes.encode(&mut put);
                let found = Writes::decode(&put).unwrap();
                assert_eq!(found, writes());
                // A first successor dies as well, at any moment; the second does not.
                for left in [left % 7, 100] {
                    mortal.set_left(left);
                    let stage = mortal.entry().unwrap().stage;
                    found.finish(&mortal, stage, &mortal).unwrap();
                }
                let expected = if told && driver_is_fast {
                    (0x77, 0)
                } else {
                    (0x11, 0x33)
                };
                assert_eq!((word(memory, 0), word(memory, 8)), expected, "{left}");
                assert_eq!(word(memory, 40) >> 32, 0x44, "{left}");
                assert_eq!((word(memory, 24), word(memory, 64)), (0x22, 0x55));
            }
        }
    }

    #[test]
    fn what_is_cut_short_or_has_too_many_is_nothing() {
        let mut bytes = Vec::new();
        writes().encode(&mut bytes);
        assert!((0..bytes.len()).all(|len| Writes::decode(&bytes[..len]).is_none()));
        bytes[1] = 0xff;
        assert_eq!(Writes::decode(&bytes), None);
    }
}
