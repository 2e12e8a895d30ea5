//! Comparing guest memory: the source's, which stands still since the stop, with digests that the
//! destination took at LOAD.

use super::{ANSWER, DIGESTS};
use crate::Vm;
use crate::digest::{MemoryDigest, PAGE};
use crate::link::{self, Link, LinkError, Message};
use crate::report::STALE_LISTED;

/// What differs.
#[derive(Debug, Default)]
pub(super) struct Stale {
    pub(super) count: usize,
    /// Offsets in the memory file, which are guest-physical addresses below the PCI hole.
    pub(super) listed: Vec<u64>,
}

pub(super) fn stale_pages(vm: &Vm, link: &mut Link) -> Result<Stale, LinkError> {
    let mut stale = Stale::default();
    for (file, own) in vm.digest_memory()?.iter().enumerate() {
        let blocks = match link.ask(&Message::Digests { file }, DIGESTS)? {
            Message::BlockDigests {
                digests: Some(blocks),
            } => blocks,
            Message::BlockDigests { digests: None } => {
                return Err(LinkError::Unexpected(
                    "the destination took no digest".into(),
                ));
            }
            other => return Err(link::unexpected(&other)),
        };
        for block in own.differing_blocks(&blocks) {
            compare_block(link, file, block, own, &mut stale)?;
        }
    }
    Ok(stale)
}

fn compare_block(
    link: &mut Link,
    file: usize,
    block: usize,
    own: &MemoryDigest,
    stale: &mut Stale,
) -> Result<(), LinkError> {
    let pages = match link.ask(&Message::BlockPages { file, block }, ANSWER)? {
        Message::PageDigests { pages } => pages,
        other => return Err(link::unexpected(&other)),
    };
    for page in own.differing_pages(block, &pages) {
        stale.count += 1;
        if stale.listed.len() < STALE_LISTED {
            stale.listed.push((page * PAGE) as u64);
        }
    }
    Ok(())
}
