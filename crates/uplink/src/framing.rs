//! Frames in a byte stream, each behind its length (32 bits, big endian), as QEMU's `net/stream.c`
//! and passt's `tap.c` write them.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::ops::Range;

use thiserror::Error;

/// Longest frame, in bytes: QEMU's `NET_BUFSIZE` (`include/net/net.h`), a 64 KiB segment and room.
pub const MAX_FRAME: usize = 4096 + 65536;

/// Shortest frame that has a destination, a source and a type; shorter ones are skipped.
pub(crate) const MIN_FRAME: usize = 14;

const PREFIX: usize = size_of::<u32>();

/// Bytes kept of either direction of a wire. Holds about 100 ms of a busy lab NIC.
const CAPACITY: usize = 512 * 1024;

/// What an announcement may take beyond [`CAPACITY`]: it must not fail for a full queue.
const RESERVE: usize = 1024;

/// The far side announced a frame longer than [`MAX_FRAME`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a frame of {length} bytes was announced, longer than any ({MAX_FRAME}): out of step")]
pub struct FrameTooLong {
    /// The length announced, in bytes.
    pub length: u32,
}

/// Cuts received bytes into frames.
///
/// Bytes are put into [`spare`](Self::spare) and declared by [`filled`](Self::filled); then
/// [`frame`](Self::frame) shows the oldest whole frame until it is [consumed](Self::consume).
#[derive(Debug)]
pub struct Deframer {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Default for Deframer {
    fn default() -> Self {
        Self {
            buffer: vec![0; CAPACITY].into_boxed_slice(),
            start: 0,
            end: 0,
        }
    }
}

impl Deframer {
    /// Where the oldest whole frame lies in the buffer; skips frames too short to be one.
    pub(crate) fn locate(&mut self) -> Result<Option<Range<usize>>, FrameTooLong> {
        while let Some(prefix) = self.buffer[self.start..self.end].first_chunk::<PREFIX>() {
            let length = u32::from_be_bytes(*prefix);
            let len = usize::try_from(length)
                .ok()
                .filter(|len| *len <= MAX_FRAME)
                .ok_or(FrameTooLong { length })?;
            let first = self.start + PREFIX;
            if self.end - first < len {
                break;
            }
            if len >= MIN_FRAME {
                return Ok(Some(first..first + len));
            }
            self.start = first + len;
        }
        Ok(None)
    }

    /// The oldest whole frame, if there is one.
    ///
    /// # Errors
    ///
    /// [`FrameTooLong`]: the stream cannot be understood any more and should be closed.
    pub fn frame(&mut self) -> Result<Option<&[u8]>, FrameTooLong> {
        Ok(self.locate()?.map(|range| &self.buffer[range]))
    }

    /// The bytes at `range`, as [`locate`](Self::locate) gave it.
    pub(crate) fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.buffer[range]
    }

    /// Gives up the oldest whole frame, if there is one.
    pub fn consume(&mut self) {
        if let Ok(Some(range)) = self.locate() {
            self.start = range.end;
        }
    }

    /// Room for more bytes; never empty once all whole frames are consumed.
    pub fn spare(&mut self) -> &mut [u8] {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        } else if self.buffer.len() - self.start < PREFIX + MAX_FRAME {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        &mut self.buffer[self.end..]
    }

    /// Declares the first `count` bytes of [`spare`](Self::spare) received.
    pub fn filled(&mut self, count: usize) {
        self.end = self.end.saturating_add(count).min(self.buffer.len());
    }
}

/// Frames on their way out, already behind their lengths.
#[derive(Debug)]
pub(crate) struct Outbox {
    bytes: VecDeque<u8>,
}

impl Default for Outbox {
    fn default() -> Self {
        Self {
            bytes: VecDeque::with_capacity(CAPACITY + RESERVE),
        }
    }
}

impl Outbox {
    /// Queues `frame` if there is room.
    pub(crate) fn push(&mut self, frame: &[u8]) -> bool {
        self.push_within(frame, CAPACITY)
    }

    /// Queues `frame` even where [`push`](Self::push) finds no room, within a small reserve.
    pub(crate) fn push_urgent(&mut self, frame: &[u8]) -> bool {
        self.push_within(frame, CAPACITY + RESERVE)
    }

    fn push_within(&mut self, frame: &[u8], limit: usize) -> bool {
        let Ok(length) = u32::try_from(frame.len()) else {
            return false;
        };
        if self.bytes.len() + PREFIX + frame.len() > limit {
            return false;
        }
        self.bytes.extend(length.to_be_bytes());
        self.bytes.extend(frame);
        true
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// All that is queued, as two pieces in order.
    pub(crate) fn pieces(&self) -> [IoSlice<'_>; 2] {
        let (first, second) = self.bytes.as_slices();
        [IoSlice::new(first), IoSlice::new(second)]
    }

    /// Forgets the first `count` bytes: they are sent.
    pub(crate) fn sent(&mut self, count: usize) {
        self.bytes.drain(..count.min(self.bytes.len()));
    }

    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Feeds `bytes` in pieces of at most `step` and gives back the frames seen.
    fn deframe(mut bytes: &[u8], step: usize) -> Result<Vec<Vec<u8>>, FrameTooLong> {
        let mut deframer = Deframer::default();
        let mut frames = Vec::new();
        while !bytes.is_empty() {
            let spare = deframer.spare();
            let count = spare.len().min(step).min(bytes.len());
            assert!(count > 0, "no room although all frames are consumed");
            spare[..count].copy_from_slice(&bytes[..count]);
            deframer.filled(count);
            bytes = &bytes[count..];
            while let Some(frame) = deframer.frame()? {
                frames.push(frame.to_vec());
                deframer.consume();
            }
        }
        Ok(frames)
    }

    fn enframe(frames: &[Vec<u8>]) -> Vec<u8> {
        let mut outbox = Outbox::default();
        let mut bytes = Vec::new();
        for frame in frames {
            assert!(outbox.push(frame), "emptied after each frame");
            for piece in outbox.pieces() {
                bytes.extend_from_slice(&piece);
            }
            outbox.sent(usize::MAX);
        }
        bytes
    }

    proptest! {
        #[test]
        fn frames_survive_any_cutting(
            lens in prop::collection::vec(prop_oneof![0_usize..100, Just(1514), Just(MAX_FRAME)], 0..30),
            step in prop_oneof![1_usize..10, Just(1000), Just(CAPACITY)],
        ) {
            let step = if lens.iter().sum::<usize>() > 10_000 { step.max(1000) } else { step };
            let frames: Vec<Vec<u8>> = lens
                .iter()
                .enumerate()
                .map(|(at, len)| vec![at.to_le_bytes()[0]; *len])
                .collect();
            let whole: Vec<_> =
                frames.iter().filter(|frame| frame.len() >= MIN_FRAME).cloned().collect();
            prop_assert_eq!(deframe(&enframe(&frames), step), Ok(whole));
        }

        #[test]
        fn garbage_gives_frames_or_an_error(
            bytes in prop::collection::vec(prop_oneof![3 => Just(0_u8), 1 => any::<u8>()], 0..800),
            step in 1_usize..200,
        ) {
            if let Ok(frames) = deframe(&bytes, step) {
                prop_assert!(frames.iter().all(|frame| frame.len() <= MAX_FRAME));
            }
        }
    }

    #[test]
    fn a_length_beyond_the_longest_frame_is_refused() {
        let length = u32::try_from(MAX_FRAME).expect("small") + 1;
        assert_eq!(
            deframe(&length.to_be_bytes(), 4),
            Err(FrameTooLong { length })
        );
        assert_eq!(
            deframe(&[0xff; 4], 4),
            Err(FrameTooLong { length: u32::MAX })
        );
    }

    #[test]
    fn a_full_outbox_takes_an_announcement_and_nothing_else() {
        let mut outbox = Outbox::default();
        while outbox.push(&[0; 1514]) {}
        while outbox.push(&[0; 14]) {}
        assert!(outbox.push_urgent(&[0; 60]));
        assert!(!outbox.push(&[0; 14]));
        for _ in 0..100 {
            let _ = outbox.push_urgent(&[0; 60]);
        }
        assert!(outbox.bytes.len() <= CAPACITY + RESERVE);
    }
}
