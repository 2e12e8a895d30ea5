//! Two hosts, over a real connection.

mod hostile;
mod refusals;
mod stream;

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use authority::{Authority, Subject};
use tempfile::TempDir;
use tls::{Peers, TlsError, TlsStream};

pub(crate) const SOON: Duration = Duration::from_secs(10);

/// A host as its configuration describes it.
pub(crate) struct Host {
    pub(crate) folder: PathBuf,
    pub(crate) peers: Peers,
    _root: TempDir,
}

impl Host {
    pub(crate) fn new(authority: &Authority, subject: &Subject<'_>, peers: &[&str]) -> Self {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("tls");
        authority.write(&folder, subject).unwrap();
        Self {
            folder,
            peers: self::peers(peers),
            _root: root,
        }
    }
}

pub(crate) fn peers(names: &[&str]) -> Peers {
    Peers::new(names.iter().map(|name| name.parse().unwrap()).collect()).unwrap()
}

/// Two hosts that take each other: the one that connects, and the other.
pub(crate) fn hosts() -> (Host, Host) {
    let authority = Authority::new().unwrap();
    (
        Host::new(&authority, &Subject::new(&["a.example"]), &["b.example"]),
        Host::new(&authority, &Subject::new(&["b.example"]), &["a.example"]),
    )
}

pub(crate) fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (client, listener.accept().unwrap().0)
}

type Met = Result<TlsStream, TlsError>;

/// What each side makes of the other. The one that connects hears by a read whether it was taken.
pub(crate) fn meet(client: &Host, server: &Host) -> (Met, Met) {
    let (ours, theirs) = sockets();
    thread::scope(|scope| {
        let accepting = scope.spawn(|| tls::accept(theirs, &server.folder, &server.peers, SOON));
        let connected = tls::connect(ours, &client.folder, &client.peers, SOON);
        let accepted = accepting.join().unwrap();
        let connected = match (connected, &accepted) {
            (Ok(mut stream), Err(_)) => {
                stream.set_limit(Some(SOON));
                let error = stream.read(&mut [0]).unwrap_err();
                Err(*error.into_inner().unwrap().downcast().unwrap())
            }
            (connected, _) => connected,
        };
        (connected, accepted)
    })
}

/// What each side says, of hosts that do not take each other.
pub(crate) fn quarrel(client: &Host, server: &Host) -> [String; 2] {
    let (connected, accepted) = meet(client, server);
    [connected, accepted].map(|met| met.unwrap_err().to_string())
}
