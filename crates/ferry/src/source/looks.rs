//! When a migration is looked at.

use std::time::{Duration, Instant};

use qemu::{Event, Events, QmpError};

/// QEMU's events, and when it is time to look for oneself: however much QEMU tells meanwhile, which in
/// a VM that is held is the end of a pass every few milliseconds.
#[derive(Debug)]
pub(super) struct Looks {
    events: Events,
    last: Instant,
}

impl Looks {
    pub(super) fn new(events: Events) -> Self {
        let last = Instant::now();
        Self { events, last }
    }

    pub(super) fn events(&mut self) -> &mut Events {
        &mut self.events
    }

    /// What QEMU tells next, if anything before it is time, and whether it is: `every` so often.
    pub(super) fn next(&mut self, every: Duration) -> Result<(Option<Event>, bool), QmpError> {
        let event = match self.events.next(self.last + every) {
            Ok(event) => Some(event),
            Err(QmpError::Timeout { .. } | QmpError::EventsLost { .. }) => None,
            Err(error) => return Err(error),
        };
        let is_time = event.is_none() || self.last.elapsed() >= every;
        if is_time {
            self.last = Instant::now();
        }
        Ok((event, is_time))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixStream;
    use std::thread;

    use qemu::Qmp;

    use super::*;

    const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 0, "minor": 1, "major": 11}, "package": ""}, "capabilities": ["oob"]}}"#;
    const PASS: &str = r#"{"event": "MIGRATION_PASS", "data": {"pass": 2}, "timestamp": {"seconds": 1, "microseconds": 0}}"#;

    /// A QEMU that tells of a pass every millisecond, until nobody listens.
    fn held(mut stream: UnixStream) {
        writeln!(stream, "{GREETING}\r").unwrap();
        let mut asked = String::new();
        let mut lines = BufReader::new(stream.try_clone().unwrap());
        lines.read_line(&mut asked).unwrap();
        let asked: serde_json::Value = serde_json::from_str(&asked).unwrap();
        writeln!(stream, "{{\"return\": {{}}, \"id\": {}}}\r", asked["id"]).unwrap();
        while writeln!(stream, "{PASS}\r").is_ok() {
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn it_is_looked_in_time_however_much_qemu_tells() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let qemu = thread::spawn(|| held(theirs));
        let deadline = Instant::now() + Duration::from_secs(10);
        let qmp = Qmp::from_stream(ours, deadline).unwrap();
        let mut looks = Looks::new(qmp.events());
        let mut told = 0;
        loop {
            assert!(Instant::now() < deadline, "{told} events, and no look");
            let (event, is_time) = looks.next(Duration::from_millis(200)).unwrap();
            told += usize::from(event.is_some());
            if is_time && told > 0 {
                break;
            }
        }
        drop((qmp, looks));
        qemu.join().unwrap();
    }
}
