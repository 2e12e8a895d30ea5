//! The last step of a migration as a model for a checker, which tries every order of messages,
//! crashes, cuts and timeouts.
//!
//! What it models is written down in `docs/commit-protocol.md`; the decisions that it checks are
//! those of [`ferry::commit`], on which `ferry`'s two sides act. One [`State`] is one moment,
//! an [`Action`] what one party does next, or what befalls it.
//!
//! | module | what |
//! |---|---|
//! | [`state`] | where everybody is |
//! | [`action`] | what can happen next |
//! | `source`, `destination`, `operator`, `mishap` | what it leads to |
//! | [`properties`] | what must hold |
//!
//! Time is not modelled: whatever may take long may take for ever, and each deadline may pass at
//! any moment. The link loses what comes after a cut and delivers nothing twice or out of order, as
//! TCP does; what is on its way may come at any later time.
//!
//! # What it does not do
//!
//! It runs nothing of vferry but those decisions: that `ferry::source` and `ferry::destination` take
//! the steps in this order is for people to read and for the tests with VMs to see. It knows no
//! guest, no phase before `precopy`, and of the processes that a keeper starts only the source's.

pub mod action;
mod destination;
mod mishap;
mod operator;
pub mod properties;
mod source;
pub mod state;

use stateright::{Model, Property};

pub use action::Action;
pub use state::State;

/// What is checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Protocol {
    /// The VM has a disk, whose lease tells whose it is.
    pub disk: bool,
    /// A keeper starts another vferry where the source's dies before it has let go of anything.
    pub keeper: bool,
    /// Who is asked where nobody else can know.
    pub operator: Operator,
    /// What is wrong with it, on purpose.
    pub mutant: Option<Mutant>,
}

/// How operators go about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    /// As `vferry resolve` says.
    Careful,
    /// A look at the other host has to do, or none.
    Rash,
}

/// A protocol that is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mutant {
    /// The source runs on when it hears nothing.
    NoFence,
    /// The source runs on when it is cancelled, also after the word.
    CancelAfterWord,
    /// The source gives its word before its QEMU has completed.
    WordBeforeCompletion,
    /// The source gives its word, then lets go of the disk.
    WordBeforeRelease,
    /// The destination runs the VM as soon as it has it.
    RunWithoutWord,
    /// The destination says that it gave up, though its QEMU may yet run the VM.
    SilenceBroken,
    /// The destination takes a word that it has said it would not.
    WithdrawnWordTaken,
    /// Marked, and then halted.
    MarkBeforeHalt,
    /// Copied, and then marked.
    CopyBeforeMark,
    /// Nobody looks at the disk's lease.
    LeaseNotChecked,
    /// Operators are told to look at the other host, not to end what is there.
    LookOnly,
    /// Another vferry goes on at the source whenever the first one dies.
    HeirAfterWord,
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::new()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        actions.extend(Action::all().filter(|action| self.next_state(state, *action).is_some()));
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let state = last.clone();
        let next = match action {
            Action::Source(action) => self.by_source(state, action),
            Action::Destination(action) => self.by_destination(state, action),
            Action::Operator(action) => self.by_operator(state, action),
            Action::Mishap(mishap) => self.mishap(state, mishap),
        };
        // What changes nothing is no step.
        next.filter(|next| next != last)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        self.properties_of()
    }
}
