//! An engine whose operations end when a test says so.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use nvme::Backing;
use nvme::engine::{Engine, Finished, Operation, Request, perform};

use crate::disk::Disk;

#[derive(Debug, Default)]
struct Inner {
    begun: Vec<Request>,
    finished: VecDeque<Finished>,
    /// All operations that were ever begun.
    seen: Vec<(usize, Operation)>,
    /// Decides which one ends next.
    random: u64,
    /// Whoever waits gets nothing.
    stuck: bool,
    /// None ends by itself.
    held: bool,
}

/// A handle on the engine, which does what it is told on the disks that they were begun on.
#[derive(Debug, Clone)]
pub(crate) struct Late {
    inner: Arc<Mutex<Inner>>,
    disks: [Disk; 2],
}

impl Late {
    pub(crate) fn new(disks: [Disk; 2]) -> Self {
        Self {
            inner: Arc::default(),
            disks,
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    /// What is under way.
    pub(crate) fn begun(&self) -> Vec<Operation> {
        self.inner().begun.iter().map(|r| r.operation).collect()
    }

    /// What was begun since this was last asked: the disk, and what.
    pub(crate) fn seen(&self) -> Vec<(usize, Operation)> {
        std::mem::take(&mut self.inner().seen)
    }

    /// Does an operation and ends it.
    pub(crate) fn end(&self, index: usize) {
        let mut inner = self.inner();
        let request = inner.begun.remove(index);
        let disk = &self.disks[request.backing];
        let finished = perform(request, disk);
        inner.finished.push_back(finished);
    }

    /// Ends any one; `false` if there is none.
    pub(crate) fn end_one(&self) -> bool {
        let index = {
            let mut inner = self.inner();
            inner.random = inner
                .random
                .wrapping_mul(0x5851_f42d_4c95_7f2d)
                .wrapping_add(1);
            let random = (inner.random >> 33) as usize;
            if inner.begun.is_empty() {
                return false;
            }
            random % inner.begun.len()
        };
        self.end(index);
        true
    }

    pub(crate) fn hold(&self, held: bool) {
        self.inner().held = held;
    }

    pub(crate) fn is_held(&self) -> bool {
        self.inner().held
    }

    pub(crate) fn stick(&self, stuck: bool) {
        self.inner().stuck = stuck;
    }
}

impl Engine for Late {
    fn begin(&mut self, request: Request, _: &dyn Backing) {
        let mut inner = self.inner();
        inner.seen.push((request.backing, request.operation));
        inner.begun.push(request);
    }

    fn finished(&mut self) -> Option<Finished> {
        self.inner().finished.pop_front()
    }

    fn wait(&mut self, _: Duration) -> bool {
        !self.inner().stuck && self.end_one()
    }
}
