//! What the guest tells of its load: one JSON object per question.

use serde::{Deserialize, Serialize};

use crate::DiskReport;

/// How much was done, with nothing checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// What was done in this time: a disk's operations, a NIC's packets.
    pub done: u64,
    /// What failed, from the beginning on.
    pub failed: u64,
    /// The time, in ns of the guest's clock.
    pub nanos: u64,
}

impl Rate {
    /// Done per second.
    #[expect(clippy::cast_precision_loss, reason = "below 2^53")]
    pub fn per_second(&self) -> f64 {
        self.done as f64 * 1e9 / self.nanos as f64
    }
}

/// All that `lab-guest report` prints. Times are of the guest's clock, which stands still while
/// the VM is paused; only the peer's times show a whole outage.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GuestReport {
    /// Length of the window: time since the load or the last `lab-guest reset` began, in ns.
    pub window_nanos: u64,
    /// The numbered UDP, if it was asked for.
    pub udp: Option<GuestUdpReport>,
    /// The TCP transfer, if it was asked for.
    pub tcp: Option<GuestTcpReport>,
    /// The memory dirtier, if it was asked for.
    pub dirty: Option<DirtyReport>,
    /// The disk load, if it was asked for.
    #[serde(default)]
    pub disk: Option<DiskReport>,
}

/// Numbered UDP as the guest saw it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GuestUdpReport {
    /// Packets sent to the peer.
    pub sent: u64,
    /// Packets that the guest's own kernel refused to send (they have no number).
    pub send_errors: u64,
    /// Different numbers received from the peer.
    pub received: u64,
    /// Numbers below the highest that did not come.
    pub lost: u64,
    /// The newest runs of those, oldest first (at most [`Sequence::MAX_GAPS`]).
    ///
    /// [`Sequence::MAX_GAPS`]: crate::Sequence::MAX_GAPS
    pub lost_runs: Vec<Run>,
    /// Lost numbers that are no longer in `lost_runs`.
    pub lost_elsewhere: u64,
    /// Numbers that came again.
    pub duplicates: u64,
    /// Numbers that came after a higher one.
    pub reordered: u64,
    /// Packets whose content was damaged.
    pub corrupt: u64,
    /// Longest time between two receptions, in ns of the guest's clock.
    pub longest_gap_nanos: u64,
}

/// The TCP transfer as the guest saw it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GuestTcpReport {
    /// A connection stands.
    pub connected: bool,
    /// Connections made since the load began.
    pub connections: u64,
    /// Connections that broke in this window.
    pub broken: u64,
    /// Bytes received and checked.
    pub received_bytes: u64,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Received bytes that were wrong.
    pub wrong_bytes: u64,
    /// Offset of the first wrong byte.
    pub first_wrong: Option<u64>,
}

/// The memory dirtier.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DirtyReport {
    /// Bytes of memory written over and over.
    pub memory_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// 64-bit words that did not hold what had been written there.
    pub wrong_words: u64,
}

/// A run of consecutive packet numbers, written as `[first, last]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "[u64; 2]", into = "[u64; 2]")]
pub struct Run {
    /// First number of the run.
    pub first: u64,
    /// Last number of the run, itself included.
    pub last: u64,
}

impl Run {
    /// How many numbers the run has (0 if `last` is below `first`, as only a stranger would say).
    pub fn count(&self) -> u64 {
        self.last
            .checked_sub(self.first)
            .map_or(0, |more| more.saturating_add(1))
    }
}

impl From<[u64; 2]> for Run {
    fn from([first, last]: [u64; 2]) -> Self {
        Self { first, last }
    }
}

impl From<Run> for [u64; 2] {
    fn from(run: Run) -> Self {
        [run.first, run.last]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_json_and_a_run_is_a_pair() {
        let report = GuestReport {
            udp: Some(GuestUdpReport {
                lost_runs: vec![Run { first: 3, last: 9 }],
                ..GuestUdpReport::default()
            }),
            ..GuestReport::default()
        };
        let json = serde_json::to_string(&report).expect("plain data");
        assert!(json.contains("\"lost_runs\":[[3,9]]"), "{json}");
        assert_eq!(
            serde_json::from_str::<GuestReport>(&json).expect("our own"),
            report
        );
    }

    #[test]
    fn a_report_from_before_there_were_disks_is_read() {
        let json = r#"{"window_nanos":5,"udp":null,"tcp":null,"dirty":null}"#;
        let report: GuestReport = serde_json::from_str(json).expect("an old report");
        assert_eq!((report.window_nanos, report.disk), (5, None));
    }
}
