//! What this process has to have left, before QEMU begins to need it.

use vm_memory::MmapRegion;

/// Reserves addresses and no memory, also where a host promises no more than it has.
const FLAGS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

/// Why guest memory of `bytes` cannot be mapped by this process, if so.
///
/// Comparing memory maps all of it, and QEMU's dirty log is next to be mapped: should that fail, QEMU would be
/// without a sidecar from then on.
pub(crate) fn room(bytes: u64) -> Option<String> {
    let refused = usize::try_from(bytes)
        .map_err(|error| error.to_string())
        .and_then(|len| {
            let region = MmapRegion::<()>::build(None, len, libc::PROT_NONE, FLAGS);
            region.map_err(|error| error.to_string())
        })
        .err()?;
    Some(format!(
        "vferry cannot map {} MiB, as much as the VM has memory: {refused}; raise its limit of address \
         space (`ulimit -v`, LimitAS in a unit), or make room on this host",
        bytes >> 20
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_mapped_is_told_before() {
        assert_eq!(room(256 << 20), None);
        let told = room(1 << 60).expect("no machine maps as much");
        assert!(told.contains("LimitAS"), "{told}");
    }
}
