//! The host's side: asking, waiting, and what the answers are worth.

use std::sync::Arc;
use std::time::{Duration, Instant};

use device::lifecycle::Halted;
use device::{GuestMemory, GuestPageSink};

use crate::answers::{Coverage, Outcome, Stopped};
use crate::exchange::{Replies, Reply};
use crate::model::Shared;
use crate::spec::{Answer, Command, Location, Promise, Request, features};
use crate::table::{Table, TableError};

/// The host's handle to a control device.
#[derive(Debug, Clone)]
pub struct Control {
    shared: Arc<Shared>,
}

/// Why the guest cannot be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// No driver.
    #[error("no driver of the guest has taken the control device")]
    NoDriver,
    /// The driver cannot do it.
    #[error("the guest's driver of the control device does not offer this")]
    NotOffered,
    /// Something is under way.
    #[error("the guest is being asked for something else through the control device")]
    Busy,
}

impl Control {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The features that the guest's driver has taken; `None` without a driver.
    pub fn driver(&self) -> Option<u32> {
        self.shared.lock().driver()
    }

    /// Says where the devices are, in the order of the list; `None` and what is missing: not known.
    /// The guest's numbers of buses are its own, so this is looked up before each migration.
    ///
    /// # Errors
    /// While the guest has been asked for something and not been told the end.
    pub fn place(&self, locations: &[Option<Location>]) -> Result<(), Unavailable> {
        let mut exchange = self.shared.lock();
        if exchange.in_use || exchange.is_under_way() {
            return Err(Unavailable::Busy);
        }
        for index in 0..exchange.state.devices.len() {
            let location = locations.get(index).copied().flatten();
            exchange.place(index, location);
        }
        drop(exchange);
        self.shared.kick();
        Ok(())
    }

    /// Asks the guest to let the host know which pages devices write from its answer on. To be
    /// answered before memory is copied.
    ///
    /// # Errors
    /// See [`Unavailable`].
    pub fn track(&self, deadline: Duration) -> Result<Asked<Track>, Unavailable> {
        let driver = self.driver().ok_or(Unavailable::NoDriver)?;
        if driver & (features::TABLE | features::TOUCH) == 0 {
            return Err(Unavailable::NotOffered);
        }
        Ok(self.begin()?.ask(Command::Track, deadline, Track(())))
    }

    /// Asks the guest to stop its devices, of which it was not asked to track anything.
    ///
    /// # Errors
    /// See [`Unavailable`].
    pub fn quiesce(&self, deadline: Duration) -> Result<Asked<Quiesce>, Unavailable> {
        self.begin()?.quiesce(deadline, Tracking::default())
    }

    /// Tells the guest of a VM that has arrived here that it is over; `None` where there is nothing
    /// to be told, as it was not asked for anything.
    ///
    /// # Errors
    /// [`Unavailable::Busy`] while a migration from here speaks with the guest.
    pub fn end(&self, deadline: Duration) -> Result<Option<Asked<End>>, Unavailable> {
        let session = self.begin()?;
        let under_way = self.shared.lock().is_under_way();
        Ok(under_way.then(|| session.end(deadline)))
    }

    fn begin(&self) -> Result<Session, Unavailable> {
        let mut exchange = self.shared.lock();
        if std::mem::replace(&mut exchange.in_use, true) {
            return Err(Unavailable::Busy);
        }
        Ok(Session {
            shared: Arc::clone(&self.shared),
            left: false,
        })
    }
}

/// The right to speak with the guest. Whichever way it ends, the guest is told.
#[derive(Debug)]
struct Session {
    shared: Arc<Shared>,
    /// The VM has left: it is told on the other host.
    left: bool,
}

impl Session {
    fn ask<C>(self, command: Command, deadline: Duration, what: C) -> Asked<C> {
        let millis = u32::try_from(deadline.as_millis()).unwrap_or(u32::MAX);
        let request = self.shared.lock().post(command, millis);
        self.shared.kick();
        Asked {
            session: self,
            request,
            since: Instant::now(),
            deadline,
            what,
        }
    }

    fn quiesce(
        self,
        deadline: Duration,
        tracking: Tracking,
    ) -> Result<Asked<Quiesce>, Unavailable> {
        let driver = self.shared.lock().driver().ok_or(Unavailable::NoDriver)?;
        if driver & features::QUIESCE == 0 {
            return Err(Unavailable::NotOffered);
        }
        Ok(self.ask(Command::Quiesce, deadline, Quiesce(tracking)))
    }

    fn end(self, deadline: Duration) -> Asked<End> {
        self.ask(Command::End, deadline, End(()))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let mut exchange = self.shared.lock();
        exchange.in_use = false;
        if !self.left && exchange.leave_unattended() {
            drop(exchange);
            self.shared.kick();
        }
    }
}

/// A request that has been posted. Dropping it tells the guest that it is over.
#[derive(Debug)]
#[must_use]
pub struct Asked<C> {
    session: Session,
    request: Request,
    since: Instant,
    deadline: Duration,
    what: C,
}

/// What [`Control::track`] has asked for.
#[derive(Debug)]
pub struct Track(());

/// What [`Control::quiesce`] and [`Tracked::quiesce`] have asked for.
#[derive(Debug)]
pub struct Quiesce(Tracking);

/// What `end` has told.
#[derive(Debug)]
pub struct End(());

impl<C> Asked<C> {
    /// Whether waiting would return at once.
    pub fn is_ready(&self) -> bool {
        self.since.elapsed() >= self.deadline
            || self.session.shared.lock().is_answered(self.request)
    }

    /// Waits until all devices have answered or the deadline has passed, and takes the answers.
    fn collect(&self) -> Replies {
        let mut exchange = self.session.shared.lock();
        while !exchange.is_answered(self.request) {
            let Some(rest) = self.deadline.checked_sub(self.since.elapsed()) else {
                break;
            };
            exchange = self
                .session
                .shared
                .changed
                .wait_timeout(exchange, rest)
                .map_or_else(|poisoned| poisoned.into_inner().0, |(guard, _)| guard);
        }
        exchange.close(self.request)
    }
}

impl Asked<Track> {
    /// Waits, at most until the deadline, and looks at the table if there is one.
    ///
    /// `memory` is called afterwards for the guest's memory as the control device sees it, which is
    /// `None` if it is no bus master; `ram_end` is the end of the VM's highest memory in bytes, and
    /// bounds the work.
    pub fn wait<M: GuestMemory>(self, ram_end: u64, memory: impl FnOnce() -> Option<M>) -> Tracked {
        let replies = self.collect();
        let promises = replies.by_device.into_iter().map(|reply| {
            outcome(reply, |answer| match answer {
                Answer::Promised(promise) => Some(promise),
                _ => None,
            })
        });
        let table = replies.table.map(|registers| {
            let memory = memory().ok_or(TableError::OutOfReach)?;
            let table = Table::new(registers, ram_end)?;
            table.check(&memory).map(|()| table)
        });
        Tracked {
            session: self.session,
            tracking: Tracking {
                promises: promises.collect(),
                table,
                life: replies.life,
            },
        }
    }
}

impl Asked<Quiesce> {
    /// Waits, at most until the deadline. `look` is asked whether a device, by its place in the
    /// list, that the guest says it has stopped is still a bus master.
    pub fn wait(self, mut look: impl FnMut(usize) -> Stopped) -> Quiesced {
        let outcome = |(index, reply)| match outcome(reply, is_done) {
            Outcome::Done { took, .. } => Outcome::Done {
                value: look(index),
                took,
            },
            Outcome::Failed { detail } => Outcome::Failed { detail },
            Outcome::Declined => Outcome::Declined,
            Outcome::Silent => Outcome::Silent,
        };
        let Replies {
            by_device, life, ..
        } = self.collect();
        let outcomes = by_device.into_iter().enumerate().map(outcome).collect();
        Quiesced {
            session: self.session,
            tracking: self.what.0,
            outcomes,
            life,
        }
    }
}

impl Asked<End> {
    /// Waits, at most until the deadline, for the report only: the VM runs in any case.
    pub fn wait(self) -> Ended {
        let replies = self.collect().by_device.into_iter();
        Ended(replies.map(|reply| outcome(reply, is_done)).collect())
    }
}

/// What became of each device's restart, in the order of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended(pub Vec<Outcome<()>>);

/// The guest lets the host know what its devices write, as far as it has promised.
///
/// What was answered here cannot be used once more is asked for:
///
/// ```compile_fail,E0382
/// # use control_device::{Coverage, Tracked};
/// fn late(tracked: Tracked) -> Coverage {
///     let asked = tracked.quiesce(std::time::Duration::ZERO);
///     tracked.coverage(0)
/// }
/// ```
#[derive(Debug)]
pub struct Tracked {
    session: Session,
    tracking: Tracking,
}

impl Tracked {
    /// What the guest promised for each device, in the order of the list.
    pub fn promises(&self) -> &[Outcome<Promise>] {
        &self.tracking.promises
    }

    /// Why the guest's table is refused, if it is.
    pub fn table_refused(&self) -> Option<TableError> {
        self.tracking.table.and_then(Result::err)
    }

    /// How the pages written by device `index` come to be known if it is not quiesced.
    pub fn coverage(&self, index: usize) -> Coverage {
        self.tracking.coverage(&self.session, index, false)
    }

    /// See [`Quiesced::mark`].
    ///
    /// # Errors
    /// See there.
    pub fn mark<D>(
        &self,
        _: &Halted<D>,
        memory: &dyn GuestMemory,
        sink: &mut dyn GuestPageSink,
    ) -> Result<u64, TableError> {
        self.tracking.mark(&self.session, |_| false, memory, sink)
    }

    /// Asks the guest to stop its devices.
    ///
    /// # Errors
    /// When the driver has left or cannot. The guest is told that it is over.
    pub fn quiesce(self, deadline: Duration) -> Result<Asked<Quiesce>, Unavailable> {
        self.session.quiesce(deadline, self.tracking)
    }

    /// Tells the guest that it is over.
    pub fn end(self, deadline: Duration) -> Asked<End> {
        self.session.end(deadline)
    }

    /// The VM has left this host: the guest is told there.
    pub fn leave(mut self) {
        self.session.left = true;
    }
}

/// The guest was asked to stop its devices; the vCPUs are stopped next.
#[derive(Debug)]
pub struct Quiesced {
    session: Session,
    tracking: Tracking,
    outcomes: Vec<Outcome<Stopped>>,
    /// The life of the driver that gave them.
    life: u64,
}

impl Quiesced {
    /// What became of each device, in the order of the list.
    pub fn outcomes(&self) -> &[Outcome<Stopped>] {
        &self.outcomes
    }

    /// Whether device `index` was stopped, and was seen to be no bus master, by a driver of the
    /// control device that is still there. What the device has become since, the caller can see.
    pub fn is_stopped(&self, index: usize) -> bool {
        let outcome = self.outcomes.get(index);
        let done = outcome.and_then(|outcome| outcome.done());
        done == Some(Stopped::Verified) && self.session.shared.lock().life() == self.life
    }

    /// How the pages written by device `index` come to be known.
    pub fn coverage(&self, index: usize) -> Coverage {
        let stopped = self.is_stopped(index);
        self.tracking.coverage(&self.session, index, stopped)
    }

    /// The same if the device was seen to run again.
    pub fn coverage_if_running(&self, index: usize) -> Coverage {
        self.tracking.coverage(&self.session, index, false)
    }

    /// Reports every page that the guest's table says was written, and returns their number. The
    /// devices are halted; the vCPUs must stand still, too. `memory` must be readable then.
    ///
    /// # Errors
    /// When the table does not hold what it says any more, or the driver that promised has gone:
    /// the migration must not go on unless every device's pages are known by other means.
    pub fn mark<D>(
        &self,
        _: &Halted<D>,
        memory: &dyn GuestMemory,
        sink: &mut dyn GuestPageSink,
    ) -> Result<u64, TableError> {
        let stopped = |index| self.is_stopped(index);
        self.tracking.mark(&self.session, stopped, memory, sink)
    }

    /// Tells the guest that it is over.
    pub fn end(self, deadline: Duration) -> Asked<End> {
        self.session.end(deadline)
    }

    /// The VM has left this host: the guest is told there.
    pub fn leave(mut self) {
        self.session.left = true;
    }
}

/// What the answers to `TRACK` are worth.
#[derive(Debug, Default)]
struct Tracking {
    promises: Vec<Outcome<Promise>>,
    /// The table, if one was promised.
    table: Option<Result<Table, TableError>>,
    /// The life of the driver that made the promises.
    life: u64,
}

impl Tracking {
    fn coverage(&self, session: &Session, index: usize, stopped: bool) -> Coverage {
        if self.is_kept(session) {
            self.promised(index, stopped)
        } else {
            Coverage::None
        }
    }

    fn mark(
        &self,
        session: &Session,
        stopped: impl Fn(usize) -> bool,
        memory: &dyn GuestMemory,
        sink: &mut dyn GuestPageSink,
    ) -> Result<u64, TableError> {
        let devices = 0..self.promises.len();
        let promised: Vec<_> = devices
            .map(|index| self.promised(index, stopped(index)))
            .collect();
        if promised.iter().all(|coverage| *coverage == Coverage::None) {
            return Ok(0);
        }
        if !self.is_kept(session) {
            return Err(TableError::Void);
        }
        match self.table {
            Some(Ok(table)) if promised.contains(&Coverage::Table) => table.mark(memory, sink),
            _ => Ok(0),
        }
    }

    fn promised(&self, index: usize, stopped: bool) -> Coverage {
        let promise = self.promises.get(index).copied();
        match Coverage::of(promise.unwrap_or(Outcome::Silent), stopped) {
            Coverage::Table if !matches!(self.table, Some(Ok(_))) => Coverage::None,
            coverage => coverage,
        }
    }

    fn is_kept(&self, session: &Session) -> bool {
        session.shared.lock().life() == self.life
    }
}

fn is_done(answer: Answer) -> Option<()> {
    (answer == Answer::Done).then_some(())
}

fn outcome<T>(reply: Option<Reply>, value: impl FnOnce(Answer) -> Option<T>) -> Outcome<T> {
    let Some(reply) = reply else {
        return Outcome::Silent;
    };
    match (value(reply.answer), reply.answer) {
        (Some(value), _) => Outcome::Done {
            value,
            took: Duration::from_micros(reply.micros.into()),
        },
        (None, Answer::Failed) => Outcome::Failed {
            detail: reply.detail,
        },
        (None, _) => Outcome::Declined,
    }
}
