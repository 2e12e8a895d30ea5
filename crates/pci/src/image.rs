//! The saved form of a configuration space.

use serde::{Deserialize, Serialize};

use crate::registers::CONFIG_SIZE;
use crate::{ConfigSpace, registers as reg};

/// All 4 KiB of a configuration space: the first 256 bytes and, where not zero, the rest, in
/// hexadecimal. Version 1 of the form; a golden file keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigImage {
    hex: String,
}

/// Why an image does not fit a function.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// Not hexadecimal, or too long.
    #[error("the saved PCI configuration space is damaged")]
    Damaged,
    /// Another device.
    #[error("the saved PCI configuration space is of device {found}, this one is {expected}")]
    Device {
        /// Vendor and device in the image.
        found: String,
        /// Vendor and device here.
        expected: String,
    },
    /// A read-only byte differs.
    #[error(
        "the saved PCI configuration space differs at {offset:#x} in what cannot be written: the device is configured differently on the two sides"
    )]
    Fixed {
        /// Where.
        offset: usize,
    },
}

impl ConfigSpace {
    /// What [`load`](Self::load) needs.
    pub fn save(&self) -> ConfigImage {
        let used = self
            .bytes()
            .iter()
            .rposition(|&b| b != 0)
            .map_or(0, |last| last + 1);
        let mut hex = String::with_capacity(2 * used);
        for byte in &self.bytes()[..used] {
            for nibble in [byte >> 4, byte & 0xf] {
                hex.push(char::from_digit(u32::from(nibble), 16).expect("a nibble is a digit"));
            }
        }
        ConfigImage { hex }
    }

    /// Takes over an image of the same device.
    ///
    /// # Errors
    /// When it is of another device or damaged; nothing changed then.
    pub fn load(&mut self, image: &ConfigImage) -> Result<(), ImageError> {
        let bytes = image.bytes()?;
        let id = |b: &[u8; CONFIG_SIZE]| {
            let word = |at: usize| u16::from_le_bytes([b[at], b[at + 1]]);
            format!("{:04x}:{:04x}", word(reg::VENDOR_ID), word(reg::DEVICE_ID))
        };
        let (found, expected) = (id(&bytes), id(self.bytes()));
        if found != expected {
            return Err(ImageError::Device { found, expected });
        }
        self.overlay(&bytes)
            .map_err(|offset| ImageError::Fixed { offset })
    }
}

impl ConfigImage {
    fn bytes(&self) -> Result<Box<[u8; CONFIG_SIZE]>, ImageError> {
        let digits = self.hex.as_bytes();
        if digits.len() > 2 * CONFIG_SIZE || !digits.len().is_multiple_of(2) {
            return Err(ImageError::Damaged);
        }
        let mut bytes = Box::new([0; CONFIG_SIZE]);
        for (byte, pair) in bytes.iter_mut().zip(digits.as_chunks::<2>().0) {
            let digit = |d: u8| {
                char::from(d)
                    .to_digit(16)
                    .and_then(|d| u8::try_from(d).ok())
            };
            let both = digit(pair[0]).zip(digit(pair[1]));
            *byte = both
                .map(|(high, low)| high << 4 | low)
                .ok_or(ImageError::Damaged)?;
        }
        Ok(bytes)
    }
}
