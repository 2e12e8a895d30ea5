//! What the owner of the devices hears from QEMU through the sidecar.

use crate::{Error, Marker};

/// The owner of the devices, as the sidecar calls it.
///
/// All calls come from the thread that runs [`Sidecar::serve`](crate::Sidecar::serve), one at a
/// time, and QEMU waits for each of them with its big lock held: its monitor, its other devices
/// and this process' own DMA messages to it stand still. A hook that waits for an answer from
/// QEMU never returns.
///
/// # What a stop of the rings means
///
/// QEMU stops the device with the same messages in four cases, and nothing in them tells which:
///
/// | case | vCPUs | what follows |
/// |---|---|---|
/// | a migration switches over | stand still | [`save`](Self::save) |
/// | QMP `stop`, or the VM stops for an error | stand still | [`restarted`](Self::restarted) by `cont`, or a migration |
/// | the guest resets or unbinds the device, or reboots | **run**, or are about to | `restarted` when a driver binds again, which may be never |
/// | `device_del` | **run** | [`disconnected`](Self::disconnected) |
///
/// What can be known is whether a dirty log was active ([`Stop`]). The one sound way is then:
///
/// * [`Stop::Logged`]: treat it as the switch-over. Halt all devices, mark all that they wrote,
///   return. It is the last chance to mark. Should it turn out not to be the switch-over,
///   [`restarted`](Self::restarted) undoes the halt. If neither that nor `save` follows soon, ask
///   QMP `query-status` (from another thread, once this hook has returned): `running` means that
///   the guest did it, so undo the halt, and let [`save`](Self::save) refuse until the rings have
///   run under a log again.
/// * [`Stop::Unlogged`]: halt nothing here unless it may be undone by the same question. A VM that
///   is paused and *then* migrated never has a log: see [`Stopped::Unlogged`].
pub trait Hooks: Send {
    /// QEMU connected.
    fn connected(&mut self) {}

    /// QEMU opened its dirty log; called before the answer to `SET_LOG_BASE`. From here on what
    /// devices write must be marked. What was written before is as `start` says.
    fn log_started(&mut self, start: LogStart);

    /// QEMU closed the log while the rings run: the migration failed or was cancelled. Marks are
    /// no longer possible and no longer needed.
    ///
    /// Not called for the end of the log that goes with every [`Stop::Logged`].
    fn log_stopped(&mut self);

    /// The rings are about to stop. See the table above.
    ///
    /// The log ends when this returns, so the marker of [`Stop::Logged`] is the last one.
    ///
    /// # Errors
    /// A veto cannot hold up the stop itself, for which QEMU has no way back; it refuses the SAVE
    /// that may follow, until the rings start again. `save` is then not called.
    fn stopping(&mut self, stop: Stop<'_>) -> Result<(), Veto>;

    /// The rings run again after a [`stopping`](Self::stopping), on `cont`, after a migration that
    /// failed, or because a driver bound again. The guest may touch its devices at any moment from
    /// here on: what `stopping` did must be undone.
    ///
    /// If [`log_started`](Self::log_started) came just before, QEMU's migration is still under way,
    /// or it failed at the switch-over: then [`log_stopped`](Self::log_stopped) follows at once.
    fn restarted(&mut self);

    /// QEMU asks for the state to carry to the destination. The rings do not run, guest memory is
    /// sent, the vCPUs stand still.
    ///
    /// # Errors
    /// A veto fails the migration, and the VM runs on here. Nothing of the state was sent then.
    fn save(&mut self, stopped: Stopped) -> Result<Vec<u8>, Veto>;

    /// QEMU hands over the state from the source. Guest memory is complete and the VM does not run
    /// yet.
    ///
    /// `blob` is what `save` returned on the source, byte for byte: a blob that was cut short or
    /// damaged is refused without this call.
    ///
    /// # Errors
    /// A veto fails the migration, and the source runs on **if the migration uses QEMU's
    /// `return-path` capability**. Without it the source has already given the VM up.
    fn load(&mut self, blob: Vec<u8>) -> Result<(), Veto>;

    /// SAVE or LOAD was refused: by a hook's veto or by the sidecar itself.
    fn refused(&mut self, _why: &Veto) {}

    /// QEMU went away, or was sent away for the error `why`. No log is active any more, and QEMU
    /// does not come back: from here on its VM cannot be migrated.
    fn disconnected(&mut self, _why: Option<&Error>) {}
}

/// What a log that opens covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogStart {
    /// A migration begins, and QEMU has not read a page yet: nothing that was written up to now
    /// needs to be marked.
    Fresh,
    /// The rings start while a migration may be under way already: QEMU has read pages before,
    /// and while there was no log nothing was recorded. Every page that devices wrote since the
    /// last [`LogStart::Fresh`] log ended (or ever, if there was none) must be marked before the
    /// next stop, or [`Hooks::save`] must refuse.
    ///
    /// It also comes when a migration has failed at the switch-over: QEMU 11.1 starts the rings
    /// with the log still on and closes it then ([`Hooks::log_stopped`]), and nothing is to be
    /// done. So the marking is best left to the thread that drains dirty bits anyway.
    MidMigration,
}

/// How the rings stop.
#[derive(Debug)]
pub enum Stop<'a> {
    /// With QEMU's log active: a migration is under way. Halt, then mark with this, then return.
    Logged(Marker<'a>),
    /// Without a log: no migration under way has read memory yet.
    Unlogged,
}

/// How the rings came to stand still before SAVE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// By a [`Stop::Logged`] in which the hook gave no veto: the state after it is to be saved.
    Logged,
    /// By a [`Stop::Unlogged`]: a VM that was paused before the migration began. All is carried
    /// only if the devices have been halted since before then; refuse otherwise.
    Unlogged,
    /// They never ran: the [driverless start](crate::driverless) was left out, so there was no log.
    /// As `Unlogged`.
    Never,
}

/// The refusal of a migration, with the reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Veto(String);

impl Veto {
    /// A refusal. `reason` is for the operator: what is wrong and what to do.
    pub fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}
