//! What was seen of one migration.

use ferry::Report;
use load_format::Silence;
use serde::{Deserialize, Serialize};
use uplink::peer::WindowReport;
use vferry::control::Status;

/// One migration, from three sides.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Migration {
    /// vferry's report.
    pub report: Report,
    /// What the peer saw around it.
    pub window: WindowReport,
    /// The guest's interrupts at the destination, soon after.
    pub interrupts: Interrupts,
    /// Longest time without a completed operation of the guest's disk, if it has one: see
    /// [`DiskSummary::outage_ms`](crate::DiskSummary::outage_ms).
    pub disk_outage_ms: Option<f64>,
}

/// Interrupts of the guest's NIC since its state was loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Interrupts {
    /// Messages sent.
    pub raised: u64,
    /// Of these, sent on arrival lest one was lost on the way: at most so many are spurious.
    pub spurious: u64,
    /// Vectors that a message has masked and the driver has not enabled again, though all traffic
    /// flows.
    pub lost: u64,
}

impl Migration {
    /// The device's outage: the longest silence either way, in milliseconds.
    pub fn outage_ms(&self) -> Option<f64> {
        self.window.outage().map(|silence| ms(&silence))
    }

    /// The stretches of time in which packets may have been lost.
    pub fn outages(&self) -> &[Silence] {
        &self.window.udp_silences
    }
}

impl Interrupts {
    /// From what the models show of themselves.
    pub fn of(status: &Status) -> Self {
        let mut sum = Self::default();
        for device in &status.devices {
            let vectors = device.model.get("vectors").and_then(|v| v.as_array());
            for vector in vectors.into_iter().flatten() {
                let number = |name| {
                    vector
                        .get(name)
                        .and_then(serde_json::Value::as_u64)
                        .unwrap_or(0)
                };
                sum.raised += number("raised");
                sum.spurious += number("reraised");
                let raised_before = number("raised") > number("rearmed") + 1;
                sum.lost += u64::from(raised_before && vector["awaiting_rearm"] == true);
            }
        }
        sum
    }
}

/// A silence in milliseconds.
#[expect(
    clippy::cast_precision_loss,
    reason = "an outage of 100 days loses a microsecond"
)]
pub(crate) fn ms(silence: &Silence) -> f64 {
    silence.nanos() as f64 / 1e6
}
