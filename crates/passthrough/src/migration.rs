//! The function's states of migration (VFIO migration, version 2: `enum vfio_device_mig_state` in
//! `include/uapi/linux/vfio.h`), which a few drivers of the host have.
//!
//! The function is stopped and read while the VM stands still. What it could send before
//! (`PRE_COPY`) is not asked for: that shortens a pause only where the state is far larger than what is taken here.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use device::Run;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use vfio_bindings::bindings::vfio::{
    VFIO_MIGRATION_P2P, VFIO_MIGRATION_STOP_COPY, vfio_device_mig_state,
    vfio_device_mig_state_VFIO_DEVICE_STATE_ERROR as ERROR,
    vfio_device_mig_state_VFIO_DEVICE_STATE_RESUMING as RESUMING,
    vfio_device_mig_state_VFIO_DEVICE_STATE_RUNNING as RUNNING,
    vfio_device_mig_state_VFIO_DEVICE_STATE_RUNNING_P2P as RUNNING_P2P,
    vfio_device_mig_state_VFIO_DEVICE_STATE_STOP as STOP,
    vfio_device_mig_state_VFIO_DEVICE_STATE_STOP_COPY as STOP_COPY,
};

use crate::kernel::Handle;
use crate::vfio::{self, feature};

/// No function's state is longer, in bytes: with those of others it has to fit into what QEMU's stream
/// carries for vferry (`ferry::state::MAX_LEN`), as text.
pub(crate) const MAX_STATE: usize = 8 << 20;
/// How long the function may have nothing to say while it is read.
const SILENCE: Duration = Duration::from_secs(2);
/// Read at once, in bytes.
const PIECE: usize = 1 << 20;

/// A function that has them.
pub(crate) struct Migration {
    device: Handle,
    has_p2p: bool,
    /// It is not too large.
    carries_state: bool,
    stopped: bool,
}

impl Migration {
    /// `None` if the function has no such states.
    pub(crate) fn of(device: &Handle) -> Option<Self> {
        let states = feature::migration(device).ok()?;
        let has = |state: u32| states & u64::from(state) != 0;
        if !has(VFIO_MIGRATION_STOP_COPY) {
            return None;
        }
        // Not all kernels know, and what they know is a guess: what is read counts.
        let expected = feature::data_size(device).unwrap_or(0);
        let carries_state = expected <= MAX_STATE as u64;
        if !carries_state {
            tracing::warn!(
                expected,
                "the function's state is larger than the {MAX_STATE} bytes that are carried: it is left to its driver"
            );
        }
        Some(Self {
            device: device.clone(),
            has_p2p: has(VFIO_MIGRATION_P2P),
            carries_state,
            stopped: false,
        })
    }

    pub(crate) fn carries_state(&self) -> bool {
        self.carries_state
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// The function was reset, which has it run, and is stopped again if it was.
    pub(crate) fn was_reset(&self) {
        if self.stopped {
            self.settle();
        }
    }

    /// The function runs, or does not, once this has returned: the kernel waits for what is under way.
    pub(crate) fn run(&mut self, run: Run) -> io::Result<()> {
        let state = match run {
            Run::On => RUNNING,
            Run::WithoutPeers if self.has_p2p => RUNNING_P2P,
            Run::WithoutPeers => return Ok(()),
            Run::Off => STOP,
        };
        let went = self.go(state);
        self.stopped = went.is_ok() && state == STOP;
        went.map(drop)
    }

    /// The state of a function that is stopped, which it stays.
    pub(crate) fn save(&self) -> io::Result<Vec<u8>> {
        let saved = self.go(STOP_COPY).and_then(|file| {
            let file = file.ok_or_else(|| io::Error::other("it offers no state to read"))?;
            let data = read_all(&file)?;
            // With the file still open, as QEMU does: its end is the function's to see.
            self.go(STOP)?;
            Ok(data)
        });
        if saved.is_err() {
            self.settle();
        }
        saved
    }

    /// Gives a state to a function that is stopped, which it stays. One that does not take it is as after a
    /// reset.
    pub(crate) fn load(&self, data: &[u8]) -> io::Result<()> {
        let loaded = self.go(RESUMING).and_then(|file| {
            let mut file = file.ok_or_else(|| io::Error::other("it takes no state"))?;
            file.write_all(data)?;
            // Only now it looks whether the state is whole, and one for it.
            self.go(STOP).map(drop)
        });
        if loaded.is_err() {
            // The only way out of `RESUMING` without a state.
            if let Err(errno) = vfio::reset(&self.device) {
                tracing::error!(%errno, "the function was not reset");
            }
            self.settle();
        }
        loaded
    }

    /// Stops it again after a failure, wherever that has left it.
    fn settle(&self) {
        if let Err(error) = self.go(STOP) {
            tracing::error!(%error, "the function is not stopped");
        }
    }

    /// A failure leaves it where it was, or on the way; one that has failed itself is reset.
    fn go(&self, to: vfio_device_mig_state) -> io::Result<Option<File>> {
        let errno = match feature::set_state(&self.device, to) {
            Ok(file) => return Ok(file.map(File::from)),
            Err(errno) => errno,
        };
        let to = name(to);
        let found = feature::state(&self.device);
        Err(io::Error::other(match found {
            Ok(ERROR) => {
                let became = match vfio::reset(&self.device) {
                    Ok(()) => {
                        "was reset: what it did is lost, and its driver has to start it anew".into()
                    }
                    Err(errno) => format!(
                        "could not be reset ({errno}): unbind it from its driver on the host"
                    ),
                };
                format!("the function failed on its way to {to} ({errno}), and {became}")
            }
            Ok(state) => {
                let state = name(state);
                format!("the function did not go to {to} and is in {state}: {errno}")
            }
            Err(lost) => {
                format!(
                    "the function did not go to {to} ({errno}), nor does it say where it is ({lost})"
                )
            }
        }))
    }
}

/// Its name in the kernel's header.
fn name(state: vfio_device_mig_state) -> String {
    match state {
        ERROR => "ERROR".into(),
        STOP => "STOP".into(),
        RUNNING => "RUNNING".into(),
        STOP_COPY => "STOP_COPY".into(),
        RESUMING => "RESUMING".into(),
        RUNNING_P2P => "RUNNING_P2P".into(),
        other => format!("state {other}"),
    }
}

/// All that `file` has, up to [`MAX_STATE`].
fn read_all(mut file: &File) -> io::Result<Vec<u8>> {
    let mut data = Vec::new();
    loop {
        wait(file)?;
        let had = data.len();
        data.resize(had + PIECE.min(MAX_STATE + 1 - had), 0);
        let read = match file.read(&mut data[had..]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                data.truncate(had);
                continue;
            }
            read => read?,
        };
        data.truncate(had + read);
        if data.len() > MAX_STATE {
            return Err(io::Error::other(format!(
                "its state is larger than the {MAX_STATE} bytes that are carried: use --strategy \
                 recovery, or cooperative where the guest has vferry's module"
            )));
        }
        if read == 0 {
            return Ok(data);
        }
    }
}

/// Until there is something to read. Drivers whose files cannot be waited for are always ready, and make
/// who reads wait.
fn wait(file: &File) -> io::Result<()> {
    let deadline = Instant::now() + SILENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(
            &mut [PollFd::from_borrowed_fd(file.as_fd(), PollFlags::IN)],
            Some(&left),
        ) {
            Err(Errno::INTR) => {}
            Ok(0) => {
                return Err(io::Error::other(format!(
                    "it has said nothing for {SILENCE:?}, and not all of its state"
                )));
            }
            ready => return ready.map(drop).map_err(io::Error::from),
        }
    }
}
