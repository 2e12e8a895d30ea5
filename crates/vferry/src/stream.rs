//! Connecting to, and listening at, the places that a configuration names.

mod protected;

use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use ferry::link::Stream;
use local_socket::Access;
use tls::PeerName;

use crate::config::{Config, Endpoint, Protection};
use protected::Protected;

pub(crate) use protected::accept;

/// How long a TCP connection may take to be made.
const CONNECT: Duration = Duration::from_secs(5);
/// How long both sides may take to know each other: longer than the other side gives a stranger who is before.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// A stream to another vferry.
pub(crate) struct Connected {
    pub(crate) stream: Box<dyn Stream>,
    /// Who it is, where that is known: the stream is protected then.
    pub(crate) peer: Option<PeerName>,
}

/// Connects to where another vferry listens, protected as `config` says.
pub(crate) fn connect(to: &Endpoint, config: &Config) -> anyhow::Result<Connected> {
    let absent = || format!("no vferry answers at {to}: is `vferry run` started there?");
    if !config.protection.allows(to) {
        anyhow::bail!(
            "{}:{}: the control link to {to} would be neither encrypted nor authenticated, and the \
             VM's memory goes where it says\n    write instead: in [migration], tls = \
             \"/etc/vferry/tls\" and peers = [\"the-other-host.example\"] (see README)",
            config.origin.path.display(),
            config.origin.link_line,
        );
    }
    let plain = |stream| Connected { stream, peer: None };
    match to {
        Endpoint::Unix(path) => {
            let stream = UnixStream::connect(path).with_context(absent)?;
            Ok(plain(Box::new(stream)))
        }
        Endpoint::Tcp(address) => {
            let stream = TcpStream::connect_timeout(address, CONNECT).and_then(tuned);
            let stream = stream.with_context(absent)?;
            let Protection::Tls { folder, peers } = &config.protection else {
                return Ok(plain(Box::new(stream)));
            };
            let stream = tls::connect(stream, folder, peers, HANDSHAKE)
                .with_context(|| format!("the control link to {to}, nothing was touched"))?;
            let peer = Some(stream.peer().clone());
            let stream = Box::new(Protected(stream));
            Ok(Connected { stream, peer })
        }
    }
}

/// Messages are few and each is waited for; and a host that vanishes is noticed while memory is
/// copied, not when all depends on it.
fn tuned(stream: TcpStream) -> io::Result<TcpStream> {
    use rustix::net::sockopt;
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(&stream, true)?;
    sockopt::set_tcp_keepidle(&stream, Duration::from_secs(5))?;
    sockopt::set_tcp_keepintvl(&stream, Duration::from_secs(2))?;
    sockopt::set_tcp_keepcnt(&stream, 5)?;
    sockopt::set_tcp_user_timeout(&stream, 15_000)?;
    Ok(stream)
}

/// A place to be connected to.
#[derive(Debug)]
pub(crate) enum Listener {
    Unix(BoundSocket),
    Tcp(TcpListener),
}

impl Listener {
    pub(crate) fn bind(at: &Endpoint, access: Access) -> io::Result<Self> {
        Ok(match at {
            Endpoint::Unix(path) => Self::Unix(BoundSocket::bind(path, access)?),
            Endpoint::Tcp(address) => Self::Tcp(TcpListener::bind(address)?),
        })
    }

    /// Goes on with one that another process has bound.
    pub(crate) fn over(listener: OwnedFd, at: &Endpoint, access: Access) -> Self {
        match at {
            Endpoint::Unix(path) => Self::Unix(BoundSocket::over(listener, path, access)),
            Endpoint::Tcp(_) => Self::Tcp(listener.into()),
        }
    }

    pub(crate) fn try_clone(&self) -> io::Result<Acceptor> {
        Ok(match self {
            Self::Unix(bound) => Acceptor::Unix(bound.listener.try_clone()?, bound.access),
            Self::Tcp(listener) => Acceptor::Tcp(listener.try_clone()?),
        })
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(bound) => bound.as_fd(),
            Self::Tcp(listener) => listener.as_fd(),
        }
    }
}

/// Takes connections; its socket's file belongs to somebody else.
#[derive(Debug)]
pub(crate) enum Acceptor {
    Unix(UnixListener, Access),
    Tcp(TcpListener),
}

/// A connection that nobody has looked at.
pub(crate) enum Stranger {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Acceptor {
    pub(crate) fn accept(&self) -> io::Result<Stranger> {
        Ok(match self {
            Self::Unix(listener, access) => {
                let stream = listener.accept()?.0;
                access.admit(&stream).map_err(io::Error::other)?;
                Stranger::Unix(stream)
            }
            Self::Tcp(listener) => Stranger::Tcp(tuned(listener.accept()?.0)?),
        })
    }
}

/// A listening unix socket whose file goes with it.
#[derive(Debug)]
pub(crate) struct BoundSocket {
    pub(crate) listener: UnixListener,
    path: PathBuf,
    access: Access,
}

impl BoundSocket {
    /// Listens at `path`, in the place of a socket that nobody serves any more.
    pub(crate) fn bind(path: &Path, access: Access) -> io::Result<Self> {
        let bind = || access.bind(path);
        let listener = match bind() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                if UnixStream::connect(path).is_ok() {
                    return Err(io::Error::new(
                        io::ErrorKind::AddrInUse,
                        format!("{} is served by another process", path.display()),
                    ));
                }
                std::fs::remove_file(path)?;
                bind()
            }
            other => other,
        };
        Ok(Self {
            listener: listener?,
            path: path.into(),
            access,
        })
    }
}

impl BoundSocket {
    /// Goes on with one that another process has bound.
    pub(crate) fn over(listener: impl Into<UnixListener>, path: &Path, access: Access) -> Self {
        Self {
            listener: listener.into(),
            path: path.into(),
            access,
        }
    }
}

impl AsFd for BoundSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for BoundSocket {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests;
