//! What nobody but the two sides of a migration knows.

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

/// What both sides of one migration make digests of memory with. Who knew it could write pages whose
/// digests are the same, so it is shown nowhere; the migration's name is, and stands in leases.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DigestKey([u8; 16]);

impl DigestKey {
    /// A new one.
    ///
    /// # Errors
    /// When the system has no random number to give.
    pub fn new() -> io::Result<Self> {
        super::random().map(Self)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    #[cfg(test)]
    pub(crate) fn of(number: u8) -> Self {
        Self([number; 16])
    }
}

impl TryFrom<String> for DigestKey {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, &'static str> {
        // Not quoted: it may be a key with a slip in it.
        let wrong = "a digest key that is not 32 hexadecimal digits";
        if !super::is_name(&text) {
            return Err(wrong);
        }
        let number = u128::from_str_radix(&text, 16).map_err(|_| wrong)?;
        Ok(Self(number.to_be_bytes()))
    }
}

impl From<DigestKey> for String {
    fn from(key: DigestKey) -> Self {
        format!("{:032x}", u128::from_be_bytes(key.0))
    }
}

impl fmt::Debug for DigestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DigestKey")
    }
}
