//! The last step, as decisions without anything that acts: who may run the VM when.
//!
//! The one point of decision is the message `Run` (`docs/commit-protocol.md`). What each side makes
//! of what it hears is decided here, and nowhere else, so that the crate `commit-model` checks the
//! same decisions over all interleavings that [`crate::source`] and [`crate::destination`] act on.

use serde::{Deserialize, Serialize};

/// What came of the word to run, as the source sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Heard {
    /// Not all of it could be sent. Half a message is none, and nothing is sent after it.
    NotSent,
    /// The destination says that the VM runs there.
    Running,
    /// The destination says that it gave up. It says so only if it never let the VM run.
    GaveUp,
    /// Nothing, the end of the link, or what makes no sense.
    Nothing,
}

/// What the source does then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SourceThen {
    /// The VM has left.
    Leave,
    /// It runs on here.
    RunHere,
    /// It may run at the destination: it stays paused here until somebody knows.
    StayPaused,
}

/// What the source does, which has told the destination to run the VM or tried to.
pub const fn source(heard: Heard) -> SourceThen {
    match heard {
        Heard::Running => SourceThen::Leave,
        Heard::NotSent | Heard::GaveUp => SourceThen::RunHere,
        Heard::Nothing => SourceThen::StayPaused,
    }
}

/// How far the destination was when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailedAt {
    /// Its QEMU was not told to let the VM run, or refused to.
    BeforeRun,
    /// Its QEMU was told to let the VM run and did not answer: it may do so at any later time.
    RunUnanswered,
}

/// What the destination does then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DestinationThen {
    /// It ends its QEMU, gives back what only one host may have, and says that it gave up.
    GiveUp,
    /// It says nothing: to say that the VM does not run would let the source run it too.
    KeepSilent,
}

/// What a destination does that has failed.
pub const fn destination(failed: FailedAt) -> DestinationThen {
    match failed {
        FailedAt::BeforeRun => DestinationThen::GiveUp,
        FailedAt::RunUnanswered => DestinationThen::KeepSilent,
    }
}

/// The word to run, as the destination keeps it. It is taken or withdrawn, once and for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Word {
    /// The destination waits for it.
    #[default]
    Awaited,
    /// It has come: the VM may be let run.
    Taken,
    /// The VM runs, or has run, here.
    Ran,
    /// It will not be taken any more: the VM never runs here by this migration.
    Withdrawn,
}

impl Word {
    /// The source's word has come. Says whether it counts.
    pub const fn take(&mut self) -> bool {
        match self {
            Self::Awaited => *self = Self::Taken,
            // Somebody's `cont` came before it.
            Self::Ran => {}
            Self::Taken | Self::Withdrawn => return false,
        }
        true
    }

    /// The source asks where the VM is, as it does not know what has become of its word. Where the
    /// word has not come, it is withdrawn by that: should it come later, it finds nobody.
    pub const fn ask(&mut self) -> Whereabouts {
        match self {
            Self::Awaited | Self::Withdrawn => {
                *self = Self::Withdrawn;
                Whereabouts::Never
            }
            Self::Taken => Whereabouts::Unknown,
            Self::Ran => Whereabouts::Here,
        }
    }
}

/// What the destination says when it is asked for the VM of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Whereabouts {
    /// The VM came here and was let run.
    Here,
    /// It was not let run here, and will not be.
    Never,
    /// It may run here now or later, or this process knows nothing of that migration.
    Unknown,
}

/// What is known at the source of the other host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Other {
    /// It runs the VM.
    Runs,
    /// It does not and will not.
    WillNot,
    /// It answers, and cannot say.
    CannotSay,
    /// It cannot be asked.
    Silent,
}

impl From<Whereabouts> for Other {
    fn from(said: Whereabouts) -> Self {
        match said {
            Whereabouts::Here => Self::Runs,
            Whereabouts::Never => Self::WillNot,
            Whereabouts::Unknown => Self::CannotSay,
        }
    }
}

/// An operator's way out, at a source that keeps the VM paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// The VM runs on at the source.
    RunHere,
    /// The source's copy of it is ended.
    GiveUpHere,
}

/// What is to be thought of a way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Safety {
    /// It is right: the VM runs on one host afterwards.
    Right,
    /// It is right if the operator has seen to the other host before.
    IfSeenTo,
    /// No host runs the VM afterwards.
    LosesVm,
    /// Refused: two hosts would run the VM.
    Refused,
}

/// What a way out leads to, as far as the other host is known.
pub const fn safety(way: Way, other: Other) -> Safety {
    match (way, other) {
        (Way::RunHere, Other::WillNot) | (Way::GiveUpHere, Other::Runs) => Safety::Right,
        (Way::RunHere, Other::Runs) => Safety::Refused,
        (Way::GiveUpHere, Other::WillNot) => Safety::LosesVm,
        (_, Other::CannotSay | Other::Silent) => Safety::IfSeenTo,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_runs_on_only_where_the_destination_cannot() {
        let runs_on: Vec<_> = [
            Heard::NotSent,
            Heard::Running,
            Heard::GaveUp,
            Heard::Nothing,
        ]
        .into_iter()
        .filter(|heard| source(*heard) == SourceThen::RunHere)
        .collect();
        assert_eq!(runs_on, [Heard::NotSent, Heard::GaveUp]);
    }

    #[test]
    fn a_word_that_was_asked_for_too_early_finds_nobody() {
        let mut word = Word::default();
        assert_eq!(word.ask(), Whereabouts::Never);
        assert!(!word.take(), "it comes late");
        assert_eq!(word.ask(), Whereabouts::Never);
    }

    #[test]
    fn a_word_that_was_taken_cannot_be_withdrawn() {
        let mut word = Word::default();
        assert!(word.take());
        assert_eq!(word.ask(), Whereabouts::Unknown);
        assert_eq!(word, Word::Taken);
        word = Word::Ran;
        assert_eq!(word.ask(), Whereabouts::Here);
    }

    #[test]
    fn two_copies_are_refused_whatever_the_operator_says() {
        assert_eq!(safety(Way::RunHere, Other::Runs), Safety::Refused);
        for other in [Other::WillNot, Other::CannotSay, Other::Silent] {
            assert_ne!(safety(Way::RunHere, other), Safety::Refused, "{other:?}");
        }
    }
}
