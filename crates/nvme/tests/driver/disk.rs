//! A backing in memory that can be looked at, and made to fail.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use nvme::Backing;

/// What a [`Disk`] holds and has seen.
#[derive(Debug, Default)]
pub(crate) struct Content {
    pub(crate) bytes: Vec<u8>,
    /// What a power cut would leave.
    pub(crate) durable: Vec<u8>,
    pub(crate) flushes: usize,
    pub(crate) writes: usize,
    /// Ranges given back, in bytes.
    pub(crate) given_back: Vec<(u64, u64)>,
    /// Cannot zero a range but by writing.
    pub(crate) writes_zeros: bool,
    pub(crate) fails: Option<io::ErrorKind>,
    /// The system has told another process of an error.
    pub(crate) failed_unseen: bool,
    /// No process has left it to a successor.
    pub(crate) is_nobodys: bool,
}

/// A handle on it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Disk(Arc<Mutex<Content>>);

impl Disk {
    pub(crate) fn new(len: usize) -> Self {
        let disk = Self::default();
        disk.content().bytes = vec![0; len];
        disk.content().durable = vec![0; len];
        disk
    }

    pub(crate) fn content(&self) -> MutexGuard<'_, Content> {
        self.0.lock().unwrap()
    }

    fn check(&self) -> io::Result<MutexGuard<'_, Content>> {
        let content = self.content();
        match content.fails {
            Some(kind) => Err(kind.into()),
            None => Ok(content),
        }
    }
}

impl Backing for Disk {
    fn len(&self) -> u64 {
        self.content().bytes.len() as u64
    }

    fn is_acquired(&self) -> bool {
        !self.content().is_nobodys
    }

    fn has_failed_unseen(&mut self) -> bool {
        std::mem::take(&mut self.content().failed_unseen)
    }

    fn name(&self) -> String {
        "test disk".into()
    }

    fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let offset = offset as usize;
        data.copy_from_slice(&self.check()?.bytes[offset..offset + data.len()]);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let (offset, mut content) = (offset as usize, self.check()?);
        content.bytes[offset..offset + data.len()].copy_from_slice(data);
        content.writes += 1;
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        let mut content = self.check()?;
        let Content { bytes, durable, .. } = &mut *content;
        durable.clone_from(bytes);
        content.flushes += 1;
        Ok(())
    }

    fn zero(&self, offset: u64, len: u64, deallocate: bool) -> io::Result<bool> {
        let mut content = self.check()?;
        if content.writes_zeros {
            return Ok(false);
        }
        content.bytes[offset as usize..(offset + len) as usize].fill(0);
        if deallocate {
            content.given_back.push((offset, len));
        }
        Ok(true)
    }
}
