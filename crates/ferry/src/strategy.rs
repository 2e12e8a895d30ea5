//! How a device's state gets to the other side.

use serde::{Deserialize, Serialize};

/// A way to migrate a device. More follow as they are built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// vferry saves the device's state at the source and restores it at the destination; the guest
    /// notices nothing but the pause of the VM.
    #[default]
    Transparent,
}

impl std::fmt::Display for Strategy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Transparent => "transparent",
        })
    }
}

impl std::str::FromStr for Strategy {
    type Err = UnknownStrategy;

    fn from_str(text: &str) -> Result<Self, UnknownStrategy> {
        match text {
            "transparent" => Ok(Self::Transparent),
            other => Err(UnknownStrategy(other.into())),
        }
    }
}

/// Not the name of a strategy.
#[derive(Debug, thiserror::Error)]
#[error("there is no strategy `{0}`; this vferry has: transparent")]
pub struct UnknownStrategy(String);
