//! What of an endpoint outlives the process.
//!
//! A [`keeper::Journal`] holds the model's live state and, where something of it has changed, configuration
//! space, memory map and whether the function answers; the keeper holds the descriptors of guest memory and interrupts. Whoever changes the
//! model has the **turn** meanwhile: the connection's thread for a whole message, the engine for a whole step. What
//! came of it is put in force before the turn ends, so that no state is ever in force with half of a
//! message in it, but for what makes no difference when it is carried out again: doorbells.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use device::{Ledger, MapRequest, Stage, Writes};
use keeper::{Held, Journal, JournalError, Limits, Message, Worker};
use pci::ConfigImage;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use vfio_user::{MAX_MESSAGE, Negotiated};

use crate::{Endpoint, EndpointError, presence};

/// Mappings that are kept: a VM without a virtual IOMMU has some dozens.
const MAX_MAPS: usize = 4096;

/// The room that an endpoint's journal needs.
pub const LIMITS: Limits = Limits {
    state: 16 << 10,
    rare: 1 << 20,
    reply: MAX_MESSAGE,
};

/// Where an endpoint is kept.
#[derive(Debug)]
pub(crate) struct Kept {
    name: String,
    journal: Arc<Journal>,
    worker: Arc<Worker>,
    turn: Turn,
    waits_for_files: bool,
    /// What seldom changes has.
    changed: AtomicBool,
    rare: Mutex<Rare>,
    /// Of guest memory, by the names by which the keeper holds them.
    files: Mutex<BTreeSet<String>>,
    bytes: Mutex<Vec<u8>>,
}

/// What is read first.
#[derive(Debug, Deserialize)]
struct Version {
    version: u32,
}

/// What seldom changes. Read by the same program, or another of the same version.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rare {
    version: u32,
    config: Option<ConfigImage>,
    presence: presence::State,
    maps: Vec<Map>,
    negotiated: Option<Negotiated>,
    /// Why not all was done that the VMM has asked for. Nobody has to know of it where it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lack: Option<i32>,
}

const VERSION: u32 = 2;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Map {
    iova: u64,
    size: u64,
    offset: u64,
    writable: bool,
    /// By which name the keeper holds the file.
    file: Option<String>,
}

impl Map {
    fn new(request: MapRequest, file: Option<String>) -> Self {
        let MapRequest {
            iova,
            size,
            offset,
            writable,
        } = request;
        Self {
            iova,
            size,
            offset,
            writable,
            file,
        }
    }

    fn request(&self) -> MapRequest {
        MapRequest {
            iova: self.iova,
            size: self.size,
            offset: self.offset,
            writable: self.writable,
        }
    }
}

impl Kept {
    fn new(endpoint: &Endpoint, journal: Arc<Journal>, worker: Arc<Worker>) -> Self {
        Self {
            name: endpoint.name().into(),
            journal,
            worker,
            turn: Turn::default(),
            waits_for_files: endpoint.lock_model().waits_for_files(),
            changed: AtomicBool::new(true),
            rare: Mutex::new(Rare {
                version: VERSION,
                config: None,
                presence: presence::State::default(),
                maps: Vec::new(),
                negotiated: None,
                lack: None,
            }),
            files: Mutex::default(),
            bytes: Mutex::default(),
        }
    }

    pub(crate) fn turn(&self) -> &Turn {
        &self.turn
    }

    /// Configuration space, map, presence or what was agreed on has changed.
    pub(crate) fn note_change(&self) {
        self.changed.store(true, Ordering::Relaxed);
    }

    pub(crate) fn agree(&self, negotiated: Negotiated) {
        self.rare().negotiated = Some(negotiated);
        self.note_change();
    }

    /// Has the keeper hold a file of guest memory, and remembers what is mapped of it.
    pub(crate) fn map(&self, request: MapRequest, fd: Option<&OwnedFd>) -> std::io::Result<()> {
        let file = fd.map(|fd| self.hold_memory(fd)).transpose()?;
        let mut rare = self.rare();
        if rare.maps.len() >= MAX_MAPS {
            return Err(std::io::Error::other("too much is mapped to be kept"));
        }
        rare.maps.push(Map::new(request, file));
        drop(rare);
        self.note_change();
        Ok(())
    }

    pub(crate) fn unmap(&self, is_gone: impl Fn(u64, u64) -> bool) {
        self.rare().maps.retain(|map| !is_gone(map.iova, map.size));
        self.note_change();
    }

    pub(crate) fn vector(&self, vector: u32, eventfd: Option<&OwnedFd>) -> std::io::Result<()> {
        let name = format!("{}/irq/{vector}", prefix(&self.name));
        let told = match eventfd {
            Some(eventfd) => self.worker.hold(&name, eventfd),
            None => self.worker.let_go(&name),
        };
        told.map_err(std::io::Error::other)
    }

    fn hold_memory(&self, fd: &OwnedFd) -> std::io::Result<String> {
        let stat = rustix::fs::fstat(fd)?;
        let name = format!(
            "{}/mem/{:x}.{:x}",
            prefix(&self.name),
            stat.st_dev,
            stat.st_ino
        );
        if self.files().insert(name.clone()) {
            let held = self.worker.hold(&name, fd.as_fd());
            held.map_err(std::io::Error::other)?;
        }
        Ok(name)
    }

    /// Puts what the endpoint has come to in force, and that `message` is carried out, if one is.
    pub(crate) fn commit(
        &self,
        endpoint: &Endpoint,
        message: Option<Message<'_>>,
    ) -> Result<(), JournalError> {
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        bytes.clear();
        endpoint.lock_model().live(&mut bytes);
        finish(&mut bytes, &Writes::default());
        let put = if self.changed.swap(false, Ordering::Relaxed) {
            let mut rare = self.rare();
            rare.config = Some(endpoint.config_image());
            rare.presence = endpoint.0.presence.state();
            rare.lack = endpoint.lacking().map(Errno::raw_os_error);
            let seldom = serde_json::to_vec(&*rare).map_err(std::io::Error::other);
            let put = seldom
                .map_err(JournalError::from)
                .and_then(|seldom| self.journal.put(&bytes, Some(&seldom), message));
            if put.is_ok() {
                self.let_go_of_memory(&rare);
            }
            put
        } else {
            self.journal.put(&bytes, None, message)
        };
        // What is in force is not what the device has come to.
        put.inspect_err(|_| self.give_up())
    }

    /// No other process can go on from here, nor is anybody to have one try.
    fn give_up(&self) {
        self.journal.give_up();
        self.worker.watch_no_more();
    }

    /// Of which nothing is mapped any more, as what is in force says.
    fn let_go_of_memory(&self, rare: &Rare) {
        let needed: BTreeSet<_> = rare.maps.iter().filter_map(|m| m.file.as_ref()).collect();
        self.files().retain(|name| {
            let keep = needed.contains(name);
            // A keeper that is gone has taken this process along.
            let _ = (!keep).then(|| self.worker.let_go(name));
            keep
        });
    }

    fn files(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rare(&self) -> MutexGuard<'_, Rare> {
        self.rare.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ledger for Kept {
    fn put(&self, state: &[u8], writes: &Writes) {
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        bytes.clear();
        bytes.extend_from_slice(state);
        finish(&mut bytes, writes);
        if let Err(error) = self.journal.put(&bytes, None, None) {
            self.give_up();
            tracing::error!(device = self.name, %error, "no other process can go on from here");
        }
    }

    fn set_stage(&self, stage: Stage) {
        self.journal.set_stage(match stage {
            Stage::Begun => 0,
            Stage::Signalling => 1,
            Stage::Done => 2,
        });
    }
}

/// What the names begin with by which the keeper holds what is an endpoint's: no name of a device has a slash.
pub fn prefix(name: &str) -> String {
    format!("device/{name}")
}

/// The model's state, the writes, and the length of the first.
fn finish(bytes: &mut Vec<u8>, writes: &Writes) {
    let len = bytes.len() as u64;
    writes.encode(bytes);
    bytes.extend(len.to_le_bytes());
}

/// What [`finish`] put together.
fn parts(bytes: &[u8]) -> Option<(&[u8], Writes)> {
    let (rest, len) = bytes.split_last_chunk()?;
    let len = usize::try_from(u64::from_le_bytes(*len)).ok()?;
    let (state, writes) = rest.split_at_checked(len)?;
    Some((state, Writes::decode(writes)?))
}

impl Endpoint {
    /// Whether another process could go on with this device.
    pub fn can_be_kept(&self) -> bool {
        self.lock_model().live(&mut Vec::new())
    }

    /// From here on what this endpoint comes to is in `journal`, which is new, and `worker`'s keeper holds what
    /// a successor needs.
    ///
    /// # Errors
    /// When it does not go into the journal.
    pub fn keep(&self, journal: Arc<Journal>, worker: Arc<Worker>) -> Result<(), EndpointError> {
        let kept = Kept::new(self, journal, worker);
        kept.commit(self, None).map_err(|e| self.kept_error(&e))?;
        // It is kept only once.
        let _ = self.0.kept.set(kept);
        Ok(())
    }

    /// Goes on from what another process has left in `journal` and `held`. Returns what it had agreed on with
    /// the VMM, if it had.
    ///
    /// # Errors
    /// When that does not fit this endpoint. It is of no use then.
    pub fn take_over(
        &self,
        journal: Arc<Journal>,
        worker: Arc<Worker>,
        held: &mut Held,
    ) -> Result<Option<Negotiated>, EndpointError> {
        let seldom = journal.rare();
        let unreadable = |e: serde_json::Error| self.kept_error(&e);
        let Version { version } = serde_json::from_slice(&seldom).map_err(unreadable)?;
        if version != VERSION {
            return Err(self.kept_error(&"another version of vferry left it"));
        }
        let rare: Rare = serde_json::from_slice(&seldom).map_err(unreadable)?;
        let bytes = journal.state();
        let (state, writes) = parts(&bytes).ok_or_else(|| self.kept_error(&"it is cut short"))?;
        let made = match journal.stage() {
            0 => Stage::Begun,
            1 => Stage::Signalling,
            _ => Stage::Done,
        };
        if let Some(image) = &rare.config {
            let loaded = self.lock_config().load(image);
            loaded.map_err(|e| EndpointError::Config(self.name().into(), e))?;
        }
        self.0.presence.take_over(rare.presence.clone());
        self.set_lack(rare.lack.map(Errno::from_raw_os_error));
        self.map_again(&rare.maps, held)?;
        let bus_master = self.is_bus_master();
        self.0.bus.set_enabled(bus_master);
        for vector in 0..self.0.vectors.count() {
            let eventfd = held.remove(&format!("{}/irq/{vector}", prefix(self.name())));
            self.0.vectors.set(vector, eventfd);
        }
        let taken = self.lock_model().take_over(state);
        taken.map_err(|e| EndpointError::Model(self.name().into(), e))?;
        let kept = Kept::new(self, journal, worker);
        if let Some(memory) = self.0.bus.begin()
            && let Err(error) = writes.finish(&memory, made, &kept)
        {
            tracing::warn!(device = self.name(), %error, "a descriptor is not written back");
        }
        let negotiated = rare.negotiated;
        // Also those that nothing is mapped of: they are let go of by the commit.
        let prefix = format!("{}/mem/", prefix(self.name()));
        let unused = held.keys().filter(|name| name.starts_with(&prefix));
        let used = rare.maps.iter().filter_map(|map| map.file.as_ref());
        kept.files().extend(unused.chain(used).cloned());
        *kept.rare() = rare;
        kept.commit(self, None).map_err(|e| self.kept_error(&e))?;
        let _ = self.0.kept.set(kept);
        Ok(negotiated)
    }

    /// What may have been lost with the process before is raised and announced again.
    pub fn restart(&self) {
        self.in_turn(|| self.with_model(|model, access| model.resume(access)));
        self.0.kick.kick();
    }

    /// Waits until the device has no message and no step half done, for a moment: for ever, where one hangs. Does not wait
    /// for a device in which one may wait for a disk.
    pub fn wait_for_turn(&self) {
        if let Some(kept) = self.0.kept.get()
            && !kept.waits_for_files
        {
            kept.turn.begin();
            kept.turn.end();
        }
    }

    /// Waits until the device has nothing half done, and has it begin nothing more: this process is about to end.
    pub fn hold_still(&self) {
        if let Some(kept) = self.0.kept.get() {
            kept.turn.begin();
        }
    }

    fn map_again(&self, maps: &[Map], held: &mut Held) -> Result<(), EndpointError> {
        let names: BTreeSet<_> = maps.iter().filter_map(|map| map.file.clone()).collect();
        let files: BTreeMap<_, _> = names
            .into_iter()
            .filter_map(|name| held.remove(&name).map(|fd| (name, fd)))
            .collect();
        for map in maps {
            let missing = || self.kept_error(&"the keeper does not hold its memory");
            let fd = match &map.file {
                None => None,
                Some(name) => {
                    let fd = files.get(name).ok_or_else(missing)?.try_clone();
                    Some(fd.map_err(|e| self.kept_error(&e))?)
                }
            };
            let mapped = self.0.bus.map(map.request(), fd);
            mapped.map_err(|e| self.kept_error(&e))?;
        }
        Ok(())
    }

    /// Runs `act`, which changes the model, and puts what came of it in force.
    pub(crate) fn in_turn<R>(&self, act: impl FnOnce() -> R) -> R {
        let Some(kept) = self.0.kept.get() else {
            return act();
        };
        kept.turn.begin();
        let result = act();
        let committed = kept.commit(self, None);
        kept.turn.end();
        if let Err(error) = committed {
            tracing::error!(device = self.name(), %error, "no other process can go on from here");
        }
        result
    }

    fn kept_error(&self, why: &dyn std::fmt::Display) -> EndpointError {
        EndpointError::Kept {
            endpoint: self.name().into(),
            why: why.to_string(),
        }
    }
}

/// Whose turn it is. Not a guard, as a message's turn begins and ends in two calls.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    taken: Mutex<bool>,
    ended: Condvar,
}

impl Turn {
    pub(crate) fn begin(&self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        while *taken {
            let waited = self.ended.wait(taken);
            taken = waited.unwrap_or_else(PoisonError::into_inner);
        }
        *taken = true;
    }

    pub(crate) fn end(&self) {
        *self.taken.lock().unwrap_or_else(PoisonError::into_inner) = false;
        self.ended.notify_one();
    }
}
