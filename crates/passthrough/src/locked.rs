//! Whether the host lets this process lock as much memory as its functions need.
//!
//! All of a guest's memory is locked for each function, as any part of it may be written to at any
//! time. VFIO counts it against `RLIMIT_MEMLOCK` for each container anew (`vfio_lock_acct` in
//! `drivers/vfio/vfio_iommu_type1.c`), unless the process may pass the limit.

use std::fs;
use std::io;

use rustix::process::{Resource, getrlimit};

/// Bit of the capability that lets a process pass the limit (`linux/capability.h`).
const CAP_IPC_LOCK: u32 = 14;

/// The limit is too small.
#[derive(Debug, thiserror::Error)]
pub enum TooLittle {
    /// By so much.
    #[error(
        "{functions} functions of the host lock all of the VM's memory, each for itself, which takes \
         {needed} bytes; this process may lock {limit}, and has locked {locked}: raise the limit \
         (`ulimit -l {}`, or LimitMEMLOCK={} of a unit), or give it CAP_IPC_LOCK",
        needed.saturating_add(*locked).div_ceil(1024),
        needed.saturating_add(*locked)
    )]
    Limit {
        /// How many functions.
        functions: u64,
        /// Bytes that they need.
        needed: u64,
        /// Bytes that may be locked in all.
        limit: u64,
        /// Bytes that are.
        locked: u64,
    },
    /// It is not known.
    #[error("/proc/self/status, which tells how much memory is locked: {0}")]
    Unknown(#[from] io::Error),
}

/// Makes sure that `functions` functions can lock `memory` bytes each.
///
/// # Errors
/// When they cannot, with how much it takes.
pub fn room_for(functions: u64, memory: u64) -> Result<(), TooLittle> {
    let status = fs::read_to_string("/proc/self/status")?;
    let limit = getrlimit(Resource::Memlock).current;
    room_within(&status, limit, functions, memory)
}

fn room_within(
    status: &str,
    limit: Option<u64>,
    functions: u64,
    memory: u64,
) -> Result<(), TooLittle> {
    let needed = functions.saturating_mul(memory);
    let value = |key: &str| status.lines().find_map(|line| line.strip_prefix(key));
    let capabilities = value("CapEff:").and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    let may_pass = capabilities.is_some_and(|set| set >> CAP_IPC_LOCK & 1 != 0);
    let Some(limit) = limit.filter(|_| !may_pass && functions > 0) else {
        return Ok(());
    };
    let locked = value("VmLck:").and_then(|size| size.trim().strip_suffix(" kB")?.parse().ok());
    let locked = locked.map_or(0, |kib: u64| kib.saturating_mul(1024));
    if limit.saturating_sub(locked) >= needed {
        return Ok(());
    }
    Err(TooLittle::Limit {
        functions,
        needed,
        limit,
        locked,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;
    const PLAIN: &str = "Name:\tvferry\nVmLck:\t    1024 kB\nCapEff:\t0000000000000000\n";

    #[test]
    fn each_function_locks_all_memory_for_itself() {
        let limit = Some(2 * GIB + (1 << 20));
        assert!(room_within(PLAIN, limit, 2, GIB).is_ok());
        let why = room_within(PLAIN, limit, 3, GIB).unwrap_err().to_string();
        let takes = 3 * GIB + (1 << 20);
        for part in [
            format!("takes {} bytes", 3 * GIB),
            format!("ulimit -l {}", takes / 1024),
            format!("LimitMEMLOCK={takes}"),
        ] {
            assert!(why.contains(&part), "{why}");
        }
        // What is locked already counts.
        assert!(room_within(PLAIN, Some(2 * GIB), 2, GIB).is_err());
    }

    #[test]
    fn who_may_pass_the_limit_or_has_none_needs_no_room() {
        let capable = PLAIN.replace("CapEff:\t0000000000000000", "CapEff:\t0000000000004000");
        assert!(room_within(&capable, Some(0), 1, GIB).is_ok());
        assert!(room_within(PLAIN, None, 1, GIB).is_ok());
        assert!(room_within(PLAIN, Some(0), 0, GIB).is_ok());
        assert!(room_within(PLAIN, Some(0), 1, u64::MAX).is_err());
    }
}
