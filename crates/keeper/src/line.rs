//! All that is held of one connection.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use crate::conversation::Conversation;
use crate::journal::{Journal, JournalError, Limits};
use crate::worker::{Held, Worker, WorkerError};

/// A connection's socket, and the pipe and the journal that a [`Conversation`] over it needs.
#[derive(Debug)]
pub struct Line {
    stream: Arc<UnixStream>,
    pipe: (OwnedFd, OwnedFd),
    journal: Arc<Journal>,
}

impl Line {
    /// For a new connection.
    ///
    /// # Errors
    /// When the system has no descriptor or memory left.
    pub fn new(stream: UnixStream, limits: Limits) -> Result<Self, JournalError> {
        stream.set_nonblocking(false)?;
        Ok(Self {
            stream: Arc::new(stream),
            pipe: Conversation::pipe()?,
            journal: Arc::new(Journal::create(limits)?),
        })
    }

    /// The one that is held as `name`, if one is.
    ///
    /// # Errors
    /// When its journal cannot be gone on with.
    pub fn find(name: &str, held: &mut Held) -> Result<Option<Self>, JournalError> {
        let mut take = |part| held.remove(&format!("{name}/{part}"));
        let parts = (take("socket"), take("out"), take("in"), take("journal"));
        let (Some(socket), Some(out), Some(into), Some(journal)) = parts else {
            return Ok(None);
        };
        Ok(Some(Self {
            stream: Arc::new(socket.into()),
            pipe: (out, into),
            journal: Arc::new(Journal::open(journal)?),
        }))
    }

    /// Has the keeper hold it as `name`. What a successor goes on from is to be in the journal by now: it
    /// finds all of it, or nothing.
    ///
    /// # Errors
    /// When the keeper is gone.
    pub fn hold(&self, name: &str, worker: &Worker) -> Result<(), WorkerError> {
        let parts = [
            ("out", self.pipe.0.as_fd()),
            ("in", self.pipe.1.as_fd()),
            ("journal", self.journal.as_fd()),
            ("socket", self.stream.as_fd()),
        ];
        for (part, fd) in parts {
            worker.hold(&format!("{name}/{part}"), fd)?;
        }
        worker.barrier()
    }

    /// Has the keeper let go of what it holds as `name`: the conversation is over.
    ///
    /// # Errors
    /// When the keeper is gone.
    pub fn let_go(name: &str, worker: &Worker) -> Result<(), WorkerError> {
        // Without the first there is none.
        for part in ["socket", "journal", "in", "out"] {
            worker.let_go(&format!("{name}/{part}"))?;
        }
        Ok(())
    }

    /// The journal.
    pub fn journal(&self) -> &Arc<Journal> {
        &self.journal
    }

    /// The socket.
    pub fn stream(&self) -> &Arc<UnixStream> {
        &self.stream
    }

    /// Goes on with the conversation, or begins it.
    ///
    /// # Errors
    /// See [`Conversation::resume`].
    pub fn resume(self) -> Result<Conversation, JournalError> {
        Conversation::resume(self.stream, self.pipe, self.journal)
    }
}
