//! What the guest and its peer do meanwhile.

use rustix::process::geteuid;

use super::cases::With;
use crate::dice::Dice;

/// See [`Options`](crate::Options).
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    /// MiB of memory that are written over and over, and how many of them per second.
    pub(super) dirty: (u32, u32),
    pub(super) packets_per_second: u32,
    /// Bytes that the guest has.
    pub(super) memory: u64,
    /// What it has beside.
    pub(super) with: With,
}

impl Load {
    /// As much as an emulated guest has time for.
    pub(super) fn random(dice: &mut Dice) -> Self {
        let mib = [1, 8, 16, 32];
        let rate = [0, 2, 8, 16];
        Self {
            dirty: (*dice.one_of(&mib), *dice.one_of(&rate)),
            packets_per_second: *dice.one_of(&[50, 200, 500]),
            memory: *dice.one_of(&[192 << 20, 256 << 20, 384 << 20]),
            with: *dice.one_of(&[
                With::Nothing,
                With::Nothing,
                With::Disk,
                With::Tls,
                With::Keeper,
                With::Keeper,
                small_disks(),
            ]),
        }
    }
}

/// Which only root can mount.
fn small_disks() -> With {
    if geteuid().is_root() {
        With::SmallDisks
    } else {
        With::Nothing
    }
}

impl Default for Load {
    fn default() -> Self {
        Self {
            dirty: (16, 8),
            packets_per_second: 200,
            memory: 256 << 20,
            with: With::Nothing,
        }
    }
}
