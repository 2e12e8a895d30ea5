//! Connecting to, and listening at, the places that a configuration names.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ferry::link::Stream;

use crate::config::Endpoint;

/// How long a TCP connection may take to be made.
const CONNECT: Duration = Duration::from_secs(5);

/// Connects to where another vferry listens.
pub(crate) fn connect(to: &Endpoint) -> io::Result<Box<dyn Stream>> {
    Ok(match to {
        Endpoint::Unix(path) => Box::new(UnixStream::connect(path)?),
        Endpoint::Tcp(address) => {
            let stream = TcpStream::connect_timeout(address, CONNECT)?;
            Box::new(tuned(stream)?)
        }
    })
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
    pub(crate) fn bind(at: &Endpoint) -> io::Result<Self> {
        Ok(match at {
            Endpoint::Unix(path) => Self::Unix(BoundSocket::bind(path)?),
            Endpoint::Tcp(address) => Self::Tcp(TcpListener::bind(address)?),
        })
    }

    pub(crate) fn try_clone(&self) -> io::Result<Acceptor> {
        Ok(match self {
            Self::Unix(bound) => Acceptor::Unix(bound.listener.try_clone()?),
            Self::Tcp(listener) => Acceptor::Tcp(listener.try_clone()?),
        })
    }
}

/// Takes connections; its socket's file belongs to somebody else.
#[derive(Debug)]
pub(crate) enum Acceptor {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Acceptor {
    pub(crate) fn accept(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Unix(listener) => Box::new(listener.accept()?.0),
            Self::Tcp(listener) => Box::new(tuned(listener.accept()?.0)?),
        })
    }
}

/// A listening unix socket whose file goes with it.
#[derive(Debug)]
pub(crate) struct BoundSocket {
    pub(crate) listener: UnixListener,
    path: PathBuf,
}

impl BoundSocket {
    /// Listens at `path`, in the place of a socket that nobody serves any more.
    pub(crate) fn bind(path: &Path) -> io::Result<Self> {
        let bind = || UnixListener::bind(path);
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
        })
    }
}

impl Drop for BoundSocket {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = std::fs::remove_file(&self.path);
    }
}
