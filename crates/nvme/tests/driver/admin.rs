//! Admin commands.

use nvme::spec::status::Status;

use crate::machine::Machine;
use crate::queue_driver::{Command, DATA, Driver, blocks, create_cq, create_sq, plain};

fn identify(cns: u32, nsid: u32) -> Command {
    Command {
        nsid,
        data: DATA,
        len: 4096,
        ..plain(0x06, cns, 0)
    }
}

fn log_page(page: u32, bytes: u32, offset: u32) -> Command {
    let mut command = Command {
        nsid: u32::MAX,
        data: DATA,
        len: bytes.into(),
        ..plain(0x02, (bytes / 4 - 1) << 16 | page, 0)
    };
    command.cdw[2] = offset;
    command
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes)
        .unwrap()
        .trim_end_matches(['\0', ' '])
}

#[test]
fn identify_says_what_the_stock_driver_needs() {
    let (mut m, mut driver) = Driver::up(0);
    driver.admin_ok(&mut m, identify(1, 0));
    let page = m.load(DATA, 4096);
    assert_eq!(text(&page[4..24]), "vf1");
    assert_eq!(page[77], 8, "MDTS: 1 MiB");
    assert_eq!(page[111], 1, "an I/O controller");
    assert_eq!((page[512], page[513]), (0x66, 0x44));
    assert_eq!(page[516..520], 2_u32.to_le_bytes(), "namespaces");
    assert_eq!(page[520..522], 0x0d_u16.to_le_bytes(), "optional commands");
    assert_eq!(page[525], 7, "a volatile write cache");
    assert_eq!(page[536..540], [0; 4], "no SGLs");
    assert!(text(&page[768..1024]).starts_with("nqn.2014-08.org.nvmexpress:uuid:"));
    assert_eq!(text(&page[768..1024]).len(), 32 + 36);

    for (nsid, blocks, shift) in [(1, 8192_u64, 9), (2, 1024, 12)] {
        driver.admin_ok(&mut m, identify(0, nsid));
        let page = m.load(DATA, 4096);
        assert_eq!(page[..8], blocks.to_le_bytes());
        assert_eq!(page[8..16], blocks.to_le_bytes());
        assert_eq!(page[128..132], [0, 0, shift, 0]);
    }
    for nsid in [0, 3, u32::MAX] {
        let answer = driver.admin(&mut m, identify(0, nsid));
        assert_eq!(answer.status, Status::INVALID_NAMESPACE);
    }
    driver.admin_ok(&mut m, identify(2, 1));
    assert_eq!(m.load(DATA, 8), [2, 0, 0, 0, 0, 0, 0, 0]);
    driver.admin_ok(&mut m, identify(3, 2));
    assert_eq!(m.load(DATA, 4), [3, 16, 0, 0]);
    let uuid = m.controller.state().namespaces[1].unwrap().uuid;
    assert_eq!(m.load(DATA + 4, 17), [&uuid[..], &[0]].concat());
    // What came after 1.4.
    for cns in [5, 6, 8] {
        let answer = driver.admin(&mut m, identify(cns, 1));
        assert_eq!(answer.status, Status::INVALID_FIELD);
    }
}

#[test]
fn log_pages_are_sent_in_parts_too() {
    let (mut m, mut driver) = Driver::up(1);
    m.store(DATA, &[0x11; 4096]);
    driver.io_ok(&mut m, blocks(1, 0, 8, DATA));
    driver.io_ok(&mut m, blocks(2, 0, 8, DATA));
    driver.admin_ok(&mut m, log_page(2, 512, 0));
    let page = m.load(DATA, 512);
    assert_eq!(page[0], 0, "nothing critical");
    let counter = |at: usize| u64::from_le_bytes(page[at..at + 8].try_into().unwrap());
    assert_eq!((counter(32), counter(48)), (1, 1), "units begun");
    assert_eq!((counter(64), counter(80)), (1, 1));
    driver.admin_ok(&mut m, log_page(3, 512, 0));
    assert_eq!(text(&m.load(DATA + 8, 8)), "1.0");
    m.store(DATA, &[0xee; 16]);
    driver.admin_ok(&mut m, log_page(3, 4, 8));
    assert_eq!(m.load(DATA, 8), *b"1.0 \xee\xee\xee\xee");
    let answer = driver.admin(&mut m, log_page(3, 4, 512));
    assert_eq!(answer.status, Status::INVALID_FIELD);
    let answer = driver.admin(&mut m, log_page(0x55, 512, 0));
    assert_eq!(answer.status, Status::INVALID_LOG_PAGE);
    driver.admin_ok(&mut m, log_page(1, 256, 0));
    let page = m.load(DATA, 256);
    assert_eq!(page[0], 2, "the latest error first");
    assert_eq!(page[12..14], (0x4109_u16 << 1).to_le_bytes());
    assert_eq!(page[64], 1);
}

#[test]
fn the_log_of_commands_names_those_that_there_are() {
    let (mut m, mut driver) = Driver::up(1);
    driver.admin_ok(&mut m, identify(1, 0));
    assert_eq!(m.load(DATA + 261, 1), [0b110], "LPA");
    driver.admin_ok(&mut m, log_page(5, 4096, 0));
    let page = m.load(DATA, 4096);
    let effects = |queue: u16, opcode: u8| {
        let at = 1024 * usize::from(queue) + 4 * usize::from(opcode);
        u32::from_le_bytes(page[at..at + 4].try_into().unwrap())
    };
    for queue in [0, 1] {
        for opcode in 0..=u8::MAX {
            let (mut m, mut driver) = Driver::up(1);
            driver.submit(&m, queue, plain(opcode, 0, 0));
            driver.ring(&mut m, queue);
            m.settle();
            let answers = driver.take(&m, queue);
            // An event request has no answer yet.
            let known = answers.iter().all(|a| a.status != Status::INVALID_OPCODE);
            assert_eq!(
                effects(queue, opcode) & 1 != 0,
                known,
                "{queue} {opcode:#x}"
            );
        }
    }
    let changing: Vec<u8> = (0..=u8::MAX).filter(|o| effects(1, *o) == 3).collect();
    assert_eq!(changing, [1, 8, 9], "blocks");
    assert!(page[2048..].iter().all(|b| *b == 0));
}

/// What the stock drivers of Linux 6.1 to 7 send when they find a controller, in their order, and
/// what its tools ask for. What fails is what a controller of this version does not have.
#[test]
fn stock_drivers_and_tools_find_what_they_ask_for() {
    let (mut m, mut driver) = Driver::up(1);
    let commands = [
        identify(1, 0),
        log_page(5, 4096, 0),
        log_page(2, 512, 0),
        plain(0x09, 0x0b, 0x100),
        identify(2, 0),
        identify(3, 1),
        identify(0, 1),
        log_page(4, 4096, 0),
        // nvme error-log with more entries than there are, fw-log.
        log_page(1, 4096, 0),
        log_page(3, 512, 0),
        plain(0x0a, 0x07, 0),
        plain(0x0a, 0x0b, 0),
    ];
    for command in commands {
        driver.admin_ok(&mut m, command);
    }
    // All features that an I/O controller must have, whose values Linux and nvme-cli look at.
    for feature in [1, 2, 4, 5, 6, 7, 8, 9, 0xa, 0xb] {
        driver.admin_ok(&mut m, plain(0x0a, feature, 0));
    }
    // Timestamp, thermal management, host behaviour: not announced, and so not asked for.
    for feature in [0x0e, 0x10, 0x16] {
        for opcode in [0x09, 0x0a] {
            let answer = driver.admin(&mut m, plain(opcode, feature, 0));
            assert_eq!(answer.status, Status::INVALID_FIELD);
        }
    }
    driver.admin_ok(&mut m, identify(1, 0));
    let page = m.load(DATA, 4096);
    assert_eq!(page[256..258], [0; 2], "OACS");
    assert_eq!(page[96..100], [0; 4], "CTRATT");
    assert_eq!(
        (page[263], page[265]),
        (0, 0),
        "one power state, no transitions"
    );
    assert_eq!(page[272..280], [0; 8], "no host memory buffer");
}

#[test]
fn queues_are_refused_for_the_reason_that_there_is() {
    let (mut m, mut driver) = Driver::up(1);
    let mut check = |command: Command, status| {
        let answer = driver.admin(&mut m, command);
        assert_eq!(answer.status, status, "{command:x?}");
    };
    let base = DATA;
    let sized = |command: Command, entries: u32| {
        let mut command = command;
        command.cdw[0] = command.cdw[0] & 0xffff | (entries - 1) << 16;
        command
    };
    check(create_cq(0, 1, base), Status::INVALID_QUEUE_ID);
    check(create_cq(1, 1, base), Status::INVALID_QUEUE_ID);
    check(create_cq(5, 1, base), Status::INVALID_QUEUE_ID);
    check(sized(create_cq(2, 1, base), 1), Status::INVALID_QUEUE_SIZE);
    check(
        sized(create_cq(2, 1, base), 1025),
        Status::INVALID_QUEUE_SIZE,
    );
    check(create_cq(2, 0, base), Status::INVALID_FIELD);
    check(create_cq(2, 17 << 16 | 3, base), Status::INVALID_VECTOR);
    check(create_cq(2, 1, base + 8), Status::PRP_OFFSET_INVALID);
    check(create_sq(1, 1 << 16 | 1, base), Status::INVALID_QUEUE_ID);
    check(create_sq(2, 1, base), Status::INVALID_QUEUE_ID);
    check(create_sq(2, 5 << 16 | 1, base), Status::INVALID_QUEUE_ID);
    check(
        create_sq(2, 3 << 16 | 1, base),
        Status::COMPLETION_QUEUE_INVALID,
    );
    check(
        sized(create_sq(2, 1 << 16 | 1, base), 1),
        Status::INVALID_QUEUE_SIZE,
    );
    check(plain(0x04, 1, 0), Status::INVALID_QUEUE_DELETION);
    check(plain(0x04, 2, 0), Status::INVALID_QUEUE_ID);
    check(plain(0x00, 2, 0), Status::INVALID_QUEUE_ID);
    check(plain(0x00, 0, 0), Status::INVALID_QUEUE_ID);
    check(plain(0x00, 1, 0), Status::SUCCESS);
    check(plain(0x04, 1, 0), Status::SUCCESS);
    assert!(m.controller.state().completion[1].is_none());
}

#[test]
fn queues_need_the_sizes_of_their_entries() {
    let mut m = Machine::new();
    let mut driver = Driver::enable(&mut m);
    m.write(0x14, 1);
    let answer = driver.admin(&mut m, create_cq(1, 3, DATA));
    assert_eq!(answer.status, Status::INVALID_QUEUE_SIZE);
}

#[test]
fn features_are_read_as_they_were_set() {
    let (mut m, mut driver) = Driver::up(0);
    let set =
        |driver: &mut Driver, m: &mut Machine, id, value| driver.admin(m, plain(0x09, id, value));
    for (id, value, reads) in [
        (0x01, 0x0203_0405, 0x0203_0405),
        (0x05, 0x1_0007, 7),
        (0x06, 0, 0),
        (0x08, 0x0a0b, 0x0a0b),
        (0x0a, 1, 1),
        (0x0b, 0xffff, 0x1ff),
    ] {
        assert_eq!(set(&mut driver, &mut m, id, value).status, Status::SUCCESS);
        assert_eq!(
            driver.admin_ok(&mut m, plain(0x0a, id, 0)),
            reads,
            "{id:#x}"
        );
    }
    // Over and under, of the composite temperature; WCTEMP at first (5.21.1.4).
    assert_eq!(driver.admin_ok(&mut m, plain(0x0a, 0x04, 0)), 343);
    set(&mut driver, &mut m, 0x04, 300);
    set(&mut driver, &mut m, 0x04, 1 << 20 | 0xc8);
    assert_eq!(driver.admin_ok(&mut m, plain(0x0a, 0x04, 0)), 300);
    assert_eq!(driver.admin_ok(&mut m, plain(0x0a, 0x04, 1 << 20)), 200);
    // Per vector.
    set(&mut driver, &mut m, 0x09, 1 << 16 | 3);
    assert_eq!(driver.admin_ok(&mut m, plain(0x0a, 0x09, 3)), 1 << 16 | 3);
    assert_eq!(driver.admin_ok(&mut m, plain(0x0a, 0x09, 4)), 4);
    for (id, value) in [(0x02, 1), (0x04, 3 << 20), (0x09, 17), (0x0c, 0), (0x7f, 0)] {
        let answer = set(&mut driver, &mut m, id, value);
        assert_eq!(answer.status, Status::INVALID_FIELD, "{id:#x}");
    }
    let answer = driver.admin(&mut m, plain(0x09, 1 << 31 | 6, 0));
    assert_eq!(answer.status, Status::NOT_SAVEABLE);
}

#[test]
fn there_are_as_many_queues_as_configured_and_none_more_once_some_exist() {
    let (mut m, mut driver) = Driver::up(0);
    let ask = plain(0x09, 0x07, 0x00ff_00ff);
    assert_eq!(driver.admin_ok(&mut m, ask), 0x0003_0003);
    let answer = driver.admin(&mut m, plain(0x09, 0x07, 0x0000_ffff));
    assert_eq!(answer.status, Status::INVALID_FIELD);
    driver.create_pair(&mut m, 1);
    assert_eq!(driver.admin(&mut m, ask).status, Status::SEQUENCE_ERROR);
}

#[test]
fn what_the_write_cache_holds_does_not_outlast_it() {
    let (mut m, mut driver) = Driver::up(1);
    m.store(DATA, &[0x77; 512]);
    driver.io_ok(&mut m, blocks(1, 0, 1, DATA));
    assert_eq!(m.disks[0].content().durable[0], 0);
    driver.admin_ok(&mut m, plain(0x09, 0x06, 0));
    assert_eq!(m.disks[0].content().durable[0], 0x77);
    driver.io_ok(&mut m, blocks(1, 1, 1, DATA));
    assert_eq!(m.disks[0].content().durable[512], 0x77, "durable at once");
}

#[test]
fn sgls_fused_commands_and_unknown_opcodes_are_refused() {
    let (mut m, mut driver) = Driver::up(1);
    let answer = driver.admin(&mut m, plain(0x80, 0, 0));
    assert_eq!(answer.status, Status::INVALID_OPCODE);
    let answer = driver.run(&mut m, 1, plain(0x85, 0, 0));
    assert_eq!(answer.status, Status::INVALID_OPCODE);
    for flags in [0x40, 0x80, 0x01, 0x02] {
        let cid = driver.submit(&m, 1, blocks(2, 0, 1, DATA));
        let slot = m.controller.state().submission[1].unwrap();
        m.store(slot.base + 64 * u64::from(slot.tail) + 1, &[flags]);
        driver.ring(&mut m, 1);
        m.settle();
        let answers = driver.reap(&mut m, 1);
        assert_eq!(
            (answers[0].cid, answers[0].status),
            (cid, Status::INVALID_FIELD)
        );
    }
}
