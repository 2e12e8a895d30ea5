//! Where a command's data lies in guest memory: physical region pages (section 4.3).

use device::{DmaError, GuestMemory};

use crate::spec::commands::Submission;
use crate::spec::registers::PAGE;
use crate::spec::status::Status;

/// Bytes of an entry of a list.
const ENTRY_LEN: u64 = 8;

/// A command's data, as contiguous pieces: address and bytes. Kept to be used again.
#[derive(Debug, Default)]
pub(crate) struct Pieces(Vec<(u64, usize)>);

impl Pieces {
    /// Finds the `len` bytes of `entry`. At most one piece per page, and one read per page of the
    /// list.
    pub(crate) fn resolve(
        &mut self,
        memory: &dyn GuestMemory,
        entry: &Submission,
        len: usize,
    ) -> Result<(), Status> {
        self.0.clear();
        let (prp1, prp2) = (entry.prp1(), entry.prp2());
        // A first entry has an offset, whose two lowest bits are to be zero.
        if !prp1.is_multiple_of(4) {
            return Err(Status::PRP_OFFSET_INVALID);
        }
        let mut rest = self.page(prp1, len);
        if rest == 0 {
            return Ok(());
        }
        if rest as u64 <= PAGE {
            self.aligned_page(prp2, rest)?;
            return Ok(());
        }
        if !prp2.is_multiple_of(ENTRY_LEN) {
            return Err(Status::PRP_OFFSET_INVALID);
        }
        let mut list = prp2;
        let mut page = [0; 4096];
        loop {
            let slots = (PAGE - list % PAGE) / ENTRY_LEN;
            let wanted = (rest as u64).div_ceil(PAGE);
            let bytes = usize::try_from(slots.min(wanted) * ENTRY_LEN).unwrap_or(page.len());
            memory.read(list, &mut page[..bytes])?;
            let entries = page[..bytes].as_chunks::<8>().0;
            let entries = entries.iter().map(|bytes| u64::from_le_bytes(*bytes));
            if wanted <= slots {
                for address in entries {
                    rest = self.aligned_page(address, rest)?;
                }
                return Ok(());
            }
            // The last entry of a list that does not suffice is the next list's address. Only the
            // first list may begin within its page, so each further one has entries.
            let link = usize::try_from(slots - 1).unwrap_or(0);
            for (slot, address) in entries.enumerate() {
                if slot == link {
                    list = address;
                } else {
                    rest = self.aligned_page(address, rest)?;
                }
            }
            if !list.is_multiple_of(PAGE) {
                return Err(Status::PRP_OFFSET_INVALID);
            }
        }
    }

    /// Calls `f` for each piece of `len` bytes from byte `from` on, with its address and its place
    /// in the `len` bytes.
    pub(crate) fn each(
        &self,
        from: u64,
        len: usize,
        mut f: impl FnMut(u64, std::ops::Range<usize>) -> Result<(), DmaError>,
    ) -> Result<(), DmaError> {
        let mut skip = usize::try_from(from).unwrap_or(usize::MAX);
        let mut at = 0;
        for &(address, bytes) in &self.0 {
            if skip >= bytes {
                skip -= bytes;
                continue;
            }
            let now = (bytes - skip).min(len - at);
            f(address.wrapping_add(skip as u64), at..at + now)?;
            skip = 0;
            at += now;
            if at == len {
                break;
            }
        }
        Ok(())
    }

    fn aligned_page(&mut self, address: u64, rest: usize) -> Result<usize, Status> {
        if !address.is_multiple_of(PAGE) {
            return Err(Status::PRP_OFFSET_INVALID);
        }
        Ok(self.page(address, rest))
    }

    /// Adds what of `rest` lies in the page of `address`; returns what is left.
    fn page(&mut self, address: u64, rest: usize) -> usize {
        let room = usize::try_from(PAGE - address % PAGE).unwrap_or(usize::MAX);
        let now = rest.min(room);
        match self.0.last_mut() {
            Some((start, bytes)) if start.wrapping_add(*bytes as u64) == address => *bytes += now,
            _ => self.0.push((address, now)),
        }
        rest - now
    }
}

impl From<DmaError> for Status {
    fn from(_: DmaError) -> Self {
        Self::DATA_TRANSFER_ERROR
    }
}

#[cfg(test)]
mod tests {
    use device::FlatMemory;

    use super::*;

    fn resolve(
        memory: &FlatMemory,
        prp1: u64,
        prp2: u64,
        len: usize,
    ) -> Result<Vec<(u64, usize)>, Status> {
        let mut entry = Submission([0; 16]);
        for (dword, prp) in [(6, prp1), (8, prp2)] {
            entry.0[dword] = u32::try_from(prp & 0xffff_ffff).unwrap();
            entry.0[dword + 1] = u32::try_from(prp >> 32).unwrap();
        }
        let mut pieces = Pieces::default();
        pieces.resolve(memory, &entry, len).map(|()| pieces.0)
    }

    fn list(memory: &FlatMemory, at: u64, entries: impl IntoIterator<Item = u64>) {
        for (slot, entry) in (0..).zip(entries) {
            memory.write(at + 8 * slot, &entry.to_le_bytes()).unwrap();
        }
    }

    #[test]
    fn one_or_two_pages_need_no_list() {
        let memory = FlatMemory::new(0, 0x1000);
        assert_eq!(resolve(&memory, 0x5e00, 0, 512), Ok(vec![(0x5e00, 512)]));
        assert_eq!(
            resolve(&memory, 0x5e00, 0x9000, 4096),
            Ok(vec![(0x5e00, 512), (0x9000, 3584)])
        );
        assert_eq!(
            resolve(&memory, 0x5000, 0x6000, 8192),
            Ok(vec![(0x5000, 8192)]),
            "neighbours are one piece"
        );
    }

    #[test]
    fn a_list_that_ends_with_its_page_goes_on_in_another() {
        let memory = FlatMemory::new(0, 0x4000);
        list(&memory, 0x1fe8, [0x1_0000, 0x3_0000, 0x2000]);
        list(&memory, 0x2000, [0x5_0000, 0x7_0000]);
        assert_eq!(
            resolve(&memory, 0x8800, 0x1fe8, 2048 + 3 * 4096 + 512),
            Ok(vec![
                (0x8800, 2048),
                (0x1_0000, 4096),
                (0x3_0000, 4096),
                (0x5_0000, 4096),
                (0x7_0000, 512)
            ])
        );
        // As many entries as the page holds: the last is data, not a list.
        assert_eq!(
            resolve(&memory, 0x8800, 0x1fe8, 2048 + 2 * 4096 + 512).map(|p| p.len()),
            Ok(4)
        );
    }

    #[test]
    fn offsets_are_refused_where_there_may_be_none() {
        let memory = FlatMemory::new(0, 0x4000);
        let offset = Err(Status::PRP_OFFSET_INVALID);
        assert_eq!(resolve(&memory, 0x5002, 0, 512), offset);
        assert_eq!(resolve(&memory, 0x5000, 0x6004, 8192), offset);
        assert_eq!(resolve(&memory, 0x5000, 0x1004, 12288), offset);
        list(&memory, 0x1000, [0x6000, 0x7008]);
        assert_eq!(resolve(&memory, 0x5000, 0x1000, 12288), offset);
    }

    /// Each list holds nothing but the address of the next: it must not be followed for ever.
    #[test]
    fn a_list_that_only_leads_to_itself_ends() {
        let memory = FlatMemory::new(0, 0x4000);
        list(&memory, 0x1ff8, [0x1ff8]);
        assert_eq!(
            resolve(&memory, 0x5000, 0x1ff8, 1 << 20),
            Err(Status::PRP_OFFSET_INVALID)
        );
        // A list whose pages are the list itself comes to its end with the data.
        list(&memory, 0x2000, [0x2000; 512]);
        assert!(resolve(&memory, 0x5000, 0x2000, 1 << 20).is_ok());
    }

    #[test]
    fn a_list_outside_of_memory_is_a_transfer_error() {
        let memory = FlatMemory::new(0, 0x1000);
        assert_eq!(
            resolve(&memory, 0x5000, 0x8000, 1 << 20),
            Err(Status::DATA_TRANSFER_ERROR)
        );
    }

    #[test]
    fn a_part_of_the_data_begins_within_its_piece() {
        let pieces = Pieces(vec![(0x1000, 100), (0x5000, 50), (0x9000, 200)]);
        let mut seen = Vec::new();
        pieces
            .each(120, 100, |address, range| {
                seen.push((address, range));
                Ok(())
            })
            .unwrap();
        assert_eq!(seen, [(0x5014, 0..30), (0x9000, 30..100)]);
    }
}
