//! Writing guest-physical memory from outside of the guest, devices' registers included.
//!
//! Neither QMP nor the human monitor can; QEMU's server for debuggers can, by a handful of packets of
//! GDB's remote serial protocol ("GDB Remote Serial Protocol" in GDB's manual). It is started for
//! the one write, beside the socket of the monitor, and ended after it.

use std::fmt::Write as _;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::args::option_value;
use crate::monitor::failed;
use crate::{Qmp, QmpError};

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(5);
/// No answer to what is sent here is longer: `OK`, or an error.
const MAX_ANSWER: usize = 256;
/// What its socket's path has behind that of the monitor's.
pub const SUFFIX: &str = ".gdb";
/// Most bytes that are written at once; QEMU takes some 64 KiB.
pub const MAX_WRITE: usize = 4096;

impl Qmp {
    /// Writes `data`, at most [`MAX_WRITE`] bytes, to guest-physical memory at `address`, which may
    /// be a device's BAR whose memory decoding is on. Only while the vCPUs stand still: whoever
    /// debugs them stops them, and does not let them go on.
    ///
    /// A server for debuggers that somebody else has started in this QEMU is ended by it.
    ///
    /// # Errors
    ///
    /// [`QmpError::InvalidArgument`] while the VM runs or for too much data,
    /// [`QmpError::Debugger`] when QEMU does not write it, or as [`Qmp::execute`].
    pub fn write_physical(&self, address: u64, data: &[u8]) -> Result<(), QmpError> {
        if data.len() > MAX_WRITE {
            let problem = format!(
                "{} bytes at once; at most {MAX_WRITE} are written",
                data.len()
            );
            return Err(QmpError::InvalidArgument(problem));
        }
        if self.run_status()?.running {
            let problem = "physical memory is written only while the VM stands still";
            return Err(QmpError::InvalidArgument(problem.into()));
        }
        let path = self.debug_socket()?;
        let text = path
            .to_str()
            .filter(|text| !text.contains(['"', '\\', '\n']));
        let text = text.ok_or_else(|| {
            let path = path.display();
            QmpError::InvalidArgument(format!("{path} is no path for QEMU's monitor"))
        })?;
        let device = option_value(text);
        let start = format!("gdbserver \"unix:{device},server=on,wait=off\"");
        let output = self.human_monitor(&start)?;
        if !output.contains("Waiting for gdb connection") {
            return Err(failed(&start, &output));
        }
        let written = write(&path, address, data);
        let stop = "gdbserver none";
        let output = self.human_monitor(stop)?;
        if !output.contains("Disabled gdbserver") {
            return Err(failed(stop, &output));
        }
        written.map_err(|source| QmpError::Debugger { address, source })
    }

    fn debug_socket(&self) -> Result<PathBuf, QmpError> {
        let path = self.path().ok_or_else(|| {
            QmpError::InvalidArgument("the monitor was not connected to by a path".into())
        })?;
        let mut path = path.as_os_str().to_owned();
        path.push(SUFFIX);
        Ok(path.into())
    }
}

fn write(socket: &Path, address: u64, data: &[u8]) -> io::Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.set_write_timeout(Some(ANSWER))?;
    let ok = |packet: &str, stream: &mut UnixStream| {
        let answer = ask(stream, packet)?;
        if answer == "OK" {
            Ok(())
        } else {
            let (command, _) = packet.split_once(':').unwrap_or((packet, ""));
            let why = format!("`{command}` was answered by `{}`", answer.escape_debug());
            Err(io::Error::other(why))
        }
    };
    // Else an address is the current vCPU's, by its page tables.
    ok("Qqemu.PhyMemMode:1", &mut stream)?;
    let mut packet = format!("M{address:x},{:x}:", data.len());
    for byte in data {
        let _ = write!(packet, "{byte:02x}");
    }
    ok(&packet, &mut stream)
}

/// Sends a packet, and returns what the next one says.
fn ask(stream: &mut (impl Read + io::Write), packet: &str) -> io::Result<String> {
    let sum = checksum(packet.as_bytes());
    stream.write_all(format!("${packet}#{sum:02x}").as_bytes())?;
    let answer = receive(stream)?;
    stream.write_all(b"+")?;
    Ok(answer)
}

/// Reads one packet: `$`, its text, `#` and two digits. What stands before it are acknowledgements.
fn receive(stream: &mut impl Read) -> io::Result<String> {
    let broken = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why);
    let mut bytes = Vec::new();
    let mut byte = [0];
    loop {
        stream.read_exact(&mut byte)?;
        match (bytes.first(), byte[0]) {
            (None, b'+') => continue,
            (None, b'$') | (Some(_), _) => bytes.push(byte[0]),
            (None, _) => return Err(broken("not a packet")),
        }
        if let [b'$', text @ .., b'#', high, low] = &bytes[..] {
            let sum = [*high, *low];
            let sum = std::str::from_utf8(&sum).ok();
            let sum = sum.and_then(|sum| u8::from_str_radix(sum, 16).ok());
            if sum != Some(checksum(text)) {
                return Err(broken("a packet with a wrong checksum"));
            }
            return String::from_utf8(text.to_vec()).map_err(|_| broken("not a text"));
        }
        if bytes.len() >= MAX_ANSWER {
            return Err(broken("a packet that does not end"));
        }
    }
}

fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_packet_comes_after_acknowledgements_and_with_its_sum() {
        let receive = |text: &str| receive(&mut text.as_bytes());
        assert_eq!(receive("++$OK#9a$E14#aa").unwrap(), "OK");
        assert_eq!(receive("$#00").unwrap(), "");
        for wrong in ["$OK#9b", "OK#9a", "$OK#zz", "$OK#+9", "-$OK#9a", "$OK"] {
            assert!(receive(wrong).is_err(), "{wrong:?}");
        }
        assert!(receive(&format!("${}", "x".repeat(MAX_ANSWER))).is_err());
    }

    proptest! {
        #[test]
        fn nothing_makes_the_parser_panic(bytes: Vec<u8>) {
            let _ = receive(&mut &bytes[..]);
        }
    }
}
