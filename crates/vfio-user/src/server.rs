//! Sockets to be found at, and serving who comes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use keeper::Conversation;
use local_socket::{Access, reserve};
use rustix::event::PollFlags;
use rustix::io::Errno;

use crate::Negotiated;
use crate::backend::Backend;
use crate::connection::{Connection, Ended, ServeError};
use crate::stop::{Stopper, Woken};

/// A listening vfio-user socket.
///
/// Clients are served one after the other by whoever calls [`serve_one`](Self::serve_one), in that
/// thread; who comes meanwhile waits in the socket's backlog.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    bound: Option<Bound>,
    stop: Stopper,
    options: Options,
    access: Access,
}

/// How long to be patient with a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// For how long a client may not read what it is sent.
    pub send_timeout: Duration,
    /// For how long a client may leave a DMA message unanswered.
    pub reply_timeout: Duration,
}

impl Default for Options {
    /// Five seconds each, as QEMU waits for a server (`x-msg-timeout`).
    fn default() -> Self {
        Self {
            send_timeout: Duration::from_secs(5),
            reply_timeout: Duration::from_secs(5),
        }
    }
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another process listens there.
    #[error("{0} is in use: another server listens on it; stop it or name another socket")]
    InUse(PathBuf),
    /// Something that is not a socket is there.
    #[error("{0} exists and is not a socket; name another path or remove it")]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("cannot listen on {path}: {source}; its folder must exist and be writable")]
    System {
        /// The socket's path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A given socket cannot be used.
    #[error("the given listening socket cannot be used: {0}")]
    Listener(io::Error),
}

impl Server {
    /// Listens on a new socket at `path`, and removes it when dropped. A socket that a dead server
    /// left behind is replaced. This process's user and root may connect.
    ///
    /// # Errors
    /// [`BindError`] says what is in the way.
    pub fn bind(path: impl AsRef<Path>) -> Result<Self, BindError> {
        Self::bind_for(path, Access::default())
    }

    /// The same, for others.
    ///
    /// # Errors
    /// [`BindError`] says what is in the way.
    pub fn bind_for(path: impl AsRef<Path>, access: Access) -> Result<Self, BindError> {
        let path = path.as_ref();
        let system = |source| BindError::System {
            path: path.to_owned(),
            source,
        };
        let listener = match access.bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                remove_abandoned(path)?;
                access.bind(path)
            }
            bound => bound,
        };
        let listener = listener.map_err(system)?;
        let bound = Bound::new(path).map_err(system)?;
        let mut server = Self::from_listener(listener)?;
        server.bound = Some(bound);
        server.access = access;
        Ok(server)
    }

    /// Goes on with a socket that another process has bound to `path`; it is removed when this is dropped.
    ///
    /// # Errors
    /// [`BindError`] says what is in the way.
    pub fn over(
        listener: impl Into<OwnedFd>,
        path: impl AsRef<Path>,
        access: Access,
    ) -> Result<Self, BindError> {
        let path = path.as_ref();
        // Where somebody has removed it, there is nothing to be removed.
        let bound = Bound::new(path).ok();
        let server = Self::from_listener(listener)?;
        Ok(Self {
            bound,
            access,
            ..server
        })
    }

    /// Listens on a socket that was made elsewhere, and stays when this is dropped.
    ///
    /// # Errors
    /// [`BindError::Listener`] when it is no such thing.
    pub fn from_listener(listener: impl Into<OwnedFd>) -> Result<Self, BindError> {
        let listener = UnixListener::from(listener.into());
        // Between a poll and an accept, the client may leave.
        listener
            .set_nonblocking(true)
            .map_err(BindError::Listener)?;
        reserve::keep_room();
        let stop = Stopper::new().map_err(|e| BindError::Listener(e.into()))?;
        Ok(Self {
            listener,
            bound: None,
            stop,
            options: Options::default(),
            access: Access::default(),
        })
    }

    /// With other timeouts.
    #[must_use]
    pub fn with_options(self, options: Options) -> Self {
        Self { options, ..self }
    }

    /// What makes [`serve_one`](Self::serve_one) and [`serve_stream`](Self::serve_stream) return.
    pub fn stopper(&self) -> Stopper {
        self.stop.clone()
    }

    /// Waits for a client and serves it to its end.
    ///
    /// # Errors
    /// [`ServeError`]; the next client can be served all the same, but after
    /// [`ServeError::Accept`].
    pub fn serve_one(&self, backend: &mut dyn Backend) -> Result<Ended, ServeError> {
        match self.accept()? {
            Some(stream) => self.serve_stream(stream, None, backend),
            None => Ok(Ended::Stopped),
        }
    }

    /// Waits for a client; `None` if it was stopped.
    ///
    /// # Errors
    /// [`ServeError::Accept`].
    pub fn accept(&self) -> Result<Option<UnixStream>, ServeError> {
        loop {
            match self.stop.wait(self.listener.as_fd(), PollFlags::IN, None) {
                Ok(Woken::Stopped) => return Ok(None),
                Ok(Woken::Ready | Woken::TimedOut) => {}
                Err(errno) => return Err(ServeError::Accept(errno)),
            }
            match self.listener.accept() {
                Ok((stream, _)) => match self.access.admit(&stream) {
                    Ok(()) => return Ok(Some(stream)),
                    Err(refused) => tracing::warn!("{refused}"),
                },
                Err(error) => match Errno::from_io_error(&error) {
                    Some(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => {}
                    errno => return Err(ServeError::Accept(errno.unwrap_or(Errno::IO))),
                },
            }
        }
    }

    /// Serves a client that is connected already, to its end.
    ///
    /// With `resumed`, it goes on with a connection whose two sides agreed on that before, at the
    /// boundary of a message; its mappings and eventfds are for the backend to know, and a
    /// migration that its client had begun is forgotten. When stopped, the messages that were
    /// received are answered, and a copy of the socket kept elsewhere stays connected.
    ///
    /// # Errors
    /// As [`serve_one`](Self::serve_one).
    pub fn serve_stream(
        &self,
        stream: UnixStream,
        resumed: Option<Negotiated>,
        backend: &mut dyn Backend,
    ) -> Result<Ended, ServeError> {
        Connection::new(stream, resumed, &self.stop, &self.options).serve(backend)
    }

    /// The same, of a connection that outlives this process. What [`Backend::commit`] puts in force is to
    /// be what `conversation` goes on from, in the same journal. It notices a [`Stopper`] only when its socket is
    /// shut down for reading as well.
    ///
    /// # Errors
    /// As [`serve_one`](Self::serve_one).
    pub fn serve_kept(
        &self,
        conversation: Conversation,
        resumed: Option<Negotiated>,
        backend: &mut dyn Backend,
    ) -> Result<Ended, ServeError> {
        Connection::kept(conversation, resumed, &self.stop, &self.options).serve(backend)
    }
}

impl AsFd for Server {
    /// Of the socket that listens.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

/// A path with our socket at it.
#[derive(Debug)]
struct Bound {
    path: PathBuf,
    inode: (u64, u64),
}

impl Bound {
    fn new(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            inode: inode(path)?,
        })
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        // A successor may have put its own socket there.
        if inode(&self.path).is_ok_and(|inode| inode == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = path.symlink_metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Removes a socket on which nobody listens.
fn remove_abandoned(path: &Path) -> Result<(), BindError> {
    let system = |source| BindError::System {
        path: path.to_owned(),
        source,
    };
    if !path
        .symlink_metadata()
        .map_err(system)?
        .file_type()
        .is_socket()
    {
        return Err(BindError::NotASocket(path.to_owned()));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(system)
        }
        _ => Err(BindError::InUse(path.to_owned())),
    }
}
