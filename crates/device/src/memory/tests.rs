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

fn dirty(map: &MemoryMap) -> Vec<u64> {
    let mut pages = Vec::new();
    map.drain_dirty(&mut |page| pages.push(page));
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
    assert_eq!(dirty(&map), [16, 17, 18]);
    let mut back = vec![0; 4098];
    file.read_exact_at(&mut back, 4095).unwrap();
    assert_eq!(back, data);
    map.store_u64(19 * PAGE_SIZE, 1).unwrap();
    map.store_u32(16 * PAGE_SIZE + 4, 1).unwrap();
    assert_eq!(dirty(&map), [16, 19]);
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
    assert_eq!((byte, dirty(&map)), ([2], vec![0, 1]));
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
    assert!(dirty(&map).is_empty());
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
            prop_assert_eq!(dirty(&map), touched);
        }
        prop_assert_eq!(map.read(at, &mut vec![0; len]).is_ok(), all);
    }
}
