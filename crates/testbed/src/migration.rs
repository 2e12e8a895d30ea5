//! What was seen of one migration.

use ferry::Report;
use load_format::Silence;
use serde::{Deserialize, Serialize};
use serde_json::Value;
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
    /// The VM's pause as both QEMUs tell of it, in milliseconds: from when the source's began to stop it
    /// until the destination's had it run. `None` where nobody heard them.
    pub pause_ms: Option<f64>,
    /// Of that, what came after the source's QEMU had completed; below zero if the VM ran before. `None` as there.
    pub word_ms: Option<f64>,
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
    /// From what the models show of themselves, before and after all traffic has flowed.
    pub fn of(before: &Status, after: &Status) -> Self {
        let earlier: Vec<_> = vectors(before).collect();
        let mut sum = Self::default();
        for (index, vector) in vectors(after).enumerate() {
            sum.raised += number(vector, "raised");
            sum.spurious += number(vector, "reraised");
            // One that the driver was seen to enable again was only being worked on.
            let stuck = earlier.get(index).is_some_and(|earlier| {
                earlier["awaiting_rearm"] == true
                    && number(earlier, "rearmed") == number(vector, "rearmed")
            });
            let raised_before = number(vector, "raised") > number(vector, "rearmed") + 1;
            sum.lost += u64::from(stuck && raised_before && vector["awaiting_rearm"] == true);
        }
        sum
    }
}

/// What the models tell of their vectors, in order.
fn vectors(status: &Status) -> impl Iterator<Item = &Value> {
    let devices = status.devices.iter();
    let vectors = devices.filter_map(|device| device.model.get("vectors")?.as_array());
    vectors.flatten()
}

fn number(vector: &Value, name: &str) -> u64 {
    vector.get(name).and_then(Value::as_u64).unwrap_or(0)
}

/// A silence in milliseconds.
#[expect(
    clippy::cast_precision_loss,
    reason = "an outage of 100 days loses a microsecond"
)]
pub(crate) fn ms(silence: &Silence) -> f64 {
    silence.nanos() as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A NIC whose one vector has interrupted and was enabled again so often.
    fn status(raised: u64, rearmed: u64, awaiting_rearm: bool) -> Status {
        let vector = json!({
            "raised": raised,
            "reraised": 1,
            "rearmed": rearmed,
            "awaiting_rearm": awaiting_rearm
        });
        let nic = json!({ "name": "net0", "connected": true, "model": { "vectors": [vector] } });
        let status = json!({
            "vm": "lab",
            "stage": "running",
            "migrating": false,
            "sidecar_connected": true,
            "devices": [nic],
            "pages_marked": 0
        });
        serde_json::from_value(status).expect("it is one")
    }

    #[test]
    fn an_interrupt_is_lost_if_its_vector_stays_masked() {
        let lost = |before, after| Interrupts::of(&before, &after).lost;
        assert_eq!(lost(status(9, 7, true), status(9, 7, true)), 1);
        // Twice looked at while the driver was at work.
        assert_eq!(lost(status(9, 7, true), status(10, 8, true)), 0);
        assert_eq!(lost(status(9, 7, true), status(9, 8, false)), 0);
    }
}
