//! From QEMU's `migrate` to its `completed`: the phases precopy, halt, mark and copy.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use qemu::migration::{MigrationInfo, MigrationStatus};
use qemu::system::RunState;
use qemu::{Event, Qmp, QmpError};

use super::flow::Flow;
use super::looks::Looks;
use super::{Source, StepError};
use crate::cooperative::ask::Cooperation;
use crate::link::{self, Function, Link};
use crate::report::Progress;
use crate::restore;
use crate::sleep::{self, Sleep};
use crate::vm::StageName;
use crate::{Phase, Vm};

/// How often progress is told and a cancel looked for.
const TICK: Duration = Duration::from_millis(100);
/// How long QEMU may take to open the dirty log, or to let the VM run again after a failure.
const REACT: Duration = Duration::from_secs(10);

/// The VM was not seen to run on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotSeen {
    /// It has ended.
    #[error("{0}")]
    QemuGone(QmpError),
    /// It may do so yet.
    #[error("{0}")]
    Other(String),
}

/// The status that an event tells, and when.
fn status_told(event: &Event) -> Option<(MigrationStatus, Instant)> {
    if event.name != "MIGRATION" {
        return None;
    }
    let status = event.data.get("status").and_then(|s| s.as_str());
    let status = status.unwrap_or_default().to_owned();
    Some((status.into(), event.received))
}

/// What an event tells of a guest that sleeps by its own wish, or is woken.
fn note_sleep(vm: &Vm, event: &Event) {
    match event.name.as_str() {
        "SUSPEND" => vm.note_sleep(true),
        "WAKEUP" => vm.note_sleep(false),
        _ => {}
    }
}

/// A VM that has been sent.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) completed: Instant,
    /// What the guest had programmed when it stopped.
    pub(super) functions: Vec<Function>,
}

pub(super) fn run(
    source: &Source<'_>,
    link: &mut Link,
    uri: &str,
    cooperation: Option<&mut Cooperation<'_>>,
    sleep: Option<&mut Sleep<'_>>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Sent, (Phase, StepError)> {
    let mut phase = Phase::Precopy;
    let write_back = source.vm.write_back();
    let sent = send(source, link, uri, cooperation, sleep, progress, &mut phase);
    drop(write_back);
    sent.map_err(|error| (phase, error))
}

fn send(
    source: &Source<'_>,
    link: &mut Link,
    uri: &str,
    mut cooperation: Option<&mut Cooperation<'_>>,
    mut sleep: Option<&mut Sleep<'_>>,
    progress: &mut dyn FnMut(Progress),
    phase: &mut Phase,
) -> Result<Sent, StepError> {
    source.stop_if_cancelled()?;
    let events = source.qmp.events();
    // What comes after is told.
    let sleeps = source.qmp.run_status()?.status == RunState::Suspended;
    source.vm.note_sleep(sleeps);
    source.qmp.migrate(uri)?;
    wait_logging(source)?;
    // What the guest had programmed at the stop that was at this time.
    let mut functions: Option<(Option<Instant>, Vec<Function>)> = None;
    let mut cancelled = false;
    let mut flow = Flow::new(source.facts.machine.base_memory);
    let mut stalled = None;
    let mut told = Instant::now();
    let mut looks = Looks::new(events);
    let (status, completed) = loop {
        let watch = cooperation.as_ref().and_then(|with| with.interval());
        let watch = watch.or_else(|| sleep.as_ref()?.interval());
        let (event, is_time) = looks.next(watch.unwrap_or(TICK))?;
        if let Some(event) = &event {
            note_sleep(source.vm, event);
        }
        // A pause that came to nothing is followed by another stop, at another time.
        let stop = source.vm.timeline().stopping;
        let known = functions.as_ref().is_some_and(|(at, _)| *at == stop);
        if !known && source.vm.stage() == StageName::Marked {
            functions = at_stop(source, progress, phase)?.map(|read| (stop, read));
        }
        let over = event.as_ref().and_then(status_told);
        let over = over.filter(|(status, _)| status.is_over());
        let over = match over {
            None if is_time => {
                let info = source.qmp.migration()?;
                if told.elapsed() >= TICK {
                    told = Instant::now();
                    tell(source, &info, progress);
                }
                // A guest whose vCPUs are stopped answers nothing.
                if *phase == Phase::Precopy
                    && source.vm.stage() == StageName::Running
                    && let Some(cooperation) = cooperation.as_deref_mut()
                    && cooperation.is_its_turn(&info)
                {
                    progress(Progress::Phase {
                        phase: Phase::Quiesce,
                    });
                    cooperation.quiesce()?;
                    flow.go_on();
                }
                if let Some(sleep) = sleep.as_deref_mut()
                    && sleep.is_its_turn(&info)
                {
                    *phase = Phase::Suspend;
                    progress(Progress::Phase { phase: *phase });
                    sleep.fall_asleep(looks.events(), &source.cancel)?;
                    source.vm.set_asleep();
                    flow.go_on();
                }
                stalled = stalled.or_else(|| flow.stalls(&info));
                Some((info.status, Instant::now())).filter(|(status, _)| status.is_over())
            }
            told => told,
        };
        // In the pause every millisecond counts, and QEMU's completion needs the other side anyway.
        if is_time && over.is_none() && *phase == Phase::Precopy {
            listen(link)?;
        }
        if let Some(over) = over {
            break over;
        }
        if !cancelled && (stalled.is_some() || source.cancel.load(Ordering::Acquire)) {
            source.qmp.migrate_cancel()?;
            cancelled = true;
        }
    };
    looks
        .events()
        .pending()
        .for_each(|event| note_sleep(source.vm, &event));
    match status {
        MigrationStatus::Completed => {}
        MigrationStatus::Cancelled => return Err(stalled.map_or(StepError::Cancelled, hangs)),
        _ => return Err(StepError::Other(reason(&source.qmp.migration()?))),
    }
    let stop = source.vm.timeline().stopping;
    let functions = match functions {
        Some((at, functions)) if at == stop => functions,
        // The stop and the completion came in one.
        _ => restore::read(source.qmp, source.slots, &source.vm.carried())?,
    };
    Ok(Sent {
        completed,
        functions,
    })
}

/// The devices were halted. If that was the migration's stop, reads what the guest, which can no
/// longer change it, has programmed.
///
/// A guest that reboots or unbinds the sidecar's driver stops its rings too, and then the vCPUs
/// run: the devices follow. QEMU opens the log again when the rings do; should they not, nothing
/// halts and marks at the real stop, and SAVE is refused.
fn at_stop(
    source: &Source<'_>,
    progress: &mut dyn FnMut(Progress),
    phase: &mut Phase,
) -> Result<Option<Vec<Function>>, StepError> {
    // QEMU answers as soon as it has sent the rest.
    if source.qmp.run_status()?.running {
        tracing::info!("the guest stopped the sidecar, not the migration: devices go on");
        source.vm.undo_halt();
        return Ok(None);
    }
    for passed in [Phase::Halt, Phase::Mark, Phase::Copy] {
        *phase = passed;
        progress(Progress::Phase { phase: passed });
    }
    Ok(Some(restore::read(
        source.qmp,
        source.slots,
        &source.vm.carried(),
    )?))
}

/// Tells how far it is.
fn tell(source: &Source<'_>, info: &MigrationInfo, progress: &mut dyn FnMut(Progress)) {
    if let Some(ram) = info.ram {
        progress(Progress::Memory {
            transferred: ram.transferred,
            total: ram.total,
            remaining: ram.remaining,
            mbps: ram.mbps,
            marked: source.vm.marks().total(),
        });
    }
}

/// The other side has nothing to say while memory is copied, unless it gives up or is gone: then
/// there is no use in copying on.
fn listen(link: &mut Link) -> Result<(), StepError> {
    match link.look()? {
        None => Ok(()),
        Some(message) => Err(link::unexpected(&message).into()),
    }
}

/// The other side hangs.
fn hangs(still: Duration) -> StepError {
    StepError::Other(format!(
        "the destination has taken nothing of the VM for {still:.0?}: its vferry or its QEMU hangs, or \
         the network between both QEMUs does"
    ))
}

/// Waits for QEMU to open the dirty log, as it does before its first pass.
fn wait_logging(source: &Source<'_>) -> Result<(), StepError> {
    let deadline = Instant::now() + REACT;
    while !source.vm.wait_logging(TICK) {
        source.stop_if_cancelled()?;
        let over = source.qmp.migration()?.status.is_over();
        if over || Instant::now() > deadline {
            return Err(no_log(source));
        }
    }
    Ok(())
}

/// QEMU began without opening the dirty log: what devices write would be lost.
fn no_log(source: &Source<'_>) -> StepError {
    let _ = source.qmp.migrate_cancel();
    let why = source.qmp.migration().ok().and_then(|info| info.error_desc);
    StepError::Other(match why {
        Some(why) => why,
        None => "QEMU did not open the dirty log of vferry's sidecar, so pages that devices write \
                 would be lost: is the sidecar's device started in the guest?"
            .into(),
    })
}

/// After a failure that the destination knows of or will see, before or in place of the word to run:
/// QEMU lets the VM run again by itself, or is told to when it had completed; the devices follow.
pub(crate) fn see_running(vm: &Vm, qmp: &Qmp) -> Result<(), NotSeen> {
    if let Err(QmpError::Timeout { .. }) = qmp.migrate_cancel() {
        // While it sends the last part it does nothing else, and nobody takes that.
        tracing::warn!("QEMU does not answer: its stream is cut");
        let _ = qmp.cut_migration();
    }
    let deadline = Instant::now() + REACT;
    let mut events = qmp.events();
    let mut woken: Option<sleep::ToMend> = None;
    loop {
        let status = qmp.run_status()?;
        let over = qmp.migration()?;
        let under_way = !over.status.is_over() && over.status != MigrationStatus::None;
        let runs = status.running || status.status == RunState::Suspended;
        if runs && !under_way {
            vm.claim()
                .map_err(|error| NotSeen::Other(error.to_string()))?;
            // Nothing has come from the rings if the sidecar was the one that failed.
            vm.run_again();
            if let Some(woken) = woken
                && let Err(error) = woken.mend(qmp)
            {
                // It runs here all the same.
                tracing::error!(%error, "the chipset of the guest that was woken cannot be looked at; if the VM is paused, QMP `cont` lets it run");
            }
            return Ok(());
        }
        // `prelaunch` it is after `wake_unsent`.
        if matches!(status.status, RunState::PostMigrate | RunState::Prelaunch) {
            vm.claim()
                .map_err(|error| NotSeen::Other(error.to_string()))?;
            if status.status == RunState::PostMigrate && vm.sleeps() {
                woken = sleep::wake_unsent(qmp)?;
            }
            // Refused as long as the destination's QEMU has not let go of shared disks.
            let _ = qmp.cont();
        }
        if Instant::now() > deadline {
            let why = format!("QEMU reports {:?}", status.status);
            return Err(NotSeen::Other(why));
        }
        // RESUME is what is waited for; any event is a reason to look again.
        let _ = events.next(Instant::now() + TICK);
    }
}

impl From<QmpError> for NotSeen {
    fn from(error: QmpError) -> Self {
        match error {
            QmpError::Disconnected { .. } => Self::QemuGone(error),
            error => Self::Other(error.to_string()),
        }
    }
}

fn reason(info: &MigrationInfo) -> String {
    let status = format!("QEMU's migration ended as {:?}", info.status);
    match &info.error_desc {
        Some(why) => format!("{status}: {why}"),
        None => status,
    }
}
