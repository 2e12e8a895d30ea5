//! How a device's state gets to the other side.

use serde::{Deserialize, Serialize};

/// A way to migrate a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// vferry saves the device's state at the source and restores it at the destination; the guest
    /// notices nothing but the pause of the VM.
    #[default]
    Transparent,
    /// The guest stops its devices by their drivers' own means, and starts them anew at the
    /// destination. A device that it does not stop in time goes over as by `Transparent`.
    Cooperative,
    /// The destination's device is as after power-on, and the guest's kernel, told of a PCI Express
    /// error at the root port that it is behind, has its stock driver start it anew.
    Recovery,
    /// The guest suspends itself to RAM, is carried asleep, and is woken at the destination.
    Sleep,
}

impl Strategy {
    /// All.
    pub const ALL: [Self; 4] = [
        Self::Transparent,
        Self::Cooperative,
        Self::Recovery,
        Self::Sleep,
    ];

    /// Its one name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Transparent => "transparent",
            Self::Cooperative => "cooperative",
            Self::Recovery => "recovery",
            Self::Sleep => "sleep",
        }
    }
}

impl std::fmt::Display for Strategy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

impl std::str::FromStr for Strategy {
    type Err = UnknownStrategy;

    fn from_str(text: &str) -> Result<Self, UnknownStrategy> {
        let known = Self::ALL.into_iter().find(|known| known.name() == text);
        known.ok_or_else(|| UnknownStrategy { name: text.into() })
    }
}

/// Not the name of a strategy.
#[derive(Debug, thiserror::Error)]
#[error("there is no strategy `{name}`; this vferry has: {known}", known = Strategy::ALL.map(Strategy::name).join(", "))]
pub struct UnknownStrategy {
    name: String,
}
