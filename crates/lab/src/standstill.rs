//! A translated machine that does not come up, and where its processors are then.

use std::fmt;

use anyhow::Error;
use qemu::Qmp;

/// A machine has not come up in time, though its QEMU runs. Seen seldom of the lab's hosts,
/// with not a word on the console, for a reason that is not known; what this says may tell it.
#[derive(Debug)]
pub struct StandsStill {
    /// A line for each processor, as QEMU's monitor shows its registers. Hosts boot without KASLR: addresses
    /// are those of their kernel's `System.map`.
    pub processors: Vec<String>,
}

impl StandsStill {
    /// `error`, and where the processors are if QEMU still tells.
    pub(crate) fn explains(error: Error, qmp: &Qmp) -> Error {
        match qmp.human_monitor("info registers -a") {
            Ok(registers) => error.context(Self {
                processors: positions(&registers),
            }),
            Err(_) => error,
        }
    }
}

impl fmt::Display for StandsStill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the host stands still; its processors are at {}",
            self.processors.join("; ")
        )
    }
}

/// Of QEMU's `x86_cpu_dump_state` the line with the instruction pointer, flags and whether it is halted.
fn positions(registers: &str) -> Vec<String> {
    let lines = registers.lines().map(str::trim);
    lines
        .filter(|line| line.starts_with("RIP=") || line.starts_with("EIP="))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_processor_has_a_line() {
        let registers = "\nCPU#0\nRAX=0000000000000000 RBX=1\r\n\
                         RIP=ffffffff81e3f0ab RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1\r\n\
                         ES =0000\nCPU#1\nEAX=0\nEIP=0000fff0 EFL=00000002 [-------] CPL=0 HLT=0";
        let places = positions(registers);
        assert_eq!(places.len(), 2, "{places:?}");
        assert!(places[0].ends_with("HLT=1") && places[1].starts_with("EIP=0000fff0"));
    }
}
