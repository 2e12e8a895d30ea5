//! The matrix: one line a case.

use ferry::Strategy::{self, Cooperative, Recovery, Sleep, Transparent};
use serde::Serialize;

use At::{
    After, Arrived, Before, Check, Precopy, Prepare, Prepared, Quiesce, Recover, Running, Stopped,
    Word,
};
use Expect::{Here, ResolvedHere, ResolvedThere, There, WithItsQemu, WithItsVferry};
use Fault::{Cut, Hung, Interrupted, InterruptedTwice, Killed, Refuses, Without};
use Party::{
    Cli, ControlLink, DestinationHost, DestinationQemu, DestinationUplink, DestinationVferry,
    SourceHost, SourceQemu, SourceUplink, SourceVferry, Stream,
};
use Refusal::{
    AnotherMigration, AnotherName, Expired, Garbage, NobodyListens, NotAPeer, OtherDevices,
    OtherMemory, OtherVersion, Paused, ReceivesAlready,
};
use Resource::{Descriptors, Disk, FileSize, Memory};
use Says::{Done, Gone, Why};

/// When a fault strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum At {
    /// Nothing is under way yet: phase `check`.
    Before,
    /// `check` is on its way to the destination.
    Check,
    /// `prepare` is on its way to the destination.
    Prepare,
    /// Its answer is on its way: the destination's QEMU listens.
    Prepared,
    /// Memory is on its way.
    Precopy,
    /// The guest has been asked to stop its devices.
    Quiesce,
    /// The source's VM stands still, and the last of it is on its way: phases `halt` to `copy`.
    Stopped,
    /// All of the VM is at the destination, and its QEMU's word of that is on its way: phase `restore`.
    Arrived,
    /// The source's QEMU has completed, and the word to run is on its way: phase `resume`.
    Word,
    /// The VM runs at the destination, and the word of that is on its way.
    Running,
    /// The source asks what has become of devices that were left to their drivers.
    Recover,
    /// The VM runs at the destination, the source knows, and compares memory.
    After,
}

/// Whom it strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Party {
    /// `vferry run` of the host that the VM leaves.
    SourceVferry,
    /// `vferry run` of the host to which it goes.
    DestinationVferry,
    /// QEMU of the first.
    SourceQemu,
    /// QEMU of the second.
    DestinationQemu,
    /// Both of the first, and all that it has sent and was not yet taken.
    SourceHost,
    /// Both of the second, likewise.
    DestinationHost,
    /// `vferry migrate`.
    Cli,
    /// The link between both vferry processes.
    ControlLink,
    /// What QEMU sends memory over.
    Stream,
    /// The network of the source's device.
    SourceUplink,
    /// The network of the destination's device.
    DestinationUplink,
}

/// What strikes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// SIGKILL.
    Killed,
    /// Nothing comes from it any more, past every deadline; afterwards it goes on.
    Hung,
    /// Both ends see that it has ended.
    Cut,
    /// It does not do what it is asked.
    Refuses(Refusal),
    /// It gets no more of this.
    Without(Resource),
    /// Ctrl-C.
    Interrupted,
    /// Ctrl-C, and once more.
    InterruptedTwice,
}

/// How it refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
    /// Nobody is there.
    NobodyListens,
    /// Who is there speaks something else.
    Garbage,
    /// Who is there is of another time.
    OtherVersion,
    /// It has another size of memory.
    OtherMemory,
    /// Its devices are elsewhere.
    OtherDevices,
    /// Its VM is paused.
    Paused,
    /// It is being sent a VM by somebody else.
    ReceivesAlready,
    /// It migrates the VM already.
    AnotherMigration,
    /// Its certificate has another name.
    AnotherName,
    /// Its certificate is not valid any more.
    Expired,
    /// The source is not one of those whom it takes.
    NotAPeer,
}

/// What may run out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resource {
    /// Open files.
    Descriptors,
    /// Address space.
    Memory,
    /// Room in the file system of the host's folder, for bytes as well as for files.
    Disk,
    /// What may be written to files, also over what is there: as in a file system that is full and copies
    /// what is overwritten.
    FileSize,
}

/// What a case has that most have not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum With {
    /// A NIC, and the hosts talk in the open.
    Nothing,
    /// The VM has a disk too, which both hosts see.
    Disk,
    /// The hosts know each other by certificates.
    Tls,
    /// What the hosts write is in file systems of their own. It takes root.
    SmallDisks,
    /// The guest sleeps, by its own wish.
    Asleep,
    /// Each host has a keeper: what is killed of vferry is the process that serves the devices.
    Keeper,
}

/// Where the VM has to run afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Expect {
    /// At the source.
    Here,
    /// At the destination.
    There,
    /// Paused at the source until `vferry resolve --run-here`.
    ResolvedHere,
    /// Paused at the source until `vferry resolve --give-up-here`: it runs at the destination.
    ResolvedThere,
    /// Nowhere: the process that it is has been killed, as may happen without a migration.
    WithItsQemu,
    /// Nowhere with its devices: the process that these are has been killed.
    WithItsVferry,
}

/// What `vferry migrate` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Says {
    /// That the VM has arrived.
    Done,
    /// That it has not, or not wholly, with these words among others.
    Why(&'static str),
    /// Nothing: it is gone.
    Gone,
}

/// A case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Case {
    /// When.
    pub at: At,
    /// Who.
    pub party: Party,
    /// What.
    pub fault: Fault,
    /// How the VM is being migrated.
    pub by: Strategy,
    /// Where the VM runs afterwards.
    pub expect: Expect,
    /// What the command says.
    pub says: Says,
    /// It is one of the few of the ordinary test run.
    pub always: bool,
    /// What it has beside.
    pub with: With,
}

const fn case(
    at: At,
    party: Party,
    fault: Fault,
    by: Strategy,
    expect: Expect,
    says: Says,
) -> Case {
    Case {
        at,
        party,
        fault,
        by,
        expect,
        says,
        always: false,
        with: With::Nothing,
    }
}

impl Case {
    const fn always(self) -> Self {
        Self {
            always: true,
            ..self
        }
    }

    const fn with(self, with: With) -> Self {
        Self { with, ..self }
    }

    /// `at party fault by with`, in one word each, the last one left out if it has nothing.
    pub fn name(&self) -> String {
        let words = [
            serde_json::to_value(self.at),
            serde_json::to_value(self.party),
            serde_json::to_value(self.fault),
            serde_json::to_value(self.by),
        ];
        let with = (self.with != With::Nothing).then(|| serde_json::to_value(self.with));
        let words = words
            .into_iter()
            .chain(with)
            .flatten()
            .map(|word| match word {
                serde_json::Value::String(word) => word,
                // `Refuses` and `Without` say what.
                serde_json::Value::Object(map) => {
                    let said = map.iter().next();
                    said.map_or(String::new(), |(key, value)| {
                        format!("{key}:{}", value.as_str().unwrap_or_default())
                    })
                }
                other => other.to_string(),
            });
        words.collect::<Vec<_>>().join(" ")
    }
}

const UNTOUCHED: Says = Why("nothing was touched");
const RUNS_ON: Says = Why("the VM runs on here");
const CANCELLED: Says = Why("cancelled; the VM runs on here");
const RESOLVE: Says = Why("`vferry resolve`");
const ENDED: Says = Why("the VM's process ended");

/// All of them.
#[rustfmt::skip]
pub const CASES: &[Case] = &[
    // Nothing is touched yet.
    case(Before,   ControlLink,       Refuses(NobodyListens),    Transparent, Here, Why("is `vferry run` started there?")),
    case(Before,   ControlLink,       Refuses(Garbage),          Transparent, Here, UNTOUCHED),
    case(Before,   ControlLink,       Refuses(OtherVersion),     Transparent, Here, Why("update vferry")).always(),
    case(Before,   DestinationVferry, Refuses(OtherMemory),      Transparent, Here, UNTOUCHED),
    case(Before,   DestinationVferry, Refuses(OtherDevices),     Transparent, Here, UNTOUCHED),
    case(Before,   DestinationVferry, Killed,                    Transparent, Here, Why("is `vferry run` started there?")),
    case(Before,   DestinationQemu,   Killed,                    Transparent, Here, Why("is `vferry run` started there?")),
    case(Before,   SourceQemu,        Refuses(Paused),           Transparent, Here, Why("the VM is paused")),
    case(Before,   SourceUplink,      Cut,                       Transparent, There, Done).always(),
    case(Before,   DestinationUplink, Cut,                       Transparent, Here, UNTOUCHED),
    case(Check,    DestinationVferry, Killed,                    Transparent, Here, RUNS_ON),
    case(Check,    DestinationVferry, Hung,                      Transparent, Here, Why("did not answer within 10s")),
    case(Check,    DestinationVferry, Without(Descriptors),      Transparent, Here, UNTOUCHED),
    case(Check,    DestinationQemu,   Killed,                    Transparent, Here, RUNS_ON),
    case(Check,    DestinationQemu,   Hung,                      Transparent, Here, UNTOUCHED),
    case(Check,    ControlLink,       Cut,                       Transparent, Here, RUNS_ON),
    case(Check,    ControlLink,       Hung,                      Transparent, Here, Why("did not answer within 10s")),
    case(Check,    SourceVferry,      Refuses(AnotherMigration), Transparent, There, Done),
    case(Check,    Cli,               Killed,                    Transparent, There, Gone),
    case(Check,    Cli,               Interrupted,               Transparent, Here, CANCELLED),
    // The destination gets ready.
    case(Prepare,  DestinationVferry, Killed,                    Transparent, Here, RUNS_ON),
    case(Prepare,  DestinationVferry, Killed,                    Recovery,    Here, RUNS_ON),
    case(Prepare,  DestinationVferry, Hung,                      Transparent, Here, Why("did not answer within 30s")),
    case(Prepare,  DestinationQemu,   Killed,                    Transparent, Here, RUNS_ON),
    case(Prepare,  DestinationQemu,   Refuses(ReceivesAlready),  Transparent, Here, RUNS_ON),
    case(Prepare,  DestinationQemu,   Without(Descriptors),      Transparent, Here, RUNS_ON),
    case(Prepare,  DestinationQemu,   Without(Memory),           Transparent, Here, RUNS_ON),
    case(Prepare,  ControlLink,       Cut,                       Transparent, Here, RUNS_ON),
    case(Prepared, ControlLink,       Cut,                       Cooperative, Here, RUNS_ON),
    case(Prepared, Stream,            Refuses(NobodyListens),    Transparent, Here, RUNS_ON),
    case(Prepared, Stream,            Refuses(Garbage),          Transparent, Here, RUNS_ON),
    case(Prepared, SourceQemu,        Without(Descriptors),      Transparent, Here, RUNS_ON),
    // Memory flows.
    case(Precopy,  DestinationVferry, Killed,                    Transparent, Here, RUNS_ON).always(),
    case(Precopy,  DestinationVferry, Killed,                    Recovery,    Here, RUNS_ON),
    case(Precopy,  DestinationVferry, Hung,                      Transparent, Here, RUNS_ON),
    case(Precopy,  DestinationQemu,   Killed,                    Transparent, Here, RUNS_ON).always(),
    case(Precopy,  DestinationQemu,   Killed,                    Cooperative, Here, RUNS_ON),
    case(Precopy,  DestinationQemu,   Hung,                      Transparent, Here, RUNS_ON),
    case(Precopy,  DestinationHost,   Killed,                    Transparent, Here, RUNS_ON),
    case(Precopy,  SourceQemu,        Killed,                    Transparent, WithItsQemu, Why("and the VM with it")),
    case(Precopy,  SourceQemu,        Hung,                      Transparent, ResolvedHere, RESOLVE),
    case(Precopy,  SourceVferry,      Killed,                    Transparent, WithItsVferry, ENDED),
    case(Precopy,  ControlLink,       Cut,                       Transparent, Here, RUNS_ON),
    case(Precopy,  ControlLink,       Cut,                       Recovery,    Here, RUNS_ON),
    case(Precopy,  Stream,            Cut,                       Transparent, Here, RUNS_ON).always(),
    case(Precopy,  Stream,            Cut,                       Cooperative, Here, RUNS_ON),
    case(Precopy,  Stream,            Hung,                      Transparent, Here, CANCELLED),
    case(Precopy,  Cli,               Killed,                    Transparent, There, Gone).always(),
    case(Precopy,  Cli,               Hung,                      Transparent, There, Done),
    case(Precopy,  Cli,               Interrupted,               Transparent, Here, CANCELLED).always(),
    case(Precopy,  Cli,               InterruptedTwice,          Transparent, Here, Gone),
    case(Precopy,  SourceUplink,      Cut,                       Recovery,    There, Done),
    case(Precopy,  DestinationUplink, Cut,                       Transparent, Here, RUNS_ON),
    // The guest has stopped its devices.
    case(Quiesce,  DestinationVferry, Killed,                    Cooperative, Here, RUNS_ON),
    case(Quiesce,  DestinationQemu,   Killed,                    Cooperative, Here, RUNS_ON),
    case(Quiesce,  Stream,            Cut,                       Cooperative, Here, RUNS_ON),
    case(Quiesce,  Cli,               Interrupted,               Cooperative, Here, CANCELLED),
    // The VM stands still.
    case(Stopped,  DestinationVferry, Killed,                    Transparent, Here, RUNS_ON).always(),
    case(Stopped,  DestinationVferry, Killed,                    Cooperative, Here, RUNS_ON),
    case(Stopped,  DestinationVferry, Hung,                      Transparent, Here, RUNS_ON),
    case(Stopped,  DestinationQemu,   Killed,                    Transparent, Here, RUNS_ON),
    case(Stopped,  DestinationQemu,   Killed,                    Recovery,    Here, RUNS_ON),
    case(Stopped,  DestinationQemu,   Hung,                      Transparent, Here, RUNS_ON),
    case(Stopped,  DestinationHost,   Killed,                    Transparent, Here, RUNS_ON),
    case(Stopped,  SourceQemu,        Killed,                    Transparent, WithItsQemu, Why("and the VM with it")),
    case(Stopped,  SourceVferry,      Killed,                    Transparent, WithItsVferry, ENDED),
    case(Stopped,  Stream,            Cut,                       Transparent, Here, RUNS_ON),
    case(Stopped,  Stream,            Cut,                       Recovery,    Here, RUNS_ON),
    case(Stopped,  Cli,               Killed,                    Transparent, There, Gone),
    // All of it is there, and the source does not know.
    case(Arrived,  DestinationVferry, Killed,                    Transparent, Here, RUNS_ON).always(),
    case(Arrived,  DestinationVferry, Hung,                      Transparent, ResolvedThere, RESOLVE),
    case(Arrived,  DestinationQemu,   Killed,                    Transparent, Here, RUNS_ON),
    case(Arrived,  DestinationQemu,   Killed,                    Recovery,    Here, RUNS_ON),
    case(Arrived,  DestinationHost,   Killed,                    Transparent, Here, RUNS_ON),
    case(Arrived,  ControlLink,       Cut,                       Transparent, Here, RUNS_ON),
    case(Arrived,  ControlLink,       Cut,                       Cooperative, Here, RUNS_ON),
    case(Arrived,  Stream,            Cut,                       Transparent, Here, RUNS_ON),
    case(Arrived,  Cli,               Interrupted,               Transparent, Here, CANCELLED),
    // The word is on its way.
    case(Word,     DestinationVferry, Killed,                    Transparent, ResolvedHere, RESOLVE),
    case(Word,     DestinationVferry, Hung,                      Transparent, ResolvedThere, RESOLVE),
    case(Word,     DestinationQemu,   Killed,                    Transparent, Here, RUNS_ON).always(),
    case(Word,     DestinationQemu,   Killed,                    Cooperative, Here, RUNS_ON),
    case(Word,     DestinationHost,   Killed,                    Transparent, ResolvedHere, RESOLVE),
    case(Word,     SourceVferry,      Killed,                    Transparent, There, ENDED),
    case(Word,     SourceQemu,        Killed,                    Transparent, There, Done),
    case(Word,     SourceHost,        Killed,                    Transparent, WithItsQemu, ENDED),
    case(Word,     ControlLink,       Cut,                       Transparent, ResolvedHere, RESOLVE).always(),
    case(Word,     ControlLink,       Cut,                       Recovery,    ResolvedHere, RESOLVE),
    case(Word,     ControlLink,       Hung,                      Transparent, ResolvedHere, RESOLVE),
    case(Word,     Cli,               Killed,                    Transparent, There, Gone),
    case(Word,     Cli,               Interrupted,               Transparent, There, Done),
    // It runs at the destination, and the source does not know it yet.
    case(Running,  ControlLink,       Cut,                       Transparent, ResolvedThere, RESOLVE).always(),
    case(Running,  ControlLink,       Cut,                       Cooperative, ResolvedThere, RESOLVE),
    case(Running,  ControlLink,       Hung,                      Transparent, ResolvedThere, RESOLVE),
    case(Running,  SourceVferry,      Killed,                    Transparent, There, ENDED),
    case(Running,  SourceHost,        Killed,                    Transparent, There, ENDED),
    // The source knows.
    case(Recover,  ControlLink,       Cut,                       Recovery,    There, Why("The VM runs at the destination")),
    case(Recover,  SourceVferry,      Killed,                    Recovery,    There, ENDED),
    case(After,    ControlLink,       Cut,                       Transparent, There, Why("The VM runs at the destination")),
    case(After,    SourceVferry,      Killed,                    Transparent, There, ENDED),
    case(After,    SourceQemu,        Killed,                    Transparent, There, Done),
    case(After,    SourceHost,        Killed,                    Cooperative, There, ENDED),
    case(After,    Cli,               Killed,                    Transparent, There, Gone),
    // The source's vferry says nothing for longer than anybody waits, and goes on. Not while the VM runs
    // there: QEMU waits for its devices for 5 s only, and then they are gone as if it were killed.
    case(After,    SourceVferry,      Hung,                      Transparent, There, Done),
    // The guest sleeps meanwhile.
    case(Precopy,  Stream,            Cut,                       Sleep,       Here, RUNS_ON),
    case(Stopped,  Stream,            Cut,                       Sleep,       Here, RUNS_ON),
    case(Arrived,  DestinationVferry, Killed,                    Sleep,       Here, RUNS_ON),
    case(Word,     DestinationQemu,   Killed,                    Sleep,       Here, RUNS_ON),
    case(Word,     ControlLink,       Cut,                       Sleep,       ResolvedHere, RESOLVE),
    case(Running,  ControlLink,       Cut,                       Sleep,       ResolvedThere, RESOLVE),
    case(Word,     DestinationQemu,   Killed,                    Transparent, Here, RUNS_ON).with(With::Asleep),
    // A disk, which only one host may have.
    case(Precopy,  DestinationVferry, Killed,                    Transparent, Here, RUNS_ON).with(With::Disk),
    case(Stopped,  Stream,            Cut,                       Transparent, Here, RUNS_ON).with(With::Disk),
    case(Arrived,  DestinationHost,   Killed,                    Transparent, Here, RUNS_ON).with(With::Disk),
    case(Word,     ControlLink,       Cut,                       Transparent, ResolvedHere, RESOLVE).with(With::Disk),
    case(Word,     DestinationQemu,   Killed,                    Transparent, Here, RUNS_ON).with(With::Disk),
    case(Running,  ControlLink,       Cut,                       Transparent, ResolvedThere, RESOLVE).with(With::Disk),
    case(After,    SourceHost,        Killed,                    Transparent, There, ENDED).with(With::Disk),
    // A process that serves the devices, where a keeper has another go on.
    case(Check,    SourceVferry,      Killed,                    Transparent, Here, ENDED).with(With::Keeper),
    case(Precopy,  SourceVferry,      Killed,                    Transparent, Here, ENDED).with(With::Keeper).always(),
    case(Precopy,  SourceVferry,      Killed,                    Recovery,    Here, ENDED).with(With::Keeper),
    case(Quiesce,  SourceVferry,      Killed,                    Cooperative, Here, ENDED).with(With::Keeper),
    case(Stopped,  SourceVferry,      Killed,                    Transparent, Here, ENDED).with(With::Keeper).always(),
    case(Stopped,  SourceVferry,      Killed,                    Recovery,    Here, ENDED).with(With::Keeper),
    case(Stopped,  SourceVferry,      Killed,                    Cooperative, Here, ENDED).with(With::Keeper),
    case(Arrived,  SourceVferry,      Killed,                    Transparent, Here, ENDED).with(With::Keeper),
    case(Precopy,  DestinationVferry, Killed,                    Transparent, Here, RUNS_ON).with(With::Keeper),
    case(Stopped,  DestinationVferry, Killed,                    Transparent, Here, RUNS_ON).with(With::Keeper),
    // What a disk has no room for: QEMU's socket, and of vferry's files a lease.
    case(Prepare,  DestinationHost,   Without(Disk),             Transparent, Here, Why("No space left on device")).with(With::SmallDisks),
    case(Precopy,  DestinationHost,   Without(Disk),             Transparent, There, Done).with(With::SmallDisks),
    case(Precopy,  SourceHost,        Without(Disk),             Transparent, There, Done).with(With::SmallDisks),
    case(Precopy,  SourceHost,        Without(Disk),             Cooperative, There, Done).with(With::SmallDisks),
    case(Stopped,  SourceHost,        Without(Disk),             Transparent, There, Done).with(With::SmallDisks),
    case(Word,     DestinationHost,   Without(Disk),             Transparent, There, Done).with(With::SmallDisks),
    case(Word,     DestinationVferry, Without(FileSize),         Transparent, Here, Why("File too large")).with(With::Disk),
    // Memory.
    case(Check,    DestinationVferry, Without(Memory),           Transparent, Here, RUNS_ON),
    case(Prepare,  DestinationVferry, Without(Memory),           Transparent, Here, RUNS_ON),
    case(Stopped,  DestinationVferry, Without(Memory),           Transparent, Here, RUNS_ON),
    // Certificates.
    case(Before,   DestinationVferry, Refuses(AnotherName),      Transparent, Here, Why("host.example")).with(With::Tls),
    case(Before,   DestinationVferry, Refuses(Expired),          Transparent, Here, Why("expired")).with(With::Tls),
    case(Before,   DestinationVferry, Refuses(NotAPeer),         Transparent, Here, Why("`peers`")).with(With::Tls),
];

#[cfg(test)]
mod tests {
    use super::*;

    /// Of each case, what is done: what comes of it makes no other.
    #[test]
    fn there_are_many_cases_and_none_is_there_twice() {
        let done = |case: &Case| (case.at, case.party, case.fault, case.by, case.with);
        for (at, case) in CASES.iter().enumerate() {
            let mut before = CASES[..at].iter();
            assert!(before.all(|other| done(other) != done(case)), "{case:?}");
        }
        assert!(CASES.len() >= 60);
    }
}
