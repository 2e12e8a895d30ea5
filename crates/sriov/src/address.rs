//! Addresses of the host's PCI functions.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// `DOMAIN:BUS:DEVICE.FUNCTION`, as sysfs has it. Nothing else, so it is safe in a path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Address(String);

/// What is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no PCI function of the host")]
pub struct NoAddress(String);

impl Address {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Address {
    type Err = NoAddress;

    fn from_str(text: &str) -> Result<Self, NoAddress> {
        let parts: Vec<_> = text.split([':', '.']).collect();
        let is_hex = |part: &&str| {
            part.bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        };
        let lengths: Vec<_> = parts.iter().map(|part| part.len()).collect();
        // The lengths leave room for three separators, whichever they are.
        let separators = text.get(4..5) == Some(":")
            && text.get(7..8) == Some(":")
            && text.get(10..11) == Some(".");
        if lengths == [4, 2, 2, 1] && separators && parts.iter().all(is_hex) {
            Ok(Self(text.into()))
        } else {
            Err(NoAddress(text.into()))
        }
    }
}

impl TryFrom<String> for Address {
    type Error = NoAddress;

    fn try_from(text: String) -> Result<Self, NoAddress> {
        text.parse()
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.0
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_address_is_one() {
        assert_eq!(
            "0000:01:10.0".parse::<Address>().unwrap().as_str(),
            "0000:01:10.0"
        );
        for text in [
            "",
            "01:10.0",
            "0000.01:10:0",
            "0000:01:10.0/",
            "0000:01:1g.0",
            "0000:01:1A.0",
            "../1:01:10.0",
            "0000:01:10.00",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
