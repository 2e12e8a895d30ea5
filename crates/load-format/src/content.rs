//! Content that both ends can produce and check from a byte offset alone.

/// An endless stream of bytes, each a function of its offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    seed: u64,
}

/// The outcome of comparing received bytes with a [`Content`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Checked {
    /// How many bytes differ.
    pub wrong: u64,
    /// Offset in the stream of the first byte that differs.
    pub first_wrong: Option<u64>,
}

const WORD: usize = size_of::<u64>();

impl Content {
    /// What the TCP transfer carries from the peer to the guest.
    pub const TO_GUEST: Self = Self::seeded(0x746f_2067_7565_7374);
    /// What the TCP transfer carries from the guest to the peer.
    pub const FROM_GUEST: Self = Self::seeded(0x6672_6f6d_2067_7374);

    /// The stream that belongs to `seed`.
    pub const fn seeded(seed: u64) -> Self {
        Self { seed }
    }

    /// The stream that belongs to `header`, and to no other of its length: another bit anywhere gives
    /// another stream. So what one header is followed by does not pass behind another one.
    ///
    /// Only whole words of 8 bytes count.
    pub fn of_header(header: &[u8]) -> Self {
        let (words, _) = header.as_chunks();
        Self::seeded(words.iter().fold(0, |seed: u64, word| {
            // Each step is a bijection of the seed, so a change of one word is never lost.
            (seed ^ u64::from_be_bytes(*word))
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .rotate_left(29)
        }))
    }

    /// Writes the bytes from `offset` on into all of `out`.
    pub fn fill(self, offset: u64, out: &mut [u8]) {
        let (mut index, lead, body) = Self::split(offset, out.len());
        let (first, rest) = out.split_at_mut(body);
        if !first.is_empty() {
            let word = self.word(index).to_le_bytes();
            first.copy_from_slice(&word[lead..lead + first.len()]);
            index = index.wrapping_add(1);
        }
        let (words, tail) = rest.as_chunks_mut::<WORD>();
        for word in words {
            *word = self.word(index).to_le_bytes();
            index = index.wrapping_add(1);
        }
        let last = self.word(index).to_le_bytes();
        tail.copy_from_slice(&last[..tail.len()]);
    }

    /// Compares `bytes` with what the stream holds from `offset` on.
    pub fn check(self, offset: u64, bytes: &[u8]) -> Checked {
        let mut checked = Checked::default();
        let (mut index, lead, body) = Self::split(offset, bytes.len());
        let (first, rest) = bytes.split_at(body);
        if !first.is_empty() {
            let word = self.word(index).to_le_bytes();
            checked.compare(first, &word[lead..lead + first.len()], offset);
            index = index.wrapping_add(1);
        }
        let mut at = offset.wrapping_add(body as u64);
        let (words, tail) = rest.as_chunks::<WORD>();
        for word in words {
            let expected = self.word(index);
            if u64::from_le_bytes(*word) != expected {
                checked.compare(word, &expected.to_le_bytes(), at);
            }
            index = index.wrapping_add(1);
            at = at.wrapping_add(WORD as u64);
        }
        let last = self.word(index).to_le_bytes();
        checked.compare(tail, &last[..tail.len()], at);
        checked
    }

    /// The first word touched, where in it `offset` lies, and how many of `len` bytes come before
    /// the next word boundary.
    fn split(offset: u64, len: usize) -> (u64, usize, usize) {
        #[expect(clippy::cast_possible_truncation, reason = "below 8")]
        let lead = (offset % WORD as u64) as usize;
        let body = if lead == 0 { 0 } else { (WORD - lead).min(len) };
        (offset / WORD as u64, lead, body)
    }

    /// The output function of `SplitMix64` over a Weyl sequence (Steele, Lea, Flood, OOPSLA 2014): no
    /// state, and a page or cache line out of place never looks right.
    fn word(self, index: u64) -> u64 {
        let mut z = self
            .seed
            .wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

impl Checked {
    fn compare(&mut self, got: &[u8], expected: &[u8], offset: u64) {
        for (at, _) in got
            .iter()
            .zip(expected)
            .enumerate()
            .filter(|(_, (got, want))| got != want)
        {
            self.wrong += 1;
            self.first_wrong
                .get_or_insert(offset.wrapping_add(at as u64));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_cut_of_the_stream_is_the_same_stream(offset in 0_u64..10_000, len in 0_usize..200) {
            let mut whole = vec![0; 10_200];
            Content::TO_GUEST.fill(0, &mut whole);
            let mut cut = vec![0; len];
            Content::TO_GUEST.fill(offset, &mut cut);
            let start = usize::try_from(offset).expect("small");
            prop_assert_eq!(&cut[..], &whole[start..start + len]);
            prop_assert_eq!(Content::TO_GUEST.check(offset, &cut), Checked::default());
        }

        #[test]
        fn a_flipped_byte_is_found_where_it_is(
            offset in any::<u64>(),
            len in 1_usize..200,
            at in any::<prop::sample::Index>(),
        ) {
            let mut bytes = vec![0; len];
            Content::FROM_GUEST.fill(offset, &mut bytes);
            let at = at.index(len);
            bytes[at] ^= 0x10;
            let checked = Content::FROM_GUEST.check(offset, &bytes);
            prop_assert_eq!(checked.wrong, 1);
            prop_assert_eq!(checked.first_wrong, Some(offset.wrapping_add(at as u64)));
        }
    }

    #[test]
    fn the_two_directions_differ() {
        let mut bytes = [0; 64];
        Content::TO_GUEST.fill(0, &mut bytes);
        assert!(Content::FROM_GUEST.check(0, &bytes).wrong > 48);
    }
}
