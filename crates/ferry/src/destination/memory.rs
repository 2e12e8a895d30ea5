//! What the source asks of the destination's memory: digests, and to take over what differs.

use super::ANSWER;
use crate::digest::{MemoryDigest, to_bytes};
use crate::link::{self, Link, LinkError, MAX_BLOCKS, MAX_PAGES, Message};
use crate::vm::Session;

/// Answers a question for digests.
pub(super) fn tell(
    session: &Session,
    link: &mut Link,
    question: &Message,
) -> Result<(), LinkError> {
    match question {
        Message::Digests { file } => {
            let digest = session.digests.get(*file);
            let len = digest.map(MemoryDigest::file_len);
            link.send(&Message::BlockDigests { len }, ANSWER)?;
            let blocks = digest.map(MemoryDigest::blocks).unwrap_or_default();
            link.send_bytes(&to_bytes(&blocks), ANSWER)
        }
        Message::BlockPages { file, blocks } if blocks.len() <= MAX_BLOCKS => {
            let digest = session.digests.get(*file);
            let pages = blocks
                .iter()
                .filter_map(|block| Some(digest?.block_pages(*block)));
            let pages = pages.collect::<Vec<_>>().concat();
            let count = pages.len();
            link.send(&Message::PageDigests { count }, ANSWER)?;
            link.send_bytes(&to_bytes(&pages), ANSWER)
        }
        other => Err(link::unexpected(other)),
    }
}

/// Answers what the source asks while the VM stands still on both sides.
pub(crate) fn compare(
    session: &mut Session,
    link: &mut Link,
    question: &Message,
) -> Result<(), LinkError> {
    match question {
        Message::Digests { .. } => session.digest()?,
        Message::Pages { file, pages } => return take_over(session, link, *file, pages),
        _ => {}
    }
    tell(session, link, question)
}

fn take_over(
    session: &mut Session,
    link: &mut Link,
    file: usize,
    pages: &[usize],
) -> Result<(), LinkError> {
    let ram = session.ram.get(file);
    let known = ram.filter(|ram| {
        let mut lens = pages.iter().map(|page| ram.page_len(*page));
        pages.len() <= MAX_PAGES && lens.all(|len| len > 0)
    });
    let Some(ram) = known else {
        let what = format!(
            "{} pages that this side's memory does not have",
            pages.len()
        );
        return Err(LinkError::Malformed(what));
    };
    let len = pages.iter().map(|page| ram.page_len(*page)).sum();
    let bytes = link.receive_bytes(len, ANSWER)?;
    let mut rest = &bytes[..];
    for page in pages {
        let (own, others) = rest.split_at(ram.page_len(*page));
        ram.write_page(*page, own);
        // Only here: what else is written by now is written by this side's KVM, which sets its clocks
        // in guest memory while QEMU loads the last of the VM (`kvm_write_wall_clock`).
        if let Some(digest) = session.digests.get_mut(file) {
            digest.renew(ram, *page);
        }
        rest = others;
    }
    link.send(&Message::PagesWritten, ANSWER)
}
