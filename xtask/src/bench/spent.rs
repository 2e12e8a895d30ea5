//! Who had the processors while something was measured, and how often.

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result};
use testbed::Host;

use super::{Breakdown, median};

/// Of a guest, who serves it, and its peer, which is in this process.
pub(super) const WHO: [&str; 4] = ["vCPU", "QEMU's other threads", "vferry", "the peer"];
/// In [`WHO`].
pub(super) const VCPU: usize = 0;
pub(super) const VFERRY: usize = 2;

/// Percent of one processor, for each of [`WHO`].
pub(super) type Shares = [f64; WHO.len()];

/// What each of [`WHO`] has run since it was started.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spent {
    at: Instant,
    ran: [Ran; WHO.len()],
}

/// Of one or several threads.
#[derive(Debug, Clone, Copy, Default)]
struct Ran {
    nanos: u64,
    /// How often they went to sleep, and so were woken.
    sleeps: u64,
}

/// What each of [`WHO`] did in a second.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rates {
    /// Microseconds that it ran.
    pub(super) micros: [f64; WHO.len()],
    /// How often it was woken.
    pub(super) wakes: [f64; WHO.len()],
}

impl Spent {
    pub(super) fn by(host: &Host) -> Result<Self> {
        let vcpus = host.vm.qmp().vcpu_threads()?;
        let qemu = host.vm.pid();
        let mut of_vcpus = Ran::default();
        for thread in vcpus {
            of_vcpus = of_vcpus.with(Ran::of(&format!("/proc/{qemu}/task/{thread}"))?);
        }
        let ran = [
            of_vcpus,
            Ran::of_process(qemu)?.without(of_vcpus),
            Ran::of_process(host.vferry_pid())?,
            Ran::of_process(std::process::id())?,
        ];
        let at = Instant::now();
        Ok(Self { at, ran })
    }

    /// What each has had since.
    pub(super) fn shares_until(&self, later: &Self) -> Shares {
        self.rates_until(later).micros.map(|micros| micros / 1e4)
    }

    /// What each did in a second since.
    pub(super) fn rates_until(&self, later: &Self) -> Rates {
        let seconds = later.at.duration_since(self.at).as_secs_f64();
        let since = |who: usize| later.ran[who].without(self.ran[who]);
        #[expect(clippy::cast_precision_loss, reason = "below 2^53")]
        let wakes = |who: usize| since(who).sleeps as f64 / seconds;
        let micros = |who: usize| {
            let ran = std::time::Duration::from_nanos(since(who).nanos);
            1e6 * ran.as_secs_f64() / seconds
        };
        Rates {
            micros: std::array::from_fn(micros),
            wakes: std::array::from_fn(wakes),
        }
    }
}

impl Ran {
    /// All threads of a process (`/proc/PID/schedstat` is its first thread's).
    fn of_process(process: u32) -> Result<Self> {
        let mut sum = Self::default();
        for task in fs::read_dir(format!("/proc/{process}/task"))? {
            // A thread may end meanwhile.
            sum = sum.with(Self::of(&task?.path().to_string_lossy()).unwrap_or_default());
        }
        Ok(sum)
    }

    /// A thread, by its folder.
    fn of(task: &str) -> Result<Self> {
        let text = fs::read_to_string(format!("{task}/schedstat"))?;
        let nanos = text.split(' ').next().context("an empty schedstat")?;
        let text = fs::read_to_string(format!("{task}/status"))?;
        let sleeps = text
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        Ok(Self {
            nanos: nanos.parse()?,
            sleeps: sleeps.context("no count of sleeps")?.trim().parse()?,
        })
    }

    fn with(self, other: Self) -> Self {
        Self {
            nanos: self.nanos + other.nanos,
            sleeps: self.sleeps + other.sleeps,
        }
    }

    fn without(self, other: Self) -> Self {
        Self {
            nanos: self.nanos.saturating_sub(other.nanos),
            sleeps: self.sleeps.saturating_sub(other.sleeps),
        }
    }
}

impl Rates {
    /// For each of so many a second, without what is done anyway.
    pub(super) fn for_each(&self, per_second: f64, anyway: &Self) -> Self {
        let less = |of: [f64; WHO.len()], anyway: [f64; WHO.len()]| {
            std::array::from_fn(|who| ((of[who] - anyway[who]) / per_second).max(0.0))
        };
        Self {
            micros: less(self.micros, anyway.micros),
            wakes: less(self.wakes, anyway.wakes),
        }
    }
}

/// The medians of the shares that were seen of each row.
pub(super) fn breakdown(what: &str, rows: Vec<(String, Vec<Shares>)>) -> Breakdown {
    let medians = |shares: &[Shares]| {
        let of = |who: usize| shares.iter().map(|shares| shares[who]).collect::<Vec<_>>();
        (0..WHO.len()).map(|who| median(&of(who))).collect()
    };
    let rows = rows.into_iter();
    Breakdown {
        what: what.to_owned(),
        columns: WHO.to_vec(),
        rows: rows
            .map(|(name, shares)| (name, medians(&shares)))
            .collect(),
    }
}

/// Nanoseconds that all threads of a process ran.
pub(super) fn processor_time(process: u32) -> Result<u64> {
    Ok(Ran::of_process(process)?.nanos)
}
