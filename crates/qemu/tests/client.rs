//! The client against a peer that we control: a thread on the other end of a socket pair.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use qemu::message::MAX_LINE;
use qemu::migration::{MigrationSettings, MigrationStatus};
use qemu::monitor::Width;
use qemu::system::Rests;
use qemu::{Disconnect, PciAddress, Qmp, QmpError};
use serde_json::{Value, json};

const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 3, "minor": 1, "major": 11},
    "package": ""}, "capabilities": ["oob"]}}"#;

/// The other end, which reads commands and writes what it is told to.
struct Peer {
    lines: BufReader<UnixStream>,
    stream: UnixStream,
}

impl Peer {
    fn new(stream: UnixStream) -> Self {
        Self {
            lines: BufReader::new(stream.try_clone().unwrap()),
            stream,
        }
    }

    /// Greets, and answers the capabilities negotiation.
    fn greet(&mut self) {
        self.write(&GREETING.replace('\n', " "));
        let command = self.read().unwrap();
        assert_eq!(command["execute"], "qmp_capabilities");
        assert_eq!(command["arguments"]["enable"], json!(["oob"]));
        self.answer(&command, &json!({}));
    }

    fn read(&mut self) -> Option<Value> {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        serde_json::from_str(&line).ok()
    }

    /// A client that has already hung up is part of some tests.
    fn write(&mut self, line: &str) {
        let _ = self.stream.write_all(format!("{line}\r\n").as_bytes());
    }

    fn answer(&mut self, command: &Value, result: &Value) {
        self.write(&json!({ "return": result, "id": command["id"] }).to_string());
    }

    /// Waits for the client's `begin`, which it sends when its event readers stand.
    fn begin(&mut self) {
        let command = self.read().unwrap();
        assert_eq!(command["execute"], "begin");
        self.answer(&command, &json!({}));
    }

    fn refuse(&mut self, command: &Value, description: &str) {
        let error = json!({ "class": "GenericError", "desc": description });
        self.write(&json!({ "error": error, "id": command["id"] }).to_string());
    }

    fn event(&mut self, name: &str, data: &Value) {
        let timestamp = json!({ "seconds": 1, "microseconds": 500_000 });
        self.write(&json!({ "event": name, "data": data, "timestamp": timestamp }).to_string());
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

fn in_ms(milliseconds: u64) -> Instant {
    Instant::now() + Duration::from_millis(milliseconds)
}

/// A connected client, and the peer that runs `script` after the handshake.
fn with_peer(script: impl FnOnce(&mut Peer) + Send + 'static) -> (Qmp, JoinHandle<()>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let peer = thread::spawn(move || {
        let mut peer = Peer::new(theirs);
        peer.greet();
        script(&mut peer);
    });
    (Qmp::from_stream(ours, soon()).unwrap(), peer)
}

/// What `from_stream` says to a peer that sends exactly these bytes.
fn handshake_with(bytes: Vec<u8>) -> QmpError {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let peer = thread::spawn(move || {
        let _ = theirs.write_all(&bytes);
    });
    let error = Qmp::from_stream(ours, soon()).unwrap_err();
    peer.join().unwrap();
    error
}

/// Its main loop is held up: it answers what is out of band, and the rest when it goes on.
#[test]
fn a_stream_is_cut_under_a_qemu_that_answers_nothing_else() {
    let (qmp, peer) = with_peer(|peer| {
        let held_up = peer.read().unwrap();
        assert_eq!(held_up["execute"], "query-migrate");
        let cut = peer.read().unwrap();
        assert_eq!(cut["exec-oob"], "yank");
        assert_eq!(
            cut["arguments"]["instances"],
            json!([{ "type": "migration" }])
        );
        peer.answer(&cut, &json!({}));
        peer.answer(&held_up, &json!({ "status": "failed" }));
    });
    let held_up = qmp.execute_by("query-migrate", json!({}), in_ms(10));
    assert!(
        matches!(held_up, Err(QmpError::Timeout { .. })),
        "{held_up:?}"
    );
    qmp.cut_migration().unwrap();
    peer.join().unwrap();
}

#[test]
fn a_monitor_without_out_of_band_commands_is_used_as_it_is() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let peer = thread::spawn(move || {
        let mut peer = Peer::new(theirs);
        peer.write(&GREETING.replace('\n', " "));
        let command = peer.read().unwrap();
        peer.refuse(&command, "This monitor does not support Out-Of-Band (OOB)");
        let command = peer.read().unwrap();
        assert_eq!(command["execute"], "qmp_capabilities");
        assert_eq!(command["arguments"], json!({}));
        peer.answer(&command, &json!({}));
    });
    Qmp::from_stream(ours, soon()).unwrap();
    peer.join().unwrap();
}

#[test]
fn a_command_gets_its_own_answer_amid_events() {
    let (qmp, peer) = with_peer(|peer| {
        let command = peer.read().unwrap();
        assert_eq!(command["arguments"]["name"], "x");
        peer.event("STOP", &Value::Null);
        peer.write(&json!({ "return": "of nobody", "id": 999 }).to_string());
        peer.answer(&command, &json!([1, 2]));
    });
    assert_eq!(qmp.version().to_string(), "11.1.3");
    assert_eq!(
        qmp.execute("query-x", json!({ "name": "x" })).unwrap(),
        json!([1, 2])
    );
    peer.join().unwrap();
}

#[test]
fn concurrent_callers_each_get_their_answer() {
    let (qmp, peer) = with_peer(|peer| {
        while let Some(command) = peer.read() {
            let echo = command["arguments"].clone();
            peer.answer(&command, &echo);
        }
    });
    thread::scope(|scope| {
        for caller in 0..4 {
            let qmp = &qmp;
            scope.spawn(move || {
                for round in 0..100 {
                    let arguments = json!({ "caller": caller, "round": round });
                    assert_eq!(qmp.execute("echo", arguments.clone()).unwrap(), arguments);
                }
            });
        }
    });
    drop(qmp);
    peer.join().unwrap();
}

#[test]
fn a_refusal_carries_qemus_words() {
    let (qmp, peer) = with_peer(|peer| {
        let command = peer.read().unwrap();
        peer.refuse(&command, "There's a migration process in progress");
    });
    let error = qmp.migrate("tcp:host:1").unwrap_err();
    assert_eq!(
        error.to_string(),
        "QEMU refused `migrate`: There's a migration process in progress"
    );
    peer.join().unwrap();
}

#[test]
fn a_late_answer_is_not_taken_for_the_next_one() {
    let (qmp, peer) = with_peer(|peer| {
        let slow = peer.read().unwrap();
        let quick = peer.read().unwrap();
        peer.answer(&slow, &json!("late"));
        peer.answer(&quick, &json!("right"));
    });
    let error = qmp.execute_by("slow", json!({}), in_ms(20)).unwrap_err();
    assert!(matches!(&error, QmpError::Timeout { waiting_for, .. } if waiting_for == "`slow`"));
    assert_eq!(qmp.execute("quick", json!({})).unwrap(), "right");
    peer.join().unwrap();
}

#[test]
fn a_qemu_that_dies_ends_every_wait() {
    let (qmp, peer) = with_peer(|peer| {
        peer.begin();
        peer.event("SHUTDOWN", &json!({ "guest": false }));
        peer.read().unwrap();
    });
    let mut events = qmp.events();
    qmp.execute("begin", json!({})).unwrap();
    let error = qmp.stop().unwrap_err();
    assert!(error.to_string().contains("QEMU went away"), "{error}");
    // What came before the end is still delivered.
    assert_eq!(
        events
            .next(soon())
            .map_or_else(|_| String::new(), |e| e.name),
        "SHUTDOWN"
    );
    assert!(matches!(
        events.next(soon()),
        Err(QmpError::Disconnected { .. })
    ));
    assert!(qmp.quit().is_ok(), "a QEMU that is gone has quit");
    peer.join().unwrap();
}

#[test]
fn every_reader_sees_every_event_from_its_start_on() {
    let (qmp, peer) = with_peer(|peer| {
        peer.begin();
        for state in ["setup", "active", "completed"] {
            peer.event("MIGRATION", &json!({ "status": state }));
        }
        let command = peer.read().unwrap();
        peer.answer(&command, &json!({}));
        peer.event("STOP", &Value::Null);
        peer.read();
    });
    let (mut first, mut second) = (qmp.events(), qmp.events());
    qmp.execute("begin", json!({})).unwrap();
    let completed = |event: &qemu::Event| event.data["status"] == "completed";
    let event = first.wait_for("MIGRATION", completed, soon()).unwrap();
    assert_eq!(event.timestamp, Some(Duration::from_millis(1500)));
    let mut late = qmp.events();
    assert_eq!(second.pending().count(), 3);
    qmp.execute("go-on", json!({})).unwrap();
    assert_eq!(late.next(soon()).unwrap().name, "STOP");
    let error = late.wait_for("RESUME", |_| true, in_ms(20)).unwrap_err();
    assert!(error.to_string().contains("event RESUME"), "{error}");
    drop(qmp);
    peer.join().unwrap();
}

#[test]
fn a_reader_that_is_too_slow_is_told_what_it_lost() {
    let (qmp, peer) = with_peer(|peer| {
        peer.begin();
        for number in 0..2000 {
            peer.event("NOISE", &json!({ "number": number }));
        }
        let command = peer.read().unwrap();
        peer.answer(&command, &json!({}));
    });
    let mut events = qmp.events();
    qmp.execute("begin", json!({})).unwrap();
    qmp.execute("go-on", json!({})).unwrap();
    let Err(QmpError::EventsLost { missed }) = events.next(soon()) else {
        panic!("no loss told")
    };
    assert!(missed >= 2000 - 1024, "{missed}");
    let next = events.next(soon()).unwrap();
    assert_eq!(next.data["number"], missed);
    peer.join().unwrap();
}

#[test]
fn large_events_are_not_hoarded() {
    let (qmp, peer) = with_peer(|peer| {
        peer.begin();
        let text = "x".repeat(1 << 19);
        for number in 0..8 {
            peer.event("BIG", &json!({ "number": number, "text": text }));
        }
        let command = peer.read().unwrap();
        peer.answer(&command, &json!({}));
    });
    let mut events = qmp.events();
    qmp.execute("begin", json!({})).unwrap();
    qmp.execute("go-on", json!({})).unwrap();
    assert!(matches!(
        events.next(soon()),
        Err(QmpError::EventsLost { missed: 7 })
    ));
    assert_eq!(events.next(soon()).unwrap().data["number"], 7);
    peer.join().unwrap();
}

#[test]
fn a_missing_socket_is_answered_with_the_argument_that_makes_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qmp");
    let error = Qmp::connect(&path, Instant::now()).unwrap_err().to_string();
    assert!(
        error.contains(&format!("-qmp unix:{},server=on,wait=off", path.display())),
        "{error}"
    );
    // A socket file whose QEMU is gone is the same to the operator.
    drop(UnixListener::bind(&path).unwrap());
    assert!(matches!(
        Qmp::connect(&path, in_ms(20)),
        Err(QmpError::NoListener { .. })
    ));
}

#[test]
fn a_socket_that_appears_in_time_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qmp");
    let listening = path.clone();
    let peer = thread::spawn(move || {
        thread::sleep(Duration::from_millis(50));
        let listener = UnixListener::bind(listening).unwrap();
        Peer::new(listener.accept().unwrap().0).greet();
    });
    Qmp::connect(&path, soon()).unwrap();
    peer.join().unwrap();
}

#[test]
fn a_monitor_held_by_another_client_is_explained() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let error = Qmp::from_stream(ours, in_ms(20)).unwrap_err();
    assert!(
        error.to_string().contains("one client at a time"),
        "{error}"
    );
}

#[test]
fn what_is_not_qmp_ends_the_connection_with_the_reason() {
    for (bytes, reason) in [
        (b"SSH-2.0-OpenSSH\r\n".to_vec(), "invalid JSON"),
        (b"{\"return\": {}}\n".to_vec(), "not a QMP greeting"),
        (vec![b'x'; MAX_LINE + 2], "a line longer than"),
        (
            [&b"{\"QMP\": "[..], &vec![b'['; 100_000], b"\n"].concat(),
            "invalid JSON",
        ),
        (Vec::new(), "QEMU went away"),
        (b"{\"QMP\": {\"version\"".to_vec(), "QEMU went away"),
    ] {
        let error = handshake_with(bytes).to_string();
        assert!(error.contains(reason), "expected {reason}, got {error}");
    }
}

#[test]
fn garbage_after_the_handshake_ends_the_connection() {
    let (qmp, peer) = with_peer(|peer| {
        peer.read().unwrap();
        peer.write("}{");
        peer.read();
    });
    let error = qmp.cont().unwrap_err();
    let QmpError::Disconnected {
        reason: Disconnect::Malformed(_),
        ..
    } = error
    else {
        panic!("{error}")
    };
    assert!(
        matches!(qmp.cont(), Err(QmpError::Disconnected { .. })),
        "and stays ended"
    );
    drop(qmp);
    peer.join().unwrap();
}

#[test]
fn postcopy_is_refused_before_anything_is_set() {
    let (qmp, peer) = with_peer(|peer| {
        let command = peer.read().unwrap();
        assert_eq!(command["execute"], "query-migrate-capabilities");
        let on = json!({ "capability": "postcopy-ram", "state": true });
        let off = json!({ "capability": "x-colo", "state": false });
        peer.answer(&command, &json!([off, on]));
        assert!(peer.read().is_none(), "nothing else may be sent");
    });
    let error = qmp
        .prepare_migration(&MigrationSettings::default())
        .unwrap_err();
    assert!(
        matches!(&error, QmpError::UnsoundCapability { capability, .. }
        if capability == "postcopy-ram")
    );
    assert!(
        error.to_string().contains("before its memory has arrived"),
        "{error}"
    );
    drop(qmp);
    peer.join().unwrap();
}

#[test]
fn a_migration_is_prepared_with_return_path_and_limits() {
    let (qmp, peer) = with_peer(|peer| {
        let command = peer.read().unwrap();
        peer.answer(
            &command,
            &json!([{ "capability": "postcopy-ram", "state": false }]),
        );
        let command = peer.read().unwrap();
        assert_eq!(
            command["arguments"]["capabilities"],
            json!([
                { "capability": "events", "state": true },
                { "capability": "return-path", "state": true },
                { "capability": "pause-before-switchover", "state": true },
            ])
        );
        peer.answer(&command, &json!({}));
        let command = peer.read().unwrap();
        let limits = json!({
            "max-bandwidth": 5,
            "downtime-limit": 70,
            "avail-switchover-bandwidth": 1_000_000,
        });
        assert_eq!(command["arguments"], limits);
        peer.answer(&command, &json!({}));
    });
    qmp.prepare_migration(&MigrationSettings {
        pause_before_switchover: true,
        max_bandwidth: Some(5),
        downtime_limit: Some(Duration::from_millis(70)),
        switchover_bandwidth: Some(1_000_000),
    })
    .unwrap();
    peer.join().unwrap();
}

#[test]
fn config_space_access_leaves_the_guests_address_port_as_it_was() {
    let (qmp, peer) = with_peer(|peer| {
        for (line, output) in [
            ("i /w 0xcf8", "portl[0x0cf8] = 0x80001234\r\n"),
            ("o /w 0xcf8 0x80002804", ""),
            ("o /h 0xcfc 0x6", ""),
            ("o /w 0xcf8 0x8000283c", ""),
            ("i /b 0xcff", "portb[0x0cff] = 0x2a\r\n"),
            ("o /w 0xcf8 0x80002800", ""),
            ("o /w 0xcfc 0x1", "'o' has failed\r\n"),
            ("o /w 0xcf8 0x80001234", ""),
        ] {
            let command = peer.read().unwrap();
            assert_eq!(command["arguments"]["command-line"], line);
            peer.answer(&command, &json!(output));
        }
    });
    let address = PciAddress::new(0, 5, 0).unwrap();
    let result = qmp.with_pci_config(|config| {
        config.write(address, 4, Width::Half, 0xffff_0006)?;
        assert_eq!(config.read(address, 0x3f, Width::Byte)?, 0x2a);
        assert!(
            config.read(address, 0x3f, Width::Half).is_err(),
            "misaligned"
        );
        config.write(address, 0, Width::Word, 1)
    });
    assert!(
        matches!(result, Err(QmpError::Monitor { .. })),
        "{result:?}"
    );
    peer.join().unwrap();
}

/// Who is told of rests, and what was.
#[derive(Debug, Default)]
struct Told(Mutex<Vec<&'static str>>);

impl Rests for Told {
    fn begin(&self) {
        self.0.lock().unwrap().push("begin");
    }

    fn end(&self) {
        self.0.lock().unwrap().push("end");
    }
}

#[test]
fn it_is_told_that_the_vcpus_are_stopped_for_a_moment_before_they_are_and_until_they_run() {
    let told = Arc::new(Told::default());
    let seen = Arc::clone(&told);
    let said = move || seen.0.lock().unwrap().clone();
    let (qmp, peer) = with_peer(move |peer| {
        for expected in [&["begin"][..], &["begin", "end", "begin"]] {
            for name in ["stop", "cont"] {
                let command = peer.read().unwrap();
                assert_eq!(command["execute"], name);
                assert_eq!(said(), expected);
                if expected.len() > 1 && name == "cont" {
                    peer.refuse(&command, "no");
                } else {
                    peer.answer(&command, &json!({}));
                }
            }
        }
    });
    let qmp = qmp.telling(Arc::clone(&told) as _);
    let rest = || qmp.while_stopped(|| Ok::<_, QmpError>(()));
    rest().unwrap().unwrap();
    assert_eq!(*told.0.lock().unwrap(), ["begin", "end"]);
    // The vCPUs may stand still.
    rest().unwrap_err();
    assert_eq!(*told.0.lock().unwrap(), ["begin", "end", "begin"]);
    peer.join().unwrap();
}

#[test]
fn an_address_port_that_could_not_be_restored_is_an_error() {
    let (qmp, peer) = with_peer(|peer| {
        for output in ["portl[0x0cf8] = 0x0\r\n", "'o' has failed\r\n"] {
            let command = peer.read().unwrap();
            peer.answer(&command, &json!(output));
        }
    });
    let result = qmp.with_pci_config(|_| Ok::<_, QmpError>(()));
    assert!(
        matches!(result, Err(QmpError::Monitor { .. })),
        "{result:?}"
    );
    peer.join().unwrap();
}

#[test]
fn an_answer_of_the_wrong_shape_names_the_command() {
    let (qmp, peer) = with_peer(|peer| {
        for answer in [
            json!("text"),
            json!({ "status": 5 }),
            json!({ "status": "active" }),
        ] {
            let command = peer.read().unwrap();
            peer.answer(&command, &answer);
        }
    });
    for _ in 0..2 {
        let error = qmp.migration().unwrap_err().to_string();
        assert!(error.contains("`query-migrate`"), "{error}");
    }
    assert_eq!(qmp.migration().unwrap().status, MigrationStatus::Active);
    peer.join().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_peer_makes_the_client_panic_or_hang(bytes: Vec<u8>, greet: bool) {
        let mut sent = if greet { GREETING.replace('\n', " ").into_bytes() } else { Vec::new() };
        if greet {
            sent.push(b'\n');
        }
        sent.extend(bytes);
        let error = handshake_with(sent);
        let ended = matches!(error, QmpError::Disconnected { .. });
        prop_assert!(ended, "{}", error);
    }
}
