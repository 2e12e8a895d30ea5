//! When the next packet, or the next bytes, are due.

/// Evenly spaced events.
#[derive(Debug)]
pub(super) struct Pacer {
    interval_nanos: Option<u64>,
    next_nanos: u64,
}

/// Events made up for at once after a delay; with a longer delay the rest is left out, so that a
/// stall of this host does not end in a flood.
const MAX_BURST: u32 = 64;

impl Pacer {
    /// `per_second` events from `now_nanos` on; none at all for 0.
    pub(super) fn new(per_second: u32, now_nanos: u64) -> Self {
        Self {
            interval_nanos: 1_000_000_000_u64.checked_div(per_second.into()),
            next_nanos: now_nanos,
        }
    }

    /// How many events are due.
    pub(super) fn due(&mut self, now_nanos: u64) -> u32 {
        let Some(interval) = self.interval_nanos.map(|nanos| nanos.max(1)) else {
            return 0;
        };
        let Some(late) = now_nanos.checked_sub(self.next_nanos) else {
            return 0;
        };
        let count = late / interval + 1;
        if let Some(due) = u32::try_from(count)
            .ok()
            .filter(|count| *count <= MAX_BURST)
        {
            self.next_nanos += count * interval;
            due
        } else {
            self.next_nanos = now_nanos + interval;
            MAX_BURST
        }
    }

    /// When the next event is due; `u64::MAX` for never.
    pub(super) fn next_due(&self) -> u64 {
        self.interval_nanos.map_or(u64::MAX, |_| self.next_nanos)
    }
}

/// Bytes that may be sent, growing with time up to a limit.
#[derive(Debug)]
pub(super) struct Budget {
    bytes_per_second: u64,
    last_nanos: u64,
    /// Thousand-millionths of a byte.
    nano_bytes: u64,
}

impl Budget {
    /// Time that is made up for at most, in nanoseconds.
    const MAX_SAVED: u64 = 50_000_000;

    pub(super) fn new(bytes_per_second: u32, now_nanos: u64) -> Self {
        Self {
            bytes_per_second: bytes_per_second.into(),
            last_nanos: now_nanos,
            nano_bytes: 0,
        }
    }

    /// How many bytes may be sent now.
    pub(super) fn bytes(&mut self, now_nanos: u64) -> usize {
        let passed = now_nanos
            .saturating_sub(self.last_nanos)
            .min(Self::MAX_SAVED);
        self.last_nanos = self.last_nanos.max(now_nanos);
        let limit = self.bytes_per_second * Self::MAX_SAVED;
        self.nano_bytes = (self.nano_bytes + passed * self.bytes_per_second).min(limit);
        usize::try_from(self.nano_bytes / 1_000_000_000).unwrap_or(usize::MAX)
    }

    /// Takes what was sent off the budget.
    pub(super) fn spend(&mut self, bytes: usize) {
        let spent = (bytes as u64).saturating_mul(1_000_000_000);
        self.nano_bytes = self.nano_bytes.saturating_sub(spent);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_keep_their_rate_however_they_are_asked_for() {
        let mut pacer = Pacer::new(2000, 0);
        let due: u32 = (0..1_000_000_000_u64)
            .step_by(777_777)
            .map(|now| pacer.due(now))
            .sum();
        assert!((1998..=2000).contains(&due), "{due}");
    }

    #[test]
    fn a_stall_is_made_up_for_only_so_far() {
        let mut pacer = Pacer::new(1000, 0);
        assert_eq!(pacer.due(10_000_000_000), MAX_BURST);
        assert_eq!(pacer.due(10_000_000_000), 0);
        assert_eq!(pacer.next_due(), 10_001_000_000);
    }

    #[test]
    fn a_rate_of_nothing_is_never_due() {
        let mut pacer = Pacer::new(0, 0);
        assert_eq!((pacer.due(u64::MAX), pacer.next_due()), (0, u64::MAX));
        assert_eq!(Budget::new(0, 0).bytes(u64::MAX), 0);
    }

    #[test]
    fn the_budget_keeps_its_rate_and_saves_little() {
        let mut budget = Budget::new(2_000_000, 0);
        let mut sent = 0;
        for now in (0..=1_000_000_000).step_by(3_333_333) {
            let bytes = budget.bytes(now);
            budget.spend(bytes);
            sent += bytes;
        }
        assert!((1_990_000..=2_000_000).contains(&sent), "{sent}");
        assert_eq!(budget.bytes(100_000_000_000), 100_000);
    }
}
