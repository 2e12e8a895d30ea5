//! A QEMU for tests, of which only the monitor is there.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use qemu::Qmp;
use serde_json::{Value, json};

/// One that answers each command by `answer`, which gets its name and its arguments. Once its connection
/// has ended, its thread tells which commands came.
pub(crate) fn qemu(
    mut answer: impl FnMut(&str, &Value) -> Value + Send + 'static,
) -> (Qmp, JoinHandle<Vec<String>>) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let peer = thread::spawn(move || {
        let version = json!({ "qemu": { "micro": 0, "minor": 1, "major": 11 }, "package": "" });
        let greeting = json!({ "QMP": { "version": version, "capabilities": [] } });
        writeln!(theirs, "{greeting}").unwrap();
        let mut heard = Vec::new();
        for line in BufReader::new(theirs.try_clone().unwrap()).lines() {
            let Ok(line) = line else { break };
            let command: Value = serde_json::from_str(&line).unwrap();
            let name = command["execute"].as_str().unwrap();
            heard.push(name.to_owned());
            let answer = answer(name, &command["arguments"]);
            // Events come before the answer to what has brought them about.
            let event = (name == "system_reset").then(|| {
                let data = json!({ "guest": false, "reason": "host-qmp-system-reset" });
                let timestamp = json!({ "seconds": 1, "microseconds": 0 });
                json!({ "event": "RESET", "data": data, "timestamp": timestamp })
            });
            let answer = json!({ "return": answer, "id": command["id"] });
            let mut said = event.into_iter().chain([answer]);
            if said.any(|line| writeln!(theirs, "{line}").is_err()) {
                break;
            }
        }
        heard
    });
    let soon = Instant::now() + Duration::from_secs(10);
    (Qmp::from_stream(ours, soon).unwrap(), peer)
}
