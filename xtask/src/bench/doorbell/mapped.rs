//! The alternative: doorbells in memory that the guest writes without anybody's knowledge.

use std::io;
use std::num::NonZeroU64;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use device::{Access, Model, Progress, Reset, StateError, StateRecord};
use nvme::Controller;
use nvme::spec::pci::REGISTER_BAR;
use nvme::spec::registers::{DOORBELL_STRIDE, DOORBELLS};
use vm_memory::{Bytes, MmapRegion, VolatileMemory};

/// Those of the admin queues and of one I/O queue pair.
const LOOKED_AT: usize = 4;

/// The page with the doorbells. Client and device are one process here, and have one mapping of it.
#[derive(Debug, Clone)]
pub(super) struct Page(Arc<MmapRegion>);

impl Page {
    pub(super) fn new() -> anyhow::Result<Self> {
        Ok(Self(Arc::new(MmapRegion::new(4096)?)))
    }

    /// As the guest does: after all that it has written to its queues.
    pub(super) fn ring(&self, doorbell: usize, value: u32) -> anyhow::Result<()> {
        let page = self.0.as_volatile_slice();
        Ok(page.store(value, doorbell * STRIDE, Ordering::Release)?)
    }

    fn value(&self, doorbell: usize) -> u32 {
        let page = self.0.as_volatile_slice();
        let value = page.load(doorbell * STRIDE, Ordering::Acquire);
        value.expect("the page holds the doorbells that are looked at")
    }
}

#[expect(clippy::cast_possible_truncation, reason = "it is 4")]
const STRIDE: usize = DOORBELL_STRIDE as usize;

/// A controller whose engine thread looks at the page.
///
/// It could be a thread of its own that looks; the engine's has one wake-up less on the way of a
/// command, and leaves a processor more to the guest.
pub(super) struct Mapped {
    controller: Controller,
    page: Page,
    seen: [u32; LOOKED_AT],
    /// From one look to the next, where nothing else wakes the engine.
    rest: Duration,
    is_punctual: bool,
}

impl Mapped {
    pub(super) fn new(controller: Controller, page: Page, rest: Duration) -> Self {
        Self {
            controller,
            page,
            seen: [0; LOOKED_AT],
            rest,
            is_punctual: false,
        }
    }

    fn look(&mut self, access: &Access<'_>) {
        for (doorbell, seen) in self.seen.iter_mut().enumerate() {
            let value = self.page.value(doorbell);
            if value != *seen {
                *seen = value;
                let offset = DOORBELLS + (doorbell * STRIDE) as u64;
                let data = value.to_le_bytes();
                self.controller.write(REGISTER_BAR, offset, &data, access);
            }
        }
    }

    /// A thread's sleep is as long again by default, so that the kernel may wake several at once.
    fn be_punctual(&mut self) {
        if !self.is_punctual {
            self.is_punctual = true;
            // What is measured is then a longer rest, and the numbers show it.
            let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
        }
    }
}

impl Model for Mapped {
    /// Without a rest the engine's wait ends at once. [`Progress::More`] would have it give up its
    /// processor after every look, to whoever else wants it.
    fn poll(&mut self, access: &Access<'_>) -> Progress {
        self.be_punctual();
        self.look(access);
        match self.controller.poll(access) {
            Progress::More => Progress::More,
            Progress::Idle(wait) => {
                Progress::Idle(Some(wait.map_or(self.rest, |wait| wait.min(self.rest))))
            }
        }
    }

    fn read(&mut self, bar: u8, offset: u64, data: &mut [u8], access: &Access<'_>) {
        self.controller.read(bar, offset, data, access);
    }

    fn write(&mut self, bar: u8, offset: u64, data: &[u8], access: &Access<'_>) {
        self.controller.write(bar, offset, data, access);
    }

    fn reset(&mut self, kind: Reset) {
        self.controller.reset(kind);
    }

    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        self.controller.poll_fd()
    }

    fn poll_read(&self) -> bool {
        self.controller.poll_read()
    }

    fn needs_poll(&self) -> bool {
        self.controller.needs_poll()
    }

    fn drain(&mut self) -> io::Result<()> {
        self.controller.drain()
    }

    fn save(&self) -> Result<StateRecord, StateError> {
        self.controller.save()
    }

    fn load(&mut self, record: &StateRecord) -> Result<(), StateError> {
        self.controller.load(record)
    }

    fn inspect(&self) -> serde_json::Value {
        self.controller.inspect()
    }

    fn resume(&mut self, access: &Access<'_>) {
        self.controller.resume(access);
    }
}
