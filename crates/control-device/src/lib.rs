//! The control device: the PCI function through which a guest may help a migration, as
//! `docs/guest-protocol.md` specifies it.
//!
//! [`spec`] mirrors that document: numbers, and types that are one word each. [`ControlDevice`] is
//! the guest's side of the function, a [`device::Model`]; [`Control`] is the host's side, with
//! which a migration asks for something and waits for the answers. Both work on the same plain
//! [`state`], behind one lock that is held for constant work only; [`saved`] has the form in which
//! it travels.
//!
//! A migration's steps consume each other, so that what was answered to one cannot be taken for
//! the answer to another, and a guest is told that it is over whichever way it ends:
//!
//! ```text
//!           track                 quiesce                   leave
//!  Control ───────► Asked ► Tracked ───────► Asked ► Quiesced ───► (destination: Control::end)
//!     ▲                        │ end                    │ end, or dropped
//!     └──────── Asked ◄────────┴────────────────────────┘
//! ```
//!
//! What the guest's DMA table says is read by [`Tracked::mark`] or [`Quiesced::mark`].
//!
//! # What it does not do
//!
//! * It stops no device and looks into no device's configuration space: whether bus mastering is
//!   off is asked of the caller.
//! * It decides nothing: which device needs the guest's help, and what becomes of the migration
//!   without it, is known in `ferry`.
//! * It never writes guest memory, and never clears a bit of the table: that is the guest's part.
//! * There is no more than one vector, no MSI and no INTx.

mod answers;
mod exchange;
mod host;
mod model;
pub mod saved;
pub mod spec;
pub mod state;
mod table;

pub use answers::{Coverage, Outcome, Stopped};
pub use host::{Asked, Control, End, Ended, Quiesce, Quiesced, Track, Tracked, Unavailable};
pub use model::{ConfigError, ControlDevice, new};
pub use table::TableError;
