//! Where an outage went.

use std::collections::BTreeMap;

use ferry::recovery::Times;
use ferry::report::DeviceReport;
use serde::Serialize;

use crate::Migration;
use crate::summary::Spread;

/// The parts of an outage in which the guest stops its devices and starts them again.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Split {
    /// What the guest took to stop them, by its own clock.
    pub guest_quiesce_ms: Spread,
    /// The VM's pause, as QEMU reports it.
    pub vm_pause_ms: Spread,
    /// What the guest took to start them, by its own clock.
    pub guest_restart_ms: Spread,
    /// What of the outage is none of these.
    pub rest_ms: Spread,
}

/// The parts of the outage of a device that the guest's error recovery starts, one after the other,
/// each in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RecoverySplit {
    /// From the halt until the VM and its devices run at the destination.
    pub devices_paused_ms: Spread,
    /// Until the guest, which has found the error and told the driver, resets the bus.
    pub guest_resets_ms: Spread,
    /// Until the device is programmed as it was, and answers.
    pub programmed_ms: Spread,
    /// Until the guest has waited for the link, looked at the device, and its driver lets it be bus
    /// master.
    pub driver_starts_ms: Spread,
    /// Until the device does its first work: a frame, a completed command.
    pub first_work_ms: Spread,
}

impl Split {
    /// What the guest tells of its slowest device; `None` if it stopped and started none.
    pub fn of(migrations: &[Migration]) -> Option<Self> {
        let slowest = |m: &Migration, of: fn(&DeviceReport) -> Option<f64>| {
            let devices = m.report.devices.iter().filter_map(of);
            devices.max_by(f64::total_cmp)
        };
        let mut parts = [const { Vec::new() }; 4];
        for migration in migrations {
            let stop = slowest(migration, |device| device.quiesce_ms);
            let start = slowest(migration, |device| device.restart_ms);
            if let (Some(stop), Some(start), Some(outage)) = (stop, start, migration.outage_ms()) {
                let pause = migration.report.vm_pause_ms;
                let rest = outage - stop - pause - start;
                for (part, ms) in parts.iter_mut().zip([stop, pause, start, rest]) {
                    part.push(ms);
                }
            }
        }
        let any = !parts[0].is_empty();
        let [stop, pause, start, rest] = parts.map(Spread::of);
        any.then_some(Self {
            guest_quiesce_ms: stop,
            vm_pause_ms: pause,
            guest_restart_ms: start,
            rest_ms: rest,
        })
    }
}

impl RecoverySplit {
    /// Of each device.
    pub fn of(migrations: &[Migration]) -> BTreeMap<String, Self> {
        let mut all: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for Migration { report, .. } in migrations {
            for device in &report.devices {
                if let Some(times) = device.recovered {
                    let of_device = all.entry(device.name.clone()).or_default();
                    of_device.push((report.devices_paused_ms, times));
                }
            }
        }
        let split = |(name, times): (String, Vec<_>)| (name, Self::of_device(&times));
        all.into_iter().map(split).collect()
    }

    fn of_device(all: &[(f64, Times)]) -> Self {
        let part = |of: &dyn Fn(&Times) -> Option<f64>| {
            Spread::of(all.iter().filter_map(|(_, times)| of(times)).collect())
        };
        Self {
            devices_paused_ms: Spread::of(all.iter().map(|(paused, _)| *paused).collect()),
            guest_resets_ms: part(&|times| Some(times.reset_ms)),
            programmed_ms: part(&|times| Some(times.answered_ms - times.reset_ms)),
            driver_starts_ms: part(&|times| Some(times.started_ms - times.answered_ms)),
            first_work_ms: part(&|times| Some(times.worked_ms? - times.started_ms)),
        }
    }
}
