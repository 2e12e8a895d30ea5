//! How fast a translated machine's cycle counter runs.
//!
//! QEMU's translator gives the machine the processor's own counter (`cpu_get_ticks`). A kernel that boots
//! there measures it against a timer that comes late where every processor has work: it was off by 2.7
//! once, and so was all of that host's time, and its guests'.

use std::fs;

use crate::Accelerator;

/// What to tell the kernel of a machine that measures its counter, if it is known.
pub(crate) fn parameter() -> Option<String> {
    if Accelerator::detect() != Accelerator::Tcg {
        return None;
    }
    let khz = khz(&fs::read_to_string("/proc/cpuinfo").ok()?)?;
    Some(format!("tsc_early_khz={khz}"))
}

/// The counter's kHz. Linux shows it as the processor's frequency where it cannot tell how fast that runs
/// now (`arch_freq_get_on_cpu`), as in virtual machines.
fn khz(cpuinfo: &str) -> Option<u32> {
    let value = |name: &str| {
        let mut lines = cpuinfo.lines();
        let line = lines.find(|line| line.split(':').next().map(str::trim) == Some(name))?;
        Some(line.split_once(':')?.1.trim())
    };
    let has = |flag: &str| value("flags").is_some_and(|flags| flags.split(' ').any(|f| f == flag));
    if !has("hypervisor") || has("aperfmperf") {
        return None;
    }
    let (mhz, fraction) = value("cpu MHz")?.split_once('.')?;
    let khz = fraction.get(..3)?.parse::<u32>().ok()?;
    mhz.parse::<u32>().ok()?.checked_mul(1000)?.checked_add(khz)
}

#[cfg(test)]
mod tests {
    use super::khz;

    fn cpuinfo(mhz: &str, flags: &str) -> String {
        format!("processor\t: 0\ncpu MHz\t\t: {mhz}\nflags\t\t: {flags}\n\nprocessor\t: 1\n")
    }

    #[test]
    fn it_is_known_of_virtual_machines_only() {
        assert_eq!(khz(&cpuinfo("2596.120", "fpu hypervisor")), Some(2_596_120));
        assert_eq!(khz(&cpuinfo("800.007", "fpu hypervisor")), Some(800_007));
        assert_eq!(khz(&cpuinfo("2596.120", "fpu")), None);
        assert_eq!(khz(&cpuinfo("800.007", "aperfmperf hypervisor")), None);
        assert_eq!(khz(&cpuinfo("fast", "hypervisor")), None);
        assert_eq!(khz(""), None);
    }
}
