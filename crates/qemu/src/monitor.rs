//! The human monitor, for the few things that QMP does not offer.

use serde_json::{Value, json};

use crate::client::unexpected;
use crate::{Qmp, QmpError};

/// Most 32-bit words that [`Qmp::read_physical`] reads at once.
pub const MAX_WORDS: usize = 1024;

/// The size of a port or configuration space access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// 8 bits.
    Byte,
    /// 16 bits.
    Half,
    /// 32 bits.
    Word,
}

impl Width {
    /// In bytes: 1, 2 or 4.
    pub const fn bytes(self) -> u8 {
        match self {
            Self::Byte => 1,
            Self::Half => 2,
            Self::Word => 4,
        }
    }

    const fn letter(self) -> char {
        match self {
            Self::Byte => 'b',
            Self::Half => 'h',
            Self::Word => 'w',
        }
    }

    const fn max(self) -> u32 {
        match self {
            Self::Byte => 0xff,
            Self::Half => 0xffff,
            Self::Word => 0xffff_ffff,
        }
    }
}

impl Qmp {
    /// Runs a line of the human monitor and returns what it prints. The monitor reports errors as
    /// text like any other, so the caller must know what to expect.
    ///
    /// # Errors
    ///
    /// As [`Qmp::execute`].
    pub fn human_monitor(&self, line: &str) -> Result<String, QmpError> {
        match self.execute("human-monitor-command", json!({ "command-line": line }))? {
            Value::String(text) => Ok(text),
            _ => Err(unexpected("human-monitor-command", "not a text")),
        }
    }

    /// Runs a line of the human monitor that prints nothing when it succeeds.
    ///
    /// # Errors
    ///
    /// [`QmpError::Monitor`] with what it printed, or as [`Qmp::execute`].
    pub fn human_monitor_silent(&self, line: &str) -> Result<(), QmpError> {
        let output = self.human_monitor(line)?;
        if output.trim().is_empty() {
            Ok(())
        } else {
            Err(failed(line, &output))
        }
    }

    /// Reads an x86 I/O port (`i`), in any run state.
    ///
    /// # Errors
    ///
    /// [`QmpError::Monitor`] if the monitor prints anything else, or as [`Qmp::execute`].
    pub fn read_port(&self, port: u16, width: Width) -> Result<u32, QmpError> {
        let line = format!("i /{} {port:#x}", width.letter());
        let output = self.human_monitor(&line)?;
        parse_port(&output)
            .filter(|value| *value <= width.max())
            .ok_or_else(|| failed(&line, &output))
    }

    /// Writes an x86 I/O port (`o`), in any run state. Bits above `width` are not sent.
    ///
    /// # Errors
    ///
    /// [`QmpError::Monitor`] if the monitor prints anything, or as [`Qmp::execute`].
    pub fn write_port(&self, port: u16, width: Width, value: u32) -> Result<(), QmpError> {
        let value = value & width.max();
        self.human_monitor_silent(&format!("o /{} {port:#x} {value:#x}", width.letter()))
    }

    /// Reads `count` 32-bit words of guest-physical memory (`xp`), from RAM or from a device whose
    /// memory decoding is on. At most [`MAX_WORDS`].
    ///
    /// # Errors
    ///
    /// [`QmpError::Monitor`] where nothing answers at the address,
    /// [`QmpError::InvalidArgument`] for too many words, or as [`Qmp::execute`].
    pub fn read_physical(&self, address: u64, count: usize) -> Result<Vec<u32>, QmpError> {
        if count > MAX_WORDS {
            let problem = format!("{count} words at once; at most {MAX_WORDS} are read");
            return Err(QmpError::InvalidArgument(problem));
        }
        if count == 0 {
            return Ok(Vec::new());
        }
        let line = format!("xp /{count}xw {address:#x}");
        let output = self.human_monitor(&line)?;
        parse_dump(&output)
            .filter(|words| words.len() == count)
            .ok_or_else(|| failed(&line, &output))
    }
}

/// What a failed monitor command printed, cut to what an error message can carry.
pub(crate) fn failed(line: &str, output: &str) -> QmpError {
    let output = match output.trim() {
        "" => "it printed nothing".to_owned(),
        text => text.chars().take(200).collect(),
    };
    QmpError::Monitor {
        command: line.to_owned(),
        output,
    }
}

/// `portl[0x0cf8] = 0x80000000`
fn parse_port(output: &str) -> Option<u32> {
    let (port, value) = output.trim().split_once("] = ")?;
    port.starts_with("port").then_some(())?;
    hexadecimal(value)
}

/// Lines of `00000010: 0x00000000 0x00000000 0x00000000 0x00000000`.
fn parse_dump(output: &str) -> Option<Vec<u32>> {
    let mut words = Vec::new();
    for line in output.lines().filter(|line| !line.trim().is_empty()) {
        let (_, values) = line.split_once(": ")?;
        for value in values.split_ascii_whitespace() {
            words.push(hexadecimal(value)?);
        }
    }
    Some(words)
}

fn hexadecimal(text: &str) -> Option<u32> {
    let digits = text.strip_prefix("0x")?;
    // `from_str_radix` would take a sign.
    digits
        .bytes()
        .all(|b| b.is_ascii_hexdigit())
        .then_some(())?;
    u32::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_what_qemu_prints_for_ports() {
        assert_eq!(
            parse_port("portl[0x0cfc] = 0x29c08086\r\n"),
            Some(0x29c0_8086)
        );
        assert_eq!(parse_port("portb[0x0cfe] = 0xc0\r\n"), Some(0xc0));
        for wrong in [
            "",
            "unknown command: 'i'\r\n",
            "portl[0x0cfc] = ",
            "portl[0] = 0x+1",
        ] {
            assert_eq!(parse_port(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn reads_what_qemu_prints_for_memory() {
        let two_lines = "00000100: 0x00000001 0x00000002 0x00000003 0x00000004\r\n\
                         00000110: 0xffffffff\r\n";
        assert_eq!(parse_dump(two_lines), Some(vec![1, 2, 3, 4, u32::MAX]));
        assert_eq!(parse_dump("ffffffff0000: Cannot access memory\r\n"), None);
        assert_eq!(parse_dump("00000000: 0x100000000\r\n"), None);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parsers_panic(text in "\\PC*") {
            let _ = (parse_port(&text), parse_dump(&text));
        }

        #[test]
        fn a_dump_reads_back(words: Vec<u32>) {
            let line = |(number, chunk): (usize, &[u32])| {
                let values: Vec<String> = chunk.iter().map(|w| format!("{w:#010x}")).collect();
                format!("{:08x}: {}\r\n", number * 16, values.join(" "))
            };
            let text: Vec<String> = words.chunks(4).enumerate().map(line).collect();
            let text = text.concat();
            prop_assert_eq!(parse_dump(&text), Some(words));
        }
    }
}
