//! The destination's side: the guest is told that it is over, and restarts what it has stopped.

use std::time::Instant;

use control_device::{Asked, End, Outcome};
use serde::{Deserialize, Serialize};

use super::Guest;
use crate::report::millis;

/// What became of the guest's devices at the destination.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Restarts {
    /// Milliseconds from telling the guest until its last answer.
    pub recover_ms: f64,
    /// One for each device, in order; none if the guest was told nothing.
    pub devices: Vec<Restart>,
}

/// What became of one device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Restart {
    /// It runs, after so many milliseconds by the guest's clock.
    Done(f64),
    /// The guest was asked nothing about it.
    Declined,
    /// It does not run: what the guest says.
    Failed(String),
    /// Not known: the guest did not answer.
    Silent(String),
}

/// The guest has been told, and may answer.
#[derive(Debug)]
pub(crate) struct Ending {
    asked: Asked<End>,
    since: Instant,
    deadline: std::time::Duration,
}

impl Ending {
    /// Tells the guest of a VM that has arrived; `None` where there is nothing to be told.
    pub(crate) fn begin(guest: &Guest) -> Option<Self> {
        let deadline = guest.deadlines.end;
        let asked = guest.control.end(deadline).ok().flatten()?;
        Some(Self {
            asked,
            since: Instant::now(),
            deadline,
        })
    }

    /// Waits for the guest's answers, at most until their deadline.
    pub(crate) fn wait(self) -> Restarts {
        let Self {
            asked,
            since,
            deadline,
        } = self;
        let devices = asked.wait().0.into_iter().map(|outcome| match outcome {
            Outcome::Done { took, .. } => Restart::Done(millis(took)),
            Outcome::Declined => Restart::Declined,
            Outcome::Failed { detail } => {
                Restart::Failed(format!("the guest could not restart it (error {detail})"))
            }
            Outcome::Silent => {
                Restart::Silent(format!("the guest did not restart it within {deadline:?}"))
            }
        });
        Restarts {
            devices: devices.collect(),
            recover_ms: millis(since.elapsed()),
        }
    }
}
