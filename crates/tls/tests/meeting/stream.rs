//! Reading and writing between hosts that took each other.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use tls::TlsStream;

use super::{SOON, hosts, meet, sockets};

const BRIEF: Duration = Duration::from_millis(100);

fn pair() -> (TlsStream, TlsStream) {
    let (a, b) = hosts();
    let (connected, accepted) = meet(&a, &b);
    let (connected, accepted) = (connected.unwrap(), accepted.unwrap());
    connected.set_limit(Some(SOON));
    accepted.set_limit(Some(SOON));
    (connected, accepted)
}

#[test]
fn what_is_written_arrives_both_ways_and_in_order() {
    let (mut a, mut b) = pair();
    let sent: Vec<u8> = (0..1_000_000u32)
        .map(|n| n.to_le_bytes()[n as usize % 3])
        .collect();
    for _ in 0..2 {
        thread::scope(|scope| {
            scope.spawn(|| a.write_all(&sent).unwrap());
            let mut got = vec![0; sent.len()];
            b.read_exact(&mut got).unwrap();
            assert!(got == sent);
        });
        std::mem::swap(&mut a, &mut b);
    }
}

#[test]
fn a_read_that_runs_out_of_time_loses_nothing() {
    let (mut a, mut b) = pair();
    for word in [b"one", b"two"] {
        b.set_limit(Some(BRIEF));
        let error = b.read(&mut [0; 3]).unwrap_err();
        assert!(matches!(
            error.kind(),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
        ));
        a.write_all(word).unwrap();
        b.set_limit(Some(SOON));
        let mut got = [0; 3];
        b.read_exact(&mut got).unwrap();
        assert_eq!(&got, word);
    }
}

#[test]
fn a_read_that_waits_for_nothing_loses_nothing() {
    let (mut a, mut b) = pair();
    b.set_limit(Some(SOON));
    b.set_nonblocking(true).unwrap();
    let error = b.read(&mut [0; 3]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    b.set_nonblocking(false).unwrap();
    a.write_all(b"one").unwrap();
    let mut got = [0; 3];
    b.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"one");
}

/// What a write had no time for must not come out before what is said next, which could make a whole
/// message of it that was thought not sent.
#[test]
fn a_write_that_failed_is_the_last_one() {
    let (mut a, mut b) = pair();
    a.set_limit(Some(BRIEF));
    let mut written = 0;
    let error = loop {
        match a.write(&[7; 1 << 14]) {
            Ok(count) => written += count,
            Err(error) => break error,
        }
    };
    assert!(matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    ));
    let reading = thread::spawn(move || {
        let mut got = Vec::new();
        let end = b.read_to_end(&mut got);
        (got, end)
    });
    a.set_limit(Some(SOON));
    for _ in 0..2 {
        let error = a.write(b"abort").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
    drop(a);
    let (got, end) = reading.join().unwrap();
    assert_eq!(got.len(), written);
    assert!(got.iter().all(|byte| *byte == 7));
    assert_eq!(end.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
}

/// Each byte of a record comes in time; the record does not.
#[test]
fn a_record_without_an_end_does_not_outlast_the_limit() {
    let (a, b) = hosts();
    let (client, middle) = sockets();
    let (outer, server) = sockets();
    let accepting = thread::spawn(move || tls::accept(server, &b.folder, &b.peers, SOON));
    let relaying = thread::spawn(move || relay(middle, outer));
    let mut client = tls::connect(client, &a.folder, &a.peers, SOON).unwrap();
    let mut server = accepting.join().unwrap().unwrap();
    client.write_all(&[1; 1 << 14]).unwrap();
    let began = Instant::now();
    server.set_limit(Some(BRIEF));
    let error = server.read(&mut [0]).unwrap_err();
    assert!(matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    ));
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    drop((client, server));
    relaying.join().unwrap();
}

/// Passes the handshake on, and what the client says then byte by byte.
fn relay(client: TcpStream, server: TcpStream) {
    let back = (server.try_clone().unwrap(), client.try_clone().unwrap());
    let backwards = thread::spawn(move || io::copy(&mut &back.0, &mut &back.1));
    let (mut from, mut to) = (client, server);
    let mut chunk = [0; 1 << 12];
    loop {
        match from.read(&mut chunk) {
            Ok(count @ 1..4096) => {
                if to.write_all(&chunk[..count]).is_err() {
                    break;
                }
            }
            // More than any part of the handshake.
            Ok(count @ 4096..) => {
                for byte in &chunk[..count] {
                    if to.write_all(&[*byte]).is_err() {
                        break;
                    }
                    thread::sleep(Duration::from_millis(10));
                }
                break;
            }
            _ => break,
        }
    }
    drop((from, to));
    let _ = backwards.join();
}

#[test]
fn a_connection_that_is_closed_and_one_that_is_cut_differ() {
    let (a, mut b) = pair();
    drop(a);
    assert_eq!(b.read(&mut [0]).unwrap(), 0);
    let (a, b) = hosts();
    let (ours, theirs) = sockets();
    let cut = ours.try_clone().unwrap();
    let accepting = thread::spawn(move || tls::accept(theirs, &b.folder, &b.peers, SOON));
    let connected = tls::connect(ours, &a.folder, &a.peers, SOON).unwrap();
    let mut accepted = accepting.join().unwrap().unwrap();
    cut.shutdown(std::net::Shutdown::Both).unwrap();
    accepted.set_limit(Some(SOON));
    let error = accepted.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    drop(connected);
}
