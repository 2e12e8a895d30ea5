//! When little is left to send.

use qemu::migration::RamProgress;

/// Watches QEMU's passes over memory.
#[derive(Debug, Default)]
pub(crate) struct Convergence {
    pass: u64,
    /// Most bytes that were seen to be left in this pass.
    most: u64,
}

impl Convergence {
    /// Whether the pass that has just ended had no more than `limit` bytes to send. The first
    /// pass, over all memory, does not count.
    pub(crate) fn is_near(&mut self, ram: &RamProgress, limit: u64) -> bool {
        if ram.dirty_sync_count == self.pass {
            self.most = self.most.max(ram.remaining);
            return false;
        }
        let near = self.pass >= 2 && self.most <= limit;
        self.pass = ram.dirty_sync_count;
        self.most = ram.remaining;
        near
    }
}

/// Bytes that QEMU sends within `limit_ms` at its present rate.
pub(crate) fn sendable(ram: &RamProgress, limit_ms: u64) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the cast saturates, and an estimate needs no more"
    )]
    let bytes_per_ms = (ram.mbps.max(0.0) * 125.0) as u64;
    bytes_per_ms.saturating_mul(limit_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(passes: &[(u64, u64)]) -> Vec<bool> {
        let mut convergence = Convergence::default();
        let near = |&(pass, remaining): &(u64, u64)| {
            let ram = RamProgress {
                dirty_sync_count: pass,
                remaining,
                ..RamProgress::default()
            };
            convergence.is_near(&ram, 100)
        };
        passes.iter().map(near).collect()
    }

    #[test]
    fn a_pass_counts_by_its_most_once_it_is_over() {
        let passes = [
            (1, 9000),
            (1, 10),
            (2, 500),
            (2, 20),
            (3, 80),
            (3, 60),
            (4, 90),
        ];
        assert_eq!(
            seen(&passes),
            [false, false, false, false, false, false, true],
            "pass 1 is over all memory, pass 2 began with 500, pass 3 with 80"
        );
    }

    #[test]
    fn a_guest_that_writes_faster_than_is_sent_is_never_near() {
        let passes: Vec<_> = (1..50).map(|pass| (pass, 101)).collect();
        assert!(!seen(&passes).contains(&true));
    }

    #[test]
    fn what_can_be_sent_follows_the_rate() {
        let ram = |mbps| RamProgress {
            mbps,
            ..RamProgress::default()
        };
        assert_eq!(sendable(&ram(8.0), 10), 10_000);
        assert_eq!(sendable(&ram(-1.0), 10), 0);
        assert_eq!(sendable(&ram(f64::NAN), 10), 0);
        assert_eq!(sendable(&ram(f64::INFINITY), 10), u64::MAX);
    }
}
