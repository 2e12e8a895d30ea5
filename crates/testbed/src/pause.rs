//! How long a VM stands still in a migration, by the word of both QEMUs: the same whoever migrates it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use qemu::{Event, Events, Qmp, QmpError};

/// How long the destination's word may take once the guest is seen to run there.
const TELL: Duration = Duration::from_secs(5);

/// How long a VM stood still, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Pause {
    /// All of it: see [`Migration::pause_ms`](crate::Migration::pause_ms).
    pub(crate) all_ms: f64,
    /// From the source's completion on: see [`Migration::word_ms`](crate::Migration::word_ms).
    pub(crate) word_ms: f64,
}

/// What both QEMUs say, from before the migration on.
#[derive(Debug)]
pub(crate) struct Watch {
    from: Events,
    to: Events,
}

impl Watch {
    pub(crate) fn begin(from: &Qmp, to: &Qmp) -> Self {
        Self {
            from: from.events(),
            to: to.events(),
        }
    }

    /// The pause, once the VM runs there: from when the source's QEMU began to stop
    /// it until the destination's had it run. The source tells what it took until its completion
    /// (`downtime`), in which all is that it has the devices do when they stop, and both tell when
    /// they did what, by the clock of the one machine that they run on.
    pub(crate) fn pause(mut self, source: &Qmp) -> Result<Pause> {
        let deadline = Instant::now() + TELL;
        let is_over = |event: &Event| event.data["status"] == "completed";
        let completed = wait(&mut self.from, "MIGRATION", is_over, deadline);
        let completed = completed.context("the source's QEMU did not tell that it is done")?;
        let runs = wait(&mut self.to, "RESUME", |_| true, deadline);
        let runs = runs.context("the destination's QEMU did not tell that the VM runs")?;
        let at = |event: Event| event.timestamp.context("an event without a time");
        let (completed, runs) = (at(completed)?, at(runs)?);
        let until_completed = source.migration()?.downtime;
        let until_completed = until_completed.context("QEMU does not tell how long it took")?;
        // It may have told that it is done after the other one had the VM run.
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let word_ms = ms(runs) - ms(completed);
        Ok(Pause {
            all_ms: ms(until_completed) + word_ms,
            word_ms,
        })
    }
}

/// Nobody reads meanwhile, and of a VM that is held for long QEMU tells more than is kept: what is waited for
/// is among the last.
fn wait(
    events: &mut Events,
    name: &str,
    wanted: impl Fn(&Event) -> bool,
    deadline: Instant,
) -> Result<Event, QmpError> {
    loop {
        match events.wait_for(name, &wanted, deadline) {
            Err(QmpError::EventsLost { .. }) => {}
            told => return told,
        }
    }
}
