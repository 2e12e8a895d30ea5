//! What a function writes is known from who logs it.
#![expect(
    clippy::single_range_in_vec_init,
    reason = "ranges are what is compared"
)]

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;

use ::device::lifecycle::Running;
use ::device::{Hardware, LogSource, MapRequest, MemoryId, Model};
use rustix::io::Errno;
use vfio_user::{Backend, DmaMap};

use super::{PAGE, PAGES, Vm, opened};
use crate::fake::{Fake, Has, When};
use crate::iommufd::{GET_DIRTY_BITMAP, SET_DIRTY_TRACKING};

const START: u32 = 6;
const REPORT: u32 = 8;

fn only_logging() -> Has {
    Has {
        logging: true,
        ..Has::little()
    }
}

fn only_dirty_bits() -> Has {
    Has {
        dirty_bits: true,
        ..Has::little()
    }
}

#[test]
fn the_best_source_is_used_and_none_is_said_to_be_none() {
    let source = |has| opened(has).1.log_source();
    assert_eq!(source(Has::all()), Some(LogSource::Device));
    assert_eq!(source(only_logging()), Some(LogSource::Device));
    assert_eq!(source(only_dirty_bits()), Some(LogSource::Iommu));
    assert_eq!(source(Has::little()), None);
    let vm = Vm::running(Has::little());
    assert!(vm.endpoint().open_log().is_err());
    assert!(!vm.endpoint().keeps_log(), "nobody knows what it writes");
}

#[test]
fn every_page_is_marked_once_and_the_last_ones_after_the_halt() {
    for has in [Has::all(), only_logging(), only_dirty_bits()] {
        let states = has.states;
        let vm = Vm::running(has);
        assert!(vm.fake.writes(1), "before anybody logs");
        vm.endpoint().open_log().unwrap();
        assert!(vm.fake.is_logging());
        assert!(vm.fake.writes(3) && vm.fake.writes(64) && vm.fake.writes(99));
        assert_eq!(vm.mark().unwrap(), [3, 64, 99]);
        assert!(vm.mark().unwrap().is_empty());
        assert!(vm.fake.writes(7));
        if states != 0 {
            vm.fake.has_under_way(8);
        }
        vm.fake.journal();
        let halted = Running::new(vm.endpoints.clone()).halt().unwrap();
        assert!(!vm.fake.writes(9), "halted");
        let mut pages = Vec::new();
        let marked = halted.mark(&mut |_, page| pages.push(page)).unwrap();
        assert_eq!(pages, if states != 0 { vec![7, 8] } else { vec![7] });
        drop(marked);
        vm.endpoint().close_log();
        assert!(!vm.fake.is_logging());
    }
}

/// The order of what the kernel was asked: law 1.
#[test]
fn the_last_report_is_asked_for_only_once_the_function_has_stopped() {
    let vm = Vm::running(Has::all());
    vm.endpoint().open_log().unwrap();
    vm.fake.journal();
    let halted = Running::new(vm.endpoints.clone()).halt().unwrap();
    halted.mark(&mut |_, _| {}).unwrap();
    assert_eq!(
        vm.fake.journal(),
        [
            "state 5, bus mastering on",
            "state 1, bus mastering on",
            "reported in state 1, bus mastering on"
        ]
    );
    // Without states, bus mastering is what halts it.
    let vm = Vm::running(only_logging());
    vm.endpoint().open_log().unwrap();
    vm.fake.journal();
    let halted = Running::new(vm.endpoints.clone()).halt().unwrap();
    halted.mark(&mut |_, _| {}).unwrap();
    assert_eq!(
        vm.fake.journal(),
        ["reported in state 2, bus mastering off"]
    );
}

#[test]
fn a_function_that_logs_few_ranges_is_given_as_many() {
    let above = (4 << 30) / PAGE;
    for (ranges, expected) in [
        (256, vec![0..100, 200..210, above..above + 5]),
        (2, vec![0..210, above..above + 5]),
        (1, vec![0..above + 5]),
    ] {
        let vm = Vm::running(Has {
            ranges,
            ..only_logging()
        });
        vm.map(200, 10);
        vm.map(above, 5);
        vm.endpoint().open_log().unwrap();
        let expected: Vec<_> = expected
            .into_iter()
            .map(|pages| pages.start * PAGE..pages.end * PAGE)
            .collect();
        assert_eq!(vm.fake.watched(), expected);
        assert!(vm.fake.writes(205) && vm.fake.writes(above + 4) && !vm.fake.writes(150));
        // By the file that is mapped there.
        let marked = [205 % PAGES, (above + 4) % PAGES];
        assert_eq!(vm.mark().unwrap(), marked);
    }
}

#[test]
fn more_ranges_than_the_kernel_takes_are_never_asked_for() {
    let vm = Vm::new(only_logging());
    for range in 0..300 {
        vm.map(range * 2, 1);
    }
    vm.set_bus_master(true);
    vm.fake.journal();
    vm.endpoint().open_log().unwrap();
    assert_eq!(vm.fake.journal(), ["log starts"]);
    assert_eq!(vm.fake.watched(), [0..599 * PAGE]);
    assert!(vm.fake.writes(598));
    assert_eq!(vm.mark().unwrap(), [598 % PAGES]);
}

#[test]
fn a_log_by_larger_pages_says_nothing_of_what_is_no_memory() {
    let vm = Vm::running(Has {
        log_page: 2 << 20,
        ..only_logging()
    });
    vm.endpoint().open_log().unwrap();
    assert!(vm.fake.writes(70));
    let all: Vec<_> = (0..PAGES).collect();
    assert_eq!(vm.mark().unwrap(), all);
}

#[test]
fn memory_of_more_than_a_gibibyte_is_asked_about_in_pieces() {
    let vm = Vm::new(only_logging());
    let gib = (1 << 30) / PAGE;
    vm.memory.set_len(3 << 30).unwrap();
    vm.map(0, 2 * gib + 3);
    vm.set_bus_master(true);
    vm.endpoint().open_log().unwrap();
    let pages = [0, gib - 1, gib, 2 * gib, 2 * gib + 2];
    assert!(pages.iter().all(|&page| vm.fake.writes(page)));
    vm.fake.journal();
    assert_eq!(vm.mark().unwrap(), pages);
    assert_eq!(vm.fake.journal().len(), 3);
}

#[test]
fn the_iommu_takes_over_from_a_function_that_does_not_log_now() {
    let vm = Vm::running(Has::all());
    vm.fake.fail(When::Feature(START), Errno::NOSPC);
    vm.endpoint().open_log().unwrap();
    assert_eq!(vm.endpoint().log_source(), Some(LogSource::Iommu));
    assert!(vm.fake.writes(5));
    assert_eq!(vm.mark().unwrap(), [5]);
    vm.endpoint().close_log();
    assert_eq!(vm.endpoint().log_source(), Some(LogSource::Device));
}

#[test]
fn a_log_that_nobody_opens_is_no_log() {
    let vm = Vm::running(only_dirty_bits());
    vm.fake.fail(When::Call(SET_DIRTY_TRACKING), Errno::IO);
    let error = vm.endpoint().open_log().unwrap_err().to_string();
    assert!(error.contains("iommu-dirty-bits"), "{error}");
    assert!(!vm.endpoint().keeps_log());
    // Its writes are for others to know then.
    assert!(vm.mark().unwrap().is_empty());
    vm.endpoint().close_log();
    assert!(vm.endpoint().keeps_log(), "until the next migration");
}

#[test]
fn after_a_failed_report_nothing_is_known_until_the_log_is_opened_again() {
    for (has, when) in [
        (only_logging(), When::Feature(REPORT)),
        (only_dirty_bits(), When::Call(GET_DIRTY_BITMAP)),
    ] {
        let vm = Vm::running(has);
        vm.endpoint().open_log().unwrap();
        assert!(vm.fake.writes(5));
        vm.fake.fail(when, Errno::IO);
        let halted = Running::new(vm.endpoints.clone()).halt().unwrap();
        let failed = halted.mark(&mut |_, _| {}).unwrap_err();
        let error = failed.error.to_string();
        assert!(error.contains("not known"), "{error}");
        assert!(!vm.endpoint().keeps_log());
        failed.back_to.resume();
        assert!(vm.fake.writes(6), "it runs on");
        vm.endpoint().open_log().unwrap();
        assert!(vm.fake.writes(7));
        assert_eq!(vm.mark().unwrap(), [7]);
    }
}

#[test]
fn a_fault_of_the_log_outlasts_a_report_that_works() {
    let (fake, mut function) = opened(only_logging());
    map(&mut function, 0, 10);
    function.open_log().unwrap();
    fake.fail(When::Feature(REPORT), Errno::IO);
    let read = |function: &mut dyn Hardware| function.read_log(&mut |_| {});
    assert!(read(&mut function).is_err());
    assert!(read(&mut function).is_err(), "and again");
    function.close_log();
    assert!(read(&mut function).is_err(), "no log is open");
}

#[test]
fn memory_that_comes_while_the_function_logs_is_in_its_log_or_the_log_is_lost() {
    let (fake, mut function) = opened(Has {
        ranges: 1,
        ..only_logging()
    });
    map(&mut function, 0, 10);
    map(&mut function, 20, 10);
    function.set_bus_master(true).unwrap();
    function.open_log().unwrap();
    map(&mut function, 12, 3);
    assert!(fake.writes(13));
    let mut pages = Vec::new();
    function.read_log(&mut |page| pages.push(page)).unwrap();
    assert_eq!(pages, [13]);
    map(&mut function, 40, 3);
    let error = function.read_log(&mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("0x28000"), "{error}");
}

#[test]
fn what_was_written_to_memory_that_is_gone_is_marked() {
    let pages = |vm: &Vm| vm.mark().unwrap();
    let vm = Vm::running(only_logging());
    vm.map(200, 4);
    vm.endpoint().open_log().unwrap();
    assert!(vm.fake.writes(201));
    vm.unmap(200, 4);
    // Nobody knows any more where on the bus it was: any of it may have been written.
    assert_eq!(pages(&vm), [0, 1, 2, 3]);
    assert!(pages(&vm).is_empty());
    // The IOMMU's bits go with the mapping.
    let vm = Vm::running(only_dirty_bits());
    vm.map(200, 4);
    vm.endpoint().open_log().unwrap();
    assert!(vm.fake.writes(201) && vm.fake.writes(2));
    vm.unmap(200, 4);
    vm.map(300, 1);
    assert!(vm.fake.writes(300));
    assert_eq!(pages(&vm), [0, 1, 2, 3, 2, 0]);
    assert!(pages(&vm).is_empty());
}

#[test]
fn without_iommufd_there_is_no_file_to_open_it_by() {
    let fake = Fake::new(Has {
        iommufd: false,
        ..Has::all()
    });
    let error = fake.open().err().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
}

#[test]
fn memory_is_reached_exactly_as_it_is_mapped_with_dirty_bits_or_without() {
    for has in [Has::all(), Has::little()] {
        let vm = Vm::running(has);
        vm.map(200, 4);
        assert_eq!(vm.fake.mapped(), [0..PAGES * PAGE, 200 * PAGE..204 * PAGE]);
        assert!(vm.fake.writes(203) && !vm.fake.writes(204));
        vm.unmap(200, 4);
        assert!(!vm.fake.writes(203));
        assert_eq!(vm.fake.mapped(), [0..PAGES * PAGE]);
    }
}

/// What a guest behind a virtual IOMMU sends (`DMA_TO_DEVICE`).
#[test]
fn what_the_device_may_only_read_it_reaches_and_does_not_write() {
    for has in [Has::all(), Has::little()] {
        let vm = Vm::running(has);
        vm.map_to(200, 4, false);
        assert_eq!(vm.fake.mapped(), [0..PAGES * PAGE, 200 * PAGE..204 * PAGE]);
        assert!(!vm.fake.writes(200) && vm.fake.writes(0));
        vm.unmap(200, 4);
        assert_eq!(vm.fake.mapped(), [0..PAGES * PAGE]);
        vm.map(200, 4);
        assert!(vm.fake.writes(200));
    }
}

/// QEMU opens an image that a VM has as memory so, if told to (`readonly=on`).
#[test]
fn a_file_that_can_only_be_read_is_mapped_for_reading_and_refused_for_writing() {
    let vm = Vm::new(Has::all());
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(PAGES * PAGE).unwrap();
    let take = |page: u64, writable, file: File| {
        let map = DmaMap {
            iova: page * PAGE,
            size: PAGE,
            offset: 0,
            readable: true,
            writable,
        };
        vm.take(map, file)
    };
    let read_only = || File::open(file.path()).unwrap();
    take(200, false, read_only()).unwrap();
    assert!(take(300, true, read_only()).is_err());
    assert_eq!(vm.fake.mapped(), [200 * PAGE..201 * PAGE]);
}

/// A virtual IOMMU has thousands of them.
#[test]
fn however_many_pages_of_a_file_are_mapped_it_is_open_once() {
    let open = |of: &File| {
        let of = MemoryId::of(&of.metadata().unwrap());
        let files = fs::read_dir("/proc/self/fd").unwrap();
        // Other tests close files meanwhile.
        let files = files.filter_map(|file| fs::metadata(file.ok()?.path()).ok());
        files.filter(|file| MemoryId::of(file) == of).count()
    };
    let vm = Vm::running(Has::all());
    let before = open(&vm.memory);
    for page in 200..280 {
        vm.map(page, 1);
    }
    assert_eq!(open(&vm.memory), before);
    assert!(vm.fake.writes(279) && !vm.fake.writes(280));
    vm.unmap(279, 1);
    assert!(vm.fake.writes(278) && !vm.fake.writes(279));
}

/// A VMM could have all of the host's memory pinned otherwise.
#[test]
fn no_more_memory_is_pinned_than_the_vm_may_have() {
    let (fake, mut function) = opened(Has::all());
    let hardware = function.hardware().unwrap();
    hardware.limit_memory(150 * PAGE);
    let file = |pages: u64| {
        let file = tempfile::tempfile().unwrap();
        file.set_len(pages * PAGE).unwrap();
        file
    };
    let map = |hardware: &mut dyn Hardware, page: u64, file: &std::fs::File| {
        let request = MapRequest {
            iova: page * PAGE,
            size: PAGE,
            offset: 0,
            writable: true,
        };
        hardware.map(request, Some(file.try_clone().unwrap().into()))
    };
    let (ram, rom) = (file(100), file(50));
    for (page, file) in [(0, &ram), (1, &rom), (2, &ram)] {
        map(hardware, page, file).unwrap();
    }
    let refused = map(hardware, 3, &file(1)).unwrap_err().to_string();
    assert!(refused.contains("may have pinned"), "{refused}");
    assert_eq!(fake.mapped().len(), 3);
    // What is gone does not count.
    hardware.unmap(PAGE, PAGE).unwrap();
    map(hardware, 3, &file(50)).unwrap();
    map(hardware, 4, &file(1)).unwrap_err();
}

#[test]
fn memory_past_the_end_of_its_file_is_refused() {
    let vm = Vm::new(Has::all());
    let map = DmaMap {
        iova: 0,
        size: 2 * PAGE,
        offset: (2 * PAGES - 1) * PAGE,
        readable: true,
        writable: true,
    };
    let file = OwnedFd::from(vm.memory.try_clone().unwrap());
    assert!(vm.endpoint().frontend().dma_map(map, Some(file)).is_err());
    assert!(vm.fake.mapped().is_empty());
}

#[test]
fn parts_of_a_bar_are_found_through_the_functions_own_file() {
    let (_fake, mut function) = opened(Has::all());
    let hardware = function.hardware().unwrap();
    let whole = hardware.mappable(0).unwrap();
    assert_eq!((whole.offset, whole.areas), (0, vec![]));
    let part = hardware.mappable(3).unwrap();
    assert_eq!((part.offset, part.areas), (3 << 20, vec![(0, 0x2000)]));
    assert!(hardware.mappable(1).is_none() && hardware.mappable(6).is_none());
}

#[test]
fn calls_that_signals_cut_short_are_made_again() {
    let vm = Vm::running(Has::all());
    vm.fake.interrupt(3);
    vm.endpoint().open_log().unwrap();
    assert!(vm.fake.writes(5));
    vm.fake.interrupt(2);
    assert_eq!(vm.mark().unwrap(), [5]);
}

#[test]
fn a_vmm_that_goes_leaves_no_log_open() {
    let (fake, mut function) = opened(Has::all());
    map(&mut function, 0, 10);
    function.open_log().unwrap();
    function.abandon();
    assert!(!fake.is_logging());
    assert!(fake.mapped().is_empty());
}

fn map(function: &mut dyn Hardware, page: u64, pages: u64) {
    let file = tempfile::tempfile().unwrap();
    file.set_len(pages * PAGE).unwrap();
    let request = ::device::MapRequest {
        iova: page * PAGE,
        size: pages * PAGE,
        offset: 0,
        writable: true,
    };
    function.map(request, Some(file.into())).unwrap();
}
