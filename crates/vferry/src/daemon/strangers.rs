//! Who connects to the link: nobody waits for one that does not say who it is.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::Shared;
use crate::stream::{self, Acceptor, Connected};

/// Strangers who may take their time, or wait their turn, at once.
const MOST: usize = 16;
/// After a connection that could not be taken, for want of descriptors or memory.
const PAUSE: Duration = Duration::from_secs(1);
/// Strangers are complained of once in so long.
const QUIET: Duration = Duration::from_secs(1);

/// Takes connections for ever, and passes on those of hosts that are taken.
pub(super) fn let_in(listener: &Acceptor, shared: &Arc<Shared>, taken: &SyncSender<Connected>) {
    let complaints = Arc::new(Complaints::default());
    let busy = Arc::new(AtomicUsize::new(0));
    loop {
        let stranger = match listener.accept() {
            Ok(stranger) => stranger,
            Err(error) => {
                complaints.of(&error);
                thread::sleep(PAUSE);
                continue;
            }
        };
        if busy.load(Ordering::Acquire) >= MOST {
            complaints.of(&"too many at once that do not say who they are");
            continue;
        }
        busy.fetch_add(1, Ordering::AcqRel);
        let asked = thread::Builder::new().name("stranger".into()).spawn({
            let (shared, taken) = (Arc::clone(shared), taken.clone());
            let (complaints, busy) = (Arc::clone(&complaints), Arc::clone(&busy));
            move || {
                match stream::accept(stranger, &shared.config.protection) {
                    // It waits its turn here, as it would before it is accepted.
                    Ok(connected) => drop(taken.send(connected)),
                    Err(error) => complaints.of(&error),
                }
                busy.fetch_sub(1, Ordering::AcqRel);
            }
        });
        if let Err(error) = asked {
            busy.fetch_sub(1, Ordering::AcqRel);
            complaints.of(&error);
            thread::sleep(PAUSE);
        }
    }
}

/// What anybody on the network can cause is not told more often than somebody can read it.
#[derive(Default)]
struct Complaints(Mutex<Told>);

#[derive(Default)]
struct Told {
    last: Option<Instant>,
    untold: u64,
}

impl Complaints {
    fn of(&self, why: &dyn std::fmt::Display) {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if told.last.is_some_and(|last| last.elapsed() < QUIET) {
            told.untold += 1;
            return;
        }
        let untold = std::mem::take(&mut told.untold);
        told.last = Some(Instant::now());
        tracing::warn!(untold, "a host was not taken in: {why}");
    }
}
