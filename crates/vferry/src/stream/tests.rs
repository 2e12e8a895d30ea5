//! The control link between two configurations.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;

use authority::{Authority, Subject};
use ferry::link::{DigestKey, Link, LinkError, Message, greeting};
use tempfile::TempDir;

use super::*;

const SOON: Duration = Duration::from_secs(10);

/// A host's configuration, whose `[migration]` has `protection` in it.
fn config(protection: &str) -> Config {
    let text = format!(
        r#"[vm]
name = "web"
memory = "512M"
[qemu]
qmp = "/tmp/qmp.sock"
[control]
socket = "/tmp/control.sock"
[sidecar]
socket = "/tmp/sidecar.sock"
address = "00:06.0"
[migration]
link = "tcp:127.0.0.1:7800"
incoming = "unix:/tmp/incoming.sock"
{protection}
[[device]]
name = "net0"
model = "ixgbevf"
socket = "/tmp/net0.sock"
address = "00:05.0"
mac = "02:00:00:00:00:01"
uplink = "tap:vf0"
"#
    );
    Config::parse(Path::new("web.toml"), &text).unwrap()
}

/// Two hosts that take each other, and where their certificates are.
fn hosts() -> ([Config; 2], TempDir) {
    let root = tempfile::tempdir().unwrap();
    let authority = Authority::new().unwrap();
    let host = |name: &str, peer: &str| {
        let folder = root.path().join(name);
        let names = [format!("{name}.example")];
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        authority.write(&folder, &Subject::new(&names)).unwrap();
        let folder = folder.display();
        config(&format!("tls = \"{folder}\"\npeers = [\"{peer}.example\"]"))
    };
    ([host("a", "b"), host("b", "a")], root)
}

/// Begins a conversation, and says what each side made of it.
fn meet(source: &Config, destination: &Config) -> [Result<Link, String>; 2] {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = Endpoint::Tcp(listener.local_addr().unwrap());
    let acceptor = Acceptor::Tcp(listener);
    thread::scope(|scope| {
        let welcoming = scope.spawn(move || {
            let stranger = acceptor.accept().unwrap();
            let host = accept(stranger, &destination.protection).map_err(|e| e.to_string())?;
            Link::welcome(host.stream, SOON).map_err(|e| e.to_string())
        });
        let greeted = connect(&to, source)
            .map_err(|e| format!("{e:#}"))
            .and_then(|there| Link::greet(there.stream, SOON).map_err(|e| e.to_string()));
        [greeted, welcoming.join().unwrap()]
    })
}

/// Both sides' words.
fn quarrel(source: &Config, destination: &Config) -> [String; 2] {
    meet(source, destination).map(|met| met.expect_err("they met"))
}

#[test]
fn hosts_that_name_each_other_speak() {
    let ([a, b], _root) = hosts();
    let [source, destination] = meet(&a, &b).map(Result::unwrap);
    assert_eq!(source.version(), greeting::NEWEST);
    converse(source, destination, &[7; 10_000]);
}

#[test]
fn a_host_that_is_not_named_reads_why() {
    let ([a, b], root) = hosts();
    let folder = root.path().join("b");
    let folder = folder.display();
    let strict = config(&format!("tls = \"{folder}\"\npeers = [\"c.example\"]"));
    let [source, destination] = quarrel(&a, &strict);
    assert!(
        source.contains("refused this host's client-cert.pem"),
        "{source}"
    );
    assert!(destination.contains("a.example"), "{destination}");
    let [source, destination] = quarrel(&strict, &b);
    assert!(source.contains("names c.example"), "{source}");
    assert!(destination.contains("server-cert.pem"), "{destination}");
}

#[test]
fn of_a_protected_side_and_a_plain_one_both_read_what_to_set() {
    let ([a, _], _root) = hosts();
    let plain = config("");
    let cure = "set `tls` and `peers`";
    let [source, destination] = quarrel(&plain, &a);
    assert!(source.contains("the destination wants TLS"), "{source}");
    assert!(source.contains(cure), "{source}");
    assert!(destination.contains("does not speak TLS"), "{destination}");
    let [source, destination] = quarrel(&a, &plain);
    assert!(source.contains("does not speak TLS"), "{source}");
    assert!(source.contains(cure), "{source}");
    assert!(destination.contains("speaks TLS"), "{destination}");
    assert!(destination.contains(cure), "{destination}");
}

/// Before anything is sent there.
#[test]
fn a_migration_in_the_open_is_refused_with_file_line_and_remedy() {
    let to = "tcp:192.0.2.2:7800".parse().unwrap();
    let Err(error) = connect(&to, &config("")) else {
        panic!("connected")
    };
    let error = error.to_string();
    assert!(error.starts_with("web.toml:12: "), "{error}");
    assert!(
        error.contains("write instead: in [migration], tls = "),
        "{error}"
    );
}

#[test]
fn hosts_without_protection_speak_on_loopback() {
    let [source, destination] = meet(&config(""), &config("")).map(Result::unwrap);
    converse(source, destination, &[7; 10_000]);
}

/// What a migration says that must not be known, from the source to the destination.
fn converse(mut source: Link, mut destination: Link, memory: &[u8]) -> DigestKey {
    let digest_key = DigestKey::new().unwrap();
    let prepare = Message::Prepare {
        migration: ferry::link::name().unwrap(),
        digest_key: digest_key.clone(),
        functions: Vec::new(),
        root_ports: Vec::new(),
        verify: true,
        compare: true,
    };
    let pages = Message::Pages {
        file: 0,
        pages: vec![0],
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            source.send(&prepare, SOON).unwrap();
            source.send(&pages, SOON).unwrap();
            source.send_bytes(memory, SOON).unwrap();
            assert_eq!(source.receive(SOON).unwrap(), Message::PagesWritten);
            source.send(&Message::GuestEnd, SOON).unwrap();
        });
        assert_eq!(destination.receive(SOON).unwrap(), prepare);
        assert_eq!(destination.receive(SOON).unwrap(), pages);
        let got = destination.receive_bytes(memory.len(), SOON).unwrap();
        assert!(got == memory);
        destination.send(&Message::PagesWritten, SOON).unwrap();
        let error = ferry::link::unexpected(&destination.receive(SOON).unwrap());
        assert!(matches!(error, LinkError::Unexpected(_)));
        tracing::error!(%error, ?prepare, "as one that fails would be told");
    });
    digest_key
}

/// At the most talkative level, and with the messages themselves in the log.
#[test]
fn no_log_has_a_secret_or_memory_in_it() {
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    let ([a, b], root) = hosts();
    let memory = b"what the guest has in its memory, and nobody else".repeat(400);
    // For all threads: this is the only test of this program that sets one.
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let [source, destination] = meet(&a, &b).map(Result::unwrap);
    let key = converse(source, destination, &memory);
    let said = log.0.lock().unwrap().clone();
    let said = String::from_utf8_lossy(&said);
    assert!(said.contains("as one that fails"), "it has heard: {said}");
    let hex = String::from(key);
    assert!(!said.contains(&hex), "{said}");
    let decimal = hex.as_bytes().chunks(2).take(4).map(|digits| {
        let digits = std::str::from_utf8(digits).unwrap();
        u8::from_str_radix(digits, 16).unwrap().to_string()
    });
    let decimal: Vec<_> = decimal.collect();
    assert!(!said.contains(&decimal.join(", ")), "{said}");
    assert!(!said.contains("in its memory"), "{said}");
    assert!(!said.contains("119, 104, 97, 116"), "{said}");
    for role in ["client", "server"] {
        let path = root.path().join(format!("a/{role}-key.pem"));
        let pem = std::fs::read_to_string(path).unwrap();
        assert!(!said.contains(pem.lines().nth(1).unwrap()), "{said}");
    }
}

/// A stranger that is let on, and then sends what is no message.
#[test]
fn a_named_host_that_sends_garbage_is_refused() {
    let ([a, b], _root) = hosts();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = Endpoint::Tcp(listener.local_addr().unwrap());
    let acceptor = Acceptor::Tcp(listener);
    for (bytes, wanted) in [
        (&[0xff; 64][..], "more than the"),
        (b"\0\0\0\x02{}", "not a message of this version"),
        (b"\0\0\0\x09{", "closed"),
        (b"", "closed"),
    ] {
        let error = thread::scope(|scope| {
            scope.spawn(|| {
                let mut there = connect(&to, &a).unwrap();
                there.stream.write_all(bytes).unwrap();
                if bytes.len() > 8 {
                    let _ = there.stream.read(&mut [0]);
                }
            });
            let host = accept(acceptor.accept().unwrap(), &b.protection).unwrap();
            assert_eq!(host.peer.unwrap().to_string(), "a.example");
            Link::welcome(host.stream, SOON).unwrap_err().to_string()
        });
        assert!(error.contains(wanted), "{error}");
    }
}
