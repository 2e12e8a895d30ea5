//! Stop, continue, quit, sleep and wake, and the run state.

use std::fmt;

use serde::Deserialize;
use serde_json::json;

use crate::{Qmp, QmpError};

/// QEMU's `RunState`, as far as vferry tells them apart.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub enum RunState {
    /// The vCPUs run.
    Running,
    /// Stopped by `stop`, or loaded by a migration that was told not to start.
    Paused,
    /// Started with `-S`, never run.
    Prelaunch,
    /// Waits for an incoming migration, or is receiving one.
    InMigrate,
    /// The source after its migration completed. It must not run again.
    PostMigrate,
    /// The source while the last part of its state is sent.
    FinishMigrate,
    /// The guest is suspended to RAM.
    Suspended,
    /// The guest shut down.
    Shutdown,
    /// The guest panicked and told QEMU.
    GuestPanicked,
    /// Any other, in QEMU's words.
    Other(String),
}

impl From<String> for RunState {
    fn from(name: String) -> Self {
        match name.as_str() {
            "running" => Self::Running,
            "paused" => Self::Paused,
            "prelaunch" => Self::Prelaunch,
            "inmigrate" => Self::InMigrate,
            "postmigrate" => Self::PostMigrate,
            "finish-migrate" => Self::FinishMigrate,
            "suspended" => Self::Suspended,
            "shutdown" => Self::Shutdown,
            "guest-panicked" => Self::GuestPanicked,
            _ => Self::Other(name),
        }
    }
}

/// The answer to `query-status`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct RunStatus {
    /// Whether the vCPUs run.
    pub running: bool,
    /// Why, or why not.
    pub status: RunState,
}

/// Who has to know of each time in which the vCPUs are stopped for a moment: to let them run again where
/// this process does not come to it.
pub trait Rests: Send + Sync + fmt::Debug {
    /// They are about to be stopped.
    fn begin(&self);
    /// They run again. Not called where QEMU was not heard to say so.
    fn end(&self);
}

impl Qmp {
    /// `query-status`.
    ///
    /// # Errors
    ///
    /// As [`Qmp::execute`].
    pub fn run_status(&self) -> Result<RunStatus, QmpError> {
        self.query("query-status")
    }

    /// `stop`: pauses the vCPUs. QEMU answers when they and all devices have stopped, which includes
    /// the sidecar's stop hook.
    ///
    /// # Errors
    ///
    /// As [`Qmp::execute`].
    pub fn stop(&self) -> Result<(), QmpError> {
        self.execute("stop", json!({})).map(drop)
    }

    /// `cont`: lets the vCPUs run. While waiting for a migration it only takes back `-S`.
    ///
    /// # Errors
    ///
    /// As [`Qmp::execute`].
    pub fn cont(&self) -> Result<(), QmpError> {
        self.execute("cont", json!({})).map(drop)
    }

    /// Does `work` between [`Qmp::stop`] and [`Qmp::cont`], and returns what it returned; not done
    /// is it where the vCPUs could not be stopped. They run on in any case: a `stop` that was not
    /// answered may be carried out late.
    ///
    /// # Errors
    ///
    /// Those of [`Qmp::cont`]: the VM may be paused.
    pub fn while_stopped<T, E: From<QmpError>>(
        &self,
        work: impl FnOnce() -> Result<T, E>,
    ) -> Result<Result<T, E>, QmpError> {
        if let Some(rests) = &self.rests {
            rests.begin();
        }
        let result = match self.stop() {
            Ok(()) => work(),
            Err(error) => Err(error.into()),
        };
        self.cont()?;
        if let Some(rests) = &self.rests {
            rests.end();
        }
        Ok(result)
    }

    /// As [`Qmp::while_stopped`], where the vCPUs run; else `work` is done as they are.
    ///
    /// # Errors
    ///
    /// See there.
    pub fn at_rest<T, E: From<QmpError>>(
        &self,
        work: impl FnOnce() -> Result<T, E>,
    ) -> Result<Result<T, E>, QmpError> {
        if self.run_status()?.running {
            self.while_stopped(work)
        } else {
            Ok(work())
        }
    }

    /// `send-key`: presses and releases the keyboard's sleep key (`KEY_SLEEP` in Linux). What the
    /// guest makes of it is its own affair; `SUSPEND` follows, or nothing.
    ///
    /// It is released at once: a guest may be asleep within the 100 ms that QEMU holds a key if not
    /// told otherwise, and whatever the keyboard does wakes it (`ps2_keyboard_event`).
    ///
    /// # Errors
    ///
    /// As [`Qmp::execute`].
    pub fn press_sleep_key(&self) -> Result<(), QmpError> {
        let keys = json!([{ "type": "qcode", "data": "sleep" }]);
        self.execute("send-key", json!({ "keys": keys, "hold-time": 1 }))
            .map(drop)
    }

    /// `system_wakeup`: wakes a guest that is suspended to RAM, as its power button would. `WAKEUP`
    /// follows.
    ///
    /// # Errors
    ///
    /// As [`Qmp::execute`]; QEMU refuses if the guest is not suspended.
    pub fn wake_up(&self) -> Result<(), QmpError> {
        self.execute("system_wakeup", json!({})).map(drop)
    }

    /// `set-action` and `system_reset`: resets the machine, also one that was started with `-no-reboot`
    /// (and which is without that afterwards, as QEMU does not tell what it was). `RESET` follows, and one
    /// that does not run is `prelaunch` then. What RAM holds stays.
    ///
    /// # Errors
    ///
    /// As [`Qmp::execute`].
    pub fn reset(&self) -> Result<(), QmpError> {
        self.execute("set-action", json!({ "reboot": "reset" }))?;
        self.execute("system_reset", json!({})).map(drop)
    }

    /// Whether this machine can suspend to RAM and be woken (`query-current-machine`).
    ///
    /// # Errors
    ///
    /// As [`Qmp::execute`].
    pub fn can_suspend(&self) -> Result<bool, QmpError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "kebab-case")]
        struct Current {
            wakeup_suspend_support: bool,
        }
        let machine: Current = self.query("query-current-machine")?;
        Ok(machine.wakeup_suspend_support)
    }

    /// `quit`: ends QEMU at once, without telling the guest. It counts as done when QEMU answers or
    /// is gone, for it may exit before its answer is read.
    ///
    /// # Errors
    ///
    /// As [`Qmp::execute`], except for a lost connection.
    pub fn quit(&self) -> Result<(), QmpError> {
        match self.execute("quit", json!({})) {
            Ok(_) | Err(QmpError::Disconnected { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
