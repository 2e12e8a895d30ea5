//! How each device went over, and what became of those that were left to their drivers: asked at the
//! destination.

use std::time::Duration;

use device::LogSource;
use endpoint::Carry;

use super::{RUN, Source};
use crate::comparison::Compared;
use crate::cooperative::ask::Cooperation;
use crate::cooperative::end::Restart;
use crate::link::{self, Link, Message};
use crate::recovery::Outcome;
use crate::report::DeviceReport;
use crate::restore::Slot;
use crate::{Strategy, Vm};

/// How long the destination may take to tell whether the guest has started its devices: the longest deadline that
/// a configuration may give the guest for that, and some time. The VM runs meanwhile.
const RESTARTS: Duration = Duration::from_secs(65);

impl Source<'_> {
    /// How each device went over, so far as is known here.
    pub(super) fn device_reports(
        &self,
        asked: Strategy,
        cooperation: Option<&Cooperation<'_>>,
        compared: Option<&Compared>,
    ) -> Vec<DeviceReport> {
        let recovered = self.vm.left_to_recovery();
        let without_log = self.vm.without_log();
        let otherwise = match compared {
            Some(_) => "comparison",
            None => "guest",
        };
        let devices = self.slots.iter().zip(self.vm.carried()).enumerate();
        devices
            .map(|(index, (slot, carry))| (index, slot, slot.endpoint.name(), carry))
            .filter(|(index, ..)| self.is_device(*index))
            .map(|(index, slot, name, carry)| {
                let mut report = DeviceReport {
                    name: name.to_owned(),
                    dirty_log: known_by(self.vm, index, slot, &without_log, otherwise).into(),
                    strategy: match carry {
                        Carry::State => Strategy::Transparent,
                        Carry::Configuration if recovered.iter().any(|left| left == name) => {
                            Strategy::Recovery
                        }
                        Carry::Configuration => asked,
                    },
                    why: None,
                    quiesce_ms: None,
                    restart_ms: None,
                    recovered: None,
                    fault: None,
                };
                if let Some(cooperation) = cooperation {
                    cooperation.complete(&mut report, index, carry);
                }
                report
            })
            .collect()
    }
}

/// Who knows what the device wrote: whom `otherwise` names, if it is one of those `without_log`; a virtual IOMMU, if
/// it keeps none and is confined; its own log. See [`DeviceReport::dirty_log`].
pub(super) fn known_by(
    vm: &Vm,
    index: usize,
    slot: &Slot,
    without_log: &[(usize, String)],
    otherwise: &'static str,
) -> &'static str {
    let endpoint = &slot.endpoint;
    if without_log.iter().any(|(other, _)| *other == index) {
        otherwise
    } else if !endpoint.keeps_log() && vm.is_confined(endpoint) {
        "iommu"
    } else {
        endpoint.log_source().map_or("device", LogSource::name)
    }
}

/// Asks the destination what became of the devices that the guest was to start, and returns the
/// milliseconds that it took.
pub(super) fn restarted(link: &mut Link, devices: &mut [DeviceReport]) -> Option<f64> {
    let restarts = match link.ask(&Message::GuestEnd, RESTARTS) {
        Ok(Message::GuestEnded(restarts)) => restarts,
        other => {
            let why = match other {
                Ok(message) => link::unexpected(&message).to_string(),
                Err(error) => error.to_string(),
            };
            for device in devices.iter_mut().filter(|device| is_stopped(device)) {
                device.fault = Some(format!("not known whether the guest has started it: {why}"));
            }
            return None;
        }
    };
    let mut answers = restarts.devices.into_iter();
    for device in devices {
        match answers.next() {
            Some(Restart::Done(ms)) => device.restart_ms = Some(ms),
            Some(Restart::Failed(why)) => device.fault = Some(link::printable(&why)),
            Some(Restart::Silent(why)) if is_stopped(device) => {
                device.fault = Some(link::printable(&why));
            }
            None | Some(Restart::Declined) if is_stopped(device) => {
                device.fault = Some("the guest was not told to start it".into());
            }
            _ => {}
        }
    }
    Some(restarts.recover_ms)
}

/// One that the guest's error recovery starts is none of them.
fn is_stopped(device: &DeviceReport) -> bool {
    device.strategy == Strategy::Cooperative
}

/// Asks the destination what became of the devices that were left to the guest's error recovery, and
/// returns the milliseconds that the last took.
pub(super) fn recovered(link: &mut Link, devices: &mut [DeviceReport]) -> Option<f64> {
    let outcomes = match link.ask(&Message::Recover, RUN) {
        Ok(Message::Recovered { devices }) => Ok(devices),
        Ok(other) => Err(link::unexpected(&other).to_string()),
        Err(error) => Err(error.to_string()),
    };
    let mut last = None;
    for device in devices
        .iter_mut()
        .filter(|device| device.strategy == Strategy::Recovery)
    {
        let outcome = match &outcomes {
            Ok(outcomes) => {
                let found = outcomes.iter().find(|one| one.device == device.name);
                found.map(|one| one.outcome.clone())
            }
            Err(why) => Some(Outcome::Failed(format!(
                "not known whether it works: {why}"
            ))),
        };
        match outcome {
            Some(Outcome::Started(times)) => {
                last = Some(times.started_ms.max(last.unwrap_or_default()));
                device.recovered = Some(times);
            }
            Some(Outcome::NotInUse | Outcome::Restarted) => {}
            Some(Outcome::Failed(why)) => device.fault = Some(link::printable(&why)),
            None => device.fault = Some("the destination does not speak of it".into()),
        }
    }
    last
}
