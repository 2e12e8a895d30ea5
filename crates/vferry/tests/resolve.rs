//! `vferry resolve` and the question that it asks the other host, without a VM.

mod common;

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use authority::{Authority, Subject};
use common::{configuration, link};
use ferry::commit::Other;
use ferry::link::{Link, Stream};
use ferry::resolve;
use tls::{Peers, TlsError, TlsStream};

const VFERRY: &str = env!("CARGO_BIN_EXE_vferry");
const PATIENCE: Duration = Duration::from_secs(30);

/// A process that serves a VM whose QEMU never comes.
struct Serving {
    process: Child,
    /// Its network, on which nobody speaks.
    _wire: UnixListener,
    folder: tempfile::TempDir,
}

impl Serving {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("link.sock");
        let migration = link(folder.path());
        Self::start_at(folder, &migration, || UnixStream::connect(&socket).is_ok())
    }

    /// With these lines in `[migration]`, until it `answers`.
    fn start_at(
        folder: tempfile::TempDir,
        migration: &str,
        mut answers: impl FnMut() -> bool,
    ) -> Self {
        let text = configuration(folder.path(), migration);
        std::fs::write(folder.path().join("vm.toml"), text).unwrap();
        let wire = UnixListener::bind(folder.path().join("wire.sock")).unwrap();
        let mut run = Command::new(VFERRY);
        run.arg("run").arg(folder.path().join("vm.toml"));
        let process = run.stderr(Stdio::piped()).spawn().unwrap();
        let mut serving = Self {
            process,
            _wire: wire,
            folder,
        };
        serving.wait_until(&mut answers);
        serving
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn wait_until(&mut self, answers: &mut dyn FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !answers() {
            if Instant::now() > deadline || self.process.try_wait().unwrap().is_some() {
                let mut said = String::new();
                let _ = self.process.kill();
                let stderr = self.process.stderr.as_mut().unwrap();
                stderr.read_to_string(&mut said).unwrap();
                panic!("it does not serve: {said}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn resolve(&self, options: &[&str]) -> Output {
        let mut command = Command::new(VFERRY);
        command
            .arg("resolve")
            .arg(self.path("vm.toml"))
            .args(options);
        command.output().unwrap()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn where_nothing_is_open_there_is_nothing_to_resolve() {
    let serving = Serving::start();
    let asked = serving.resolve(&[]);
    assert!(asked.status.success(), "{}", text(&asked.stderr));
    let said = text(&asked.stdout);
    assert!(said.contains("nothing is to be resolved"), "{said}");
    let json = serving.resolve(&["--json"]);
    assert!(text(&json.stdout).contains(r#""resolution":"settled""#));
    // Nothing is done to a VM that nobody has asked about.
    for way in ["--run-here", "--give-up-here"] {
        let refused = serving.resolve(&[way]);
        assert_eq!(refused.status.code(), Some(1), "{way}");
        let why = text(&refused.stderr);
        assert!(why.contains("nothing is to be resolved"), "{why}");
    }
    let both = serving.resolve(&["--run-here", "--give-up-here"]);
    assert_eq!(both.status.code(), Some(2), "one of them");
}

#[test]
fn another_host_is_answered_while_others_keep_silent() {
    let serving = Serving::start();
    let link = serving.path("link.sock");
    let silent = [(); 12].map(|()| UnixStream::connect(&link).unwrap());
    let began = Instant::now();
    let stream = UnixStream::connect(&link).unwrap();
    let mut link = Link::greet(Box::new(stream), PATIENCE).unwrap();
    let other = resolve::ask(&mut link, &"0".repeat(32));
    // A process that has just started knows of no migration.
    assert_eq!(other.unwrap(), Other::CannotSay);
    assert!(
        began.elapsed() < Duration::from_secs(8),
        "it waits for none"
    );
    drop(silent);
}

/// How many connections there may be at once, and for how long one may say nothing (`strangers`, `link`).
const PLACES: usize = 16;
const SILENT: Duration = Duration::from_secs(10);

/// The kernel's word on whether the other end has closed it, within `limit`.
fn is_closed(stream: &UnixStream, limit: Duration) -> bool {
    stream.set_read_timeout(Some(limit)).unwrap();
    match { stream }.read(&mut [0]) {
        Ok(count) => count == 0,
        Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
    }
}

#[test]
fn those_who_say_nothing_have_few_places_and_not_for_long() {
    let mut serving = Serving::start();
    let knock = || UnixStream::connect(serving.path("link.sock")).unwrap();
    let moment = Duration::from_millis(200);
    // The first is that which found out that it serves, unless it was seen to go.
    let mut silent = Vec::new();
    let began = Instant::now();
    while silent.len() < PLACES {
        let stream = knock();
        if !is_closed(&stream, moment) {
            silent.push(stream);
        }
        assert!(began.elapsed() < SILENT, "there are places");
    }
    for _ in 0..40 {
        assert!(is_closed(&knock(), PATIENCE), "there is no place more");
    }
    assert!(began.elapsed() < SILENT, "they were not waited for");
    for stream in &silent {
        assert!(is_closed(stream, 2 * SILENT), "it is waited for no longer");
    }
    assert!(began.elapsed() < 2 * SILENT);
    // Then others have their places.
    let mut link = Link::greet(Box::new(knock()), PATIENCE).unwrap();
    let other = resolve::ask(&mut link, &"0".repeat(32));
    assert_eq!(other.unwrap(), Other::CannotSay);
    // Nobody can fill its log.
    let seconds = began.elapsed().as_secs();
    serving.process.kill().unwrap();
    let mut said = String::new();
    let stderr = serving.process.stderr.as_mut().unwrap();
    stderr.read_to_string(&mut said).unwrap();
    let complaints = said.matches("was not taken in").count() as u64;
    assert!((1..=seconds + 2).contains(&complaints), "{said}");
}

/// TLS as the link's stream.
struct Protected(TlsStream);

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

/// Makes itself known at `port`, by what is in `folder`.
fn knock(folder: &Path, port: u16) -> Result<TlsStream, TlsError> {
    let peers = Peers::new(vec!["b.example".parse().unwrap()]).unwrap();
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    tls::connect(stream, folder, &peers, PATIENCE)
}

#[test]
fn over_tls_only_a_peer_is_answered_and_beside_those_who_keep_silent() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new().unwrap();
    let [known, unknown, own] = ["a.example", "c.example", "b.example"].map(|name| {
        let folder = folder.path().join(name);
        authority.write(&folder, &Subject::new(&[name])).unwrap();
        folder
    });
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let migration = format!(
        "link = \"tcp:127.0.0.1:{port}\"\ntls = \"{}\"\npeers = [\"a.example\"]",
        own.display()
    );
    let _serving = Serving::start_at(folder, &migration, || {
        TcpStream::connect(("127.0.0.1", port)).is_ok()
    });

    let began = Instant::now();
    let strangers = [(); 3].map(|()| TcpStream::connect(("127.0.0.1", port)).unwrap());
    let silent = [(); 3].map(|()| knock(&known, port).unwrap());
    let ask = |stream| {
        let mut link = Link::greet(Box::new(Protected(stream)), PATIENCE)?;
        resolve::ask(&mut link, &"0".repeat(32))
    };
    let other = knock(&known, port).map(ask).unwrap();
    assert_eq!(other.unwrap(), Other::CannotSay);
    assert!(
        began.elapsed() < Duration::from_secs(4),
        "it waits for none"
    );
    // Who has another name may hear of that only when it reads.
    let refused = knock(&unknown, port).map(ask);
    assert!(!matches!(refused, Ok(Ok(_))), "{refused:?}");
    drop((strangers, silent));
}
