//! The socket, and the loop that serves one QEMU at a time.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use keeper::{Held, Line, Worker};
use local_socket::{Access, reserve};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd};
use vhost::vhost_user::{BackendReqHandler, Error as VhostError};

use crate::device::{Device, RINGS, Source};
use crate::kept::{self, Kept};
use crate::log::LogSlot;
use crate::poll::{self, Remaining};
use crate::{Error, Hooks, LogHandle};

/// Bounds of the sidecar.
#[derive(Debug, Clone)]
pub struct Config {
    /// Largest device state, in bytes, that is sent or taken. Default: 16 MiB.
    pub max_state: usize,
    /// How long QEMU may leave a transfer of the device state without any progress. Default: 30 s.
    pub stall: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_state: 16 << 20,
            stall: Duration::from_secs(30),
        }
    }
}

/// The vhost-user device, waiting for QEMU on a socket.
#[derive(Debug)]
pub struct Sidecar {
    listener: UnixListener,
    /// To be removed at the end: the sidecar made it.
    path: Option<PathBuf>,
    config: Config,
    log: Arc<LogSlot>,
    stopper: Stopper,
    access: Access,
    keeping: Option<Keeping>,
}

/// Who holds the connection, too.
#[derive(Debug)]
struct Keeping {
    worker: Arc<Worker>,
    /// What another process has left.
    left: Option<(Kept, Held)>,
}

impl Sidecar {
    /// Listens on a new socket at `path`, in the place of one that nobody serves any more. This
    /// process's user and root may connect.
    ///
    /// # Errors
    /// When the path is in use or cannot be made a socket.
    pub fn bind(path: impl AsRef<Path>, config: Config) -> Result<Self, Error> {
        Self::bind_for(path, config, Access::default())
    }

    /// The same, for others.
    ///
    /// # Errors
    /// When the path is in use or cannot be made a socket.
    pub fn bind_for(path: impl AsRef<Path>, config: Config, access: Access) -> Result<Self, Error> {
        let path = path.as_ref();
        let failed = |source| Error::Bind {
            path: path.to_owned(),
            source,
        };
        remove_stale(path)?;
        let listener = access.bind(path).map_err(failed)?;
        Self::over(listener, path, config, access)
    }

    /// Goes on with a socket that another process has bound to `path`, and removes that at the end.
    ///
    /// # Errors
    /// [`Error::Host`] when the process has no descriptor left.
    pub fn over(
        listener: UnixListener,
        path: impl AsRef<Path>,
        config: Config,
        access: Access,
    ) -> Result<Self, Error> {
        let mut sidecar = Self::from_listener(listener, config)?;
        sidecar.path = Some(path.as_ref().to_owned());
        sidecar.access = access;
        Ok(sidecar)
    }

    /// Uses a socket that listens already. Its file is left alone at the end.
    ///
    /// # Errors
    /// [`Error::Host`] when the process has no descriptor left.
    pub fn from_listener(listener: UnixListener, config: Config) -> Result<Self, Error> {
        // A QEMU that is gone before it was accepted must not block the loop.
        listener.set_nonblocking(true)?;
        reserve::keep_room();
        Ok(Self {
            listener,
            path: None,
            config,
            log: Arc::default(),
            stopper: Stopper::new()?,
            access: Access::default(),
            keeping: None,
        })
    }

    /// Has `worker`'s keeper hold the connection, too, and goes on with one that another process has left in
    /// `held`.
    ///
    /// # Errors
    /// When that one cannot be gone on with.
    pub fn keep(&mut self, worker: Arc<Worker>, held: &mut Held) -> Result<(), Error> {
        let left = Kept::find(held, &worker)?;
        self.keeping = Some(Keeping { worker, left });
        Ok(())
    }

    /// The way to the dirty log for other threads.
    pub fn marker_handle(&self) -> LogHandle {
        LogHandle::new(Arc::clone(&self.log))
    }

    /// The way to end [`serve`](Self::serve).
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// Serves one QEMU after another until [`Stopper::stop`]. A second one that connects meanwhile
    /// is turned away at once.
    ///
    /// What goes wrong with one QEMU ends only its own connection:
    /// [`Hooks::disconnected`] gets the error.
    ///
    /// # Errors
    /// When the socket or the host fails for good.
    pub fn serve(&mut self, hooks: &mut dyn Hooks) -> Result<(), Error> {
        let left = self.keeping.as_mut().and_then(|k| k.left.take());
        if let Some((kept, held)) = left {
            let stream = Arc::clone(kept.stream());
            self.serve_one(&stream, Some((kept, held)), hooks)?;
        }
        while !self.stopper.is_stopped() {
            let mut fds = [
                PollFd::new(&self.listener, PollFlags::IN),
                PollFd::new(&self.stopper.event, PollFlags::IN),
            ];
            poll::wait(&mut fds, Remaining::Forever)?;
            let Some(stream) = accept(&self.listener)? else {
                continue;
            };
            match self.access.admit(&stream) {
                Ok(()) => self.serve_new(stream, hooks)?,
                Err(refused) => tracing::warn!("{refused}"),
            }
        }
        Ok(())
    }

    fn serve_new(&self, stream: UnixStream, hooks: &mut dyn Hooks) -> Result<(), Error> {
        let Some(keeping) = &self.keeping else {
            return self.serve_one(&stream, None, hooks);
        };
        let line = Line::new(stream, kept::LIMITS).map_err(io::Error::other)?;
        let stream = Arc::clone(line.stream());
        let kept = Kept::begin(line, Arc::clone(&keeping.worker))?;
        self.serve_one(&stream, Some((kept, Held::new())), hooks)
    }

    fn serve_one(
        &self,
        stream: &UnixStream,
        kept: Option<(Kept, Held)>,
        hooks: &mut dyn Hooks,
    ) -> Result<(), Error> {
        self.stopper.watch(Some(stream.try_clone()?));
        tracing::info!("QEMU connected to the sidecar");
        hooks.connected();
        let is_kept = kept.is_some();
        let connection = Connection {
            stream,
            config: &self.config,
            log: &self.log,
            stopper: &self.stopper,
            listener: Some(&self.listener),
            kept,
        };
        let ended = connection.serve(hooks);
        if is_kept {
            // Whoever holds it, too, keeps it open, and QEMU waits for answers without a limit.
            let _ = stream.shutdown(Shutdown::Both);
        }
        // What is left of the connection must not outlive it.
        self.stopper.watch(None);
        self.log.clear();
        self.log.set_started(false);
        match &ended {
            Ok(()) => tracing::info!("QEMU left the sidecar"),
            Err(error) => tracing::error!(%error, "the sidecar lost QEMU"),
        }
        hooks.disconnected(ended.as_ref().err());
        Ok(())
    }
}

/// One QEMU and what it is served with.
pub(crate) struct Connection<'a> {
    pub(crate) stream: &'a UnixStream,
    pub(crate) config: &'a Config,
    pub(crate) log: &'a Arc<LogSlot>,
    pub(crate) stopper: &'a Stopper,
    /// Where other QEMUs are turned away.
    pub(crate) listener: Option<&'a UnixListener>,
    /// The way of its messages, if the connection is to outlive the process, and what another has left.
    pub(crate) kept: Option<(Kept, Held)>,
}

impl Connection<'_> {
    /// Serves until QEMU leaves or the sidecar is stopped.
    pub(crate) fn serve(mut self, hooks: &mut dyn Hooks) -> Result<(), Error> {
        let mut kept = self.kept.take();
        let result = self.serve_device(hooks, &mut kept);
        if let Some((kept, _)) = &kept {
            // Nobody is to go on with it.
            kept.let_go()?;
        }
        result
    }

    fn serve_device(
        &mut self,
        hooks: &mut dyn Hooks,
        kept: &mut Option<(Kept, Held)>,
    ) -> Result<(), Error> {
        let stop = self.stopper.event.as_fd();
        let device = Device::new(hooks, self.config.clone(), Arc::clone(self.log), stop);
        let device = Arc::new(Mutex::new(device));
        // What the device reads is QEMU's socket, or another into which that is passed on.
        let (passed, stream) = match &kept {
            Some(_) => UnixStream::pair()?,
            None => (self.stream.try_clone()?, self.stream.try_clone()?),
        };
        let mut messages = BackendReqHandler::from_stream(stream, Arc::clone(&device));
        if let Some((kept, held)) = kept {
            lock(&device).catch_up(true);
            kept.say_again(&passed, held, || {
                messages.handle_request().map_err(Error::Protocol)
            })?;
            lock(&device).catch_up(false);
        }
        loop {
            if let Some((kept, _)) = kept {
                kept.rest()?;
            }
            let ready = self.wait(&lock(&device))?;
            if ready.stop {
                return Ok(());
            }
            for source in ready.sources {
                lock(&device).serve(source);
            }
            if ready.message {
                reserve::make_room();
                let handled = match kept {
                    None => messages.handle_request().map_err(Error::Protocol),
                    Some((kept, _)) => pass_on(kept, &passed, &mut messages),
                };
                match handled {
                    Ok(()) => {}
                    Err(Error::Protocol(VhostError::Disconnected)) => return Ok(()),
                    Err(_) if self.stopper.is_stopped() => return Ok(()),
                    Err(error) => return Err(error),
                }
            } else if ready.other {
                // Only while the first QEMU is silent: that it has gone is a message too.
                self.turn_away();
            }
        }
    }

    fn turn_away(&mut self) {
        match self.listener.map(accept) {
            Some(Ok(_)) => tracing::warn!("a second QEMU wanted this sidecar and was turned away"),
            Some(Err(error)) => {
                // It would fail again at once, over and over. The other one waits instead.
                tracing::warn!(%error, "a second QEMU cannot be turned away");
                self.listener = None;
            }
            None => {}
        }
    }

    /// Waits until there is something to do.
    fn wait(&self, device: &Device<'_>) -> io::Result<Ready> {
        let mut fds = Vec::with_capacity(RINGS + 4);
        fds.push(PollFd::new(&*self.stopper.event, PollFlags::IN));
        fds.push(PollFd::new(self.stream, PollFlags::IN));
        let sources = device.interests().map(|(source, fd, flags)| {
            fds.push(PollFd::from_borrowed_fd(fd, flags));
            source
        });
        let sources: Vec<_> = sources.collect();
        if let Some(listener) = self.listener {
            fds.push(PollFd::new(listener, PollFlags::IN));
        }
        let remaining = if sources.iter().any(|source| device.is_due(*source)) {
            Remaining::Nothing
        } else {
            Remaining::until(device.deadline())
        };
        poll::wait(&mut fds, remaining)?;
        let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
        Ok(Ready {
            stop: ready.next() == Some(true),
            message: ready.next() == Some(true),
            sources: sources
                .into_iter()
                .filter(|source| ready.next() == Some(true) || device.is_due(*source))
                .collect(),
            other: ready.next() == Some(true),
        })
    }
}

/// Has the device carry out what has come.
fn pass_on<S: vhost::vhost_user::VhostUserBackendReqHandler>(
    kept: &mut Kept,
    passed: &UnixStream,
    messages: &mut BackendReqHandler<S>,
) -> Result<(), Error> {
    if !kept.receive()? {
        return Err(Error::Protocol(VhostError::Disconnected));
    }
    while kept.carry_out(passed, || {
        messages.handle_request().map_err(Error::Protocol)
    })? {}
    Ok(())
}

#[derive(Debug)]
struct Ready {
    stop: bool,
    message: bool,
    sources: Vec<Source>,
    /// Another QEMU wants to connect.
    other: bool,
}

impl AsFd for Sidecar {
    /// Of the socket that listens.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // It may have been removed by hand; nothing depends on it.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Ends [`Sidecar::serve`], from any thread, at any moment, for good.
#[derive(Debug, Clone)]
pub struct Stopper {
    /// Readable from the stop on.
    event: Arc<OwnedFd>,
    /// The connection whose messages are being read or answered.
    stream: Arc<Mutex<Option<UnixStream>>>,
}

impl Stopper {
    pub(crate) fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self {
            event: Arc::new(event),
            stream: Arc::default(),
        })
    }

    /// Makes [`Sidecar::serve`] return, after the hook that may be running. Messages half read and
    /// answers half written are cut off.
    pub fn stop(&self) {
        // The counter can only be full if it was stopped before.
        let _ = rustix::io::write(&*self.event, &1u64.to_ne_bytes());
        // After the event, so that the loop knows why its socket breaks.
        if let Some(stream) = &*lock(&self.stream) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn is_stopped(&self) -> bool {
        let mut fds = [PollFd::new(&*self.event, PollFlags::IN)];
        poll::wait(&mut fds, Remaining::Nothing).is_err() || !fds[0].revents().is_empty()
    }

    fn watch(&self, stream: Option<UnixStream>) {
        *lock(&self.stream) = stream;
    }
}

fn accept(listener: &UnixListener) -> io::Result<Option<UnixStream>> {
    match listener.accept() {
        Ok((stream, _)) => Ok(Some(stream)),
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::WouldBlock
                    | io::ErrorKind::Interrupted
                    | io::ErrorKind::ConnectionAborted
            ) =>
        {
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

/// Removes a socket whose process is gone.
fn remove_stale(path: &Path) -> Result<(), Error> {
    let failed = |source| Error::Bind {
        path: path.to_owned(),
        source,
    };
    match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(failed(e)),
        Ok(meta) if !meta.file_type().is_socket() => Err(Error::NoSocket(path.to_owned())),
        Ok(_) => match UnixStream::connect(path) {
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).map_err(failed)
            }
            Err(e) => Err(failed(e)),
            Ok(_) => Err(Error::InUse(path.to_owned())),
        },
    }
}

/// No panic is expected while the lock is held, and if there was one, the state that it left is
/// only read or dropped.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
