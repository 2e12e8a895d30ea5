//! The guest's DMA table, read from guest memory.

use device::{GuestMemory, GuestPageSink, PAGE_SIZE};

use crate::spec::table::{CHUNK_BYTES, CHUNK_PAGES, CHUNK_SPAN, ENTRY_BYTES};
use crate::state::TableRegisters;

const ENTRY_LEN: usize = 8;
const CHUNK_LEN: usize = 4096;
const _: () = assert!(ENTRY_LEN as u64 == ENTRY_BYTES && CHUNK_LEN as u64 == CHUNK_BYTES);

/// Why a table cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// Nobody keeps the promise any more.
    #[error(
        "the guest's driver of the control device has left or started anew during the migration, so nothing is known of what devices wrote meanwhile: migrate again"
    )]
    Void,
    /// The control device may not read.
    #[error(
        "the guest has bus mastering off for the control device, so its DMA table is out of reach: its driver must enable it"
    )]
    OutOfReach,
    /// The directory is not where one can be.
    #[error(
        "the guest's DMA table is refused: its directory at {0:#x} is not page aligned, or outside of guest memory"
    )]
    Directory(u64),
    /// The directory has no entries, or more than the VM has memory for.
    #[error(
        "the guest's DMA table is refused: its directory has {found} entries, and 1 to {most} can be"
    )]
    Length {
        /// In the register.
        found: u32,
        /// For all of the VM's memory.
        most: u64,
    },
    /// A chunk is not where one can be.
    #[error(
        "the guest's DMA table is refused: chunk {index} at {address:#x} is not page aligned, or outside of guest memory"
    )]
    Chunk {
        /// Entry of the directory.
        index: u32,
        /// What it says.
        address: u64,
    },
}

/// A table whose registers can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Table {
    directory: u64,
    chunks: u32,
    ram_end: u64,
}

impl Table {
    /// `ram_end` is the end of the highest guest memory, in bytes.
    pub(crate) fn new(registers: TableRegisters, ram_end: u64) -> Result<Self, TableError> {
        let TableRegisters { directory, chunks } = registers;
        let most = ram_end.div_ceil(CHUNK_SPAN);
        if chunks == 0 || u64::from(chunks) > most {
            return Err(TableError::Length {
                found: chunks,
                most,
            });
        }
        let len = u64::from(chunks) * ENTRY_BYTES;
        if !lies_in(directory, len, ram_end) {
            return Err(TableError::Directory(directory));
        }
        Ok(Self {
            directory,
            chunks,
            ram_end,
        })
    }

    /// Looks at every chunk's place, not at its bits.
    pub(crate) fn check(&self, memory: &dyn GuestMemory) -> Result<(), TableError> {
        self.each_chunk(memory, |index, address| {
            let mut first = [0; ENTRY_LEN];
            memory
                .read(address, &mut first)
                .map_err(|_| TableError::Chunk { index, address })
        })
    }

    /// Reports every page whose bit is set, and returns their number. After an error, some may
    /// have been reported.
    pub(crate) fn mark(
        &self,
        memory: &dyn GuestMemory,
        sink: &mut dyn GuestPageSink,
    ) -> Result<u64, TableError> {
        let mut pages = 0;
        let mut bytes = [0; CHUNK_LEN];
        let mut words = [0; CHUNK_LEN / ENTRY_LEN];
        self.each_chunk(memory, |index, address| {
            memory
                .read(address, &mut bytes)
                .map_err(|_| TableError::Chunk { index, address })?;
            for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
                *word = u64::from_le_bytes(*bytes);
            }
            let first_page = u64::from(index) * CHUNK_PAGES;
            self.drop_past_end(first_page, &mut words);
            let set: u64 = words.iter().map(|word| u64::from(word.count_ones())).sum();
            if set > 0 {
                sink.mark_words(first_page, &words);
            }
            pages += set;
            Ok(())
        })?;
        Ok(pages)
    }

    /// Calls `visit` with each chunk that there is, by its index and address.
    fn each_chunk(
        &self,
        memory: &dyn GuestMemory,
        mut visit: impl FnMut(u32, u64) -> Result<(), TableError>,
    ) -> Result<(), TableError> {
        let mut at = self.directory;
        let mut piece = [0; CHUNK_LEN];
        let mut index = 0;
        while index < self.chunks {
            let rest = usize::try_from(self.chunks - index).unwrap_or(usize::MAX);
            let entries = rest.min(CHUNK_LEN / ENTRY_LEN);
            let bytes = &mut piece[..entries * ENTRY_LEN];
            memory
                .read(at, bytes)
                .map_err(|_| TableError::Directory(self.directory))?;
            for entry in bytes.as_chunks().0 {
                let address = u64::from_le_bytes(*entry);
                if address != 0 {
                    if !lies_in(address, CHUNK_BYTES, self.ram_end) {
                        return Err(TableError::Chunk { index, address });
                    }
                    visit(index, address)?;
                }
                index += 1;
            }
            at = at.wrapping_add(CHUNK_BYTES);
        }
        Ok(())
    }

    /// Bits for pages past the end of memory mean nothing, and nobody could send such pages.
    fn drop_past_end(&self, first_page: u64, words: &mut [u64]) {
        let end = self.ram_end / PAGE_SIZE;
        for (first, word) in (first_page..).step_by(64).zip(words) {
            let pages = end.saturating_sub(first);
            if pages < 64 {
                *word &= (1 << pages) - 1;
            }
        }
    }
}

fn lies_in(address: u64, len: u64, ram_end: u64) -> bool {
    address.is_multiple_of(PAGE_SIZE) && address.checked_add(len).is_some_and(|end| end <= ram_end)
}

#[cfg(test)]
mod tests {
    use device::FlatMemory;
    use proptest::prelude::*;

    use super::*;

    const RAM: u64 = 1 << 20;

    fn memory() -> FlatMemory {
        FlatMemory::new(0, usize::try_from(RAM).unwrap())
    }

    fn table(directory: u64, chunks: u32) -> Result<Table, TableError> {
        Table::new(TableRegisters { directory, chunks }, RAM)
    }

    fn marked(table: &Table, memory: &FlatMemory) -> Result<Vec<u64>, TableError> {
        let mut pages = Vec::new();
        let count = table.mark(memory, &mut |page| pages.push(page))?;
        assert_eq!(count, pages.len() as u64);
        Ok(pages)
    }

    #[test]
    fn set_bits_are_the_pages_that_are_marked() {
        let memory = memory();
        memory.write(0x3000, &0x5000u64.to_le_bytes()).unwrap();
        memory.write(0x5000, &[0b1000_0001, 0b10]).unwrap();
        let table = table(0x3000, 1).unwrap();
        table.check(&memory).unwrap();
        assert_eq!(marked(&table, &memory), Ok(vec![0, 7, 9]));
    }

    #[test]
    fn pages_past_the_end_of_memory_are_not_marked() {
        let memory = memory();
        memory.write(0x3000, &0x5000u64.to_le_bytes()).unwrap();
        memory.write(0x5000, &[0xff; 4096]).unwrap();
        let pages = marked(&table(0x3000, 1).unwrap(), &memory).unwrap();
        assert_eq!(pages, (0..RAM / PAGE_SIZE).collect::<Vec<_>>());
    }

    #[test]
    fn a_chunk_that_is_not_there_has_no_bits() {
        assert_eq!(marked(&table(0x3000, 1).unwrap(), &memory()), Ok(vec![]));
    }

    #[test]
    fn later_chunks_stand_for_later_memory() {
        let memory = memory();
        let registers = TableRegisters {
            directory: 0x3000,
            chunks: 600,
        };
        let table = Table::new(registers, 600 * CHUNK_SPAN).unwrap();
        memory
            .write(0x3000 + 599 * 8, &0x8000u64.to_le_bytes())
            .unwrap();
        memory.write(0x8000, &[4]).unwrap();
        assert_eq!(marked(&table, &memory), Ok(vec![599 * CHUNK_PAGES + 2]));
    }

    #[test]
    fn registers_that_cannot_be_are_refused() {
        for directory in [1, 0x3008, RAM, u64::MAX, u64::MAX - 0xfff] {
            assert_eq!(table(directory, 1), Err(TableError::Directory(directory)));
        }
        for chunks in [0, 2, u32::MAX] {
            let found = chunks;
            assert_eq!(
                table(0x3000, chunks),
                Err(TableError::Length { found, most: 1 })
            );
        }
    }

    #[test]
    fn a_chunk_that_cannot_be_refuses_the_table() {
        let memory = memory();
        let table = table(0x3000, 1).unwrap();
        for address in [1, 0x5008, RAM, RAM - 8, u64::MAX, u64::MAX - 0xfff] {
            memory.write(0x3000, &address.to_le_bytes()).unwrap();
            let refused = TableError::Chunk { index: 0, address };
            assert_eq!(table.check(&memory), Err(refused));
            assert_eq!(marked(&table, &memory), Err(refused));
        }
    }

    #[test]
    fn memory_that_is_not_there_refuses_the_table() {
        // As with a hole below the end of memory.
        let memory = FlatMemory::new(0x10000, 0x10000);
        let refused = Err(TableError::Directory(0x3000));
        assert_eq!(table(0x3000, 1).unwrap().check(&memory), refused);
        let there = table(0x10000, 1).unwrap();
        memory.write(0x10000, &0x4000u64.to_le_bytes()).unwrap();
        let refused = Err(TableError::Chunk {
            index: 0,
            address: 0x4000,
        });
        assert_eq!(there.check(&memory), refused);
    }

    struct Counting {
        /// The first page that does not exist.
        end: u64,
        pages: u64,
        calls: u64,
    }

    impl GuestPageSink for Counting {
        fn mark_words(&mut self, first: u64, words: &[u64]) {
            self.calls += 1;
            let mut last = 0;
            (|page: u64| {
                self.pages += 1;
                last = page;
            })
            .mark_words(first, words);
            assert!(last < self.end);
        }
    }

    proptest! {
        /// Whatever lies in memory, the work is bounded and no page past the end is marked.
        #[test]
        fn garbage_is_refused_or_marks_pages_that_exist(
            directory in prop_oneof![any::<u64>(), (0..RAM / PAGE_SIZE).prop_map(|p| p * PAGE_SIZE)],
            chunks in prop_oneof![any::<u32>(), 0..4u32],
            entries in proptest::collection::vec(
                prop_oneof![any::<u64>(), (0..2 * RAM / PAGE_SIZE).prop_map(|p| p * PAGE_SIZE)],
                0..4,
            ),
            ram_end in prop_oneof![Just(RAM), 0..4 * CHUNK_SPAN],
        ) {
            let memory = memory();
            let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_le_bytes()).collect();
            let _ = memory.write(directory, &bytes);
            if let Ok(table) = Table::new(TableRegisters { directory, chunks }, ram_end) {
                let checked = table.check(&memory);
                let mut sink = Counting { end: ram_end / PAGE_SIZE, pages: 0, calls: 0 };
                let result = table.mark(&memory, &mut sink);
                prop_assert_eq!(result.err(), checked.err());
                prop_assert!(sink.calls <= ram_end.div_ceil(CHUNK_SPAN));
                if let Ok(count) = result {
                    prop_assert_eq!(count, sink.pages);
                }
            }
        }
    }
}
