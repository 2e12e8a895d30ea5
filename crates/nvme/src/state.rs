//! The live state of a controller: everything that the guest can see or has set, and nothing else.
//!
//! It is plain data of a fixed size, without pointers, apart from the code that works on it
//! ([`Controller`](crate::Controller)). Commands under way are part of it: whoever has the state
//! can finish them. The form in which it travels to another host is its own: see
//! [`saved`](crate::saved).

use crate::admin::identify::WARNING_TEMPERATURE;
use crate::spec::commands::Submission;
use crate::spec::logs::Event;
use crate::spec::registers::QUEUES;

/// Most namespaces of a controller.
pub const MAX_NAMESPACES: usize = 16;
/// Commands that may be under way at a time.
pub const COMMANDS: usize = 64;
/// Asynchronous Event Requests that may be outstanding (AERL + 1).
pub const EVENT_REQUESTS: usize = 4;
/// Entries of the error log (ELPE + 1).
pub const ERROR_ENTRIES: usize = 4;

/// A controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControllerState {
    /// Who it is.
    pub identity: Identity,
    /// Its namespaces: number 1 first, none after the first `None`.
    pub namespaces: [Option<Namespace>; MAX_NAMESPACES],
    /// What the registers hold.
    pub registers: Registers,
    /// Submission queues; the admin queue is the first.
    pub submission: [Option<SubmissionQueue>; QUEUES],
    /// Completion queues; the admin queue is the first.
    pub completion: [Option<CompletionQueue>; QUEUES],
    /// What Set Features has set.
    pub features: Features,
    /// Asynchronous events.
    pub events: Events,
    /// Commands that were taken from their queue and have no completion yet. They have no order.
    pub commands: [Option<Command>; COMMANDS],
    /// The error log.
    pub errors: ErrorLog,
    /// The counters of the SMART log.
    pub usage: Usage,
}

impl ControllerState {
    /// As after power-on.
    pub(crate) fn new(
        identity: Identity,
        namespaces: &[Option<Namespace>; MAX_NAMESPACES],
    ) -> Self {
        Self {
            identity,
            namespaces: *namespaces,
            registers: Registers::default(),
            submission: [None; QUEUES],
            completion: [None; QUEUES],
            features: Features::default(),
            events: Events::default(),
            commands: [None; COMMANDS],
            errors: ErrorLog::default(),
            usage: Usage {
                power_cycles: 1,
                ..Usage::default()
            },
        }
    }
}

/// What outlasts every reset, as the guest's driver compares it with what it knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Serial number: printable ASCII, filled up with spaces.
    pub serial: [u8; 20],
    /// I/O queue pairs that are offered.
    pub queues: u16,
}

/// A namespace, as the guest knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Blocks.
    pub blocks: u64,
    /// Binary logarithm of a block's bytes: 9 to 12.
    pub block_shift: u8,
    /// Its UUID.
    pub uuid: [u8; 16],
    /// It is in the Changed Namespace List.
    pub changed: bool,
}

/// What the registers hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Registers {
    /// CC.
    pub cc: u32,
    /// CSTS.RDY.
    pub ready: bool,
    /// CSTS.CFS.
    pub fatal: bool,
    /// CSTS.SHST.
    pub shutdown: Shutdown,
    /// AQA.
    pub aqa: u32,
    /// ASQ.
    pub asq: u64,
    /// ACQ.
    pub acq: u64,
}

/// How far a shutdown is (CSTS.SHST).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Shutdown {
    /// None was asked for.
    #[default]
    None,
    /// What was written is being made durable.
    Occurring,
    /// Power may be cut.
    Complete,
}

/// A submission queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubmissionQueue {
    /// Where it lies, page aligned.
    pub base: u64,
    /// Its entries, 2 to 4096.
    pub entries: u16,
    /// The next entry to take, below `entries`.
    pub head: u16,
    /// The entry after the last, below `entries`.
    pub tail: u16,
    /// Its completion queue, which exists.
    pub completion: u16,
}

/// A completion queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompletionQueue {
    /// Where it lies, page aligned.
    pub base: u64,
    /// Its entries, 2 to 4096.
    pub entries: u16,
    /// The first entry that the driver has not taken, below `entries`.
    pub head: u16,
    /// The entry to be written next, below `entries`.
    pub tail: u16,
    /// The phase tag of that entry.
    pub phase: bool,
    /// Its interrupt vector, if interrupts are enabled.
    pub vector: Option<u16>,
}

/// Values of features, each as Get Features returns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Arbitration.
    pub arbitration: u32,
    /// Temperature Threshold of the composite temperature: over, under.
    pub temperature: [u16; 2],
    /// Error Recovery.
    pub error_recovery: u32,
    /// Volatile Write Cache: what was written may stay in the host's page cache until a Flush.
    pub write_cache: bool,
    /// Interrupt Coalescing.
    pub coalescing: u32,
    /// Interrupt Vector Configuration: bit `v` is CD of vector `v`.
    pub coalescing_disabled: u32,
    /// Write Atomicity Normal: DN.
    pub disable_normal: bool,
    /// Asynchronous Event Configuration.
    pub async_events: u32,
}

impl Default for Features {
    fn default() -> Self {
        Self {
            arbitration: 0,
            temperature: [WARNING_TEMPERATURE, 0],
            error_recovery: 0,
            write_cache: true,
            coalescing: 0,
            coalescing_disabled: 0,
            disable_normal: false,
            async_events: 0,
        }
    }
}

/// Asynchronous events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Events {
    /// The requests that are outstanding, by their CID.
    pub requests: [Option<u16>; EVENT_REQUESTS],
    /// Events that have not been reported: bit `n` stands for `Event::ALL[n]`.
    pub pending: u8,
    /// Types that are not reported until their log page is read: bit `n` stands for type `n`.
    pub masked: u8,
}

impl Events {
    /// All bits that `pending` can have.
    pub const PENDING: u8 = (1 << Event::ALL.len()) - 1;
    /// All bits that `masked` can have.
    pub const MASKED: u8 = 0b101;
}

/// A command that was taken from its queue and has no completion yet.
///
/// All that is needed to go on with it is here: the entry as the driver wrote it, and how much of
/// it is done. Doing a part again does no harm before the completion is written, as the driver may
/// neither look at the data nor change it until then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command {
    /// The queue that it came from.
    pub sq: u16,
    /// The entry.
    pub entry: Submission,
    /// How much is done: bytes, ranges of a Dataset Management command, or namespaces of one that
    /// makes them durable.
    pub done: u64,
}

/// The error log: the latest entry first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ErrorLog {
    /// Errors so far, the number of the latest.
    pub count: u64,
    /// The entries, `None` where there were not as many.
    pub entries: [Option<ErrorEntry>; ERROR_ENTRIES],
}

/// An entry of the error log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorEntry {
    /// Its number.
    pub number: u64,
    /// The queue; all ones if the error is of no command.
    pub sq: u16,
    /// The command; all ones if the error is of no command.
    pub cid: u16,
    /// The status field, without the phase tag.
    pub status: u16,
    /// The first block, if the command has one.
    pub lba: u64,
    /// The namespace, if the command has one.
    pub nsid: u32,
}

/// The counters of the SMART log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Usage {
    /// Units of 512 bytes that were read or compared.
    pub sectors_read: u64,
    /// Units of 512 bytes that were written.
    pub sectors_written: u64,
    /// Read and Compare commands.
    pub reads: u64,
    /// Write commands.
    pub writes: u64,
    /// Errors of the backing.
    pub media_errors: u64,
    /// Times that the machine was switched on: it is made with it.
    pub power_cycles: u64,
}
