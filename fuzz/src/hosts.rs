//! What the other host sends.

use std::io::{self, Read, Write};
use std::time::Duration;

use device::lifecycle::Migratable;
use ferry::check;
use ferry::link::{Link, LinkError, Message, Stream, greeting, parse, unexpected};

use crate::function;

/// The control link: the bytes as a stream of messages, then as the body of one.
///
/// # Panics
/// When what goes to the operator's terminal could steer it.
pub fn link(data: &[u8]) {
    const PLENTY: Duration = Duration::from_mins(1);

    let recorded = || Box::new(Recorded(data.to_vec().into()));
    let mut link = Link::agreed(recorded(), greeting::NEWEST);
    while judge(link.receive(PLENTY)) {}
    for begin in [Link::greet, Link::welcome] {
        match begin(recorded(), PLENTY) {
            Ok(mut link) => while judge(link.receive(PLENTY)) {},
            Err(error) => assert_harmless(&error.to_string()),
        }
    }
    judge(parse(data));
}

/// Does with a message what the two sides do before they act on it. `false` if it was none.
fn judge(received: Result<Message, LinkError>) -> bool {
    let message = match received {
        Ok(message) => message,
        Err(error) => {
            assert_harmless(&error.to_string());
            return false;
        }
    };
    assert_harmless(&unexpected(&message).to_string());
    match message {
        Message::Check { facts } => {
            assert_eq!(check::compare(&facts, &facts), Vec::<String>::new());
            let mut ours = (*facts).clone();
            ours.machine.machine_type.clear();
            ours.machine.cpus.clear();
            ours.devices.clear();
            for reason in check::compare(&facts, &ours) {
                assert_harmless(&reason);
            }
        }
        Message::Prepare { functions, .. } | Message::Run { functions, .. } => {
            let endpoint = &function::endpoints().0[0];
            for function in functions {
                let _ = endpoint.restore_plan(&function.config, None, true);
                let _ = function.table.map(|table| table.to_bytes());
            }
        }
        _ => {}
    }
    true
}

fn assert_harmless(shown: &str) {
    assert!(!shown.contains(char::is_control), "{shown:?}");
}

/// A connection whose other end has said all that it will, and closed.
struct Recorded(std::collections::VecDeque<u8>);

impl Read for Recorded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Recorded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream for Recorded {
    fn set_timeout(&self, _limit: Option<Duration>) -> io::Result<()> {
        Ok(())
    }

    fn set_nonblocking(&self, _on: bool) -> io::Result<()> {
        Ok(())
    }
}

/// The frame around the devices' state.
pub fn sidecar_state(data: &[u8]) {
    sidecar::fuzz::open(data);
}

/// The devices' state.
///
/// # Panics
/// When a state that loads cannot be saved, or does not load again.
pub fn state(data: &[u8]) {
    let states = match ferry::state::unpack(data) {
        Ok(states) => states,
        Err(error) => {
            let _ = error.to_string();
            return;
        }
    };
    if let Ok(blob) = ferry::state::pack(states.clone()) {
        ferry::state::unpack(&blob).expect("what was packed unpacks");
    }
    let mut endpoints = function::endpoints();
    match endpoints.load(states) {
        Ok(()) => {
            endpoints.restart();
            let saved = endpoints
                .save(&Vec::new())
                .expect("every state can be saved");
            let successor = &mut function::endpoints();
            successor.load(saved).expect("what was saved loads");
        }
        Err(error) => {
            let _ = error.to_string();
        }
    }
}
