//! Descriptors for what peers send, when the process has no other left.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::{Resource, getrlimit};

/// As many as a VMM sends a device at its start: a file for each piece of memory, an event for each interrupt
/// or two for each ring, and a log.
const DESCRIPTORS: usize = 24;
/// Held at most, however many devices there are.
const MOST: usize = 5 * DESCRIPTORS;
/// More numbers than a process of ours has in use.
const ENOUGH: u64 = 1 << 16;
/// How often is looked at most where registers are read by messages, too.
const EVERY: Duration = Duration::from_millis(10);

static RESERVE: Mutex<Reserve> = Mutex::new(Reserve::new());

/// Holds 24 descriptors more (120 at most), so that nobody else takes them, until [`make_room`] finds no others
/// for what a peer sends. To be called for each socket that such a peer connects to, and best before anything is
/// opened that may be closed later: the limit is one of the highest number.
///
/// The kernel drops the descriptors of a message for which the process has no number left, without a word to
/// whoever sent them: a VMM waits for an answer then, or goes on with a device that cannot reach its memory.
pub fn keep_room() {
    let mut reserve = reserve();
    reserve.wanted = MOST.min(reserve.wanted + DESCRIPTORS);
    // Who has hardly any needs them to begin at all.
    if are_free(reserve.wanted + DESCRIPTORS) {
        reserve.fill();
    }
}

/// To be called before a message is taken: its descriptors find room, as long as there is any. Looks for it by
/// three system calls.
pub fn make_room() {
    reserve().make_room();
}

/// The same where messages are so many that system calls count: looks every hundredth of a second at most, for all
/// callers together.
pub fn make_room_seldom() {
    let mut reserve = reserve();
    if reserve
        .looked
        .is_none_or(|looked| looked.elapsed() >= EVERY)
    {
        reserve.make_room();
        reserve.looked = Some(Instant::now());
    }
}

/// A message has brought some: [`make_room_seldom`] looks again before the next.
pub fn have_come() {
    reserve().looked = None;
}

fn reserve() -> MutexGuard<'static, Reserve> {
    RESERVE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
struct Reserve {
    held: Vec<OwnedFd>,
    wanted: usize,
    looked: Option<Instant>,
}

impl Reserve {
    const fn new() -> Self {
        Self {
            held: Vec::new(),
            wanted: 0,
            looked: None,
        }
    }

    fn make_room(&mut self) {
        if self.held.is_empty() {
            // Not those that the next message needs.
            if self.wanted > 0 && are_free(self.wanted + DESCRIPTORS) {
                self.fill();
            }
        } else if !are_free(DESCRIPTORS) {
            self.held.clear();
        }
    }

    fn fill(&mut self) {
        while self.held.len() < self.wanted
            && let Ok(one) = eventfd(0, EventfdFlags::CLOEXEC)
        {
            self.held.push(one);
        }
    }
}

/// Whether the process has so many numbers left, as far as can be told by one: the lowest of the last ones.
/// Descriptors have the lowest number that is free, so whoever opens many reaches that one first.
fn are_free(count: usize) -> bool {
    let Some(limit) = getrlimit(Resource::Nofile).current else {
        return true;
    };
    // To hold a high number the kernel makes room for all below it.
    let Some(first) = limit.min(ENOUGH).checked_sub(count as u64) else {
        return false;
    };
    let Ok(first) = i32::try_from(first) else {
        return true;
    };
    let Ok(any) = eventfd(0, EventfdFlags::CLOEXEC) else {
        return false;
    };
    let is_first = |fd: OwnedFd| std::os::fd::AsRawFd::as_raw_fd(&fd) == first;
    fcntl_dupfd_cloexec(any.as_fd(), first).is_ok_and(is_first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_filled_again_when_there_are_others() {
        let mut reserve = Reserve::new();
        reserve.wanted = DESCRIPTORS;
        reserve.make_room();
        assert_eq!(reserve.held.len(), DESCRIPTORS);
        reserve.make_room();
        assert_eq!(reserve.held.len(), DESCRIPTORS, "nothing is scarce");
    }

    #[test]
    fn more_than_there_can_be_are_not_free() {
        assert!(are_free(1));
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(ENOUGH);
        let limit = usize::try_from(limit.min(ENOUGH)).expect("it fits");
        // The first three are in use.
        assert!(!are_free(limit));
        assert!(!are_free(limit + 1));
    }
}
