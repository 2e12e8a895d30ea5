//! The reader thread's half of a QMP connection: who gets which line.

use std::collections::{HashMap, VecDeque};
use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::message::{self, MAX_LINE, Malformed, Message};
use crate::{Disconnect, QmpError, Version};

/// Most events kept for slow readers, and most bytes of JSON that they may have come from.
const EVENTS_KEPT: usize = 1024;
const EVENT_BYTES_KEPT: usize = 1 << 20;

/// Something that QEMU reported by itself.
#[derive(Debug, Clone)]
pub struct Event {
    /// `STOP`, `RESUME`, `MIGRATION`, `SHUTDOWN`, `RESET`, ...
    pub name: String,
    /// What QEMU tells about it; `Value::Null` if nothing.
    pub data: Value,
    /// QEMU's wall clock at the event, since the Unix epoch; absent if it had none.
    pub timestamp: Option<Duration>,
    /// When the line arrived here, for intervals that a step of the wall clock must not bend.
    pub received: Instant,
}

/// A reader of events, from the moment it was made onwards.
///
/// Make it *before* the command whose events matter. Several readers do not take events from each
/// other.
#[derive(Debug)]
pub struct Events {
    shared: Arc<Shared>,
    next: u64,
}

impl Events {
    /// The next event, waiting for it if need be.
    ///
    /// # Errors
    ///
    /// [`QmpError::Timeout`] at the deadline, [`QmpError::Disconnected`] when all that came before
    /// the end has been read, [`QmpError::EventsLost`] once for each gap.
    pub fn next(&mut self, deadline: Instant) -> Result<Event, QmpError> {
        self.next_for("an event", deadline)
    }

    /// The next event of that name for which `wanted` holds, passing over all others.
    ///
    /// # Errors
    ///
    /// As [`Events::next`].
    pub fn wait_for(
        &mut self,
        name: &str,
        mut wanted: impl FnMut(&Event) -> bool,
        deadline: Instant,
    ) -> Result<Event, QmpError> {
        let started = Instant::now();
        let waiting_for = format!("event {name}");
        loop {
            let event = self
                .next_for(&waiting_for, deadline)
                .map_err(|error| match error {
                    QmpError::Timeout { waiting_for, .. } => QmpError::Timeout {
                        waiting_for,
                        waited: started.elapsed(),
                    },
                    other => other,
                })?;
            if event.name == name && wanted(&event) {
                return Ok(event);
            }
        }
    }

    /// What has already arrived, without waiting. Ends silently at a gap or a lost connection,
    /// which the next waiting call reports.
    pub fn pending(&mut self) -> impl Iterator<Item = Event> + '_ {
        std::iter::from_fn(|| match self.shared.lock().events.at(self.next) {
            Some(Ok(event)) => {
                self.next += 1;
                Some(event)
            }
            Some(Err(_)) | None => None,
        })
    }

    fn next_for(&mut self, waiting_for: &str, deadline: Instant) -> Result<Event, QmpError> {
        let next = self.next;
        match self
            .shared
            .wait(waiting_for, deadline, |state| state.events.at(next))?
        {
            Ok(event) => {
                self.next += 1;
                Ok(event)
            }
            Err(missed) => {
                self.next += missed;
                Err(QmpError::EventsLost { missed })
            }
        }
    }
}

/// What the reader thread and the callers share.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) greeting: Option<Version>,
    /// A slot for every command in flight. Replies that no slot waits for are dropped: they belong
    /// to commands whose deadline has passed.
    pub(crate) replies: HashMap<u64, Option<Reply>>,
    events: EventRing,
    closed: Option<Disconnect>,
}

#[derive(Debug)]
pub(crate) enum Reply {
    Return(Value),
    Error { class: String, description: String },
}

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // Every change under this lock is a single step, so a panicking holder leaves it whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `ready` yields something. What has arrived is delivered even if the connection
    /// ended after it.
    pub(crate) fn wait<T>(
        &self,
        waiting_for: &str,
        deadline: Instant,
        mut ready: impl FnMut(&mut State) -> Option<T>,
    ) -> Result<T, QmpError> {
        let started = Instant::now();
        let mut state = self.lock();
        loop {
            if let Some(value) = ready(&mut state) {
                return Ok(value);
            }
            if let Some(reason) = state.closed.clone() {
                return Err(QmpError::Disconnected {
                    waiting_for: waiting_for.to_owned(),
                    reason,
                });
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let waited = started.elapsed();
                return Err(QmpError::Timeout {
                    waiting_for: waiting_for.to_owned(),
                    waited,
                });
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Ends the connection for all waiters; the first reason given stands.
    pub(crate) fn close(&self, reason: Disconnect) {
        self.lock().closed.get_or_insert(reason);
        self.changed.notify_all();
    }

    pub(crate) fn events(self: &Arc<Self>) -> Events {
        Events {
            next: self.lock().events.end(),
            shared: Arc::clone(self),
        }
    }

    /// Reads lines until the connection ends, and says why it did.
    pub(crate) fn read_all(&self, source: impl Read) -> Disconnect {
        let mut source = BufReader::new(source);
        let mut line = Vec::new();
        loop {
            line.clear();
            let bound = MAX_LINE as u64 + 1;
            match (&mut source).take(bound).read_until(b'\n', &mut line) {
                Err(error) => return Disconnect::Io(error.to_string()),
                Ok(0) => return Disconnect::PeerClosed,
                Ok(_) if line.last() != Some(&b'\n') => {
                    return if line.len() > MAX_LINE {
                        Malformed::TooLong.into()
                    } else {
                        Disconnect::PeerClosed
                    };
                }
                Ok(_) => {}
            }
            let accepted = message::parse(&line)
                .and_then(|message| self.lock().accept(message, line.len(), Instant::now()));
            match accepted {
                Ok(()) => self.changed.notify_all(),
                Err(malformed) => return malformed.into(),
            }
        }
    }
}

impl State {
    fn accept(
        &mut self,
        message: Message,
        length: usize,
        received: Instant,
    ) -> Result<(), Malformed> {
        if self.greeting.is_none() && !matches!(message, Message::Greeting { .. }) {
            return Err(Malformed::OutOfPlace(
                "the first line is not a QMP greeting",
            ));
        }
        match message {
            Message::Greeting { version } => {
                if self.greeting.replace(version).is_some() {
                    return Err(Malformed::OutOfPlace("a second greeting"));
                }
            }
            Message::Return { id, value } => self.deliver(id, Reply::Return(value)),
            Message::Error {
                id,
                class,
                description,
            } => {
                if id.is_none() {
                    return Err(Malformed::OutOfPlace("an error that belongs to no command"));
                }
                self.deliver(id, Reply::Error { class, description });
            }
            Message::Event {
                name,
                data,
                timestamp,
            } => {
                self.events.push(
                    Event {
                        name,
                        data,
                        timestamp,
                        received,
                    },
                    length,
                );
            }
        }
        Ok(())
    }

    fn deliver(&mut self, id: Option<u64>, reply: Reply) {
        if let Some(slot) = id.and_then(|id| self.replies.get_mut(&id)) {
            *slot = Some(reply);
        }
    }
}

/// The latest events, numbered from the connection's first.
#[derive(Debug, Default)]
struct EventRing {
    kept: VecDeque<(Event, usize)>,
    bytes: usize,
    first: u64,
}

impl EventRing {
    fn push(&mut self, event: Event, length: usize) {
        self.kept.push_back((event, length));
        self.bytes += length;
        while self.kept.len() > EVENTS_KEPT || self.bytes > EVENT_BYTES_KEPT {
            let Some((_, length)) = self.kept.pop_front() else {
                break;
            };
            self.bytes -= length;
            self.first += 1;
        }
    }

    fn end(&self) -> u64 {
        self.first + self.kept.len() as u64
    }

    /// `None` if event number `at` is yet to come, `Err(missed)` if it is no longer kept.
    fn at(&self, at: u64) -> Option<Result<Event, u64>> {
        let Some(index) = at.checked_sub(self.first) else {
            return Some(Err(self.first - at));
        };
        let (event, _) = self.kept.get(usize::try_from(index).ok()?)?;
        Some(Ok(event.clone()))
    }
}
