//! Which processors a host's threads run on, where that is to be the same for all that are compared.

use anyhow::{Context, Result};
use lab::Vm;
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// By their numbers, as Linux has them. Neither list may be empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Processors {
    /// Of all of a host's threads but its vCPUs: the first host's are on the first of these, the next one's on
    /// the next, and so on, again from the first.
    pub hosts: Vec<usize>,
    /// Of the vCPUs, in the same way.
    pub vcpus: Vec<usize>,
}

impl Processors {
    /// Runs `start`, which starts host `number` and its `vm`, so that they are where they belong: what is started
    /// has the processor of the thread that starts it.
    ///
    /// # Errors
    /// Those of `start`; or the kernel refuses, or there is no such processor.
    pub fn start<T>(
        &self,
        number: u32,
        start: impl FnOnce() -> Result<T>,
        vm: impl Fn(&T) -> &Vm,
    ) -> Result<T> {
        let before = sched_getaffinity(None)?;
        run_on(None, pick(&self.hosts, number.saturating_sub(1))?)?;
        let started = start();
        sched_setaffinity(None, &before)?;
        let started = started?;
        for (vcpu, thread) in (0..).zip(vm(&started).qmp().vcpu_threads()?) {
            run_on(Pid::from_raw(thread), pick(&self.vcpus, vcpu)?)?;
        }
        Ok(started)
    }
}

/// The same where there may be nothing to see to.
pub(crate) fn start_on<T>(
    processors: Option<&Processors>,
    number: u32,
    start: impl FnOnce() -> Result<T>,
    vm: impl Fn(&T) -> &Vm,
) -> Result<T> {
    match processors {
        Some(processors) => processors.start(number, start, vm),
        None => start(),
    }
}

fn pick(processors: &[usize], number: u32) -> Result<usize> {
    let at = number as usize % processors.len().max(1);
    let picked = processors.get(at).copied();
    picked.context("no processors to choose from")
}

/// From now on a thread, and what it starts, runs on this one. `None` is the calling thread.
///
/// # Errors
/// The kernel refuses, or there is no such processor.
pub fn run_on(thread: Option<Pid>, processor: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(processor);
    sched_setaffinity(thread, &set)
        .with_context(|| format!("a thread cannot be put on processor {processor}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_begins_anew_at_its_end() {
        let picked = [0, 1, 2].map(|number| pick(&[4, 6], number).unwrap());
        assert_eq!(picked, [4, 6, 4]);
        assert!(pick(&[], 0).is_err());
    }
}
