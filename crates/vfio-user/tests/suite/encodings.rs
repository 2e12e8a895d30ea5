//! Encodings of requests, and the errnos that wrong ones get.
//!
//! The tables are what libvfio-user's own tests (`test/py/test_*.py`) expect of a server, said in
//! bytes. Where this server differs on purpose, the row says why.

use std::os::fd::OwnedFd;

use vfio_user::Errno;

use crate::device::{BAR0, BAR2_OFFSET, BAR2_SPARSE, BAR3_MAPPED, BROKEN, Device};
use crate::device::{CONFIG, ERR, IRQS, MSIX, REGIONS, REQ, ROM, VECTORS};
use crate::peer::{self, Peer, Served, borrowed, eventfds, u32s, u64s};

type Expected = Result<Vec<u8>, Errno>;

const INVAL: Expected = Err(Errno::INVAL);
const OK: Expected = Ok(Vec::new());

fn check(peer: &mut Peer, command: u16, rows: &[(&str, Vec<u8>, Expected)]) {
    for (name, body, expected) in rows {
        assert_eq!(&peer.ask(command, body), expected, "{name}");
    }
}

fn dma_map(flags: u32, offset: u64, iova: u64, size: u64) -> Vec<u8> {
    [u32s(&[32, flags]), u64s(&[offset, iova, size])].concat()
}

fn dma_unmap(flags: u32, iova: u64, size: u64) -> Vec<u8> {
    [u32s(&[24, flags]), u64s(&[iova, size])].concat()
}

#[test]
fn device_info() {
    let (_served, mut peer) = Served::start(Device::default());
    check(
        &mut peer,
        peer::GET_INFO,
        &[
            ("short write", u32s(&[0, 0]), INVAL),
            ("bad argsz", u32s(&[8, 0, 0, 0]), INVAL),
            (
                "larger argsz",
                u32s(&[32, 0, 0, 0]),
                Ok(u32s(&[16, 3, REGIONS, IRQS])),
            ),
        ],
    );
}

fn region_info(argsz: u32, index: u32) -> Vec<u8> {
    [u32s(&[argsz, 0, index, 0]), u64s(&[0, 0])].concat()
}

#[test]
fn region_info_without_a_mapping() {
    let (_served, mut peer) = Served::start(Device::default());
    let told = |index, flags, size| Ok([u32s(&[32, flags, index, 0]), u64s(&[size, 0])].concat());
    check(
        &mut peer,
        peer::GET_REGION_INFO,
        &[
            ("short write", u32s(&[0, 0]), INVAL),
            ("bad argsz", region_info(8, BAR0), INVAL),
            ("bad index", region_info(32, REGIONS), INVAL),
            ("larger argsz", region_info(40, BAR0), told(BAR0, 3, 4096)),
            ("read only", region_info(32, ROM), told(ROM, 1, 4096)),
            ("config", region_info(32, CONFIG), told(CONFIG, 3, 256)),
            ("absent", region_info(32, 8), told(8, 0, 0)),
        ],
    );
}

#[test]
fn a_mapping_comes_with_every_reply_and_its_areas_where_they_fit() {
    let mut device = Device::default();
    let memory = device.memory();
    let (_served, mut peer) = Served::start(device);
    let mut ask = |argsz, index| {
        let reply = peer.call(peer::GET_REGION_INFO, &region_info(argsz, index), &[]);
        let fds = reply.fds.len();
        assert!(reply.fds.iter().all(|fd| peer::same_file(fd, &memory)));
        (fds, reply.result().unwrap())
    };
    let size = u64s(&[0x8000, BAR2_OFFSET]);
    let short = [u32s(&[80, 7, BAR2_SPARSE, 0]), size.clone()].concat();
    assert_eq!(
        ask(32, BAR2_SPARSE),
        (1, short.clone()),
        "first probe of QEMU"
    );
    assert_eq!(ask(79, BAR2_SPARSE), (1, short));
    let areas = u64s(&[0x2000, 0x1000, 0x4000, 0x2000]);
    let cap = u32s(&[0x0001_0001, 0, 2, 0]);
    let whole = [u32s(&[80, 15, BAR2_SPARSE, 32]), size, cap, areas].concat();
    assert_eq!(
        ask(80, BAR2_SPARSE),
        (1, whole.clone()),
        "second probe of QEMU"
    );
    assert_eq!(ask(192, BAR2_SPARSE), (1, whole));
    let mapped = [u32s(&[32, 7, BAR3_MAPPED, 0]), u64s(&[0x1000, 0])].concat();
    assert_eq!(ask(32, BAR3_MAPPED), (1, mapped));
}

#[test]
fn a_client_that_takes_no_descriptors_is_told_of_no_mapping() {
    let mut device = Device::default();
    device.memory();
    let (_served, mut peer) = Served::start_raw(device, vfio_user::Options::default());
    let json = br#"{"capabilities":{"max_msg_fds":0}}"#;
    peer.ask(peer::VERSION, &[&[0; 4], &json[..], &[0]].concat())
        .unwrap();
    let reply = peer.call(peer::GET_REGION_INFO, &region_info(80, BAR2_SPARSE), &[]);
    assert!(reply.fds.is_empty());
    let told = [u32s(&[32, 3, BAR2_SPARSE, 0]), u64s(&[0x8000, 0])].concat();
    assert_eq!(reply.result(), Ok(told));
}

#[test]
fn irq_info() {
    let (_served, mut peer) = Served::start(Device::default());
    let ask = |argsz, index| u32s(&[argsz, 0, index, 0]);
    let told = |flags, index, count| Ok(u32s(&[16, flags, index, count]));
    check(
        &mut peer,
        peer::GET_IRQ_INFO,
        &[
            ("short write", u32s(&[0, 0]), INVAL),
            ("bad argsz", ask(8, REQ), INVAL),
            ("bad index", ask(16, IRQS), INVAL),
            ("larger argsz", ask(32, REQ), told(1, REQ, 1)),
            ("error", ask(16, ERR), told(1, ERR, 1)),
            // NORESIZE: vectors are enabled as a whole.
            ("MSI-X", ask(16, MSIX), told(9, MSIX, VECTORS)),
            ("absent", ask(16, 0), told(0, 0, 0)),
        ],
    );
}

const NONE: u32 = 1;
const BOOL: u32 = 2;
const EVENTFD: u32 = 4;
const MASK: u32 = 8;
const UNMASK: u32 = 16;
const TRIGGER: u32 = 32;

fn irq_set(flags: u32, index: u32, start: u32, count: u32) -> Vec<u8> {
    u32s(&[20, flags, index, start, count])
}

fn irq_set_bool(count: u32, data: &[u8]) -> Vec<u8> {
    let argsz = 20 + u32::try_from(data.len()).unwrap();
    let fixed = u32s(&[argsz, TRIGGER | BOOL, MSIX, 0, count]);
    [fixed, data.to_vec()].concat()
}

#[test]
fn set_irqs_without_descriptors() {
    let (_served, mut peer) = Served::start(Device::default());
    check(
        &mut peer,
        peer::SET_IRQS,
        &[
            ("no irq set", vec![], INVAL),
            ("short write", u32s(&[0, 0]), INVAL),
            ("bad argsz", u32s(&[3, TRIGGER | NONE, REQ, 0, 0]), INVAL),
            ("bad index", irq_set(TRIGGER | NONE, IRQS, 0, 0), INVAL),
            ("mask and unmask", irq_set(MASK | UNMASK, MSIX, 0, 0), INVAL),
            (
                "none and bool",
                irq_set(MASK | NONE | BOOL, MSIX, 0, 0),
                INVAL,
            ),
            ("no data", irq_set(TRIGGER, MSIX, 0, 1), INVAL),
            ("no action", irq_set(NONE, MSIX, 0, 1), INVAL),
            (
                "unknown flag",
                irq_set(TRIGGER | NONE | 64, MSIX, 0, 1),
                INVAL,
            ),
            ("range", irq_set(MASK | NONE, MSIX, 2047, 2), INVAL),
            ("range 2", irq_set(MASK | NONE, MSIX, 2049, 1), INVAL),
            (
                "wrapping",
                irq_set(TRIGGER | NONE, MSIX, u32::MAX, 2),
                INVAL,
            ),
            ("mask error", irq_set(MASK | NONE, ERR, 0, 1), INVAL),
            ("mask request", irq_set(MASK | NONE, REQ, 0, 1), INVAL),
            ("error range", irq_set(TRIGGER | NONE, ERR, 0, 2), INVAL),
            ("request range", irq_set(TRIGGER | NONE, REQ, 0, 2), INVAL),
            ("start for 0", irq_set(TRIGGER | NONE, MSIX, 1, 0), INVAL),
            ("mask 0", irq_set(MASK | NONE, MSIX, 0, 0), INVAL),
            ("bool for 0", irq_set(TRIGGER | BOOL, MSIX, 0, 0), INVAL),
            ("bools too few", irq_set_bool(2, &[0]), INVAL),
            ("bools too many", irq_set_bool(2, &[0, 0, 0]), INVAL),
            ("disable", irq_set(TRIGGER | NONE, REQ, 0, 0), OK),
            ("disconnect", irq_set(TRIGGER | EVENTFD, REQ, 0, 1), OK),
            ("mask", irq_set(MASK | NONE, MSIX, 0, 1), OK),
        ],
    );
}

#[test]
fn set_irqs_with_the_wrong_descriptors_changes_and_keeps_nothing() {
    let (served, mut peer) = Served::start(Device::default());
    let fds = eventfds(17);
    for (name, flags, count, sent) in [
        ("for bool", TRIGGER | BOOL, 1, 1),
        ("for none", TRIGGER | NONE, 1, 1),
        ("fewer", TRIGGER | EVENTFD, 2, 1),
        ("more", TRIGGER | EVENTFD, 1, 2),
        ("more than agreed on", TRIGGER | EVENTFD, 17, 17),
    ] {
        let body = irq_set(flags, MSIX, 0, count);
        let body = if flags & BOOL != 0 {
            [body, vec![0]].concat()
        } else {
            body
        };
        let reply = peer.call(peer::SET_IRQS, &body, &borrowed(&fds[..sent]));
        assert_eq!(reply.result(), INVAL, "{name}");
    }
    drop(peer);
    let (device, _) = served.end();
    assert_eq!(device.log, [""; 0]);
}

#[test]
fn msix_vectors_are_connected_in_chunks_and_triggered() {
    let (served, mut peer) = Served::start(Device::default());
    let fds: Vec<OwnedFd> = eventfds(35);
    let mut start = 0;
    for chunk in fds.chunks(vfio_user::MAX_MSG_FDS) {
        let count = u32::try_from(chunk.len()).unwrap();
        let body = irq_set(TRIGGER | EVENTFD, MSIX, start, count);
        let reply = peer.call(peer::SET_IRQS, &body, &borrowed(chunk));
        assert_eq!(reply.result(), OK);
        start += count;
    }
    let trigger = irq_set(TRIGGER | NONE, MSIX, 33, 1);
    assert_eq!(peer.ask(peer::SET_IRQS, &trigger), OK);
    assert_eq!(peer.ask(peer::SET_IRQS, &irq_set_bool(3, &[0, 1, 0])), OK);
    let told: Vec<_> = fds.iter().map(peer::signalled).collect();
    let expected = (0..35).map(|i| u64::from(i == 1 || i == 33));
    assert_eq!(told, expected.collect::<Vec<_>>());
    drop(peer);
    let (device, _) = served.end();
    assert_eq!(device.log[2], "2: Trigger 32..35 to 3 eventfds");
}

#[test]
fn dma_map_and_unmap() {
    let (_served, mut peer) = Served::start(Device::default());
    check(
        &mut peer,
        peer::DMA_MAP,
        &[
            ("short write", u32s(&[32, 3]), INVAL),
            (
                "bad argsz",
                [u32s(&[31, 3]), u64s(&[0, 0, 4096])].concat(),
                INVAL,
            ),
            ("unknown flag", dma_map(1 << 4, 0, 0, 4096), INVAL),
            ("empty", dma_map(3, 0, 0x5000, 0), INVAL),
            ("wrapping", dma_map(3, 0, u64::MAX - 4095, 8192), INVAL),
            ("wrapping file", dma_map(3, u64::MAX - 4095, 0, 8192), INVAL),
            ("first", dma_map(3, 0, 0, 0x1000), OK),
            ("second", dma_map(1, 0, 0x2000, 0x2000), OK),
            ("again", dma_map(3, 0, 0, 0x1000), Err(Errno::EXIST)),
            (
                "overlapping",
                dma_map(3, 0, 0x1000, 0x2000),
                Err(Errno::EXIST),
            ),
        ],
    );
    let rest = dma_unmap(2, 0, 0);
    check(
        &mut peer,
        peer::DMA_UNMAP,
        &[
            ("short write", u32s(&[0, 0]), INVAL),
            (
                "bad argsz",
                [u32s(&[8, 0]), u64s(&[0, 4096])].concat(),
                INVAL,
            ),
            (
                "invalid flags",
                dma_unmap(4, 0x1000, 4096),
                Err(Errno::NOTSUP),
            ),
            // libvfio-user has the first version of dirty logging still.
            ("dirty bitmap", dma_unmap(1, 0, 0x1000), Err(Errno::NOTSUP)),
            ("unknown", dma_unmap(0, 0x10000, 4096), Err(Errno::NOENT)),
            ("part", dma_unmap(0, 0x2000, 0x1000), Err(Errno::NOENT)),
            (
                "known",
                dma_unmap(0, 0, 0x1000),
                Ok(dma_unmap(0, 0, 0x1000)),
            ),
            ("all with address", dma_unmap(2, 0x10000, 4096), INVAL),
            ("all with bitmap", dma_unmap(3, 0, 0), INVAL),
            ("all", rest.clone(), Ok(rest)),
            ("gone", dma_unmap(0, 0x2000, 0x2000), Err(Errno::NOENT)),
        ],
    );
}

#[test]
fn memory_is_mapped_where_the_client_says_that_it_can_be() {
    let (served, mut peer) = Served::start(Device::default());
    let memory = Device::default().memory();
    // libvfio-user's flags: 4 for mmap, 8 for reads and writes of the file.
    for (iova, flags) in [
        (0, 3),
        (0x1000, 3 | 4),
        (0x2000, 3 | 8),
        (0x3000, 3 | 4 | 8),
    ] {
        let fds = [std::os::fd::AsFd::as_fd(&*memory)];
        let reply = peer.call(peer::DMA_MAP, &dma_map(flags, 0, iova, 0x1000), &fds);
        assert_eq!(reply.result(), OK);
    }
    drop(peer);
    let expected = [
        "map 0x0 to memory",
        "map 0x1000 to memory",
        "map 0x2000 to nothing",
        "map 0x3000 to memory",
    ];
    assert_eq!(served.end().0.log, expected);
}

#[test]
fn low_memory_is_mapped_anew_as_seabios_has_it() {
    let (served, mut peer) = Served::start(Device::default());
    let ram = Device::default().memory();
    let mut map = |flags, offset, iova, size, fds: &[_]| {
        let reply = peer.call(peer::DMA_MAP, &dma_map(flags, offset, iova, size), fds);
        assert_eq!(reply.result(), OK);
    };
    let fd = [std::os::fd::AsFd::as_fd(&*ram)];
    map(3, 0, 0, 0xa0000, &fd);
    map(3, 0xc0000, 0xc0000, 0xf4_0000, &fd);
    // The BIOS shows its ROM, in part, makes memory of it, and write-protects that.
    let body = dma_unmap(0, 0xc0000, 0xf4_0000);
    assert_eq!(peer.ask(peer::DMA_UNMAP, &body), Ok(body));
    let mut map = |flags, offset, iova, size, fds: &[_]| {
        let reply = peer.call(peer::DMA_MAP, &dma_map(flags, offset, iova, size), fds);
        assert_eq!(reply.result(), OK);
    };
    map(1, 0, 0xc0000, 0x20000, &[]);
    map(1, 0xe0000, 0xe0000, 0x20000, &fd);
    map(3, 0x10_0000, 0x10_0000, 0xf0_0000, &fd);
    drop(peer);
    let expected = [
        "map 0x0 to memory",
        "map 0xc0000 to memory",
        "map 0xc0000 to nothing",
        "map 0xe0000 to memory",
        "map 0x100000 to memory",
    ];
    assert_eq!(served.end().0.log, expected);
}

fn access(offset: u64, region: u32, count: u32, data: &[u8]) -> Vec<u8> {
    [u64s(&[offset]), u32s(&[region, count]), data.to_vec()].concat()
}

#[test]
fn region_access() {
    let (_served, mut peer) = Served::start(Device::default());
    let echo = |offset, region, count| Ok(access(offset, region, count, &[]));
    check(
        &mut peer,
        peer::REGION_WRITE,
        &[
            ("short", u32s(&[0, 0, 0]), INVAL),
            ("bad region", access(0, REGIONS, 1, &[0]), INVAL),
            ("absent region", access(0, 8, 1, &[0]), INVAL),
            ("too little data", access(0, BAR0, 4, &[0; 3]), INVAL),
            ("too much data", access(0, BAR0, 4, &[0; 5]), INVAL),
            ("past the end", access(4093, BAR0, 4, &[0; 4]), INVAL),
            ("wrapping", access(u64::MAX, BAR0, 2, &[0; 2]), INVAL),
            ("read only", access(0, ROM, 4, &[0; 4]), INVAL),
            (
                "device error",
                access(BROKEN, BAR0, 4, &[0; 4]),
                Err(Errno::IO),
            ),
            ("nothing", access(0, BAR0, 0, &[]), echo(0, BAR0, 0)),
            (
                "write",
                access(4092, BAR0, 4, &[1, 2, 3, 4]),
                echo(4092, BAR0, 4),
            ),
        ],
    );
    check(
        &mut peer,
        peer::REGION_READ,
        &[
            ("short", u32s(&[0, 0, 0]), INVAL),
            ("too long", access(0, BAR0, (1 << 20) + 1, &[]), INVAL),
            ("huge", access(0, BAR0, u32::MAX, &[]), INVAL),
            ("past the end", access(4096, BAR0, 1, &[]), INVAL),
            ("device error", access(BROKEN, BAR0, 4, &[]), Err(Errno::IO)),
            ("nothing", access(4096, BAR0, 0, &[]), echo(4096, BAR0, 0)),
            (
                "what was written",
                access(4092, BAR0, 4, &[]),
                Ok(access(4092, BAR0, 4, &[1, 2, 3, 4])),
            ),
            (
                "whole ROM",
                access(0, ROM, 4096, &[]),
                Ok(access(0, ROM, 4096, &[0x86; 4096])),
            ),
        ],
    );
}

#[test]
fn a_row_of_commands_is_settled_once() {
    let (served, mut peer) = Served::start(Device::default());
    peer.ask(peer::REGION_READ, &access(0, BAR0, 4, &[]))
        .unwrap();
    let posted = |id| {
        let write = access(u64::from(id) * 4, BAR0, 4, &[1; 4]);
        peer::message(id, peer::REGION_WRITE, peer::NO_REPLY, &write)
    };
    let row: Vec<u8> = (1..=100).flat_map(posted).collect();
    peer.send(&row, &[]).unwrap();
    drop(peer);
    let (device, _) = served.end();
    assert_eq!(device.registers.len(), 100);
    // The version, the read, the row, and the end in case that it was not yet there with the row.
    assert!((3..=4).contains(&device.settled), "{}", device.settled);
}

fn multi(count: u64, writes: &[(u64, u32, u32)]) -> Vec<u8> {
    let write = |&(offset, region, count)| access(offset, region, count, &[9; 8]);
    [u64s(&[count]), writes.iter().flat_map(write).collect()].concat()
}

#[test]
fn region_write_multi() {
    let (served, mut peer) = Served::start(Device::default());
    check(
        &mut peer,
        peer::WRITE_MULTI,
        &[
            ("short", vec![0; 7], INVAL),
            ("fewer than said", multi(2, &[(0x10, BAR0, 4)]), INVAL),
            (
                "count overflows",
                multi(u64::MAX, &[(0x10, BAR0, 4)]),
                INVAL,
            ),
            ("9 bytes", multi(2, &[(0x10, BAR0, 4), (0, BAR0, 9)]), INVAL),
            (
                "past the end",
                multi(2, &[(0x10, BAR0, 4), (4093, BAR0, 4)]),
                INVAL,
            ),
            ("none", multi(0, &[]), Ok(u64s(&[0]))),
            (
                "two",
                multi(2, &[(0x20, BAR0, 4), (0x28, BAR0, 8)]),
                Ok(u64s(&[2])),
            ),
            // QEMU sends room for 200, however many there are.
            (
                "with room",
                multi(1, &[(0x30, BAR0, 1); 200]),
                Ok(u64s(&[1])),
            ),
            (
                "one fails, the next does not",
                multi(2, &[(BROKEN, BAR0, 4), (0x40, BAR0, 2)]),
                Err(Errno::IO),
            ),
        ],
    );
    drop(peer);
    let (device, _) = served.end();
    let mut written: Vec<_> = device.registers.into_iter().collect();
    written.sort();
    let expected = [(0x20, 4), (0x28, 8), (0x30, 1), (0x40, 2)];
    let expected = expected.map(|(offset, len)| ((BAR0, offset), vec![9; len]));
    assert_eq!(written, expected);
}

#[test]
fn write_multi_that_was_not_agreed_on() {
    let (_served, mut peer) = Served::start_raw(Device::default(), vfio_user::Options::default());
    peer.ask(peer::VERSION, &[0; 4]).unwrap();
    let rows = [("any", multi(1, &[(0, BAR0, 4)]), Err(Errno::NOTSUP))];
    check(&mut peer, peer::WRITE_MULTI, &rows);
}

#[test]
fn commands_that_are_not_offered() {
    let (_served, mut peer) = Served::start(Device::default());
    for command in [6, 14] {
        let rows = [("known", vec![0; 24], Err(Errno::NOTSUP))];
        check(&mut peer, command, &rows);
    }
    for command in [0, 1, 11, 12, 19, 999, u16::MAX] {
        check(&mut peer, command, &[("unknown", vec![0; 37], INVAL)]);
    }
    check(
        &mut peer,
        peer::RESET,
        &[("and the stream is whole", vec![], OK)],
    );
}

#[test]
fn versions() {
    let json = |json: &str| [&[0; 4], json.as_bytes(), &[0]].concat();
    for (name, body) in [
        ("short write", vec![]),
        ("invalid major", u32s(&[999])),
        ("missing NUL", [&[0; 4], &b"{}"[..]].concat()),
        ("missing closing brace", json("{")),
        ("missing closing quote", json("\"")),
        ("bad capabilities object", json(r#"{"capabilities": "23"}"#)),
        (
            "bad max fds",
            json(r#"{"capabilities": {"max_msg_fds": "foo"}}"#),
        ),
        (
            "negative max fds",
            json(r#"{"capabilities": {"max_msg_fds": -1}}"#),
        ),
        (
            "no transfers",
            json(r#"{"capabilities": {"max_data_xfer_size": 0}}"#),
        ),
    ] {
        let (served, mut peer) =
            Served::start_raw(Device::default(), vfio_user::Options::default());
        assert_eq!(peer.ask(peer::VERSION, &body), INVAL, "{name}");
        assert!(peer.receive().is_none(), "{name}: the connection is closed");
        let (device, ended) = served.end();
        let refused = vfio_user::Violation::Version(Errno::INVAL);
        assert_eq!(ended, Err(refused.into()), "{name}");
        assert_eq!((device.connects, device.disconnects), (0, 0), "{name}");
    }
}
