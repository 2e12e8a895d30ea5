//! Version 1.
//!
//! Queues are listed with their numbers, and what does not exist is not listed.

use serde::{Deserialize, Serialize};

use crate::spec::commands::Submission;
use crate::spec::pci::MSIX_VECTORS;
use crate::spec::registers::{ADMIN_ADDRESS_MASK, IO_QUEUES, MAX_ENTRIES, PAGE, QUEUES, aqa, cc};
use crate::state::{
    COMMANDS, Command, CompletionQueue, ControllerState, ERROR_ENTRIES, EVENT_REQUESTS, ErrorEntry,
    ErrorLog, Events, Features, Identity, MAX_NAMESPACES, Namespace, Registers, Shutdown,
    SubmissionQueue, Usage,
};

/// A controller's state, version 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the names are those of `ControllerState`")]
pub struct Controller {
    pub serial: [u8; 20],
    pub queues: u16,
    pub namespaces: Vec<SavedNamespace>,
    pub registers: SavedRegisters,
    pub submission: Vec<SavedSubmissionQueue>,
    pub completion: Vec<SavedCompletionQueue>,
    pub features: SavedFeatures,
    pub events: SavedEvents,
    pub commands: Vec<SavedCommand>,
    pub error_count: u64,
    /// The latest first.
    pub errors: Vec<SavedError>,
    pub usage: SavedUsage,
}

/// A namespace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the names are those of `Namespace`")]
pub struct SavedNamespace {
    pub blocks: u64,
    pub block_shift: u8,
    pub uuid: [u8; 16],
    pub changed: bool,
}

/// Registers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the names are those of `Registers`")]
pub struct SavedRegisters {
    pub cc: u32,
    pub ready: bool,
    pub fatal: bool,
    /// As in CSTS.SHST: 0 none, 1 occurring, 2 complete.
    pub shutdown: u8,
    pub aqa: u32,
    pub asq: u64,
    pub acq: u64,
}

/// A submission queue.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the names are those of `SubmissionQueue`")]
pub struct SavedSubmissionQueue {
    pub id: u16,
    pub base: u64,
    pub entries: u16,
    pub head: u16,
    pub tail: u16,
    pub completion: u16,
}

/// A completion queue.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the names are those of `CompletionQueue`")]
pub struct SavedCompletionQueue {
    pub id: u16,
    pub base: u64,
    pub entries: u16,
    pub head: u16,
    pub tail: u16,
    pub phase: bool,
    pub vector: Option<u16>,
}

/// Features.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the names are those of `Features`")]
pub struct SavedFeatures {
    pub arbitration: u32,
    pub temperature: [u16; 2],
    pub error_recovery: u32,
    pub write_cache: bool,
    pub coalescing: u32,
    pub coalescing_disabled: u32,
    pub disable_normal: bool,
    pub async_events: u32,
}

/// Events.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the names are those of `Events`")]
pub struct SavedEvents {
    /// CIDs of the outstanding requests.
    pub requests: Vec<u16>,
    pub pending: u8,
    pub masked: u8,
}

/// A command under way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the names are those of `Command`")]
pub struct SavedCommand {
    pub sq: u16,
    pub entry: [u32; 16],
    pub done: u64,
}

/// An entry of the error log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the names are those of `ErrorEntry`")]
pub struct SavedError {
    pub number: u64,
    pub sq: u16,
    pub cid: u16,
    pub status: u16,
    pub lba: u64,
    pub nsid: u32,
}

/// Counters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the names are those of `Usage`")]
pub struct SavedUsage {
    pub sectors_read: u64,
    pub sectors_written: u64,
    pub reads: u64,
    pub writes: u64,
    pub media_errors: u64,
    pub power_cycles: u64,
}

impl device::State for Controller {
    const NAME: &'static str = "nvme";
    const VERSION: u32 = 1;
}

/// Why a record cannot be a controller's state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// A value is not one that the field can have.
    #[error("{field} has a value that it cannot have")]
    Value {
        /// The field.
        field: &'static str,
    },
    /// A list is too long, or names something twice.
    #[error("{field} has too many entries, or one of them twice")]
    List {
        /// The field.
        field: &'static str,
    },
}

impl From<&ControllerState> for Controller {
    fn from(state: &ControllerState) -> Self {
        let ControllerState {
            identity,
            namespaces,
            registers,
            submission,
            completion,
            features,
            events,
            commands,
            errors,
            usage,
        } = state;
        Self {
            serial: identity.serial,
            queues: identity.queues,
            namespaces: namespaces.iter().flatten().map(Into::into).collect(),
            registers: registers.into(),
            submission: (0..)
                .zip(submission)
                .filter_map(|(id, queue)| Some(save_submission(id, queue.as_ref()?)))
                .collect(),
            completion: (0..)
                .zip(completion)
                .filter_map(|(id, queue)| Some(save_completion(id, queue.as_ref()?)))
                .collect(),
            features: features.into(),
            events: events.into(),
            commands: commands.iter().flatten().map(Into::into).collect(),
            error_count: errors.count,
            errors: errors.entries.iter().flatten().map(Into::into).collect(),
            usage: usage.into(),
        }
    }
}

impl TryFrom<&Controller> for ControllerState {
    type Error = Invalid;

    fn try_from(saved: &Controller) -> Result<Self, Invalid> {
        check("queues", (1..=IO_QUEUES).contains(&saved.queues))?;
        let printable = |b: &u8| b.is_ascii_graphic() || *b == b' ';
        check("serial", saved.serial.iter().all(printable))?;
        check("namespaces", !saved.namespaces.is_empty())?;
        let completion = load_completion(saved)?;
        let submission = load_submission(saved, &completion)?;
        check(
            "registers.ready",
            saved.registers.ready == (submission[0].is_some() && completion[0].is_some()),
        )?;
        let commands: [Option<Command>; COMMANDS] = slots("commands", &saved.commands)?;
        for command in commands.iter().flatten() {
            let queue = submission.get(usize::from(command.sq));
            check("commands.sq", queue.is_some_and(Option::is_some))?;
        }
        let namespaces: [Option<Namespace>; MAX_NAMESPACES] =
            slots("namespaces", &saved.namespaces)?;
        let entries: [Option<ErrorEntry>; ERROR_ENTRIES] = slots("errors", &saved.errors)?;
        let state = Self {
            identity: Identity {
                serial: saved.serial,
                queues: saved.queues,
            },
            namespaces,
            registers: (&saved.registers).try_into()?,
            submission,
            completion,
            features: (&saved.features).into(),
            events: (&saved.events).try_into()?,
            commands,
            errors: ErrorLog {
                count: saved.error_count,
                entries,
            },
            usage: (&saved.usage).into(),
        };
        // Else a completion might find no room.
        for (cq, queue) in (0..).zip(&state.completion) {
            let needed = state.needed(cq);
            let enough = queue.is_none_or(|queue| usize::from(queue.room()) >= needed);
            check("commands", enough)?;
        }
        Ok(state)
    }
}

impl From<&Namespace> for SavedNamespace {
    fn from(namespace: &Namespace) -> Self {
        Self {
            blocks: namespace.blocks,
            block_shift: namespace.block_shift,
            uuid: namespace.uuid,
            changed: namespace.changed,
        }
    }
}

impl TryFrom<&SavedNamespace> for Namespace {
    type Error = Invalid;

    fn try_from(saved: &SavedNamespace) -> Result<Self, Invalid> {
        let shift = saved.block_shift;
        check("namespaces.block_shift", (9..=12).contains(&shift))?;
        let fits = (1..=u64::MAX >> shift).contains(&saved.blocks);
        check("namespaces.blocks", fits)?;
        Ok(Self {
            blocks: saved.blocks,
            block_shift: shift,
            uuid: saved.uuid,
            changed: saved.changed,
        })
    }
}

impl From<&Registers> for SavedRegisters {
    fn from(registers: &Registers) -> Self {
        Self {
            cc: registers.cc,
            ready: registers.ready,
            fatal: registers.fatal,
            shutdown: match registers.shutdown {
                Shutdown::None => 0,
                Shutdown::Occurring => 1,
                Shutdown::Complete => 2,
            },
            aqa: registers.aqa,
            asq: registers.asq,
            acq: registers.acq,
        }
    }
}

impl TryFrom<&SavedRegisters> for Registers {
    type Error = Invalid;

    fn try_from(saved: &SavedRegisters) -> Result<Self, Invalid> {
        check("registers.cc", saved.cc & !cc::MASK == 0)?;
        check("registers.ready", !saved.ready || saved.cc & cc::EN != 0)?;
        check("registers.aqa", saved.aqa & !aqa::MASK == 0)?;
        check("registers.asq", saved.asq & !ADMIN_ADDRESS_MASK == 0)?;
        check("registers.acq", saved.acq & !ADMIN_ADDRESS_MASK == 0)?;
        let shutdown = match saved.shutdown {
            0 => Shutdown::None,
            1 => Shutdown::Occurring,
            2 => Shutdown::Complete,
            _ => return wrong("registers.shutdown"),
        };
        Ok(Self {
            cc: saved.cc,
            ready: saved.ready,
            fatal: saved.fatal,
            shutdown,
            aqa: saved.aqa,
            asq: saved.asq,
            acq: saved.acq,
        })
    }
}

fn save_submission(id: u16, queue: &SubmissionQueue) -> SavedSubmissionQueue {
    SavedSubmissionQueue {
        id,
        base: queue.base,
        entries: queue.entries,
        head: queue.head,
        tail: queue.tail,
        completion: queue.completion,
    }
}

fn load_submission(
    saved: &Controller,
    completion: &[Option<CompletionQueue>; QUEUES],
) -> Result<[Option<SubmissionQueue>; QUEUES], Invalid> {
    let mut queues = [None; QUEUES];
    for queue in &saved.submission {
        let SavedSubmissionQueue {
            id,
            base,
            entries,
            head,
            tail,
            completion: cq,
        } = *queue;
        check("submission.id", id <= saved.queues)?;
        ring(id, base, entries, head, tail)?;
        let exists = completion.get(usize::from(cq)).is_some_and(Option::is_some);
        check("submission.completion", exists && (id == 0) == (cq == 0))?;
        let queue = SubmissionQueue {
            base,
            entries,
            head,
            tail,
            completion: cq,
        };
        if queues[usize::from(id)].replace(queue).is_some() {
            return Err(Invalid::List {
                field: "submission",
            });
        }
    }
    Ok(queues)
}

fn save_completion(id: u16, queue: &CompletionQueue) -> SavedCompletionQueue {
    SavedCompletionQueue {
        id,
        base: queue.base,
        entries: queue.entries,
        head: queue.head,
        tail: queue.tail,
        phase: queue.phase,
        vector: queue.vector,
    }
}

fn load_completion(saved: &Controller) -> Result<[Option<CompletionQueue>; QUEUES], Invalid> {
    let mut queues = [None; QUEUES];
    for queue in &saved.completion {
        let SavedCompletionQueue {
            id,
            base,
            entries,
            head,
            tail,
            phase,
            vector,
        } = *queue;
        check("completion.id", id <= saved.queues)?;
        ring(id, base, entries, head, tail)?;
        check("completion.vector", vector.is_none_or(|v| v < MSIX_VECTORS))?;
        let queue = CompletionQueue {
            base,
            entries,
            head,
            tail,
            phase,
            vector,
        };
        if queues[usize::from(id)].replace(queue).is_some() {
            return Err(Invalid::List {
                field: "completion",
            });
        }
    }
    Ok(queues)
}

fn ring(id: u16, base: u64, entries: u16, head: u16, tail: u16) -> Result<(), Invalid> {
    let most = if id == 0 { aqa::ASQS + 1 } else { MAX_ENTRIES };
    check("queue.base", base.is_multiple_of(PAGE))?;
    check("queue.entries", (2..=most).contains(&entries.into()))?;
    check("queue.head", head < entries)?;
    check("queue.tail", tail < entries)
}

impl From<&Features> for SavedFeatures {
    fn from(features: &Features) -> Self {
        Self {
            arbitration: features.arbitration,
            temperature: features.temperature,
            error_recovery: features.error_recovery,
            write_cache: features.write_cache,
            coalescing: features.coalescing,
            coalescing_disabled: features.coalescing_disabled,
            disable_normal: features.disable_normal,
            async_events: features.async_events,
        }
    }
}

impl From<&SavedFeatures> for Features {
    fn from(saved: &SavedFeatures) -> Self {
        Self {
            arbitration: saved.arbitration,
            temperature: saved.temperature,
            error_recovery: saved.error_recovery,
            write_cache: saved.write_cache,
            coalescing: saved.coalescing,
            coalescing_disabled: saved.coalescing_disabled,
            disable_normal: saved.disable_normal,
            async_events: saved.async_events,
        }
    }
}

impl From<&Events> for SavedEvents {
    fn from(events: &Events) -> Self {
        Self {
            requests: events.requests.iter().flatten().copied().collect(),
            pending: events.pending,
            masked: events.masked,
        }
    }
}

impl TryFrom<&SavedEvents> for Events {
    type Error = Invalid;

    fn try_from(saved: &SavedEvents) -> Result<Self, Invalid> {
        check("events.pending", saved.pending & !Self::PENDING == 0)?;
        check("events.masked", saved.masked & !Self::MASKED == 0)?;
        let mut requests = [None; EVENT_REQUESTS];
        for (index, cid) in saved.requests.iter().enumerate() {
            let slot = requests.get_mut(index);
            *slot.ok_or(Invalid::List {
                field: "events.requests",
            })? = Some(*cid);
        }
        Ok(Self {
            requests,
            pending: saved.pending,
            masked: saved.masked,
        })
    }
}

impl From<&Command> for SavedCommand {
    fn from(command: &Command) -> Self {
        Self {
            sq: command.sq,
            entry: command.entry.0,
            done: command.done,
        }
    }
}

impl TryFrom<&SavedCommand> for Command {
    type Error = Invalid;

    fn try_from(saved: &SavedCommand) -> Result<Self, Invalid> {
        // No command is about more: 65536 blocks of 4 KiB.
        check("commands.done", saved.done <= 1 << 28)?;
        Ok(Self {
            sq: saved.sq,
            entry: Submission(saved.entry),
            done: saved.done,
        })
    }
}

impl From<&ErrorEntry> for SavedError {
    fn from(entry: &ErrorEntry) -> Self {
        Self {
            number: entry.number,
            sq: entry.sq,
            cid: entry.cid,
            status: entry.status,
            lba: entry.lba,
            nsid: entry.nsid,
        }
    }
}

impl TryFrom<&SavedError> for ErrorEntry {
    type Error = Invalid;

    fn try_from(saved: &SavedError) -> Result<Self, Invalid> {
        check("errors.status", saved.status >> 15 == 0)?;
        Ok(Self {
            number: saved.number,
            sq: saved.sq,
            cid: saved.cid,
            status: saved.status,
            lba: saved.lba,
            nsid: saved.nsid,
        })
    }
}

impl From<&Usage> for SavedUsage {
    fn from(usage: &Usage) -> Self {
        Self {
            sectors_read: usage.sectors_read,
            sectors_written: usage.sectors_written,
            reads: usage.reads,
            writes: usage.writes,
            media_errors: usage.media_errors,
            power_cycles: usage.power_cycles,
        }
    }
}

impl From<&SavedUsage> for Usage {
    fn from(saved: &SavedUsage) -> Self {
        Self {
            sectors_read: saved.sectors_read,
            sectors_written: saved.sectors_written,
            reads: saved.reads,
            writes: saved.writes,
            media_errors: saved.media_errors,
            power_cycles: saved.power_cycles,
        }
    }
}

/// A list as the first of `N` slots.
fn slots<'a, S, T, const N: usize>(
    field: &'static str,
    saved: &'a [S],
) -> Result<[Option<T>; N], Invalid>
where
    T: Copy + TryFrom<&'a S, Error = Invalid>,
{
    let mut slots = [None; N];
    for (index, one) in saved.iter().enumerate() {
        *slots.get_mut(index).ok_or(Invalid::List { field })? = Some(one.try_into()?);
    }
    Ok(slots)
}

fn check(field: &'static str, fits: bool) -> Result<(), Invalid> {
    if fits { Ok(()) } else { wrong(field) }
}

fn wrong<T>(field: &'static str) -> Result<T, Invalid> {
    Err(Invalid::Value { field })
}
