//! Numbers as plain bytes, in order and without names: the form of a [live state](crate::Model::live).
//!
//! It is written after every call, so it is quick, and read only by a program that knows the same version of it.

/// Appends numbers to bytes.
#[derive(Debug)]
pub struct PlainWriter<'a>(&'a mut Vec<u8>);

impl<'a> PlainWriter<'a> {
    /// One that appends to `bytes`.
    pub fn new(bytes: &'a mut Vec<u8>) -> Self {
        Self(bytes)
    }

    /// One byte.
    pub fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    /// Two bytes.
    pub fn u16(&mut self, value: u16) {
        self.bytes(&value.to_le_bytes());
    }

    /// Four bytes.
    pub fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    /// Eight bytes.
    pub fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }

    /// One byte, 0 or 1.
    pub fn flag(&mut self, value: bool) {
        self.u8(value.into());
    }

    /// Bytes of a number that the reader knows.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// Four bytes each, of a number that the reader knows.
    pub fn words(&mut self, values: &[u32]) {
        for value in values {
            self.u32(*value);
        }
    }
}

/// Takes numbers from bytes: `None` where there are not as many, or another than was ever written.
#[derive(Debug)]
pub struct PlainReader<'a>(&'a [u8]);

impl<'a> PlainReader<'a> {
    /// One that takes from `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Whether there is no more.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One byte.
    pub fn u8(&mut self) -> Option<u8> {
        self.bytes().map(u8::from_le_bytes)
    }

    /// Two bytes.
    pub fn u16(&mut self) -> Option<u16> {
        self.bytes().map(u16::from_le_bytes)
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Option<u32> {
        self.bytes().map(u32::from_le_bytes)
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> Option<u64> {
        self.bytes().map(u64::from_le_bytes)
    }

    /// One byte that is 0 or 1.
    pub fn flag(&mut self) -> Option<bool> {
        let byte = self.u8()?;
        (byte <= 1).then_some(byte != 0)
    }

    /// So many bytes.
    pub fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*bytes)
    }

    /// So many times four bytes.
    pub fn words<const N: usize>(&mut self) -> Option<[u32; N]> {
        let mut words = [0; N];
        for word in &mut words {
            *word = self.u32()?;
        }
        Some(words)
    }
}

/// All of `bytes`, of which the first four are the `version` of the form, by `read`.
///
/// # Errors
/// Why that is not possible, for people.
pub fn read_whole<T>(
    bytes: &[u8],
    version: u32,
    read: impl FnOnce(&mut PlainReader<'_>) -> Option<T>,
) -> Result<T, &'static str> {
    let mut from = PlainReader::new(bytes);
    if from.u32() != Some(version) {
        return Err("another version of vferry left it");
    }
    let value = read(&mut from).filter(|_| from.is_empty());
    value.ok_or("it is cut short")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_no_more() {
        let mut bytes = Vec::new();
        let mut out = PlainWriter::new(&mut bytes);
        out.u8(1);
        out.u16(0x203);
        out.flag(true);
        out.words(&[4, 5]);
        out.u64(6);
        out.bytes(b"ab");
        let mut from = PlainReader::new(&bytes);
        assert_eq!(
            (from.u8(), from.u16(), from.flag()),
            (Some(1), Some(0x203), Some(true))
        );
        assert_eq!((from.words(), from.u64()), (Some([4, 5]), Some(6)));
        assert!(!from.is_empty());
        assert_eq!(from.bytes::<3>(), None);
        assert_eq!(from.bytes(), Some(*b"ab"));
        assert!(from.is_empty());
        assert_eq!(PlainReader::new(&[2]).flag(), None);
    }
}
