//! TLS as a stream of the control link.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use ferry::link::{Link, Message, Stream, greeting};
use tls::{TlsError, TlsStream};

use super::{Connected, Stranger};
use crate::config::Protection;

/// How long a stranger may take to say who it is.
const HANDSHAKE: Duration = Duration::from_secs(5);
const REFUSAL: Duration = Duration::from_secs(1);

/// A stream to a host whose name is known.
pub(super) struct Protected(pub(super) TlsStream);

/// Finds out who a stranger is, where `protection` wants to know.
///
/// # Errors
/// When it is nobody who is taken. It has been told.
pub(crate) fn accept(stranger: Stranger, protection: &Protection) -> Result<Connected, TlsError> {
    let stream: Box<dyn Stream> = match (stranger, protection) {
        (Stranger::Tcp(socket), Protection::Tls { folder, peers }) => {
            let answer = socket.try_clone()?;
            let accepted = tls::accept(socket, folder, peers, HANDSHAKE);
            if let Err(TlsError::NotTls) = accepted {
                refuse_plain(&answer);
            }
            let stream = accepted?;
            let peer = Some(stream.peer().clone());
            let stream = Box::new(Protected(stream));
            return Ok(Connected { stream, peer });
        }
        (Stranger::Tcp(socket), Protection::Loopback | Protection::None) => Box::new(socket),
        (Stranger::Unix(socket), _) => Box::new(socket),
    };
    Ok(Connected { stream, peer: None })
}

/// Tells a vferry without TLS, of any version, why it is refused.
fn refuse_plain(socket: &TcpStream) {
    let Ok(stream) = socket.try_clone() else {
        return;
    };
    let reason = "the destination wants TLS: set `tls` and `peers` in [migration] of the source's \
                  configuration too"
        .into();
    let mut link = Link::agreed(Box::new(stream), greeting::NEWEST);
    if link.send(&Message::Abort { reason }, REFUSAL).is_ok() {
        tls::part(socket);
    }
}

impl Read for Protected {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Protected {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Stream for Protected {
    fn set_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
        self.0.set_limit(limit);
        Ok(())
    }

    fn set_nonblocking(&self, on: bool) -> io::Result<()> {
        self.0.set_nonblocking(on)
    }
}
