use std::fs::File;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;

use super::*;

pub(crate) fn memfd(pages: u64) -> File {
    let fd = rustix::fs::memfd_create("ram", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let file = File::from(fd);
    file.set_len(pages * PAGE_SIZE).unwrap();
    file
}

pub(crate) fn request(page: u64, pages: u64) -> MapRequest {
    MapRequest {
        iova: page * PAGE_SIZE,
        size: pages * PAGE_SIZE,
        offset: 0,
        writable: true,
    }
}

fn dirty(map: &mut MemoryMap) -> Vec<u64> {
    let mut pages = Vec::new();
    for set in map.take_written().values() {
        each(0, set.words(), |page| pages.push(page));
    }
    pages
}

#[test]
fn a_write_reaches_the_file_and_marks_every_page_it_touches() {
    let file = memfd(4);
    let mut map = MemoryMap::default();
    map.insert(request(16, 4), Some(file.try_clone().unwrap()))
        .unwrap();
    let data = vec![7u8; 4098];
    map.write(16 * PAGE_SIZE + 4095, &data).unwrap();
    assert_eq!(dirty(&mut map), [0, 1, 2], "pages of the file");
    let mut back = vec![0; 4098];
    file.read_exact_at(&mut back, 4095).unwrap();
    assert_eq!(back, data);
    map.store_u64(19 * PAGE_SIZE, 1).unwrap();
    map.store_u32(16 * PAGE_SIZE + 4, 1).unwrap();
    assert_eq!(dirty(&mut map), [0, 3]);
}

#[test]
fn a_write_crosses_from_one_mapping_to_the_next() {
    let file = memfd(4);
    let mut map = MemoryMap::default();
    let second = MapRequest {
        offset: 2 * PAGE_SIZE,
        ..request(1, 1)
    };
    map.insert(request(0, 1), Some(file.try_clone().unwrap()))
        .unwrap();
    map.insert(second, Some(file.try_clone().unwrap())).unwrap();
    map.write(PAGE_SIZE - 1, &[1, 2]).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 2 * PAGE_SIZE).unwrap();
    assert_eq!((byte, dirty(&mut map)), ([2], vec![0, 2]));
}

#[test]
fn pages_known_by_their_place_on_the_bus_are_reported_by_their_file() {
    let (low, high) = (memfd(200), memfd(300));
    let ids = [&low, &high].map(|file| MemoryId::of(&file.metadata().unwrap()));
    let mut map = MemoryMap::default();
    // Pages 0 to 99 show the second half of the one, pages 128 to 327 the first 200 of the other.
    let half = MapRequest {
        offset: 100 * PAGE_SIZE,
        ..request(0, 100)
    };
    map.insert(half, Some(low)).unwrap();
    map.insert(request(128, 200), Some(high)).unwrap();
    let mut words = [0; 6];
    for page in [0, 63, 99, 100, 127, 128, 191, 192, 327, 328, 383] {
        words[page / 64] |= 1 << (page % 64);
    }
    let mut seen = Vec::new();
    map.report_at(0, &words, &mut |file, page| seen.push((file, page)));
    let [low, high] = ids;
    let expected = [
        (low, 100),
        (low, 163),
        (low, 199),
        (high, 0),
        (high, 63),
        (high, 64),
        (high, 199),
    ];
    assert_eq!(seen, expected);
    // Nor does a number that no bus has.
    map.report_at(u64::MAX - 70, &[u64::MAX; 2], &mut |_, _| unreachable!());
}

#[test]
fn read_only_and_unbacked_ranges_refuse_writes() {
    let mut map = MemoryMap::default();
    map.insert(
        MapRequest {
            writable: false,
            ..request(0, 1)
        },
        Some(memfd(1)),
    )
    .unwrap();
    map.insert(request(1, 1), None).unwrap();
    assert!(map.write(0, &[1]).is_err());
    assert!(map.store_u64(0, 1).is_err());
    assert!(map.read(0, &mut [0]).is_ok());
    assert!(map.read(PAGE_SIZE, &mut [0]).is_err());
    assert!(dirty(&mut map).is_empty());
}

#[test]
fn refuses_what_would_fault_or_overlap() {
    let mut map = MemoryMap::default();
    let past = map.insert(request(0, 2), Some(memfd(1)));
    assert!(matches!(past, Err(MapError::PastEnd { .. })));
    let wrap = MapRequest {
        iova: u64::MAX - 4095,
        ..request(0, 2)
    };
    assert!(matches!(
        map.insert(wrap, None),
        Err(MapError::Unaligned(_))
    ));
    let empty = MapRequest {
        size: 0,
        ..request(0, 1)
    };
    assert!(matches!(
        map.insert(empty, None),
        Err(MapError::Unaligned(_))
    ));
    map.insert(request(4, 4), Some(memfd(4))).unwrap();
    map.insert(request(8, 1), None).unwrap();
    for page in [4, 7, 8] {
        let again = map.insert(request(page, 1), Some(memfd(1)));
        assert!(matches!(again, Err(MapError::Overlap(_))), "page {page}");
    }
    assert!(matches!(
        map.remove(4 * PAGE_SIZE, PAGE_SIZE),
        Err(MapError::NotMapped { .. })
    ));
    map.remove(8 * PAGE_SIZE, PAGE_SIZE).unwrap();
    map.remove(4 * PAGE_SIZE, 4 * PAGE_SIZE).unwrap();
    map.insert(request(4, 1), Some(memfd(1))).unwrap();
}

/// As with a virtual IOMMU.
#[test]
fn ranges_of_one_file_come_and_go_while_what_was_written_stays_known() {
    let file = memfd(8);
    let id = MemoryId::of(&file.metadata().unwrap());
    let mut map = MemoryMap::default();
    for round in 0..3 {
        let range = MapRequest {
            offset: (5 - round) * PAGE_SIZE,
            ..request(0xf_ffff - round, 1)
        };
        map.insert(range, Some(file.try_clone().unwrap())).unwrap();
        map.write(range.iova, &[1]).unwrap();
        map.remove(range.iova, range.size).unwrap();
        assert!(map.read(range.iova, &mut [0]).is_err());
    }
    let kept = map.take_written();
    assert_eq!(kept.keys().collect::<Vec<_>>(), [&id]);
    assert_eq!(kept[&id].words(), [0b11_1000]);
    assert!(map.take_written().is_empty());
}

#[test]
fn a_file_that_is_shorter_than_it_was_or_for_reading_only_is_refused() {
    let file = memfd(1);
    let mut map = MemoryMap::default();
    map.insert(request(0, 1), Some(file.try_clone().unwrap()))
        .unwrap();
    file.set_len(4 * PAGE_SIZE).unwrap();
    let beyond = MapRequest {
        offset: 2 * PAGE_SIZE,
        ..request(1, 1)
    };
    let beyond = map.insert(beyond, Some(file.try_clone().unwrap()));
    assert!(
        matches!(beyond, Err(MapError::PastEnd { .. })),
        "{beyond:?}"
    );

    let named = tempfile::NamedTempFile::new().unwrap();
    named.as_file().set_len(PAGE_SIZE).unwrap();
    let reading = || Some(File::open(named.path()).unwrap());
    let writable = map.insert(request(8, 1), reading());
    assert!(matches!(writable, Err(MapError::System(_))));
    let read_only = |page| MapRequest {
        writable: false,
        ..request(page, 1)
    };
    map.insert(read_only(8), reading()).unwrap();
    assert!(map.read(8 * PAGE_SIZE, &mut [0]).is_ok());
    let writable = map.insert(request(9, 1), Some(named.reopen().unwrap()));
    assert!(matches!(writable, Err(MapError::System(_))));
}

#[test]
fn a_file_is_listed_once_and_knows_where_its_bytes_are_mapped() {
    let file = memfd(8);
    let mut map = MemoryMap::default();
    map.insert(request(0, 2), Some(file.try_clone().unwrap()))
        .unwrap();
    let high = MapRequest {
        iova: 1 << 32,
        offset: 4 * PAGE_SIZE,
        ..request(0, 4)
    };
    map.insert(high, Some(file.try_clone().unwrap())).unwrap();
    map.insert(request(100, 1), Some(memfd(1))).unwrap();
    let files = map.files();
    assert_eq!(files.len(), 2);
    assert_eq!(files[0].address_of(PAGE_SIZE + 1), Some(PAGE_SIZE + 1));
    assert_eq!(files[0].address_of(2 * PAGE_SIZE), None);
    assert_eq!(
        files[0].address_of(7 * PAGE_SIZE),
        Some((1 << 32) + 3 * PAGE_SIZE)
    );
    assert_eq!(files[1].address_of(0), Some(100 * PAGE_SIZE));
}

proptest! {
    /// Any mix of mappings and accesses: an access succeeds exactly when all of it is mapped, and
    /// then the pages it touched, and no others, are dirty.
    #[test]
    fn accesses_succeed_exactly_inside_of_mappings(
        pages in proptest::collection::vec(any::<bool>(), 8),
        at in 0u64..9 * PAGE_SIZE,
        len in 1usize..3 * 4096,
    ) {
        let mut map = MemoryMap::default();
        let file = memfd(8);
        for (page, _) in (0u64..).zip(&pages).filter(|(_, mapped)| **mapped) {
            let one = MapRequest { offset: page * PAGE_SIZE, ..request(page, 1) };
            map.insert(one, Some(file.try_clone().unwrap())).unwrap();
        }
        let touched: Vec<u64> = (at / PAGE_SIZE..=(at + len as u64 - 1) / PAGE_SIZE).collect();
        let all = touched.iter().all(|&p| pages.get(usize::try_from(p).unwrap()) == Some(&true));
        let written = map.write(at, &vec![1; len]);
        prop_assert_eq!(written.is_ok(), all);
        if all {
            prop_assert_eq!(dirty(&mut map), touched);
        }
        prop_assert_eq!(map.read(at, &mut vec![0; len]).is_ok(), all);
    }
}
