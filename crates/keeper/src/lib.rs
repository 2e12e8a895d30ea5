//! What lets a serving process die without its client noticing.
//!
//! Two halves. A [`Keeper`] is a process that holds descriptors by name and starts a worker, again
//! whenever one dies; it looks at nothing that it holds. In the worker, an [`Exchange`] answers the
//! requests of one stream socket so that a worker that is killed at any instant loses none and
//! answers none twice: what it has come to is in a [`Journal`], a memfd that the keeper holds, as it
//! does the socket.
//!
//! The words between worker and keeper are those of systemd's `sd_notify` (`FDSTORE=1`, `FDNAME=`,
//! `FDSTOREREMOVE=1`, `BARRIER=1`).
//!
//! # How nothing is lost and nothing done twice
//!
//! The kernel does not say afterwards whether a dead process's last `read` or `send` took place.
//! So each is made such that its trace is found:
//!
//! * **Taking a request.** `MSG_PEEK` tells what comes. The inbox, which is in the memfd, gets the
//!   complement of its first byte, and the intent to take it is written down; then one `read` goes right
//!   into one page of the inbox. The first byte there tells whether it has happened.
//!   Descriptors that come along are copied by the peek, and kept by the keeper before the intent.
//! * **Doing it.** The new state and the reply go into the slot that is not in force, then one
//!   store puts it in force. A request whose slot is not in force is done again from the state before.
//! * **Answering.** The reply and one byte more go into a pipe, which the keeper holds, by one
//!   `write` of at most `PIPE_BUF` bytes; all but that byte is spliced into the socket. How much is left
//!   in the pipe tells how much was sent: the last byte stays until it is written down that all was.
//!
//! | killed after ([`Point`]) | the successor finds | and does |
//! |---|---|---|
//! | `Peeked` | no intent for this place in the stream | takes the request |
//! | `Intended` | an intent, and the complement in the inbox | takes the request |
//! | `Taken` | an intent, and the byte itself | counts it as taken, does it |
//! | `Counted` | bytes taken, none in force for them | does it |
//! | `Handled` | the same: the new state died with the process | does it again |
//! | `Written` | the same: the slot is not in force | does it again |
//! | `Committed` | a reply that is not marked as answered, an empty pipe | answers |
//! | `Piped` | the same, the pipe full | sends what is in the pipe |
//! | `Sent` | the same, one byte in the pipe | marks it as answered |
//! | `Answered` | a reply that is answered, one byte in the pipe | empties the pipe |
//!
//! A request costs two system calls for every page of it (peek, read), a reply three (write, splice,
//! read).
//!
//! # What it does not do
//!
//! * It is not in use by `vferry run` yet. For that, the devices' live state has to be in a journal
//!   whenever guest memory shows what they did: [`Service::handle`] says what is asked of a device.
//! * What a request does outside of the state (DMA, interrupts) is done again if the process dies
//!   before the state is in force. That this does no harm is for the [`Service`] to see to.
//! * Replies carry no descriptors.
//! * A client that puts two requests into one `sendmsg` with descriptors loses those.
//! * A worker that hangs is not noticed, only one that ends.
//! * It survives the death of a process, not that of the host.
//! * Under systemd the worker's words go to `NOTIFY_SOCKET` as they are, but taking over what systemd
//!   hands out (`LISTEN_FDS`) is not written.

mod exchange;
mod journal;
mod keep;
mod layout;
mod wire;
mod worker;

pub use exchange::{Exchange, ExchangeError, Length, Point, Service};
pub use journal::{Journal, JournalError, Limits};
pub use keep::{Event, Keeper, KeeperError, Rate};
pub use wire::{MAX_HELD, MAX_NAME};
pub use worker::{Held, Worker, WorkerError};

/// Largest reply: with one byte more it is written to a pipe in one piece (`PIPE_BUF`).
pub const MAX_REPLY: usize = 4095;
