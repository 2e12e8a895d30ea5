//! Registers as `docs/guest-protocol.md` has them.

use device::{Model, Reset};

use crate::driver::{DRIVER, Driver, READY, REQUEST, ack, set_table};
use crate::machine::{LONG, Machine};

#[test]
fn only_aligned_words_are_accesses() {
    let mut m = Machine::new();
    for (bar, offset, len) in [
        (0, 0, 1),
        (0, 0, 2),
        (0, 0, 8),
        (0, 2, 4),
        (2, 0, 4),
        (0, 4096, 4),
    ] {
        let mut data = vec![0; len];
        m.call(|device, access| device.read(bar, offset, &mut data, access));
        assert!(
            data.iter().all(|byte| *byte == 0xff),
            "{bar} {offset} {len}"
        );
        let before = m.device.state();
        m.call(|device, access| device.write(bar, offset + 0xc, &data, access));
        assert_eq!(m.device.state(), before);
    }
}

#[test]
fn what_is_not_listed_reads_as_zero_and_takes_nothing() {
    let mut m = Machine::new();
    let before = m.device.state();
    for offset in [0x01c, 0x02c, 0x0fc, 0x114, 0x11c, 0x140, 0x500, 0xffc] {
        m.write(offset, u32::MAX);
        assert_eq!(m.read(offset), 0, "{offset:#x}");
    }
    assert_eq!(m.device.state(), before);
}

#[test]
fn the_host_writes_what_the_guest_only_reads() {
    let mut m = Machine::new();
    let offsets = [0x000, 0x004, 0x008, 0x010, 0x014, 0x018, 0x100, 0x104];
    let before = offsets.map(|offset| m.read(offset));
    for offset in offsets {
        m.write(offset, 0x1234_5678);
    }
    assert_eq!(offsets.map(|offset| m.read(offset)), before);
}

#[test]
fn a_reset_clears_what_the_guest_wrote_and_keeps_what_the_host_wrote() {
    let mut m = Machine::new();
    let mut driver = Driver::load(&mut m);
    let asked = m.control.quiesce(LONG).unwrap();
    driver.run(&mut m);
    set_table(&mut m, 0x0123_4567_89ab_c000, 9);
    assert_eq!(m.read(0x024), 0x0123_4567);
    assert_eq!(m.read(0x020), 0x89ab_c000);
    let request = m.read(REQUEST);
    assert_eq!(m.read(ack(1)), request | 1);
    assert_eq!(m.read(ack(1) + 8), 1_500);
    for reset in [Reset::Function, Reset::Bus] {
        m.device.reset(reset);
        for offset in [DRIVER, 0x020, 0x024, 0x028, ack(0), ack(1), ack(1) + 8] {
            assert_eq!(m.read(offset), 0, "{offset:#x}");
        }
        assert_eq!(m.read(REQUEST), request);
        assert_eq!(m.read(0x014), 60_000);
    }
    drop(asked);
}

#[test]
fn a_driver_takes_no_feature_that_is_not_offered() {
    let mut m = Machine::new();
    m.write(DRIVER, u32::MAX);
    assert_eq!(m.read(DRIVER), READY | 0b111);
    m.write(DRIVER, 0b111);
    assert_eq!(m.read(DRIVER), 0, "not there");
}

#[test]
fn there_is_room_for_32_devices() {
    assert!(control_device::new(&[(1, 2); 32]).is_ok());
    assert!(control_device::new(&[(1, 2); 33]).is_err());
}
