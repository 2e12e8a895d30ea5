//! The phases of a migration.

use serde::{Deserialize, Serialize};

/// Where a migration is. The same names in the code, the trace, the progress line, the report and
/// the documentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Both sides compare themselves. Nothing is touched.
    Check,
    /// The destination programs PCI configuration and MSI-X, and waits.
    Prepare,
    /// QEMU copies memory; devices run and every page they write is logged.
    Precopy,
    /// The guest is asked to stop its devices, while QEMU copies on.
    Quiesce,
    /// The guest is asked to suspend itself, while QEMU copies on.
    Suspend,
    /// Bus master off, DMA drained.
    Halt,
    /// Every page that was written and not yet carried is marked.
    Mark,
    /// QEMU's last pass, then the devices' state.
    Copy,
    /// The destination loads the state, and compares memory when asked.
    Restore,
    /// Memory is compared, as nobody knows all that devices wrote, and what differs is sent.
    Compare,
    /// The destination runs; the network is told.
    Resume,
    /// The guest is told to start the devices that it has stopped, its kernel recovers them, or it is
    /// woken.
    Recover,
}

impl Phase {
    /// All, in order.
    pub const ALL: [Self; 12] = [
        Self::Check,
        Self::Prepare,
        Self::Precopy,
        Self::Quiesce,
        Self::Suspend,
        Self::Halt,
        Self::Mark,
        Self::Copy,
        Self::Restore,
        Self::Compare,
        Self::Resume,
        Self::Recover,
    ];

    /// Its one name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Check => "check",
            Self::Prepare => "prepare",
            Self::Precopy => "precopy",
            Self::Quiesce => "quiesce",
            Self::Suspend => "suspend",
            Self::Halt => "halt",
            Self::Mark => "mark",
            Self::Copy => "copy",
            Self::Restore => "restore",
            Self::Compare => "compare",
            Self::Resume => "resume",
            Self::Recover => "recover",
        }
    }
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}
