//! What QEMU is told so that it protects its stream.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use qemu::Qmp;
use qemu::stream_tls::{StreamSide, StreamTls};
use serde_json::{Value, json};

/// A QEMU that gives these answers. Returns what it was asked for then.
fn asked(tls: Option<&StreamTls>, answers: Vec<Value>) -> Vec<(String, Value)> {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let peer = thread::spawn(move || {
        let mut writer = theirs.try_clone().unwrap();
        let mut lines = BufReader::new(theirs).lines().map_while(Result::ok);
        let version = json!({ "qemu": { "major": 11, "minor": 1, "micro": 3 }, "package": "" });
        let greeting = json!({ "QMP": { "version": version, "capabilities": [] } });
        writeln!(writer, "{greeting}").unwrap();
        let mut answers = [json!({ "return": {} })].into_iter().chain(answers);
        let mut asked = Vec::new();
        while let (Some(line), Some(mut answer)) = (lines.next(), answers.next()) {
            let command: Value = serde_json::from_str(&line).unwrap();
            answer["id"] = command["id"].clone();
            writeln!(writer, "{answer}").unwrap();
            let name = command["execute"].as_str().unwrap().to_owned();
            asked.push((name, command["arguments"].clone()));
        }
        asked.split_off(1)
    });
    let qmp = Qmp::from_stream(ours, Instant::now() + Duration::from_secs(10)).unwrap();
    qmp.protect_stream(tls).unwrap();
    drop(qmp);
    peer.join().unwrap()
}

fn ok() -> Value {
    json!({ "return": {} })
}

fn tls(side: StreamSide) -> StreamTls {
    StreamTls {
        folder: "/etc/vferry/tls".into(),
        side,
        authz: None,
    }
}

#[test]
fn a_source_expects_the_name_that_the_link_has_seen() {
    let source = tls(StreamSide::Source("b.example".into()));
    let absent = json!({ "error": { "class": "GenericError", "desc": "not found" } });
    let asked = asked(Some(&source), vec![absent, ok(), ok()]);
    let [(del, _), (add, object), (set, parameters)] = &asked[..] else {
        panic!("{asked:?}")
    };
    assert_eq!((del.as_str(), add.as_str()), ("object-del", "object-add"));
    assert_eq!(object["endpoint"], "client");
    assert_eq!(object["dir"], "/etc/vferry/tls");
    assert_eq!(object["verify-peer"], true);
    assert_eq!(set, "migrate-set-parameters");
    assert_eq!(parameters["tls-creds"], object["id"]);
    assert_eq!(parameters["tls-hostname"], "b.example");
    assert_eq!(parameters["tls-authz"], "");
}

#[test]
fn a_destination_wants_a_certificate_and_asks_who_may() {
    let mut destination = tls(StreamSide::Destination);
    destination.authz = Some("hosts".into());
    let asked = asked(Some(&destination), vec![ok(), ok(), ok()]);
    assert_eq!(asked[1].1["endpoint"], "server");
    assert_eq!(asked[1].1["verify-peer"], true);
    assert_eq!(asked[2].1["tls-hostname"], "");
    assert_eq!(asked[2].1["tls-authz"], "hosts");
}

#[test]
fn without_tls_only_what_was_set_before_is_taken_back() {
    let operators = json!({ "return": { "tls-creds": "operators" } });
    assert_eq!(asked(None, vec![operators]).len(), 1);
    let own = json!({ "return": { "tls-creds": "vferry-tls" } });
    let asked = asked(None, vec![own, ok()]);
    assert_eq!(asked[1].0, "migrate-set-parameters");
    assert_eq!(asked[1].1["tls-creds"], "");
}
