//! MSI-X vectors as eventfds that the VMM hands over.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Mutex, PoisonError};

use device::Interrupts;

/// A function's vectors.
///
/// The VMM keeps table and masks, and hands over an eventfd per vector once the guest has set it
/// up. What is raised before that stays pending and is sent when the eventfd comes.
#[derive(Debug)]
pub(crate) struct Vectors {
    slots: Vec<Mutex<Slot>>,
    sent: AtomicU64,
}

#[derive(Debug, Default)]
struct Slot {
    eventfd: Option<OwnedFd>,
    pending: bool,
}

impl Vectors {
    pub(crate) fn new(count: u16) -> Self {
        Self {
            slots: (0..count).map(|_| Mutex::default()).collect(),
            sent: AtomicU64::new(0),
        }
    }

    /// Gives `vector` its eventfd, or takes it away. `false` if there is no such vector.
    pub(crate) fn set(&self, vector: u32, eventfd: Option<OwnedFd>) -> bool {
        let slot = usize::try_from(vector).ok().and_then(|v| self.slots.get(v));
        let Some(slot) = slot else { return false };
        // Whatever it is, writing to it must not hold up the device. QEMU's are so already.
        let willing = |fd: &OwnedFd| {
            let flags = rustix::fs::fcntl_getfl(fd)?;
            rustix::fs::fcntl_setfl(fd, flags | rustix::fs::OFlags::NONBLOCK)
        };
        let eventfd = eventfd.filter(|fd| willing(fd).is_ok());
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        slot.eventfd = eventfd;
        if slot.pending {
            slot.pending = !self.send(&slot);
        }
        true
    }

    /// Takes all eventfds away.
    pub(crate) fn clear(&self) {
        for slot in &self.slots {
            slot.lock().unwrap_or_else(PoisonError::into_inner).eventfd = None;
        }
    }

    pub(crate) fn forget_pending(&self) {
        for slot in &self.slots {
            slot.lock().unwrap_or_else(PoisonError::into_inner).pending = false;
        }
    }

    pub(crate) fn count(&self) -> u32 {
        u32::try_from(self.slots.len()).unwrap_or(u32::MAX)
    }

    pub(crate) fn pending(&self) -> Vec<u16> {
        let pending =
            |slot: &Mutex<Slot>| slot.lock().unwrap_or_else(PoisonError::into_inner).pending;
        (0..)
            .zip(&self.slots)
            .filter(|(_, slot)| pending(slot))
            .map(|(v, _)| v)
            .collect()
    }

    fn send(&self, slot: &Slot) -> bool {
        let Some(eventfd) = &slot.eventfd else {
            return false;
        };
        // The handler may run on another processor as soon as the counter moves: what the device
        // wrote must be visible before. (The system call orders it on x86; this says so.)
        fence(Ordering::SeqCst);
        self.sent.fetch_add(1, Ordering::Relaxed);
        // EAGAIN: the counter is at its limit, so the interrupt is as good as sent.
        let _ = rustix::io::write(eventfd, &1u64.to_ne_bytes());
        true
    }
}

impl Interrupts for Vectors {
    fn signal(&self, vector: u16) {
        let Some(slot) = self.slots.get(usize::from(vector)) else {
            return;
        };
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.send(&slot) {
            slot.pending = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};

    fn counter() -> (OwnedFd, OwnedFd) {
        let fd = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        (fd.try_clone().unwrap(), fd)
    }

    fn taken(fd: &OwnedFd) -> u64 {
        let mut count = [0; 8];
        rustix::io::read(fd, &mut count).map_or(0, |_| u64::from_ne_bytes(count))
    }

    #[test]
    fn an_interrupt_raised_too_early_is_sent_when_the_vector_is_armed() {
        let vectors = Vectors::new(2);
        vectors.signal(1);
        vectors.signal(7);
        assert_eq!(vectors.pending(), [1]);
        let (given, kept) = counter();
        assert!(vectors.set(1, Some(given)));
        assert_eq!((taken(&kept), vectors.pending()), (1, vec![]));
        vectors.signal(1);
        assert_eq!(taken(&kept), 1);
        vectors.clear();
        vectors.signal(1);
        assert_eq!((taken(&kept), vectors.pending()), (0, vec![1]));
    }

    #[test]
    fn what_is_no_eventfd_and_full_holds_nothing_up() {
        let (_reader, pipe) = rustix::pipe::pipe().unwrap();
        let vectors = Vectors::new(1);
        vectors.set(0, Some(pipe));
        // A pipe takes 64 KiB.
        (0..10_000).for_each(|_| vectors.signal(0));
    }

    #[test]
    fn there_are_no_more_vectors_than_there_are() {
        assert!(!Vectors::new(2).set(2, None));
    }
}
