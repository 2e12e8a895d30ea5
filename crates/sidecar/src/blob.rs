//! The frame around the device state in QEMU's stream.
//!
//! QEMU carries what comes out of the pipe without knowing where it should end: when a source
//! dies half-way, the destination is handed the half. The frame tells the whole from the half:
//!
//! | offset | bytes | |
//! |---|---|---|
//! | 0 | 8 | `vferrySC` |
//! | 8 | 4 | version, 1 |
//! | 12 | 4 | CRC-32 (IEEE) of the state |
//! | 16 | 8 | length of the state |
//! | 24 | | the state |
//!
//! All numbers are little-endian.

const MAGIC: &[u8; 8] = b"vferrySC";
const VERSION: u32 = 1;
pub(crate) const HEADER_LEN: usize = 24;

/// `state` in its frame.
pub(crate) fn seal(state: &[u8]) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(HEADER_LEN + state.len());
    sealed.extend_from_slice(MAGIC);
    sealed.extend_from_slice(&VERSION.to_le_bytes());
    sealed.extend_from_slice(&crc32fast::hash(state).to_le_bytes());
    sealed.extend_from_slice(&(state.len() as u64).to_le_bytes());
    sealed.extend_from_slice(state);
    sealed
}

/// The state in the frame `sealed`.
pub(crate) fn open(mut sealed: Vec<u8>) -> Result<Vec<u8>, BlobError> {
    let state = sealed.split_off(sealed.len().min(HEADER_LEN));
    let Ok(header) = <[u8; HEADER_LEN]>::try_from(sealed) else {
        return Err(BlobError::Truncated);
    };
    let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| header[at + i]));
    if &header[..8] != MAGIC {
        return Err(BlobError::Foreign);
    }
    if word(8) != VERSION {
        return Err(BlobError::Version(word(8)));
    }
    let len = u64::from(word(16)) | u64::from(word(20)) << 32;
    match len.cmp(&(state.len() as u64)) {
        std::cmp::Ordering::Greater => Err(BlobError::Truncated),
        std::cmp::Ordering::Less => Err(BlobError::Damaged),
        std::cmp::Ordering::Equal if crc32fast::hash(&state) != word(12) => Err(BlobError::Damaged),
        std::cmp::Ordering::Equal => Ok(state),
    }
}

/// Why what came through the pipe is no state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BlobError {
    #[error("the device state was cut short on its way: the source gave up or died")]
    Truncated,
    #[error("the device state was damaged on its way")]
    Damaged,
    #[error("the device state is not vferry's: on the source, something else serves the sidecar")]
    Foreign,
    #[error("the device state is of version {0}, not known here: update vferry on this side")]
    Version(u32),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sealed_opens() {
        for state in [&b""[..], b"x", &[7; 1000]] {
            assert_eq!(open(seal(state)).as_deref(), Ok(state));
        }
    }

    #[test]
    fn version_1_stays_readable() {
        let golden = b"vferrySC\x01\0\0\0\x86\xa6\x10\x36\x05\0\0\0\0\0\0\0hello";
        assert_eq!(open(golden.to_vec()).as_deref(), Ok(&b"hello"[..]));
        assert_eq!(seal(b"hello"), golden);
    }

    #[test]
    fn every_cut_and_every_flipped_bit_is_noticed() {
        let whole = seal(b"the state");
        for len in 0..whole.len() {
            assert_eq!(open(whole[..len].to_vec()), Err(BlobError::Truncated));
        }
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(open(flipped).is_err(), "bit {bit}");
        }
        assert_eq!(open([&whole[..], b"x"].concat()), Err(BlobError::Damaged));
    }
}
