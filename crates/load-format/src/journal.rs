//! Numbered records on a disk, and what is left of them after its power was cut.
//!
//! The writer (`lab-guest journal`) puts record *n* at slot *n* modulo the number of slots, and tells
//! the outside "durable up to *n*" only when the disk has said so. The checker reads all slots and
//! says up to which record everything is there: a disk that keeps its promises holds at least what
//! was told ([`State::holds`]).
//!
//! Numbers go on when a journal is started again on the same disk, and each record tells with which
//! one its run began. Records of earlier runs are no longer looked at: check before starting again.
//! What was overwritten on a later round cannot be checked any more either.

use std::io::{self, Read, Seek, SeekFrom};

use serde::{Deserialize, Serialize};
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::Content;

/// Length of a record and of the slot it fills, in bytes.
pub const RECORD_LEN: usize = 4096;

/// How many records the writer may have written that are not durable yet. As many slots behind the
/// newest record may be torn without anything being lost.
pub const MAX_IN_FLIGHT: u64 = 16;

/// The fewest slots that a journal can have.
pub const MIN_SLOTS: u32 = 64;

/// A record is checked by pieces of the smallest block that a disk has.
const PIECE_LEN: usize = 512;

const MAGIC: [u8; 8] = *b"vferryJo";

/// One record, which fills a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Its number, from 0.
    pub number: u64,
    /// Number of the first record of the run that wrote it.
    pub first: u64,
    /// How many slots the journal has.
    pub slots: u32,
}

/// What a slot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// A record, every byte of it.
    Whole(Record),
    /// Parts of a record: torn, or damaged otherwise.
    Damaged,
    /// Nothing of ours.
    Foreign,
}

/// What is on the disk.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct State {
    /// Number of the newest whole record; none if there is no journal.
    pub newest: Option<u64>,
    /// Number of the first record of the newest run.
    pub first: Option<u64>,
    /// The oldest record that should still be there and was looked for.
    pub oldest: Option<u64>,
    /// The highest number up to which all records from `oldest` on are whole. None: not even the
    /// oldest is.
    pub whole_to: Option<u64>,
    /// Numbers from `oldest` to `newest` that are not there. Those above what was told durable may
    /// have been on their way.
    pub missing: u64,
    /// Slots that hold a damaged record, on their way or not.
    pub damaged: u64,
    /// The first of those slots, from 0.
    pub first_damaged: Option<u64>,
    /// Whole records in another slot than their own.
    pub misplaced: u64,
}

/// Takes in slot by slot.
#[derive(Debug, Clone, Default)]
pub struct Checker {
    /// Numbers of the newest run's whole records.
    whole: Vec<u64>,
    /// That run's first number, and its number of slots.
    run: Option<(u64, u32)>,
    damaged: u64,
    first_damaged: Option<u64>,
    misplaced: u64,
}

/// Before each piece; all fields little endian, the rest of the piece filled from them.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    number: U64,
    first: U64,
    slots: U32,
    /// Which piece of the record this is.
    piece: U32,
}

/// Reads a whole disk or its image and says what is left of its journal.
///
/// # Errors
///
/// What `disk` cannot read, it says.
pub fn check(disk: &mut (impl Read + Seek)) -> io::Result<State> {
    let len = disk.seek(SeekFrom::End(0))?;
    disk.seek(SeekFrom::Start(0))?;
    let slots = len / RECORD_LEN as u64;
    let mut checker = Checker::default();
    let mut bytes = vec![0; 256 * RECORD_LEN];
    let mut slot = 0;
    while slot < slots {
        let count = usize::try_from(slots - slot).map_or(256, |left| left.min(256));
        let chunk = &mut bytes[..count * RECORD_LEN];
        disk.read_exact(chunk)?;
        for record in chunk.as_chunks().0 {
            checker.take(slot, record);
            slot += 1;
        }
    }
    Ok(checker.state())
}

impl Record {
    /// The slot it belongs in, from 0 (0 if there are none, as only a stranger would say).
    pub fn slot(&self) -> u64 {
        self.number.checked_rem(self.slots.into()).unwrap_or(0)
    }

    /// Fills all of `out`.
    pub fn write(&self, out: &mut [u8; RECORD_LEN]) {
        for (piece, bytes) in (0..).zip(out.as_chunks_mut::<PIECE_LEN>().0) {
            let header = Header {
                magic: MAGIC,
                number: self.number.into(),
                first: self.first.into(),
                slots: self.slots.into(),
                piece: U32::new(piece),
            };
            let (head, filling) = bytes.split_at_mut(size_of::<Header>());
            head.copy_from_slice(header.as_bytes());
            Content::of_header(header.as_bytes()).fill(0, filling);
        }
    }
}

impl Slot {
    /// What these bytes of a slot are.
    pub fn read(bytes: &[u8; RECORD_LEN]) -> Self {
        let pieces = bytes.as_chunks::<PIECE_LEN>().0;
        let ours = pieces.iter().any(|piece| piece.starts_with(&MAGIC));
        let mut records = (0..).zip(pieces).map(|(at, piece)| read_piece(at, piece));
        let first = records.next().flatten();
        match first {
            Some(record) if records.all(|other| other == first) => Self::Whole(record),
            _ if ours => Self::Damaged,
            _ => Self::Foreign,
        }
    }
}

/// The record that an undamaged piece belongs to.
fn read_piece(at: u32, bytes: &[u8; PIECE_LEN]) -> Option<Record> {
    let (header, filling) = Header::ref_from_prefix(bytes).ok()?;
    let right = header.magic == MAGIC
        && header.piece.get() == at
        && Content::of_header(header.as_bytes())
            .check(0, filling)
            .wrong
            == 0;
    right.then(|| Record {
        number: header.number.get(),
        first: header.first.get(),
        slots: header.slots.get(),
    })
}

impl Checker {
    /// Takes in what is in slot number `slot`.
    pub fn take(&mut self, slot: u64, bytes: &[u8; RECORD_LEN]) {
        match Slot::read(bytes) {
            Slot::Whole(record) if record.slot() == slot => self.take_record(&record),
            Slot::Whole(_) => self.misplaced += 1,
            Slot::Damaged => {
                self.damaged += 1;
                self.first_damaged.get_or_insert(slot);
            }
            Slot::Foreign => {}
        }
    }

    fn take_record(&mut self, record: &Record) {
        // Only a stranger's record says that it is older than its run.
        if record.number < record.first {
            return;
        }
        let run = (record.first, record.slots);
        if self.run.is_none_or(|known| known.0 < run.0) {
            self.run = Some(run);
            self.whole.clear();
        }
        if self.run == Some(run) {
            self.whole.push(record.number);
        }
    }

    /// What all slots together say.
    pub fn state(mut self) -> State {
        self.whole.sort_unstable();
        self.whole.dedup();
        let mut state = State {
            damaged: self.damaged,
            first_damaged: self.first_damaged,
            misplaced: self.misplaced,
            ..State::default()
        };
        let (Some((first, slots)), Some(newest)) = (self.run, self.whole.last().copied()) else {
            return state;
        };
        // The slots behind the newest record's, where the next ones may have been on their way, held
        // the oldest ones of the last round.
        let kept = u64::from(slots).saturating_sub(MAX_IN_FLIGHT).max(1);
        let oldest = newest - (newest - first).min(kept - 1);
        let window = self.whole.iter().copied().filter(|n| *n >= oldest);
        let whole = window
            .clone()
            .zip(oldest..=newest)
            .take_while(|(there, expected)| there == expected);
        state.whole_to = whole.last().map(|(there, _)| there);
        state.missing = (newest - oldest + 1) - window.count() as u64;
        state.newest = Some(newest);
        state.first = Some(first);
        state.oldest = Some(oldest);
        state
    }
}

impl State {
    /// Whether all records up to number `told` are there, as far as they can be.
    pub fn holds(&self, told: u64) -> bool {
        self.whole_to.is_some_and(|whole_to| whole_to >= told)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;

    const SLOTS: u32 = 64;

    fn image() -> Vec<u8> {
        vec![0; SLOTS as usize * RECORD_LEN]
    }

    fn put(image: &mut [u8], first: u64, number: u64) {
        let record = Record {
            number,
            first,
            slots: SLOTS,
        };
        record.write(slot_of(image, number));
    }

    fn slot_of(image: &mut [u8], number: u64) -> &mut [u8; RECORD_LEN] {
        let slot = usize::try_from(number % u64::from(SLOTS)).expect("small");
        &mut image.as_chunks_mut().0[slot]
    }

    fn state(image: &[u8]) -> State {
        check(&mut Cursor::new(image)).expect("memory")
    }

    fn written(numbers: std::ops::Range<u64>) -> Vec<u8> {
        let mut image = image();
        for number in numbers.clone() {
            put(&mut image, numbers.start, number);
        }
        image
    }

    #[test]
    fn an_empty_disk_has_no_journal() {
        assert_eq!(state(&image()), State::default());
        assert_eq!(state(&[]), State::default());
        assert!(!state(&image()).holds(0));
    }

    #[test]
    fn all_that_was_written_is_found_on_the_first_round_and_on_later_ones() {
        let first_round = state(&written(0..10));
        assert_eq!(
            (first_round.oldest, first_round.whole_to),
            (Some(0), Some(9))
        );
        let later = state(&written(0..1000));
        assert_eq!((later.newest, later.whole_to), (Some(999), Some(999)));
        assert_eq!(later.oldest, Some(1000 - (64 - MAX_IN_FLIGHT)));
        assert_eq!((later.missing, later.damaged, later.misplaced), (0, 0, 0));
        assert!(later.holds(999) && !later.holds(1000));
    }

    #[test]
    fn a_lost_record_is_found_whatever_it_left_behind() {
        for round in [0, 64, 640] {
            let mut image = written(0..round + 20);
            slot_of(&mut image, round + 12).fill(0);
            if round > 0 {
                put(&mut image, 0, round + 12 - 64);
            }
            let state = state(&image);
            assert_eq!(state.newest, Some(round + 19));
            assert_eq!((state.whole_to, state.missing), (Some(round + 11), 1));
            assert!(!state.holds(round + 12) && state.damaged == 0);
        }
    }

    #[test]
    fn the_newest_record_lost_is_below_what_was_told() {
        let mut image = written(0..100);
        put(&mut image, 0, 99 - 64);
        assert_eq!(state(&image).whole_to, Some(98));
    }

    #[test]
    fn a_torn_record_is_found_at_every_piece() {
        for old_pieces in 1..8 {
            let mut image = written(0..100);
            let mut old = [0; RECORD_LEN];
            let record = Record {
                number: 80 - 64,
                first: 0,
                slots: SLOTS,
            };
            record.write(&mut old);
            let torn = old_pieces * PIECE_LEN;
            slot_of(&mut image, 80)[..torn].copy_from_slice(&old[..torn]);
            let state = state(&image);
            assert_eq!((state.whole_to, state.damaged), (Some(79), 1));
            assert_eq!(state.first_damaged, Some(80 - 64));
        }
    }

    #[test]
    fn pieces_in_another_order_are_damage() {
        let mut image = written(0..20);
        let (pieces, _) = slot_of(&mut image, 5).as_chunks_mut::<PIECE_LEN>();
        pieces.swap(2, 3);
        assert_eq!(
            (state(&image).whole_to, state(&image).damaged),
            (Some(4), 1)
        );
    }

    #[test]
    fn the_last_number_of_all_is_no_trouble() {
        let record = Record {
            number: u64::MAX,
            first: u64::MAX - 1,
            slots: SLOTS,
        };
        let mut bytes = [0; RECORD_LEN];
        record.write(&mut bytes);
        let mut checker = Checker::default();
        checker.take(record.slot(), &bytes);
        let state = checker.state();
        assert_eq!((state.newest, state.whole_to), (Some(u64::MAX), None));
        assert_eq!(state.missing, 1);
    }

    #[test]
    fn records_that_were_on_their_way_may_be_torn() {
        let mut image = written(0..100);
        for number in 100..100 + MAX_IN_FLIGHT {
            slot_of(&mut image, number)[1000] ^= 1;
        }
        let torn = state(&image);
        assert_eq!((torn.whole_to, torn.missing), (Some(99), 0));
        assert_eq!(torn.damaged, MAX_IN_FLIGHT);
        // One of them may have made it before those that were written earlier.
        put(&mut image, 0, 103);
        let jumped = state(&image);
        assert_eq!((jumped.newest, jumped.whole_to), (Some(103), Some(99)));
    }

    #[test]
    fn a_misplaced_record_does_not_count() {
        let mut image = written(0..20);
        let moved = *slot_of(&mut image, 7);
        *slot_of(&mut image, 8) = moved;
        let state = state(&image);
        assert_eq!((state.misplaced, state.whole_to), (1, Some(7)));
    }

    #[test]
    fn a_new_run_counts_from_its_own_first_record() {
        let mut image = written(0..20);
        slot_of(&mut image, 5).fill(0);
        for number in 20..23 {
            put(&mut image, 20, number);
        }
        let state = state(&image);
        assert_eq!((state.first, state.oldest), (Some(20), Some(20)));
        assert_eq!((state.whole_to, state.missing), (Some(22), 0));
    }

    proptest! {
        #[test]
        fn any_flipped_bit_of_a_record_is_damage(
            record in (any::<u64>(), any::<u64>(), any::<u32>()),
            at in 0..RECORD_LEN * 8,
        ) {
            let (number, first, slots) = record;
            let record = Record { number, first, slots };
            let mut bytes = [0; RECORD_LEN];
            record.write(&mut bytes);
            prop_assert_eq!(Slot::read(&bytes), Slot::Whole(record));
            bytes[at / 8] ^= 1 << (at % 8);
            prop_assert_eq!(Slot::read(&bytes), Slot::Damaged);
        }

        #[test]
        fn garbage_never_panics(number: u64, first: u64, slots: u32) {
            let mut bytes = [0; RECORD_LEN];
            Record { number, first, slots }.write(&mut bytes);
            let mut checker = Checker::default();
            checker.take(number.checked_rem(slots.into()).unwrap_or(0), &bytes);
            let _ = checker.state();
        }
    }
}
