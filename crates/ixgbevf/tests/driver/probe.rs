//! Probe, mailbox, close and reset.

use device::{Model, Reset};

use crate::frames::udp;
use crate::machine::{MAC, Machine};
use crate::ring_driver::{CTS, Driver, FAILURE, Options, SUCCESS};

/// The first accesses of Linux's driver in their order, from a trace of it: reads with the value
/// that leads the driver on, and writes.
const FIRST_ACCESSES: &str = "
    r 1028 0         r 1068 0         r 0008 0         w 010c 7         r 0100 0
    r 2028 0         r 2068 0         w 0000 4000000   r 0008 0
    r 02fc 80        r 02fc 0         w 02fc 4         r 02fc 4
    w 0200 1         w 02fc 1         r 02fc 30        r 02fc 0
    w 02fc 34        r 02fc 4
    r 0200 80000001  r 0204 ccbbaa02  r 0208 1dd       r 020c 0         w 02fc 2
    r 02fc 0         w 02fc 34        r 02fc 4
    w 0200 8         w 0204 8         w 0208 0         w 02fc 1         r 02fc 30
    w 02fc 34        r 0200 a0000008  r 0204 8         r 0208 0         w 02fc 2
    w 02fc 34        r 02fc 4         w 0200 12        w 0204 3         w 02fc 1
    r 02fc 30        w 02fc 34        r 0200 a0000012  r 0204 0         w 02fc 2
    w 02fc 34        r 02fc 4         w 0200 9         w 0204 0         w 0208 0
    w 020c 0         w 0210 0         w 02fc 1         r 02fc 30        w 02fc 34
    r 0200 a0000009  r 0204 2         r 0208 2         r 020c 0         r 0210 0
    w 02fc 2
    r 101c 0         r 1020 0         r 1024 0         r 201c 0         r 2020 0
    r 2024 0         r 1034 0
    w 2028 4000000   r 0008 0         w 2000 2c24000   w 2004 0         w 2008 4000
    w 203c 0         w 2038 0         w 200c 2200      w 2010 0         w 2018 0
    w 2028 2080120   r 2028 2080120   w 0300 20001330
    r 1028 0         w 1028 0         r 1028 0         w 1000 2d72000   w 1004 0
    w 1008 2000      w 100c 200       w 1010 0         w 1014 12000402  w 1028 42000000
    r 1028 42000000
    r 0120 0         w 0120 80        r 0120 80        w 0120 8080      w 0820 800000c8
    r 0120 8080      w 0120 818080    r 0120 818080    w 0120 81818080  w 0824 800000c8
    r 0140 0         w 0140 82
    w 02fc 34        r 02fc 4         w 0200 10        w 0204 0         w 02fc 1
    r 02fc 30        w 02fc 34        r 0200 a0000010  r 0204 1         w 02fc 2
    r 0100 4         w 0114 7         w 0110 7         w 0108 7
    r 02fc 0         r 0010 70000000  w 02fc 34        r 0200 a0000010  w 02fc 2
    r 2010 0         r 2018 0
";

#[test]
fn the_stock_drivers_first_accesses_find_what_they_look_for() {
    let mut m = Machine::new();
    let words: Vec<&str> = FIRST_ACCESSES.split_whitespace().collect();
    for (step, access) in words.chunks_exact(3).enumerate() {
        let number = |text| u32::from_str_radix(text, 16).unwrap();
        let (offset, value) = (number(access[1]), number(access[2]));
        match access[0] {
            "w" => m.write(offset.into(), value),
            _ => assert_eq!(m.read(offset.into()), value, "step {step}: {access:?}"),
        }
    }
    assert!(
        m.signalled().is_empty(),
        "nothing was enabled when anything happened"
    );
}

#[test]
fn every_mailbox_request_gets_its_answer() {
    let mut m = Machine::new();
    Driver::reset(&mut m);
    let ok = SUCCESS | CTS;
    let no = FAILURE | CTS;
    let table: &[(&[u32], &[u32])] = &[
        (&[0x02, 0x0200_0002, 0x11], &[ok | 0x02, 0x0200_0002, 0x11]),
        (&[0x02, 0x0100_0001, 0], &[no | 0x02, 0x0100_0001, 0]),
        (&[0x02, 0, 0], &[no | 0x02, 0, 0]),
        (
            &[0x0002_0003, 0x0010_0010],
            &[ok | 0x0002_0003, 0x0010_0010],
        ),
        (&[0x0001_0004, 100], &[ok | 0x0001_0004, 100]),
        (&[0x0004, 100], &[ok | 0x0004, 100]),
        (&[0x0001_0004, 4096], &[no | 0x0001_0004, 4096]),
        (&[0x05, 9018], &[ok | 0x05, 9018]),
        (&[0x05, 9728], &[ok | 0x05, 9728]),
        (&[0x05, 9729], &[no | 0x05, 9729]),
        (&[0x05, 0], &[no | 0x05, 0]),
        (&[0x0006, 0, 0], &[ok | 0x0006, 0, 0]),
        (&[0x0001_0006, 2, 0], &[ok | 0x0001_0006, 2, 0]),
        (&[0x0002_0006, 1, 0], &[no | 0x0002_0006, 1, 0]),
        (&[0x09, 0, 0, 0, 0], &[ok | 0x09, 2, 2, 0, 0]),
        (&[0x0a], &[no | 0x0a]),
        (&[0x0b], &[no | 0x0b]),
        (&[0x0c, 3], &[ok | 0x0c, 3]),
        (&[0x0c, 4], &[no | 0x0c, 4]),
        (&[0x0d], &[no | 0x0d]),
        (&[0x0e], &[no | 0x0e]),
        (&[0x10, 0], &[ok | 0x10, 1]),
        (&[0x11, 0, 0], &[ok | 0x11, 0x80, 1]),
        (&[0x12, 3], &[ok | 0x12, 0]),
        (&[0x7fff], &[no | 0x7fff]),
    ];
    for (request, answer) in table {
        assert_eq!(&Driver::message(&mut m, request), answer, "{request:x?}");
    }
}

#[test]
fn each_api_version_knows_its_own_requests() {
    let mut m = Machine::new();
    Driver::reset(&mut m);
    let spoken = [0, 2, 3, 4, 5, 7, 8];
    for version in 0..12 {
        let verdict = if spoken.contains(&version) {
            SUCCESS
        } else {
            FAILURE
        };
        assert_eq!(
            Driver::message(&mut m, &[0x08, version])[0],
            verdict | CTS | 8,
            "{version}"
        );
    }
    // From which version on: queues 1.1, multicast mode and link state 1.2, promiscuous 1.3, the
    // PF's link 1.6, features 1.7.
    let since: [(&[u32], u32); 6] = [
        (&[9], 2),
        (&[0xc, 1], 3),
        (&[0x10], 3),
        (&[0xc, 3], 4),
        (&[0x11], 7),
        (&[0x12], 8),
    ];
    for version in spoken {
        Driver::granted(&mut m, &[0x08, version]);
        for (request, first) in since {
            let verdict = if version >= first { SUCCESS } else { FAILURE };
            let answer = Driver::message(&mut m, request)[0];
            assert_eq!(
                answer,
                request[0] | verdict | CTS,
                "{request:x?} in {version}"
            );
        }
    }
}

#[test]
fn a_driver_that_has_not_introduced_itself_is_refused() {
    let mut m = Machine::new();
    assert_eq!(Driver::message(&mut m, &[0x09])[0], FAILURE | 9);
    Driver::reset(&mut m);
    m.write(0x0000, 1 << 26);
    m.read(0x02fc);
    assert_eq!(Driver::message(&mut m, &[0x09])[0], FAILURE | 9);
}

#[test]
fn a_seventeenth_further_address_is_refused_and_the_first_starts_anew() {
    let mut m = Machine::new();
    Driver::reset(&mut m);
    for index in 1..=16 {
        Driver::granted(&mut m, &[index << 16 | 6, 2, index << 8]);
    }
    assert_eq!(
        Driver::message(&mut m, &[17 << 16 | 6, 2, 0])[0] & FAILURE,
        FAILURE
    );
    Driver::granted(&mut m, &[1 << 16 | 6, 2, 0]);
    assert_eq!(m.vf.state().filter.macvlan_count, 1);
}

#[test]
fn an_interface_goes_down_and_up_and_down_again() {
    let (mut m, mut driver) = Driver::up(Options::default());
    for _ in 0..3 {
        m.signalled();
        driver.close(&mut m);
        assert!(m.settle().is_none());
        assert!(
            m.signalled().is_empty(),
            "a closed interface has no interrupts"
        );
        driver.open(&mut m, Options::default());
        m.arrive(&udp(b"up"));
        m.settle();
        let queue = (0..2).find(|q| driver.receive(&mut m, *q).is_some());
        assert!(queue.is_some());
        driver.send_plain(&mut m, 0, &udp(b"and sending"));
        assert_eq!(driver.sent(&m, 0), 1);
    }
}

#[test]
fn a_function_reset_leaves_nothing_but_the_address_the_pf_keeps() {
    for kind in [Reset::Function, Reset::Bus] {
        let (mut m, _) = Driver::up(Options::default());
        Driver::granted(&mut m, &[0x02, 0x0000_0002, 0x99]);
        m.vf.reset(kind);
        assert_eq!(m.read(0x1028), 0);
        assert_eq!(m.read(0x0108), 0);
        assert_eq!(m.read(0x0120), 0);
        assert_eq!(Driver::reset(&mut m), [2, 0, 0, 0, 0x99, 0]);
        let mut fresh = Machine::new();
        assert_eq!(Driver::reset(&mut fresh), MAC);
        fresh.vf.reset(kind);
        m.vf.reset(kind);
        let admin = fresh.vf.state().admin;
        let mut state = m.vf.state().clone();
        state.admin = admin;
        assert_eq!(&state, fresh.vf.state());
    }
}

/// As after `echo 1 > reset` with the interface down: the stock driver opens it without a RESET
/// message, and a refusal would cost it ten seconds.
#[test]
fn after_a_function_reset_the_driver_may_open_at_once() {
    let (mut m, driver) = Driver::up(Options::default());
    driver.close(&mut m);
    Driver::granted(&mut m, &[0x08, 8]);
    m.vf.reset(Reset::Function);
    Driver::granted(&mut m, &[0x05, 1518]);
    Driver::granted(&mut m, &[0x09]);
    m.vf.reset(Reset::Bus);
    assert_eq!(Driver::message(&mut m, &[0x05, 1518])[0], FAILURE | 5);
}

#[test]
fn a_change_of_the_link_reaches_the_driver_when_the_mailbox_is_free() {
    let (mut m, _) = Driver::up(Options::default());
    m.write(0x02fc, 4);
    m.cable().down = true;
    m.poll();
    assert_eq!(m.read(0x0010), 0, "the register tells the truth at once");
    assert!(m.signalled().is_empty(), "but the driver has the mailbox");
    m.write(0x02fc, 2);
    assert_eq!(m.signalled(), [2]);
    assert_eq!(m.read(0x02fc), 0x10);
    assert_eq!(m.read(0x0200), 0x0100 | CTS);
    m.write(0x02fc, 2);

    m.cable().down = false;
    m.write(0x0108, 4);
    m.poll();
    assert_eq!(m.signalled(), [2]);
    assert_eq!(m.read(0x0010), 0x7000_0000);
}

#[test]
fn registers_are_read_in_parts_and_pairs_but_only_written_whole() {
    let (mut m, _) = Driver::up(Options::default());
    let mut pair = [0; 8];
    m.call(|vf, access| vf.read(0, 0x1008, &mut pair, access));
    assert_eq!(pair, [0, 4, 0, 0, 0, 2, 0, 0]);
    let mut half = [0; 2];
    m.call(|vf, access| vf.read(0, 0x0012, &mut half, access));
    assert_eq!(half, [0, 0x70]);
    m.call(|vf, access| vf.write(0, 0x1008, &[0xff, 0xff], access));
    m.call(|vf, access| vf.write(0, 0x1009, &[0xff; 4], access));
    assert_eq!(m.read(0x1008), 0x400);
    m.call(|vf, access| vf.write(3, 0x1008, &[0; 4], access));
    assert_eq!(m.read(0x1008), 0x400, "another BAR");
}
