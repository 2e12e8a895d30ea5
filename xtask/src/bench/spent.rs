//! Who had the processors while something was measured.

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result};
use testbed::Host;

use super::{Breakdown, median};

/// Of a guest, who serves it, and its peer, which is in this process.
pub(super) const WHO: [&str; 4] = ["vCPU", "QEMU's other threads", "vferry", "the peer"];
/// In [`WHO`].
pub(super) const VCPU: usize = 0;

/// Percent of one processor, for each of [`WHO`].
pub(super) type Shares = [f64; WHO.len()];

/// Nanoseconds that each of [`WHO`] has run since it was started.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spent {
    at: Instant,
    nanos: [u64; WHO.len()],
}

impl Spent {
    pub(super) fn by(host: &Host) -> Result<Self> {
        let vcpus = host.vm.qmp().vcpu_threads()?;
        let qemu = host.vm.pid();
        let mut of_vcpus = 0;
        for thread in vcpus {
            of_vcpus += ran(&format!("/proc/{qemu}/task/{thread}"))?;
        }
        let nanos = [
            of_vcpus,
            processor_time(qemu)?.saturating_sub(of_vcpus),
            processor_time(host.vferry_pid())?,
            processor_time(std::process::id())?,
        ];
        let at = Instant::now();
        Ok(Self { at, nanos })
    }

    /// What each has had since.
    pub(super) fn shares_until(&self, later: &Self) -> Shares {
        let seconds = later.at.duration_since(self.at).as_secs_f64();
        let share = |who: usize| {
            let nanos = later.nanos[who].saturating_sub(self.nanos[who]);
            let ran = std::time::Duration::from_nanos(nanos).as_secs_f64();
            100.0 * ran / seconds
        };
        std::array::from_fn(share)
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

/// Nanoseconds that all threads of a process ran (`/proc/PID/schedstat` is its first thread's).
pub(super) fn processor_time(process: u32) -> Result<u64> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{process}/task"))? {
        // A thread may end meanwhile.
        sum += ran(&task?.path().to_string_lossy()).unwrap_or(0);
    }
    Ok(sum)
}

/// The same of one thread, by its folder.
fn ran(task: &str) -> Result<u64> {
    let text = fs::read_to_string(format!("{task}/schedstat"))?;
    let ran = text.split(' ').next().context("an empty schedstat")?;
    Ok(ran.parse()?)
}
