//! The ways in for fuzzers: bytes as QEMU or the other host would send them.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use crate::blob;
use crate::server::{Connection, Stopper};
use crate::{Config, Hooks, LogStart, Stop, Stopped, Veto};

/// No more of the input is used: it has to fit into a socket's buffer.
const MAX_INPUT: usize = 64 << 10;

/// Serves `messages` (raw vhost-user messages, without descriptors) to their end or to the first
/// that is refused. Does not panic and does not hang, whatever they are.
pub fn converse(messages: &[u8]) {
    let Ok((ours, theirs)) = UnixStream::pair() else {
        return;
    };
    let Ok(stopper) = Stopper::new() else {
        return;
    };
    let messages = &messages[..messages.len().min(MAX_INPUT)];
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut theirs = theirs;
            let _ = theirs.write_all(messages);
            let _ = theirs.shutdown(Shutdown::Write);
            // Answers must not fill the socket; the end comes when our end is dropped.
            let _ = theirs.read_to_end(&mut Vec::new());
        });
        let connection = Connection {
            stream: &ours,
            config: &Config::default(),
            log: &Arc::default(),
            stopper: &stopper,
            listener: None,
            kept: None,
        };
        let _ = connection.serve(&mut Indifferent);
        let _ = ours.shutdown(Shutdown::Both);
    });
}

/// Opens the frame around a device state, as it comes from the other host.
///
/// # Panics
/// When the frame of what was in it is another one.
pub fn open(sealed: &[u8]) {
    if let Ok(state) = blob::open(sealed.to_vec()) {
        assert_eq!(blob::seal(&state), sealed);
    }
}

/// Hooks that agree with everything.
struct Indifferent;

impl Hooks for Indifferent {
    fn log_started(&mut self, _start: LogStart) {}

    fn log_stopped(&mut self) {}

    fn stopping(&mut self, _stop: Stop<'_>) -> Result<(), Veto> {
        Ok(())
    }

    fn restarted(&mut self) {}

    fn save(&mut self, _stopped: Stopped) -> Result<Vec<u8>, Veto> {
        Ok(Vec::new())
    }

    fn load(&mut self, _blob: Vec<u8>) -> Result<(), Veto> {
        Ok(())
    }
}
