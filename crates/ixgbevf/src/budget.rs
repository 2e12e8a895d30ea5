//! How much one call may do.

/// Descriptors, frames and segments of one call for one queue or for reception.
const UNITS: usize = 256;
/// Bytes of one call; the frame that exceeds them is still finished.
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

    pub(crate) fn is_used_up(&self) -> bool {
        self.units == 0 || self.bytes == 0
    }
}
