//! The ways out for a source that keeps its VM paused, as the destination may run it.
//!
//! The destination is asked first, over a link of its own. Where the word to run has not reached it,
//! the question withdraws it: the answer is then true for ever. See `docs/commit-protocol.md`.

use std::thread;
use std::time::{Duration, Instant};

use qemu::system::RunState;
use qemu::{Qmp, QmpError};

use crate::Vm;
use crate::commit::Other;
use crate::cooperative;
use crate::link::{self, Link, LinkError, Message};
use crate::source::precopy;

/// How long the other side may take for its answer.
const ANSWER: Duration = Duration::from_secs(10);
/// How long the answer waits for what becomes of a word that has come: some milliseconds, unless QEMU
/// does not answer. Well within [`ANSWER`].
const DECIDES: Duration = Duration::from_secs(3);
const _: () = assert!(2 * DECIDES.as_secs() < ANSWER.as_secs());
const LOOK: Duration = Duration::from_millis(5);

/// Asks the other host's vferry for the VM of `migration`.
///
/// # Errors
/// When it does not answer, or is of a version that cannot.
pub fn ask(link: &mut Link, migration: &str) -> Result<Other, LinkError> {
    let question = Message::Settle {
        migration: migration.into(),
    };
    match link.ask(&question, ANSWER)? {
        Message::Settled { whereabouts } => Ok(whereabouts.into()),
        other => Err(link::unexpected(&other)),
    }
}

/// Answers that question for the VM here. A VM that is about to run is waited for: that it may run is
/// of no use to whoever asks.
///
/// # Errors
/// When the answer cannot be sent.
pub fn answer(vm: &Vm, link: &mut Link, migration: &str) -> Result<(), LinkError> {
    answer_within(DECIDES, vm, link, migration)
}

pub(crate) fn answer_within(
    limit: Duration,
    vm: &Vm,
    link: &mut Link,
    migration: &str,
) -> Result<(), LinkError> {
    let deadline = Instant::now() + limit;
    while vm.is_about_to_run(migration) && Instant::now() < deadline {
        thread::sleep(LOOK);
    }
    let whereabouts = vm.whereabouts(migration);
    tracing::info!(?whereabouts, "another host asks for a VM that it has sent");
    link.send(&Message::Settled { whereabouts }, ANSWER)
}

/// Lets the VM run on here. Says whether it sleeps, as a guest that was put to sleep does.
///
/// # Errors
/// When the other host has taken a disk of the VM, or QEMU does not let it run.
pub fn run_here(vm: &Vm, qmp: &Qmp) -> Result<bool, String> {
    precopy::see_running(vm, qmp).map_err(|error| error.to_string())?;
    let told = |error: QmpError| error.to_string();
    // A QEMU that hung did not hear that it is not kept from ending migrations any more.
    cooperative::let_go(qmp).map_err(told)?;
    let state = qmp.run_status().map_err(told)?;
    Ok(state.status == RunState::Suspended)
}

/// Has the VM run on here whose migration ended with the process that had begun it, before that had let go of
/// anything. What somebody has paused stays paused; a guest that was `asleep` is woken where it cannot sleep on.
///
/// # Errors
/// When QEMU does not answer, or does not let it run.
pub fn run_on(vm: &Vm, qmp: &Qmp, asleep: bool) -> Result<(), String> {
    vm.note_sleep(asleep);
    let told = |error: QmpError| error.to_string();
    if qmp.run_status().map_err(told)?.status == RunState::Paused {
        return qmp.migrate_cancel().map_err(told);
    }
    precopy::see_running(vm, qmp).map_err(|error| error.to_string())
}

/// Ends this host's copy of the VM.
///
/// # Errors
/// When QEMU does not answer.
pub fn give_up_here(qmp: &Qmp) -> Result<(), QmpError> {
    qmp.quit()
}
