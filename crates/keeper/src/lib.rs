//! What lets a serving process die without its client noticing.
//!
//! Two halves. A [`Keeper`] is a process that holds descriptors by name and starts a worker, again
//! whenever one dies, hangs or makes room for another program; it looks at nothing that it holds. In the worker, a [`Conversation`] takes the
//! messages of one stream socket and answers them so that a worker that is killed at any instant loses
//! none, carries out none twice and answers none twice: what it has come to is in a [`Journal`], a memfd
//! that the keeper holds, as it does the socket.
//!
//! The words between worker and keeper are those of systemd's `sd_notify` (`FDSTORE=1`, `FDNAME=`,
//! `FDSTOREREMOVE=1`, `BARRIER=1`, and `WATCHDOG_USEC=`, `WATCHDOG=1` of a worker that is to be
//! [watched](Worker::watch)).
//!
//! # How nothing is lost and nothing done twice
//!
//! The kernel does not say afterwards whether a dead process's last `read` or `send` took place.
//! So each is made such that its trace is found:
//!
//! * **Seeing a message.** `MSG_PEEK` shows what comes, and leaves it in the socket, with the descriptors
//!   that came with it, until it has been carried out.
//! * **Carrying it out.** The new state, the reply and where the message ends go into the slot that is
//!   not in force, then one store puts it in force. Before that store, a successor sees the message
//!   again and carries it out from the state before.
//! * **Taking it out of the socket**, after that, together with others. `SO_PEEK_OFF` is how much of
//!   what is in the socket has been looked at; it is written down, and that a read follows. The read
//!   lowers it by what it takes: so the difference tells how much is gone.
//! * **Answering.** It is written down that a piece of the reply goes into a pipe, which the keeper holds;
//!   after the `write`, that it is there; only then `splice` moves it into the socket. So what is in
//!   the pipe tells how much of the piece was written, and after that, how much is left to be sent.
//!
//! | killed after | the successor finds | and does |
//! |---|---|---|
//! | seeing a message | nothing of it | sees it again |
//! | putting its outcome in force | a message in the socket that is carried out | answers it, takes it out |
//! | writing down that the reply goes into the pipe | that, and some of it in the pipe | writes the rest, sends it |
//! | writing down that it is there | that, and what is left of it | sends what is left |
//! | sending it | that, and an empty pipe | goes on |
//! | writing down that messages are taken out | that, and how much has been looked at | takes out the rest |
//!
//! A message costs one system call to be seen and one to be taken out, together with those that came with
//! it, and a reply two (write, splice).
//!
//! # What it does not do
//!
//! * What a message does outside of the state (DMA, interrupts) is done again if the process dies
//!   before the state is in force. That this does no harm is for its owner to see to, and so is what
//!   several threads put into one journal.
//! * Replies carry no descriptors.
//! * A message must fit into what the socket holds, beside what has not been taken out yet.
//! * A worker that hangs is ended only where it has asked to be watched, and if another could take its place: not where
//!   something is not held, or too many have died. A keeper that hangs is not noticed, only one that ends.
//! * It survives the death of a process, not that of the host; that of the keeper, which takes its worker along, only
//!   where a service manager has a [`Store`].

mod conversation;
mod here;
mod journal;
mod keep;
mod layout;
mod line;
mod peek;
mod store;
mod watch;
mod wire;
mod worker;

pub use conversation::{Conversation, Received};
pub use here::KeeperHere;
pub use journal::{Journal, JournalError, Limits, Message};
pub use keep::{Ended, Event, GIVEN_UP, HANDED_OVER, Keeper, KeeperError, Rate, Which};
pub use line::Line;
pub use store::{Store, tell_service};
pub use wire::{MAX_HELD, MAX_NAME};
pub use worker::{Held, Worker, WorkerError};
