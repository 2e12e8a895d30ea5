//! Asking the guest for all that a migration asks of it, without a migration.
//!
//! Tells beforehand whether the guest's help can be counted on, and how long each device stands
//! still for it. The devices do stop and start: what hangs on them notices.

use std::time::Duration;

use control_device::spec::Promise;
use control_device::{Outcome, Stopped, TableError, Tracked, Unavailable};
use endpoint::Endpoint;
use ferry::Guest;
use serde::{Deserialize, Serialize};

/// How it went, device by device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rehearsal {
    /// The devices that the control device speaks for, in order.
    pub devices: Vec<DeviceRehearsal>,
}

/// What the guest did with one device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceRehearsal {
    /// Its name.
    pub name: String,
    /// Letting the host know which pages it writes.
    pub track: Answer,
    /// Stopping it.
    pub stop: Answer,
    /// Starting it again.
    pub start: Answer,
}

/// What came of one request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Answer {
    /// The guest did it, within so many milliseconds by its own clock.
    Done(f64),
    /// It did not, or what it did is worth nothing: why.
    No(String),
}

/// When a rehearsal pauses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// What devices write is known; they run.
    Tracked,
    /// The devices stand still.
    Stopped,
}

/// Asks the guest to track what devices write, has it stop the devices, and start them again, with
/// a `pause` after each of the first two. `devices` are those that the control device speaks for.
/// Whatever happens, the guest is told the end of it.
///
/// # Errors
/// When the guest cannot be asked at all.
pub fn rehearse(
    guest: &Guest,
    devices: &[Endpoint],
    mut pause: impl FnMut(Moment),
) -> Result<Rehearsal, Unavailable> {
    let (control, deadlines) = (&guest.control, &guest.deadlines);
    let look = |index: usize| match devices.get(index) {
        Some(device) if !device.is_bus_master() => Stopped::Verified,
        _ => Stopped::StillBusMaster,
    };
    let (tracks, asked) = match control.track(deadlines.track) {
        Ok(asked) => {
            let bus = guest.endpoint.bus();
            let memory = || guest.endpoint.is_bus_master().then(|| bus.look());
            let tracked = asked.wait(bus.look().end(), memory);
            pause(Moment::Tracked);
            let answers = (0..devices.len()).map(|index| of_track(&tracked, index));
            (answers.collect(), tracked.quiesce(deadlines.quiesce))
        }
        // It may stop devices without.
        Err(why @ Unavailable::NotOffered) => {
            let answers = vec![Answer::No(why.to_string()); devices.len()];
            (answers, control.quiesce(deadlines.quiesce))
        }
        Err(why) => return Err(why),
    };
    let (stops, starts) = match asked {
        Ok(asked) => {
            let quiesced = asked.wait(look);
            let stops = quiesced.outcomes().to_vec();
            pause(Moment::Stopped);
            (Ok(stops), quiesced.end(deadlines.end).wait().0)
        }
        Err(why) => (Err(why), Vec::new()),
    };
    let names = devices.iter().zip(tracks).enumerate();
    let devices = names.map(|(index, (device, track))| DeviceRehearsal {
        name: device.name().into(),
        track,
        stop: match &stops {
            Ok(stops) => of_stop(stops.get(index)),
            Err(why) => Answer::No(why.to_string()),
        },
        start: match (&stops, starts.get(index)) {
            (Ok(_), outcome) => of_outcome(outcome, |()| None),
            (Err(_), _) => Answer::No("it was not stopped".into()),
        },
    });
    Ok(Rehearsal {
        devices: devices.collect(),
    })
}

fn of_track(tracked: &Tracked, index: usize) -> Answer {
    let refused = tracked.table_refused();
    of_outcome(tracked.promises().get(index), |promise| match promise {
        Promise::Table | Promise::TableAfterQuiesce => {
            refused.map(|why: TableError| why.to_string())
        }
        Promise::TouchAfterQuiesce => None,
    })
}

fn of_stop(outcome: Option<&Outcome<Stopped>>) -> Answer {
    of_outcome(outcome, |stopped| match stopped {
        Stopped::Verified => None,
        Stopped::StillBusMaster => Some("the guest left bus mastering on".into()),
    })
}

/// `worthless` says why an answer is, if it is.
fn of_outcome<T: Copy>(
    outcome: Option<&Outcome<T>>,
    worthless: impl FnOnce(T) -> Option<String>,
) -> Answer {
    match outcome.copied().unwrap_or(Outcome::Silent) {
        Outcome::Done { value, took } => match worthless(value) {
            Some(why) => Answer::No(why),
            None => Answer::Done(millis(took)),
        },
        Outcome::Failed { detail } => Answer::No(format!("the guest failed (error {detail})")),
        Outcome::Declined => Answer::No("the guest has no driver that can".into()),
        Outcome::Silent => Answer::No("the guest did not answer in time".into()),
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_counts_is_done() {
        let done = |value| Outcome::Done {
            value,
            took: Duration::from_micros(1500),
        };
        assert_eq!(of_stop(Some(&done(Stopped::Verified))), Answer::Done(1.5));
        for outcome in [
            Some(done(Stopped::StillBusMaster)),
            Some(Outcome::Failed { detail: 16 }),
            Some(Outcome::Declined),
            Some(Outcome::Silent),
            None,
        ] {
            let answer = of_stop(outcome.as_ref());
            assert!(matches!(answer, Answer::No(_)), "{outcome:?}");
        }
    }
}
