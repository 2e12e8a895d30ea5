//! Where everybody is.

use ferry::commit::{Other, Word};

/// One moment of a migration, from the time that QEMU copies.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    /// The source's vferry.
    pub source: Source,
    /// Who goes on where that has died.
    pub heir: Heir,
    /// The source's QEMU.
    pub source_qemu: SourceQemu,
    /// The devices, in the source's vferry.
    pub devices: Devices,
    /// A `cont` that the source's QEMU has not carried out yet.
    pub source_cont_pending: bool,
    /// The destination's vferry.
    pub destination: Destination,
    /// The destination's QEMU.
    pub destination_qemu: DestinationQemu,
    /// A `cont` that the destination's QEMU has not carried out yet.
    pub cont_pending: bool,
    /// The word to run, in the destination's vferry.
    pub word: Word,
    /// The control link.
    pub link: Link,
    /// Whose the disk is, by its lease.
    pub lease: Lease,
    /// The command that asked for the migration.
    pub cli: Cli,
    /// It has asked to give up.
    pub cancelled: bool,
    /// What an observer of everything has noted.
    pub seen: Seen,
}

/// The source's vferry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// QEMU copies: precopy, halt, mark, copy.
    Sending,
    /// It has seen its QEMU complete; memory may be compared.
    Completed,
    /// What only one host may have is let go of.
    HandedOver,
    /// The word is sent.
    Waiting,
    /// The destination cannot run the VM: it is let run here.
    TakingBack,
    /// It has told that the VM runs at the destination.
    Left,
    /// It has told that the VM runs on here.
    RunsOn,
    /// It keeps the VM paused, and has told so; what is known of the other host.
    Unsettled(Other),
    /// Gone.
    Dead,
}

/// Who goes on where the source's vferry has died.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Heir {
    /// It has not, or nobody does.
    Nobody,
    /// Another vferry, which a keeper is about to start.
    Comes,
}

/// The source's QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SourceQemu {
    /// The VM runs and is copied.
    Copying,
    /// The vCPUs stand still; QEMU waits in the stop hook.
    Stopped,
    /// Memory and the devices' state are sent.
    Copied,
    /// The destination's QEMU has acknowledged all.
    Completed,
    /// The VM runs, and is not migrated.
    Running,
    /// Gone.
    Ended,
}

/// The life cycle of the source's devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Devices {
    /// They do DMA.
    Running,
    /// They do not.
    Halted,
    /// What they wrote is marked.
    Marked,
    /// They have let go of their disk.
    HandedOver,
}

/// The destination's vferry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Destination {
    /// It waits for the word.
    Waiting,
    /// The word has come.
    Told,
    /// It has the disk.
    Claimed,
    /// It has seen its QEMU run the VM.
    Ran,
    /// It has told so.
    Done,
    /// It gives up: QEMU is to be ended.
    Ending,
    /// The disk is to be given back.
    GivingBack,
    /// The source is to be told.
    Telling,
    /// It gave up.
    GaveUp,
    /// Its QEMU did not answer `cont`.
    Silent,
    /// Gone.
    Dead,
}

/// The destination's QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DestinationQemu {
    /// It takes the VM in.
    Incoming,
    /// All of it is there, and paused.
    Loaded,
    /// The VM runs.
    Running,
    /// Gone.
    Ended,
}

/// The control link: what is on the way, and who still holds an end.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Link {
    /// On the way to the destination.
    pub to_destination: Option<ToDestination>,
    /// On the way to the source.
    pub to_source: Option<ToSource>,
    /// The source holds its end.
    pub source_end: bool,
    /// The destination holds its end.
    pub destination_end: bool,
    /// A message was sent in part: nothing can follow it.
    pub half: bool,
    /// Nothing gets through for now, and nobody is told.
    pub severed: bool,
}

impl Link {
    pub(crate) fn close_source(&mut self) {
        self.source_end = false;
        self.to_source = None;
    }

    pub(crate) fn close_destination(&mut self) {
        self.destination_end = false;
        self.to_destination = None;
    }
}

/// What the source says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ToDestination {
    /// The word.
    Run,
    /// It gives up.
    Abort,
}

/// What the destination says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ToSource {
    /// The VM runs.
    Running,
    /// It gave up.
    Abort,
}

/// What the disk's lease says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lease {
    /// The source's.
    Source,
    /// Let go of for this migration.
    HandedOver,
    /// The destination's.
    Destination,
}

/// The command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cli {
    /// It waits.
    Waiting,
    /// It is gone; the migration goes on.
    Gone,
}

/// What an observer of everything has noted.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Seen {
    /// The VM has run at the destination.
    pub ran_there: bool,
    /// Something failed, or was cancelled.
    pub trouble: bool,
    /// Pages were marked while devices wrote.
    pub marked_before_halt: bool,
    /// Memory was copied for the last time before all was marked.
    pub copied_before_mark: bool,
    /// The source went on from where the destination had gone on already, and no operator had it so.
    pub forked: bool,
    /// The destination, told to run the VM, found that it may not have the disk.
    pub claim_refused: bool,
    /// An operator let the VM run on at the source, having looked at the other host.
    pub by_operator: bool,
    /// An operator ended the copy at the source.
    pub given_up_here: bool,
    /// Everything was ended, and the VM started anew from its disk.
    pub started_anew: bool,
}

impl State {
    /// QEMU has begun to copy.
    pub fn new() -> Self {
        Self {
            source: Source::Sending,
            heir: Heir::Nobody,
            source_qemu: SourceQemu::Copying,
            devices: Devices::Running,
            source_cont_pending: false,
            destination: Destination::Waiting,
            destination_qemu: DestinationQemu::Incoming,
            cont_pending: false,
            word: Word::Awaited,
            link: Link {
                to_destination: None,
                to_source: None,
                source_end: true,
                destination_end: true,
                half: false,
                severed: false,
            },
            lease: Lease::Source,
            cli: Cli::Waiting,
            cancelled: false,
            seen: Seen::default(),
        }
    }

    /// The vCPUs run at the source.
    pub fn runs_here(&self) -> bool {
        matches!(self.source_qemu, SourceQemu::Copying | SourceQemu::Running)
    }

    /// The vCPUs run at the destination.
    pub fn runs_there(&self) -> bool {
        self.destination_qemu == DestinationQemu::Running
    }

    /// With devices that work.
    pub fn works_here(&self) -> bool {
        self.runs_here() && self.source != Source::Dead && self.devices == Devices::Running
    }

    /// With devices that work, which they do once they have been let run.
    pub fn works_there(&self) -> bool {
        self.runs_there() && self.destination != Destination::Dead && self.word == Word::Ran
    }
}

impl Default for State {
    fn default() -> Self {
        Self::new()
    }
}
