//! Whether a worker that is to be watched still says that it is alive, as systemd's `WatchdogSec=` has it.

use std::time::{Duration, Instant};

/// What a worker says while it is alive.
pub(crate) const ALIVE: &str = "WATCHDOG=1";

/// Before it, and for how many microseconds, a worker says that it is to be watched; 0: no more.
pub(crate) const LIMIT: &str = "WATCHDOG_USEC=";

/// Whoever watches may have been stopped as well: so long it gives the worker to be heard once more, and for as long
/// again as it came late itself, up to [`LATEST`].
const ONCE_MORE: Duration = Duration::from_millis(200);
const LATEST: Duration = Duration::from_secs(1);

/// How long a worker may say nothing, and since when it has.
#[derive(Debug, Default)]
pub(crate) struct Watch(Option<Watched>);

#[derive(Debug)]
struct Watched {
    limit: Duration,
    until: Instant,
    /// The time was over, and is for the last time now.
    once_more: bool,
}

impl Watched {
    fn new(limit: Duration) -> Option<Self> {
        // An hour is no limit either.
        let until = Instant::now().checked_add(limit)?;
        Some(Self {
            limit,
            until,
            once_more: false,
        })
    }
}

impl Watch {
    /// What the worker says, if it is about this.
    pub(crate) fn hear(&mut self, words: &str) {
        for line in words.lines() {
            if line == ALIVE {
                self.0 = self
                    .0
                    .take()
                    .and_then(|watched| Watched::new(watched.limit));
            } else if let Some(limit) = line.strip_prefix(LIMIT)
                && let Ok(limit) = limit.parse()
            {
                let limit = Some(limit).filter(|limit| *limit > 0);
                self.0 = limit.and_then(|limit| Watched::new(Duration::from_micros(limit)));
            }
        }
    }

    /// Until when it is to be heard, if it is.
    pub(crate) fn until(&self) -> Option<Instant> {
        self.0.as_ref().map(|watched| watched.until)
    }

    /// For how long it was not heard, if that is too long: it is watched anew then.
    pub(crate) fn is_over(&mut self) -> Option<Duration> {
        let watched = self.0.as_mut()?;
        let now = Instant::now();
        if now < watched.until {
            return None;
        }
        if !watched.once_more {
            watched.once_more = true;
            watched.until = now + ONCE_MORE + (now - watched.until).min(LATEST);
            return None;
        }
        let limit = watched.limit;
        self.0 = Watched::new(limit);
        Some(limit)
    }
}
