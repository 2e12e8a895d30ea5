//! How much one call may do.

/// Commands, steps and ranges of one call.
const UNITS: usize = 64;
/// Bytes of one call; the step that exceeds them is still finished.
const BYTES: usize = 1 << 20;

/// What is left of a call's share.
#[derive(Debug)]
pub(crate) struct Budget {
    units: usize,
    bytes: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            units: UNITS,
            bytes: BYTES,
        }
    }
}

impl Budget {
    pub(crate) fn spend(&mut self, units: usize, bytes: usize) {
        self.units = self.units.saturating_sub(units);
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    /// The rest, for what may take long: the lock is to be given up after it.
    pub(crate) fn spend_all(&mut self) {
        *self = Self { units: 0, bytes: 0 };
    }

    pub(crate) fn is_used_up(&self) -> bool {
        self.units == 0 || self.bytes == 0
    }
}
