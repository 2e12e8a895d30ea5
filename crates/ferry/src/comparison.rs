//! Memory in which nobody knows what devices wrote, compared before the VM runs elsewhere.
//!
//! The last means of the four that there are to know what a device without a log wrote: it needs
//! neither the guest nor the hardware, and costs the time that it takes to read all of guest memory.
//! When the source's QEMU has completed, memory stands still on both sides. Both take digests of it
//! at the same time, and the source sends the pages that differ over the control link; only then
//! is there a [`Whole`], without which no VM is handed over.

#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::Vm;
use crate::digest::{BLOCK_PAGES, GuestRam, MemoryDigest, PAGE, Secret, Urgency, from_bytes};
use crate::link::{self, Link, LinkError, MAX_BLOCKS, MAX_MESSAGE, MAX_PAGES, Message};
use crate::report::millis;
use crate::source::patience;

/// How long the other side may take for an answer that needs little work.
const ANSWER: Duration = Duration::from_secs(10);
/// How often it is looked whether somebody cancels.
const LOOK: Duration = Duration::from_millis(100);

/// When memory is compared before the VM runs at the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Comparison {
    /// Never: a device whose writes nobody knows keeps the VM here.
    Never,
    /// If there is a device whose writes nobody knows.
    #[default]
    IfNeeded,
    /// In any case.
    Always,
}

/// All that devices wrote is at the destination: it was marked before QEMU's last pass, or memory
/// was compared since.
#[derive(Debug)]
pub(crate) struct Whole(());

/// What came of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Compared {
    /// Pages that differed, and were sent.
    pub pages: usize,
    /// How long it took, in milliseconds, in which the VM stood still after what QEMU takes for its
    /// pause.
    pub took_ms: f64,
}

impl Whole {
    /// The memory that has to be compared first, if any has.
    pub(crate) fn marked(vm: &Vm) -> Result<Self, ToCompare> {
        vm.to_compare().map_or(Ok(Self(())), Err)
    }
}

/// A comparison that did not come to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotCompared {
    #[error("{0}")]
    Link(#[from] LinkError),
    /// The operator does not want it any more.
    #[error("cancelled")]
    Cancelled,
}

impl From<io::Error> for NotCompared {
    fn from(error: io::Error) -> Self {
        Self::Link(error.into())
    }
}

fn stop_if(cancel: &AtomicBool) -> Result<(), NotCompared> {
    if cancel.load(Ordering::Acquire) {
        Err(NotCompared::Cancelled)
    } else {
        Ok(())
    }
}

/// Compares memory that stands still with the destination's, and sends what differs, unless somebody sets `cancel`.
pub(crate) fn run(
    memory: &ToCompare,
    link: &mut Link,
    cancel: &AtomicBool,
) -> Result<(Whole, Compared), NotCompared> {
    let began = Instant::now();
    let mut pages = 0;
    for (file, ram) in memory.ram.iter().enumerate() {
        let (own, theirs) = both(memory, file, ram, link, cancel)?;
        let differing = differing_pages(link, file, &own, &theirs)?;
        for pages in differing.chunks(MAX_PAGES) {
            stop_if(cancel)?;
            send(link, file, ram, pages)?;
        }
        pages += differing.len();
    }
    let beyond = Message::Digests {
        file: memory.ram.len(),
    };
    if link.ask(&beyond, ANSWER)? != (Message::BlockDigests { len: None }) {
        let what = "another number of memory files";
        return Err(LinkError::Malformed(what.into()).into());
    }
    let took_ms = millis(began.elapsed());
    tracing::info!(pages, took_ms, "memory compared");
    Ok((Whole(()), Compared { pages, took_ms }))
}

/// Both sides' digests of one memory file, taken at the same time.
fn both(
    memory: &ToCompare,
    file: usize,
    ram: &GuestRam,
    link: &mut Link,
    cancel: &AtomicBool,
) -> Result<(MemoryDigest, Vec<u128>), NotCompared> {
    link.begin_to_ask(&Message::Digests { file }, ANSWER)?;
    thread::scope(|scope| {
        let own = thread::Builder::new()
            .name("digest".into())
            .spawn_scoped(scope, || ram.digest(Urgency::Now, &memory.secret))?;
        // Read as it comes: what the other side has to say may be more than a connection holds.
        let limit = patience((ram.blocks() * BLOCK_PAGES * PAGE) as u64);
        let first = unless_cancelled(link, limit, cancel)?;
        let theirs = blocks(first, link, ram.blocks())?;
        let own = own.join().map_err(|_| io::Error::other("a digest"))??;
        Ok((own, theirs))
    })
}

/// Asks for the digests of memory file `file`'s blocks, of which there are `count`.
pub(crate) fn ask_blocks(
    link: &mut Link,
    file: usize,
    count: usize,
) -> Result<Vec<u128>, LinkError> {
    link.begin_to_ask(&Message::Digests { file }, ANSWER)?;
    let bytes = (count * BLOCK_PAGES * PAGE) as u64;
    let first = link.receive(patience(bytes))?;
    blocks(first, link, count)
}

/// The next message, within `limit`. The VM stands still: who hangs, or is not wanted any more, is not waited for.
fn unless_cancelled(
    link: &mut Link,
    limit: Duration,
    cancel: &AtomicBool,
) -> Result<Message, NotCompared> {
    let deadline = Instant::now() + limit;
    loop {
        stop_if(cancel)?;
        match link.receive(LOOK) {
            Err(LinkError::Timeout(_)) if Instant::now() < deadline => {}
            Err(LinkError::Timeout(_)) => return Err(LinkError::Timeout(limit).into()),
            come => return Ok(come?),
        }
    }
}

/// The digests of `count` blocks, of which the `first` message says how many bytes they are of.
fn blocks(first: Message, link: &mut Link, count: usize) -> Result<Vec<u128>, LinkError> {
    let len = match first {
        Message::BlockDigests { len: Some(len) } => len,
        Message::BlockDigests { len: None } => {
            return Err(LinkError::Unexpected("no digest of this memory".into()));
        }
        other => return Err(link::unexpected(&other)),
    };
    if usize::try_from(len).map(|len| len.div_ceil(PAGE).div_ceil(BLOCK_PAGES)) != Ok(count) {
        let what = format!("a memory file of {len} bytes, which is not this side's");
        return Err(LinkError::Malformed(what));
    }
    receive_digests(link, count)
}

fn receive_digests(link: &mut Link, count: usize) -> Result<Vec<u128>, LinkError> {
    let bytes = link.receive_bytes(count * size_of::<u128>(), ANSWER)?;
    Ok(from_bytes(&bytes))
}

/// The pages of memory file `file` in which the other side, whose blocks have the digests `theirs`,
/// differs from `own`.
pub(crate) fn differing_pages(
    link: &mut Link,
    file: usize,
    own: &MemoryDigest,
    theirs: &[u128],
) -> Result<Vec<usize>, LinkError> {
    let mut differing = Vec::new();
    for blocks in own.differing_blocks(theirs).chunks(MAX_BLOCKS) {
        let question = Message::BlockPages {
            file,
            blocks: blocks.to_vec(),
        };
        let count = match link.ask(&question, ANSWER)? {
            Message::PageDigests { count } => count,
            other => return Err(link::unexpected(&other)),
        };
        let expected = blocks.iter().map(|block| own.block_pages(*block).len());
        if count != expected.sum::<usize>() {
            let what = format!("{count} digests for {} blocks", blocks.len());
            return Err(LinkError::Malformed(what));
        }
        let digests = receive_digests(link, count)?;
        let mut rest = &digests[..];
        for block in blocks {
            let (theirs, others) = rest.split_at(own.block_pages(*block).len());
            differing.extend(own.differing_pages(*block, theirs));
            rest = others;
        }
    }
    Ok(differing)
}

fn send(link: &mut Link, file: usize, ram: &GuestRam, pages: &[usize]) -> Result<(), LinkError> {
    let bytes: Vec<u8> = pages.iter().flat_map(|page| ram.read_page(*page)).collect();
    let pages = pages.to_vec();
    link.send(&Message::Pages { file, pages }, ANSWER)?;
    link.send_bytes(&bytes, ANSWER)?;
    match link.receive(ANSWER)? {
        Message::PagesWritten => Ok(()),
        other => Err(link::unexpected(&other)),
    }
}

/// Memory that has to be compared before the VM may run elsewhere.
#[derive(Debug, Clone)]
pub(crate) struct ToCompare {
    ram: Arc<Vec<GuestRam>>,
    secret: Secret,
}

impl ToCompare {
    /// All guest memory, of a VM that moves in the migration with this secret.
    ///
    /// # Errors
    /// When there is none, or more than one answer has room for.
    pub(crate) fn new(ram: Vec<GuestRam>, secret: Secret) -> io::Result<Self> {
        let mut blocks = ram.iter().map(GuestRam::blocks);
        if ram.is_empty() || blocks.any(|count| count > MAX_MESSAGE / size_of::<u128>()) {
            return Err(io::Error::other("there is none, or more than 2 TiB in one"));
        }
        Ok(Self {
            ram: Arc::new(ram),
            secret,
        })
    }

    pub(crate) fn ram(&self) -> Arc<Vec<GuestRam>> {
        Arc::clone(&self.ram)
    }
}

/// What a VM is ready to compare, at the source.
#[derive(Debug, Default)]
pub(crate) struct Comparing {
    /// `None` if nothing may be compared.
    memory: Option<ToCompare>,
    /// Whatever is known.
    always: bool,
    /// Somebody wrote what nobody knows of.
    due: bool,
}

impl Comparing {
    /// From now on it may be.
    pub(crate) fn allow(memory: ToCompare, always: bool) -> Self {
        Self {
            memory: Some(memory),
            always,
            due: always,
        }
    }

    /// The devices were halted.
    pub(crate) fn begin(&mut self) {
        self.due = self.always;
    }

    /// Somebody wrote what nobody knows of. `false` if that cannot be helped.
    pub(crate) fn take(&mut self) -> bool {
        self.due |= self.memory.is_some();
        self.due
    }

    pub(crate) fn is_allowed(&self) -> bool {
        self.memory.is_some()
    }

    pub(crate) fn due(&self) -> Option<ToCompare> {
        self.memory.clone().filter(|_| self.due)
    }
}
