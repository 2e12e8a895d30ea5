//! Migration as VFIO's version 2 has it: the state machine, and what a device does on its arcs.
//!
//! States and arcs are those of the vfio-user specification, "Direct State Transitions", a subset
//! of `enum vfio_device_mig_state` in `<linux/vfio.h>`.

use rustix::io::Errno;

/// The migration half of a device.
///
/// The server keeps the state and walks from one to the next; the device sees single [`Arc`]s,
/// always legal ones, and data only in the states that move it.
pub trait Migration {
    /// Whether the device can save while it runs ([`State::PreCopy`]).
    fn has_pre_copy(&self) -> bool {
        false
    }

    /// Goes along one arc, wholly, before it returns.
    ///
    /// # Errors
    /// [`ArcError`]: either the device is where it was, or it must be reset.
    fn follow(&mut self, arc: Arc) -> Result<(), ArcError>;

    /// Reads the next part of the device's state into `data`; fewer bytes than that mean that
    /// there are no more (for now, in [`State::PreCopy`]).
    ///
    /// # Errors
    /// What kept the device from it.
    fn read(&mut self, data: &mut [u8]) -> Result<usize, Errno>;

    /// Takes the next part of a saved state. Whether it is sound is said on
    /// [`Arc::ResumingToStop`].
    ///
    /// # Errors
    /// What kept the device from it.
    fn write(&mut self, data: &[u8]) -> Result<(), Errno>;

    /// The client left in the middle of a migration: the device is to go back to running.
    fn abandon(&mut self, from: State);

    /// The log of pages that the device writes by DMA, of a device that has one.
    fn dma_log(&mut self) -> Option<&mut dyn DmaLog> {
        None
    }
}

/// A log of pages written by DMA (`VFIO_DEVICE_FEATURE_DMA_LOGGING_*`).
///
/// Writes made by [`Client::dma_write`](crate::Client::dma_write) are the client's to track.
pub trait DmaLog {
    /// Starts to log writes to `ranges`, or to all memory if there are none, and returns the page
    /// size it keeps; `page_size` is what the client would like.
    ///
    /// # Errors
    /// What keeps the device from logging.
    fn start(&mut self, page_size: u64, ranges: &[IovaRange]) -> Result<u64, Errno>;

    /// Stops to log. Only called after [`start`](Self::start).
    fn stop(&mut self);

    /// Sets bit `n` (bit `n % 64` of `bitmap[n / 64]`) where a page `n` of `page_size` bytes,
    /// counted from `range.iova`, was written since the last report, and forgets it.
    ///
    /// `bitmap` is zero and has a bit for every page of `range`; what is not mapped is clean. Only
    /// called after [`start`](Self::start); `page_size` is a power of two, 4096 or more.
    ///
    /// # Errors
    /// What keeps the device from reporting.
    fn report(&mut self, range: IovaRange, page_size: u64, bitmap: &mut [u64])
    -> Result<(), Errno>;
}

/// A range of addresses as the device sees them; `iova + len` does not overflow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IovaRange {
    /// The first address.
    pub iova: u64,
    /// Bytes.
    pub len: u64,
}

/// The device's state as migration sees it; the numbers are `VFIO_DEVICE_STATE_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum State {
    /// It has failed and must be reset.
    Error = 0,
    /// It changes neither its own state nor memory.
    Stop = 1,
    /// It runs.
    Running = 2,
    /// It is stopped and its state can be read.
    StopCopy = 3,
    /// It is stopped and takes a state.
    Resuming = 4,
    /// It runs and its state can be read.
    PreCopy = 6,
}

impl State {
    pub(crate) const REACHABLE: [Self; 5] = [
        Self::Stop,
        Self::Running,
        Self::StopCopy,
        Self::Resuming,
        Self::PreCopy,
    ];

    /// The state that a client may ask for by `number`: [`State::Error`] and the peer-to-peer
    /// states are not among them.
    pub(crate) fn from_wire(number: u32) -> Option<Self> {
        Self::REACHABLE.into_iter().find(|s| *s as u32 == number)
    }

    /// Whether state data can be read.
    pub fn is_saving(self) -> bool {
        matches!(self, Self::PreCopy | Self::StopCopy)
    }
}

/// One step of the state machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Arc {
    /// Stop: no DMA, no interrupts, no change of state.
    RunningToStop,
    /// Run.
    StopToRunning,
    /// Begin to save, stopped.
    StopToStopCopy,
    /// End saving.
    StopCopyToStop,
    /// Begin to take a state.
    StopToResuming,
    /// The state is complete: take it over, or refuse it as incomplete or inconsistent.
    ResumingToStop,
    /// Begin to save while running.
    RunningToPreCopy,
    /// End saving, run on.
    PreCopyToRunning,
    /// Stop, and go on saving.
    PreCopyToStopCopy,
}

impl Arc {
    /// The state that the arc leads to.
    pub fn target(self) -> State {
        match self {
            Self::RunningToStop | Self::StopCopyToStop | Self::ResumingToStop => State::Stop,
            Self::StopToRunning | Self::PreCopyToRunning => State::Running,
            Self::StopToStopCopy | Self::PreCopyToStopCopy => State::StopCopy,
            Self::StopToResuming => State::Resuming,
            Self::RunningToPreCopy => State::PreCopy,
        }
    }
}

/// Why an [`Arc`] was not followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ArcError {
    /// The device is in the state it was in.
    #[error("the device stays in the state it was in: {0}")]
    Refused(Errno),
    /// The device is in no state at all and must be reset ([`State::Error`]).
    #[error("the device must be reset: {0}")]
    Broken(Errno),
}

/// The arcs from `from` to `to`: the shortest way that does not pass through a saving state.
/// `None` where there is no way, or where the specification forbids it.
pub fn path(from: State, to: State, has_pre_copy: bool) -> Option<&'static [Arc]> {
    use State::{Error, PreCopy, Resuming, Running, Stop, StopCopy};
    if !has_pre_copy && (from == PreCopy || to == PreCopy) {
        return None;
    }
    Some(match (from, to) {
        // Forbidden by name, though STOP and RUNNING would lead there.
        (Error, _) | (_, Error) | (StopCopy, PreCopy) => return None,
        (Stop, Stop)
        | (Running, Running)
        | (StopCopy, StopCopy)
        | (Resuming, Resuming)
        | (PreCopy, PreCopy) => &[],
        (Running, Stop) => &[Arc::RunningToStop],
        (Running, StopCopy) => &[Arc::RunningToStop, Arc::StopToStopCopy],
        (Running, Resuming) => &[Arc::RunningToStop, Arc::StopToResuming],
        (Running, PreCopy) => &[Arc::RunningToPreCopy],
        (Stop, Running) => &[Arc::StopToRunning],
        (Stop, StopCopy) => &[Arc::StopToStopCopy],
        (Stop, Resuming) => &[Arc::StopToResuming],
        (Stop, PreCopy) => &[Arc::StopToRunning, Arc::RunningToPreCopy],
        (StopCopy, Stop) => &[Arc::StopCopyToStop],
        (StopCopy, Running) => &[Arc::StopCopyToStop, Arc::StopToRunning],
        (StopCopy, Resuming) => &[Arc::StopCopyToStop, Arc::StopToResuming],
        (Resuming, Stop) => &[Arc::ResumingToStop],
        (Resuming, Running) => &[Arc::ResumingToStop, Arc::StopToRunning],
        (Resuming, StopCopy) => &[Arc::ResumingToStop, Arc::StopToStopCopy],
        (Resuming, PreCopy) => &[
            Arc::ResumingToStop,
            Arc::StopToRunning,
            Arc::RunningToPreCopy,
        ],
        (PreCopy, Running) => &[Arc::PreCopyToRunning],
        (PreCopy, Stop) => &[Arc::PreCopyToRunning, Arc::RunningToStop],
        (PreCopy, StopCopy) => &[Arc::PreCopyToStopCopy],
        (PreCopy, Resuming) => &[
            Arc::PreCopyToRunning,
            Arc::RunningToStop,
            Arc::StopToResuming,
        ],
    })
}

/// The state machine of one connection.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) state: State,
    /// [`DmaLog::start`] was called and [`DmaLog::stop`] was not.
    pub(crate) logging: bool,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            state: State::Running,
            logging: false,
        }
    }
}

impl Machine {
    /// Walks to `to`. Where an arc is refused, the device stays in the state before it, which need
    /// not be the one it started from.
    pub(crate) fn go(&mut self, device: &mut dyn Migration, to: State) -> Result<(), Errno> {
        let arcs = path(self.state, to, device.has_pre_copy()).ok_or(Errno::INVAL)?;
        for &arc in arcs {
            match device.follow(arc) {
                Ok(()) => self.state = arc.target(),
                Err(ArcError::Refused(errno)) => return Err(errno),
                Err(ArcError::Broken(errno)) => {
                    self.state = State::Error;
                    return Err(errno);
                }
            }
        }
        Ok(())
    }

    /// A reset is the way out of [`State::Error`], and out of nothing else: a guest that resets
    /// its device amid a migration does not end the migration.
    pub(crate) fn reset(&mut self) {
        if self.state == State::Error {
            self.state = State::Running;
        }
    }

    /// Ends what the client that left had begun.
    pub(crate) fn end(&mut self, device: &mut dyn Migration) {
        if self.logging
            && let Some(log) = device.dma_log()
        {
            log.stop();
        }
        if self.state != State::Running {
            device.abandon(self.state);
        }
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    const ARCS: [(State, Arc); 9] = [
        (State::Running, Arc::RunningToStop),
        (State::Stop, Arc::StopToRunning),
        (State::Stop, Arc::StopToStopCopy),
        (State::StopCopy, Arc::StopCopyToStop),
        (State::Stop, Arc::StopToResuming),
        (State::Resuming, Arc::ResumingToStop),
        (State::Running, Arc::RunningToPreCopy),
        (State::PreCopy, Arc::PreCopyToRunning),
        (State::PreCopy, Arc::PreCopyToStopCopy),
    ];

    /// The specification's two rules, as a search: shortest, and no saving state on the way.
    fn searched(from: State, to: State, has_pre_copy: bool) -> Option<Vec<Arc>> {
        let mut queue = VecDeque::from([(from, vec![])]);
        while let Some((at, way)) = queue.pop_front() {
            if at == to {
                return Some(way);
            }
            if way.len() > 4 || (at != from && at.is_saving()) {
                continue;
            }
            for (source, arc) in ARCS {
                let exists = has_pre_copy || arc.target() != State::PreCopy;
                if source == at && exists {
                    queue.push_back((arc.target(), [way.clone(), vec![arc]].concat()));
                }
            }
        }
        None
    }

    #[test]
    fn every_path_is_the_shortest_without_saving_states_inside() {
        for has_pre_copy in [false, true] {
            for from in State::REACHABLE {
                for to in State::REACHABLE {
                    let absent = !has_pre_copy && [from, to].contains(&State::PreCopy);
                    let forbidden = (from, to) == (State::StopCopy, State::PreCopy);
                    let expected = searched(from, to, has_pre_copy).filter(|_| !forbidden);
                    let expected = expected.filter(|_| !absent);
                    let found = path(from, to, has_pre_copy).map(<[Arc]>::to_vec);
                    assert_eq!(found, expected, "{from:?} to {to:?}");
                }
            }
        }
    }

    #[test]
    fn nothing_leads_into_or_out_of_the_error_state() {
        for state in State::REACHABLE {
            assert_eq!(path(State::Error, state, true), None);
            assert_eq!(path(state, State::Error, true), None);
        }
    }

    /// Refuses (or breaks on) one arc and remembers the others.
    struct Fails(Arc, ArcError, Vec<Arc>);

    impl Migration for Fails {
        fn follow(&mut self, arc: Arc) -> Result<(), ArcError> {
            if arc == self.0 {
                return Err(self.1);
            }
            self.2.push(arc);
            Ok(())
        }
        fn read(&mut self, _: &mut [u8]) -> Result<usize, Errno> {
            Ok(0)
        }
        fn write(&mut self, _: &[u8]) -> Result<(), Errno> {
            Ok(())
        }
        fn abandon(&mut self, _: State) {}
    }

    #[test]
    fn a_refused_arc_leaves_the_state_before_it() {
        let refusal = ArcError::Refused(Errno::BUSY);
        let mut device = Fails(Arc::StopToStopCopy, refusal, vec![]);
        let mut machine = Machine::default();
        assert_eq!(machine.go(&mut device, State::StopCopy), Err(Errno::BUSY));
        assert_eq!(machine.state, State::Stop);
        assert_eq!(device.2, [Arc::RunningToStop]);
    }

    #[test]
    fn a_broken_device_needs_a_reset() {
        let mut device = Fails(Arc::RunningToStop, ArcError::Broken(Errno::IO), vec![]);
        let mut machine = Machine::default();
        assert_eq!(machine.go(&mut device, State::Stop), Err(Errno::IO));
        assert_eq!(machine.state, State::Error);
        assert_eq!(machine.go(&mut device, State::Running), Err(Errno::INVAL));
        machine.reset();
        assert_eq!(machine.state, State::Running);
    }
}
