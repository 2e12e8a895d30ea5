//! What a case of the matrix is made of.

#[cfg(test)]
mod coverage;
mod matrix;

use ferry::Strategy;
use serde::Serialize;

pub use matrix::CASES;

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
    /// So it is, and the source asks for digests of memory, which it has been told to compare (`--compare
    /// always`): phase `compare`.
    Compare,
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
    /// Where the command says that it does: which of two things that had become due came first is not decided.
    AsSaid,
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
    /// Either that, or that it has not, or not wholly, with these words.
    DoneOr(&'static str),
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
