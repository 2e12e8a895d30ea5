//! A peer that is none.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tls::{Flaw, TlsError};

use super::{Host, SOON, hosts, sockets};

/// Long enough to see that it ends, and short enough to wait for.
const BRIEF: Duration = Duration::from_millis(300);

/// What the accepting side makes of a client that does `what`.
fn accept_from(host: &Host, limit: Duration, what: impl FnOnce(TcpStream) + Send) -> TlsError {
    let (client, server) = sockets();
    thread::scope(|scope| {
        scope.spawn(|| what(client));
        tls::accept(server, &host.folder, &host.peers, limit).unwrap_err()
    })
}

#[test]
fn one_that_speaks_no_tls_is_told_apart_from_one_that_does() {
    let (_, b) = hosts();
    let error = accept_from(&b, SOON, |mut client| {
        client
            .write_all(b"\0\0\0\x15{\"message\":\"goodbye\"}")
            .unwrap();
    });
    assert!(matches!(error, TlsError::NotTls), "{error}");

    let (a, _) = hosts();
    let (client, mut server) = sockets();
    thread::scope(|scope| {
        scope.spawn(move || {
            server
                .write_all(b"\0\0\0\x15{\"message\":\"goodbye\"}")
                .unwrap();
            let _ = server.read_to_end(&mut Vec::new());
        });
        let error = tls::connect(client, &a.folder, &a.peers, SOON).unwrap_err();
        assert!(matches!(error, TlsError::NotTls), "{error}");
        assert!(
            error.to_string().contains("set `tls` and `peers`"),
            "{error}"
        );
    });
}

#[test]
fn silence_ends_at_the_deadline() {
    let (a, b) = hosts();
    let error = accept_from(&b, BRIEF, |mut client| {
        let _ = client.read(&mut [0]);
    });
    assert!(matches!(error, TlsError::Timeout(BRIEF)), "{error}");
    let (client, server) = sockets();
    let error = tls::connect(client, &a.folder, &a.peers, BRIEF).unwrap_err();
    assert!(matches!(error, TlsError::Timeout(BRIEF)), "{error}");
    drop(server);
}

/// Each byte comes in time; the handshake does not.
#[test]
fn a_handshake_without_an_end_ends_at_the_deadline() {
    let (_, b) = hosts();
    let began = Instant::now();
    let error = accept_from(&b, BRIEF, |mut client| {
        // A record that announces 512 bytes of a handshake message, and its bytes one by one.
        let _ = client.write_all(&[22, 3, 1, 2, 0, 1, 0, 1, 252]);
        while client.write_all(&[0]).is_ok() {
            thread::sleep(Duration::from_millis(20));
        }
    });
    assert!(matches!(error, TlsError::Timeout(BRIEF)), "{error}");
    assert!(began.elapsed() < SOON);
}

#[test]
fn garbage_and_boasting_are_refused() {
    let (_, b) = hosts();
    for (what, bytes) in [
        (
            "a handshake message of 16 MiB",
            &[22, 3, 1, 0, 4, 1, 255, 255, 255][..],
        ),
        ("a record longer than any", &[22, 3, 1, 255, 255]),
        ("a record with nothing in it", &[22, 3, 1, 0, 0]),
        ("a hello that is none", &[22, 3, 1, 0, 6, 1, 0, 0, 2, 7, 7]),
        ("what comes later", &[22, 3, 1, 0, 4, 20, 0, 0, 0]),
    ] {
        let error = accept_from(&b, SOON, |mut client| {
            let _ = client.write_all(bytes);
            let _ = client.read_to_end(&mut Vec::new());
        });
        assert!(matches!(error, TlsError::Protocol(_)), "{what}: {error}");
    }
}

#[test]
fn one_that_leaves_in_the_handshake_is_gone() {
    let (_, b) = hosts();
    for bytes in [&[][..], &[22, 3, 1]] {
        let error = accept_from(&b, SOON, |mut client| client.write_all(bytes).unwrap());
        assert!(matches!(error, TlsError::Closed), "{error}");
    }
}

#[test]
fn one_without_a_certificate_is_not_taken() {
    let (_, b) = hosts();
    let authority = std::fs::read(b.folder.join("ca-cert.pem")).unwrap();
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(&authority).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"vferry-link".to_vec()];
    let name = "b.example".try_into().unwrap();
    let mut connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let error = accept_from(&b, SOON, move |mut client| {
        while connection.complete_io(&mut client).is_ok() {}
    });
    assert!(matches!(error, TlsError::Refused(Flaw::Missing)), "{error}");
}

#[test]
fn an_older_tls_is_refused() {
    let (_, b) = hosts();
    // A client's hello without extensions, as of TLS 1.2 (RFC 5246, section 7.4.1.2): one
    // suite, no compression.
    let mut hello = vec![22, 3, 1, 0, 45, 1, 0, 0, 41, 3, 3];
    hello.extend([7; 32]);
    hello.extend([0, 0, 2, 0xc0, 0x2f, 1, 0]);
    let error = accept_from(&b, SOON, |mut client| {
        client.write_all(&hello).unwrap();
        let _ = client.read_to_end(&mut Vec::new());
    });
    assert!(error.to_string().contains("no TLS 1.3"), "{error}");
}
