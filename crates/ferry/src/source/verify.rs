//! Comparing guest memory: the source's, which stands still since the stop, with digests that the
//! destination took at LOAD, or when memory had been compared.

use super::{MigrateError, Source};
use crate::digest::PAGE;
use crate::link::{Link, LinkError};
use crate::{Phase, Vm, comparison};

/// What differs.
#[derive(Debug, Default)]
pub(super) struct Stale {
    pub(super) pages: usize,
    /// Guest-physical address and bytes of each run of pages.
    pub(super) ranges: Vec<[u64; 2]>,
}

impl Source<'_> {
    pub(super) fn compare_memory(&self, link: &mut Link) -> Result<Stale, MigrateError> {
        stale_pages(self.vm, link).map_err(|error| MigrateError::Uncertain {
            phase: Phase::Resume,
            why: format!("comparing guest memory: {error}"),
            whereabouts: "The VM runs at the destination, but whether all its memory arrived is \
                          not known"
                .into(),
        })
    }
}

fn stale_pages(vm: &Vm, link: &mut Link) -> Result<Stale, LinkError> {
    let mut stale = Stale::default();
    for (file, (ram, own)) in vm.digest_memory()?.iter().enumerate() {
        let theirs = comparison::ask_blocks(link, file, ram.blocks())?;
        for page in comparison::differing_pages(link, file, own, &theirs)? {
            stale.add(ram.address_of(page));
        }
    }
    Ok(stale)
}

impl Stale {
    fn add(&mut self, address: u64) {
        self.pages += 1;
        match self.ranges.last_mut() {
            Some([start, len]) if start.checked_add(*len) == Some(address) => *len += PAGE as u64,
            _ => self.ranges.push([address, PAGE as u64]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_one_range() {
        let mut stale = Stale::default();
        for address in [0x1000, 0x2000, 0x4000, 0x1_0000_0000] {
            stale.add(address);
        }
        assert_eq!(stale.pages, 4);
        assert_eq!(
            stale.ranges,
            [[0x1000, 0x2000], [0x4000, 0x1000], [0x1_0000_0000, 0x1000]]
        );
    }
}
