//! What can happen next.

use ferry::commit::Way;

/// One step of one party, or a mishap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Of the source.
    Source(BySource),
    /// Of the destination.
    Destination(ByDestination),
    /// Of the command or an operator.
    Operator(ByOperator),
    /// A mishap.
    Mishap(Mishap),
}

/// Steps of the source's QEMU and vferry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BySource {
    /// QEMU stops the vCPUs and calls the stop hook.
    Stop,
    /// The hook halts the devices.
    Halt,
    /// The hook marks what they wrote.
    Mark,
    /// QEMU copies the rest and the devices' state.
    Copy,
    /// QEMU has the destination's acknowledgement.
    Complete,
    /// QEMU's migration fails, and it lets the VM run again.
    FailToMigrate,
    /// QEMU carries a `cont` out late.
    RunLate,
    /// vferry sees that QEMU has completed.
    SeeCompleted,
    /// vferry gives up: told to, told by the other side, or failing itself.
    GiveUp,
    /// vferry lets go of the disk.
    HandOver,
    /// vferry sends the word: all of it.
    SendWord,
    /// vferry sends the word: not all of it, or the link is seen to be dead.
    FailToSendWord,
    /// vferry hears an answer.
    Hear,
    /// vferry hears that the link has ended, or nothing in time.
    HearNothing,
    /// vferry cancels QEMU's migration.
    CancelQemu,
    /// vferry takes its disk back and has QEMU run the VM.
    Cont,
    /// The same, and QEMU does not answer in time.
    ContUnanswered,
    /// vferry sees the VM run.
    SeeRunning,
    /// vferry does not see it run in time, or may not have the disk back.
    SeeNothing,
    /// A keeper starts another vferry, which lets the VM run here.
    Succeed,
}

/// Steps of the destination's QEMU and vferry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ByDestination {
    /// QEMU has all of memory, and vferry the devices' state.
    Load,
    /// QEMU carries a `cont` out late.
    RunLate,
    /// A `cont` whose sender is gone is dropped.
    DropCont,
    /// vferry hears the source.
    Hear,
    /// vferry finds the link dead, or its QEMU.
    LoseSource,
    /// vferry takes the disk.
    Claim,
    /// vferry fails before `cont`, or QEMU refuses that.
    Fail,
    /// vferry has QEMU run the VM.
    Cont,
    /// The same, and QEMU does not answer.
    ContUnanswered,
    /// vferry tells that the VM runs.
    TellRunning,
    /// vferry ends QEMU.
    EndQemu,
    /// The same, and QEMU does not answer.
    EndQemuUnanswered,
    /// vferry gives the disk back.
    GiveBack,
    /// vferry tells that it gave up.
    TellGaveUp,
}

/// Steps of people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ByOperator {
    /// Ctrl-C.
    Cancel,
    /// The command goes away.
    Leave,
    /// `vferry resolve` asks the other host, and hears it.
    Ask,
    /// The same, and the answer is lost.
    AskInVain,
    /// `vferry resolve` with a way out.
    Resolve(Way),
    /// The destination's vferry is ended.
    EndVferryThere,
    /// The destination's QEMU is seen not to run the VM, and ended.
    EndQemuThere,
    /// The source's QEMU, whose devices are gone, is ended, as the VM is seen to run at the other
    /// host.
    EndQemuHere,
    /// All that is left of the VM is ended, and it starts anew.
    StartAnew,
    /// QMP `cont` at the source, without asking anybody. No careful operator does.
    RawCont,
}

/// What nobody has asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mishap {
    /// The source's vferry dies.
    SourceDies,
    /// The source's QEMU dies.
    SourceQemuDies,
    /// The destination's vferry dies.
    DestinationDies,
    /// The destination's QEMU dies.
    DestinationQemuDies,
    /// The source's host loses power.
    SourceHostDies,
    /// The destination's host loses power.
    DestinationHostDies,
    /// The link ends; what was on the way arrives.
    Cut,
    /// The link ends; what was on the way is lost.
    CutAndLose,
    /// Nothing gets through.
    Sever,
    /// It does again, late messages too.
    Heal,
}

impl Action {
    /// What the two sides do by themselves.
    pub const OF_PROTOCOL: &'static [Self] = &{
        use ByDestination as D;
        use BySource as S;
        [
            Self::Source(S::Stop),
            Self::Source(S::Halt),
            Self::Source(S::Mark),
            Self::Source(S::Copy),
            Self::Source(S::Complete),
            Self::Source(S::FailToMigrate),
            Self::Source(S::RunLate),
            Self::Source(S::SeeCompleted),
            Self::Source(S::GiveUp),
            Self::Source(S::HandOver),
            Self::Source(S::SendWord),
            Self::Source(S::FailToSendWord),
            Self::Source(S::Hear),
            Self::Source(S::HearNothing),
            Self::Source(S::CancelQemu),
            Self::Source(S::Cont),
            Self::Source(S::ContUnanswered),
            Self::Source(S::SeeRunning),
            Self::Source(S::SeeNothing),
            Self::Source(S::Succeed),
            Self::Destination(D::Load),
            Self::Destination(D::RunLate),
            Self::Destination(D::DropCont),
            Self::Destination(D::Hear),
            Self::Destination(D::LoseSource),
            Self::Destination(D::Claim),
            Self::Destination(D::Fail),
            Self::Destination(D::Cont),
            Self::Destination(D::ContUnanswered),
            Self::Destination(D::TellRunning),
            Self::Destination(D::EndQemu),
            Self::Destination(D::EndQemuUnanswered),
            Self::Destination(D::GiveBack),
            Self::Destination(D::TellGaveUp),
        ]
    };

    /// What an operator can do to get out.
    pub const WAYS_OUT: &'static [Self] = &{
        use ByOperator as O;
        [
            Self::Operator(O::Resolve(Way::RunHere)),
            Self::Operator(O::Resolve(Way::GiveUpHere)),
            Self::Operator(O::EndVferryThere),
            Self::Operator(O::EndQemuThere),
            Self::Operator(O::EndQemuHere),
            Self::Operator(O::StartAnew),
        ]
    };

    /// What leads nowhere by itself.
    pub const OTHERS: &'static [Self] = &{
        use ByOperator as O;
        use Mishap as M;
        [
            Self::Operator(O::Cancel),
            Self::Operator(O::Leave),
            Self::Operator(O::Ask),
            Self::Operator(O::AskInVain),
            Self::Operator(O::RawCont),
            Self::Mishap(M::SourceDies),
            Self::Mishap(M::SourceQemuDies),
            Self::Mishap(M::DestinationDies),
            Self::Mishap(M::DestinationQemuDies),
            Self::Mishap(M::SourceHostDies),
            Self::Mishap(M::DestinationHostDies),
            Self::Mishap(M::Cut),
            Self::Mishap(M::CutAndLose),
            Self::Mishap(M::Sever),
            Self::Mishap(M::Heal),
        ]
    };

    /// All.
    pub fn all() -> impl Iterator<Item = Self> {
        let lists = [Self::OF_PROTOCOL, Self::WAYS_OUT, Self::OTHERS];
        lists.into_iter().flatten().copied()
    }
}
