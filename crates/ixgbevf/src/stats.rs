//! What a function has done, for the guest to read and for a report.

use serde::Serialize;

use crate::ring::{high, low};
use crate::spec::registers::{OCTETS_MASK, Statistic, VECTORS};
use crate::state::{InterruptState, Statistics};

/// Bytes of the frame check sequence, which the link does not carry but the counters include.
const FCS_LEN: u64 = 4;

impl Statistics {
    pub(crate) fn read(&self, statistic: Statistic) -> u32 {
        match statistic {
            Statistic::Vfgprc => self.rx_frames,
            Statistic::VfgorcLsb => low(self.rx_bytes),
            Statistic::VfgorcMsb => high(self.rx_bytes),
            Statistic::Vfmprc => self.rx_multicast,
            Statistic::Vfgptc => self.tx_frames,
            Statistic::VfgotcLsb => low(self.tx_bytes),
            Statistic::VfgotcMsb => high(self.tx_bytes),
        }
    }

    pub(crate) fn received(&mut self, bytes: usize, multicast: bool) {
        self.rx_frames = self.rx_frames.wrapping_add(1);
        self.rx_bytes = self.rx_bytes.wrapping_add(bytes as u64 + FCS_LEN) & OCTETS_MASK;
        if multicast {
            self.rx_multicast = self.rx_multicast.wrapping_add(1);
        }
    }

    /// `bytes` are those of all `frames` together.
    pub(crate) fn sent(&mut self, frames: u32, bytes: u64) {
        let fcs = u64::from(frames) * FCS_LEN;
        self.tx_frames = self.tx_frames.wrapping_add(frames);
        self.tx_bytes = self.tx_bytes.wrapping_add(bytes + fcs) & OCTETS_MASK;
    }
}

/// What the engine did since it was made; not part of the function's state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Frames put into the guest's memory.
    pub received: Traffic,
    /// Frames of those that the driver was shown once more, after it has started a fresh function.
    pub said_again: u64,
    /// Frames given to the link; every segment counts, also of those that the link cuts.
    pub sent: Traffic,
    /// Frames that were given up.
    pub dropped: Drops,
    /// Frames that had to be offered to a full link again.
    pub link_full: u64,
    /// Accesses to a ring outside of the memory that is mapped for the function.
    pub ring_dma_errors: u64,
    /// Interrupts, for each vector.
    pub vectors: [VectorCounters; VECTORS],
}

/// Frames and their bytes, without FCS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Traffic {
    /// Frames.
    pub frames: u64,
    /// Bytes.
    pub bytes: u64,
}

/// Frames that were given up, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Drops {
    /// Received while no receive queue was enabled.
    pub rx_no_queue: u64,
    /// Received, but for others (address, VLAN): the filter's work, not a loss.
    pub rx_filtered: u64,
    /// Received, without a whole Ethernet header.
    pub rx_runt: u64,
    /// Received, longer than the driver asked for.
    pub rx_oversize: u64,
    /// Received, but longer than the ring's buffers taken together, or of a ring whose descriptor
    /// type is not done.
    pub rx_never_fits: u64,
    /// Received, but its buffer is not in memory that is mapped for the function.
    pub rx_dma: u64,
    /// To be sent, but its descriptors make no sense.
    pub tx_malformed: u64,
    /// To be sent, but too long.
    pub tx_oversize: u64,
    /// To be sent, but not in memory that is mapped for the function.
    pub tx_dma: u64,
}

/// Interrupts of one vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct VectorCounters {
    /// Messages sent.
    pub raised: u64,
    /// Times that the driver enabled the vector after a message had masked it.
    pub rearmed: u64,
    /// Messages sent on resume, lest one was lost on the way; also counted in `raised`.
    pub reraised: u64,
    /// A message has masked the vector and the driver has not enabled it since. Lasting for longer
    /// than the driver needs to poll, this is a lost interrupt.
    pub awaiting_rearm: bool,
}

impl Traffic {
    pub(crate) fn add(&mut self, frames: u32, bytes: u64) {
        self.frames += u64::from(frames);
        self.bytes += bytes;
    }
}

impl Counters {
    /// With what the state knows.
    pub(crate) fn snapshot(&self, interrupts: &InterruptState) -> Self {
        let mut counters = self.clone();
        for (vector, counter) in counters.vectors.iter_mut().enumerate() {
            counter.awaiting_rearm = interrupts.awaiting_rearm >> vector & 1 != 0;
        }
        counters
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_counters_wrap_at_36_bits() {
        let mut statistics = Statistics {
            rx_bytes: OCTETS_MASK,
            tx_bytes: OCTETS_MASK - 63,
            tx_frames: u32::MAX,
            ..Statistics::default()
        };
        statistics.received(60, true);
        assert_eq!((statistics.rx_bytes, statistics.rx_multicast), (63, 1));
        statistics.sent(1, 60);
        assert_eq!((statistics.tx_bytes, statistics.tx_frames), (0, 0));
        assert_eq!(
            Statistics {
                rx_bytes: 0xf_0000_0001,
                ..statistics
            }
            .read(Statistic::VfgorcMsb),
            0xf
        );
    }
}
