//! Disks in memory, and an engine whose operations end when the input says so.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::backing::Backing;
use crate::engine::{Engine, Finished, Request, perform};

const DISK_LEN: usize = 2 << 20;

#[derive(Debug, Default)]
pub(super) struct Content {
    bytes: Vec<u8>,
    /// Bytes read and written in this call.
    pub(super) moved: usize,
    pub(super) fails: bool,
    /// The controller may take it for larger than it is.
    pub(super) larger: bool,
    pub(super) writes_zeros: bool,
}

/// A disk that checks what is asked of it: a range outside of it is a panic.
#[derive(Debug, Clone, Default)]
pub(super) struct Disk(Arc<Mutex<Content>>);

impl Disk {
    pub(super) fn new() -> Self {
        let disk = Self::default();
        disk.content().bytes = vec![0; DISK_LEN];
        disk
    }

    pub(super) fn content(&self) -> MutexGuard<'_, Content> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, offset: u64, len: u64) -> io::Result<MutexGuard<'_, Content>> {
        let content = self.content();
        let end = offset.checked_add(len);
        let is_there = end.is_some_and(|end| end <= DISK_LEN as u64);
        assert!(is_there || content.larger, "{offset:#x} and {len:#x} bytes");
        if content.fails || !is_there {
            return Err(io::ErrorKind::Other.into());
        }
        Ok(content)
    }
}

impl Backing for Disk {
    fn len(&self) -> u64 {
        DISK_LEN as u64
    }

    fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let mut content = self.check(offset, data.len() as u64)?;
        content.moved += data.len();
        data.copy_from_slice(&content.bytes[range(offset, data.len())]);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut content = self.check(offset, data.len() as u64)?;
        content.moved += data.len();
        content.bytes[range(offset, data.len())].copy_from_slice(data);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.check(0, 0).map(|_| ())
    }

    fn zero(&self, offset: u64, len: u64, _deallocate: bool) -> io::Result<bool> {
        self.check(offset, len).map(|content| !content.writes_zeros)
    }
}

fn range(offset: u64, len: usize) -> std::ops::Range<usize> {
    let start = usize::try_from(offset).expect("it was found within the disk");
    start..start + len
}

#[derive(Debug, Default)]
struct Operations {
    /// Operations do not end when they are begun.
    late: bool,
    begun: Vec<Request>,
    finished: VecDeque<Finished>,
}

/// A handle on an engine that does what is begun at once, or when it is told to.
#[derive(Debug, Clone)]
pub(super) struct Late {
    operations: Arc<Mutex<Operations>>,
    disks: [Disk; 2],
}

impl Late {
    pub(super) fn new(disks: [Disk; 2]) -> Self {
        Self {
            operations: Arc::default(),
            disks,
        }
    }

    pub(super) fn set_late(&self, late: bool) {
        self.operations().late = late;
    }

    /// Does one operation; `false` if there is none.
    pub(super) fn end_one(&self, choice: usize) -> bool {
        let mut operations = self.operations();
        if operations.begun.is_empty() {
            return false;
        }
        let index = choice % operations.begun.len();
        let request = operations.begun.remove(index);
        let disk = &self.disks[request.backing];
        let finished = perform(request, disk);
        operations.finished.push_back(finished);
        true
    }

    fn operations(&self) -> MutexGuard<'_, Operations> {
        self.operations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine for Late {
    fn begin(&mut self, request: Request, backing: &dyn Backing) {
        let mut operations = self.operations();
        if operations.late {
            operations.begun.push(request);
        } else {
            let finished = perform(request, backing);
            operations.finished.push_back(finished);
        }
    }

    fn finished(&mut self) -> Option<Finished> {
        self.operations().finished.pop_front()
    }

    fn wait(&mut self, _timeout: Duration) -> bool {
        self.end_one(0)
    }
}
