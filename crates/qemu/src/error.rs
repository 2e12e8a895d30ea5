//! What can go wrong between vferry and QEMU, said so that an operator can act on it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::message::Malformed;

/// A request to QEMU that was not fulfilled.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// Nothing is at the socket's path, or what is there accepts no connection.
    #[error(
        "no QEMU listens on QMP socket {path}; start QEMU with \
         `-qmp unix:{path},server=on,wait=off`, or correct the path",
        path = path.display()
    )]
    NoListener {
        /// Where the socket was looked for.
        path: PathBuf,
    },
    /// The socket exists but could not be used.
    #[error("cannot connect to QMP socket {path}: {source}", path = path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The connection stands but QEMU does not greet.
    #[error(
        "QEMU accepted the connection but sent no QMP greeting within {waited:?}; a QMP socket \
         serves one client at a time, so give vferry one of its own with a second `-qmp`"
    )]
    NoGreeting {
        /// How long the greeting was waited for.
        waited: Duration,
    },
    /// The connection is gone, and with it every answer still outstanding.
    #[error("the QMP connection ended while waiting for {waiting_for}: {reason}")]
    Disconnected {
        /// The command or event that was waited for.
        waiting_for: String,
        /// Why it ended.
        reason: Disconnect,
    },
    /// The deadline passed. The command may still take effect.
    #[error(
        "QEMU gave no answer to {waiting_for} within {waited:?}; it may be stuck in a device \
         or in I/O, and may still carry the command out later"
    )]
    Timeout {
        /// The command or event that was waited for.
        waiting_for: String,
        /// How long.
        waited: Duration,
    },
    /// QEMU refused the command.
    #[error("QEMU refused `{command}`: {description}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's error class, `GenericError` or `CommandNotFound` for most.
        class: String,
        /// QEMU's own words.
        description: String,
    },
    /// QEMU answered, but not in the shape that the command's schema promises.
    #[error(
        "QEMU's answer to `{command}` is not understood ({problem}); is it QEMU 11.1 or later?"
    )]
    UnexpectedReply {
        /// The command.
        command: String,
        /// What does not fit.
        problem: String,
    },
    /// A command of the human monitor printed something that is not its result.
    #[error("QEMU's monitor command `{command}` failed: {output}")]
    Monitor {
        /// The command line.
        command: String,
        /// What the monitor printed.
        output: String,
    },
    /// QEMU's server for debuggers did not write memory.
    #[error("QEMU did not write guest-physical memory at {address:#x} as for a debugger: {source}")]
    Debugger {
        /// Where.
        address: u64,
        /// Why.
        source: io::Error,
    },
    /// More events arrived than are kept, before this reader came to them.
    #[error("{missed} QMP events were lost, because they were not read as fast as QEMU sent them")]
    EventsLost {
        /// How many.
        missed: u64,
    },
    /// A migration capability is on under which the VM's devices cannot be carried soundly.
    #[error("migration capability `{capability}` is on, and {reason}; switch it off and try again")]
    UnsoundCapability {
        /// QEMU's name of the capability.
        capability: String,
        /// What would go wrong.
        reason: &'static str,
    },
    /// An argument is outside what the interface can express. Nothing was sent.
    #[error("invalid argument: {0}")]
    InvalidArgument(String),
}

/// Why a QMP connection ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Disconnect {
    /// End of file: QEMU exited or was killed, or closed the monitor.
    #[error("QEMU went away")]
    PeerClosed,
    /// The socket failed.
    #[error("the socket failed: {0}")]
    Io(String),
    /// What arrived is not QMP, so nothing after it can be trusted.
    #[error("QEMU sent something that is not QMP ({0})")]
    Malformed(#[from] Malformed),
    /// This side closed it.
    #[error("it was closed on this side")]
    ClosedHere,
}
