//! Whether the other side still takes what it is sent.

use std::time::{Duration, Instant};

use qemu::migration::MigrationInfo;

/// How long nothing may be taken. A host that vanishes is noticed sooner on TCP; this is for one whose
/// process hangs.
const PATIENCE: Duration = Duration::from_secs(30);
/// And more for each GiB of memory, as all of it may be read there while nothing is taken: digests.
const FOR_EACH_GIB: Duration = Duration::from_secs(1);

/// The time in which the other side does something that takes as long as to read so many bytes of memory, or it hangs.
pub(crate) fn patience(memory: u64) -> Duration {
    let gib = u32::try_from(memory >> 30).unwrap_or(u32::MAX);
    PATIENCE.saturating_add(FOR_EACH_GIB.saturating_mul(gib))
}

/// What has been sent so far, and since when it is no more.
#[derive(Debug)]
pub(super) struct Flow {
    sent: u64,
    since: Instant,
    patience: Duration,
}

impl Flow {
    /// Of a VM with so many bytes of memory.
    pub(super) fn new(memory: u64) -> Self {
        Self {
            sent: 0,
            since: Instant::now(),
            patience: patience(memory),
        }
    }

    /// For how long nothing has been taken, if that is too long.
    pub(super) fn stalls(&mut self, info: &MigrationInfo) -> Option<Duration> {
        let sent = info.ram.map_or(0, |ram| ram.transferred);
        if sent != self.sent {
            self.sent = sent;
            self.go_on();
        }
        let still = self.since.elapsed();
        (still > self.patience).then_some(still)
    }

    /// Something else was waited for meanwhile.
    pub(super) fn go_on(&mut self) {
        self.since = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn info(transferred: u64) -> MigrationInfo {
        let ram = json!({ "transferred": transferred, "remaining": 0, "total": 0 });
        serde_json::from_value(json!({ "status": "active", "ram": ram })).unwrap()
    }

    #[test]
    fn a_stream_of_which_nothing_is_taken_stalls() {
        let mut flow = Flow::new(512 << 20);
        assert_eq!(flow.stalls(&info(1)), None);
        flow.since = Instant::now().checked_sub(PATIENCE * 2).unwrap();
        assert!(flow.stalls(&info(1)).is_some());
        assert_eq!(flow.stalls(&info(2)), None, "it goes on");
        flow.since = Instant::now().checked_sub(PATIENCE * 2).unwrap();
        flow.go_on();
        assert_eq!(flow.stalls(&info(2)), None);
    }

    #[test]
    fn large_memory_may_be_read_for_longer() {
        let of = |memory| Flow::new(memory).patience;
        assert_eq!(of(64 << 30), PATIENCE + 64 * FOR_EACH_GIB);
        assert!(of(u64::MAX) > of(64 << 30));
    }
}
