//! Where the guest has the files that hold its memory.

use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use crate::log::PAGE_SHIFT;

/// Pages of a word of bits.
const WORD: u64 = 64;

/// Which file it is, whatever descriptor it came by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileId {
    /// Number of the device that it is on (`st_dev`).
    pub device: u64,
    /// Its number there (`st_ino`).
    pub inode: u64,
}

impl FileId {
    /// Of the file with this metadata.
    pub fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        }
    }
}

/// A part of a file that the guest has in its memory.
#[derive(Debug, Clone)]
pub struct Part {
    /// The file.
    pub file: Arc<File>,
    /// Which file that is.
    pub id: FileId,
    /// Where the part starts in the file, in bytes.
    pub offset: u64,
    /// Its guest-physical address.
    pub gpa: u64,
    /// Its length in bytes.
    pub len: u64,
}

/// All parts, in the order of their guest-physical addresses.
#[derive(Debug, Clone, Default)]
pub(crate) struct Layout(pub(crate) Vec<Part>);

impl Layout {
    /// Calls `mark` with a guest page and bits from it on for what the guest has of the pages
    /// `first_page + n` of `file`, for every set bit `n` of `word`. Returns how many of these pages
    /// it does not have at all.
    pub(crate) fn locate(
        &self,
        file: FileId,
        first_page: u64,
        word: u64,
        mut mark: impl FnMut(u64, u64),
    ) -> u64 {
        let mut nowhere = word;
        let end = first_page.saturating_add(WORD);
        for part in self.0.iter().filter(|part| part.id == file) {
            let (first, pages) = (part.offset >> PAGE_SHIFT, part.len >> PAGE_SHIFT);
            let from = first.max(first_page);
            let to = first.saturating_add(pages).min(end);
            if from >= to {
                continue;
            }
            let skipped = from - first_page;
            let here = (u64::MAX >> (WORD - (to - from))) << skipped;
            nowhere &= !here;
            let guest_page = (part.gpa >> PAGE_SHIFT).saturating_add(from - first);
            mark(guest_page, (word & here) >> skipped);
        }
        u64::from(nowhere.count_ones())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::memfd;

    const PAGE: u64 = 1 << PAGE_SHIFT;

    fn part(inode: u64, page: u64, guest_page: u64, pages: u64) -> Part {
        Part {
            file: Arc::new(memfd(0)),
            id: FileId { device: 1, inode },
            offset: page * PAGE,
            gpa: guest_page * PAGE,
            len: pages * PAGE,
        }
    }

    /// As q35 has more than 2 GiB: the file's second part is above 4 GiB.
    #[test]
    fn a_page_is_found_wherever_the_guest_has_it() {
        let layout = Layout(vec![
            part(7, 0, 0, 100),
            part(8, 0, 500, 1),
            part(7, 100, 1000, 100),
            // Once more, at another address.
            part(7, 110, 2000, 1),
        ]);
        let find = |inode, first, word| {
            let mut found = Vec::new();
            let id = FileId { device: 1, inode };
            let missed = layout.locate(id, first, word, |guest_page, bits| {
                found.extend(
                    (0..WORD)
                        .filter(|n| bits >> n & 1 == 1)
                        .map(|n| guest_page + n),
                );
            });
            (found, missed)
        };
        assert_eq!(find(7, 0, 0b101), (vec![0, 2], 0));
        // Pages 64 + 35, 64 + 36 and 64 + 46.
        let word = 1 << 35 | 1 << 36 | 1 << 46;
        assert_eq!(find(7, 64, word), (vec![99, 1000, 1010, 2000], 0));
        assert_eq!(find(7, 192, 0xf << 7), (vec![1099], 3), "the file's end");
        assert_eq!(find(8, 0, 0b11), (vec![500], 1));
        assert_eq!(find(9, 0, u64::MAX), (vec![], 64), "another file");
        assert_eq!(find(7, u64::MAX, u64::MAX), (vec![], 64));
    }
}
