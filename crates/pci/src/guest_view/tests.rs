use super::*;

const SIZES: [u64; 6] = [0x4000, 0, 0, 0x4000, 0, 0];

/// An 82576 virtual function as Linux shows it to vfio's users: vendor's capability, MSI-X,
/// Express.
fn igbvf() -> Header {
    let mut bytes = [0; CAPABILITY_END];
    let mut put = |at: usize, data: &[u8]| bytes[at..at + data.len()].copy_from_slice(data);
    put(0, &[0x86, 0x80, 0xca, 0x10]);
    put(reg::STATUS, &[0x10, 0]);
    put(reg::REVISION_ID, &[1, 0, 0, 2]);
    put(reg::BAR0, &[0xc, 0, 0, 0xfe]);
    put(reg::BAR0 + 12, &[0xc, 0, 0x10, 0xfe]);
    put(reg::SUBSYSTEM_VENDOR_ID, &[0x86, 0x80, 0x3c, 0xa0]);
    put(reg::CAPABILITIES, &[0x70]);
    put(0x70, &[0x11, 0xa0, 2, 0, 3, 0, 0, 0, 3, 0x20, 0, 0]);
    put(0xa0, &[0x10, 0x50, 2, 0, 0x20, 0x80]);
    put(0x50, &[0x09, 0, 5, 0xaa, 0xbb]);
    bytes
}

fn changed(change: impl FnOnce(&mut Header)) -> Result<ConfigSpace, NotShown> {
    let mut bytes = igbvf();
    change(&mut bytes);
    of(&bytes, SIZES)
}

#[test]
fn a_virtual_function_is_shown_with_all_that_its_driver_needs() {
    let space = of(&igbvf(), SIZES).unwrap();
    let mut seen = [0; CAPABILITY_END];
    space.read(0, &mut seen);
    assert_eq!(seen[..4], [0x86, 0x80, 0xca, 0x10]);
    assert_eq!(seen[reg::BAR0], 0xc, "the BAR's kind, and no address yet");
    let (at, msix) = space.msix().unwrap();
    assert_eq!((at, msix.vectors, msix.bar), (0x70, 3, 3));
    assert_eq!((msix.pba_bar, msix.pba_offset), (3, 0x2000));
    let flr = seen[0xa0 + 7] & 0x10;
    assert_eq!(flr, 0x10, "function-level reset is offered");
    assert_eq!(seen[0x50..0x55], [0x09, 0, 5, 0xaa, 0xbb]);
    assert_eq!(space.bars().len(), 2);
}

#[test]
fn what_the_vendor_has_added_cannot_be_written() {
    let mut space = of(&igbvf(), SIZES).unwrap();
    space.write(0x50, &[0xff; 8]);
    let mut seen = [0; 8];
    space.read(0x50, &mut seen);
    assert_eq!(seen, [0x09, 0, 5, 0xaa, 0xbb, 0, 0, 0]);
}

#[test]
fn what_is_programmed_into_one_can_be_carried_to_another_of_its_kind() {
    let mut space = of(&igbvf(), SIZES).unwrap();
    space.write(reg::BAR0 as u64, &0x8000_0000_u32.to_le_bytes());
    space.write(reg::COMMAND as u64, &[6, 0]);
    // Its own address on its host is no part of it.
    let mut elsewhere = igbvf();
    elsewhere[reg::BAR0 + 3] = 0xfd;
    let mut there = of(&elsewhere, SIZES).unwrap();
    there.load(&space.save()).unwrap();
    assert_eq!(there.bar_address(0), Some(0x8000_0000));
}

#[test]
fn other_functions_are_refused() {
    let refused = |change: fn(&mut Header)| changed(change).unwrap_err();
    assert_eq!(
        refused(|b| b[reg::HEADER_TYPE] = 0x81),
        NotShown::HeaderType(1)
    );
    assert_eq!(refused(|b| b[0x70] = 0x05), NotShown::NoMsix);
    assert_eq!(refused(|b| b[0xa0] = 0x05), NotShown::NoExpress);
    assert_eq!(refused(|b| b[reg::STATUS] = 0), NotShown::NoMsix);
}

#[test]
fn nonsense_is_refused_and_nothing_else_happens() {
    let broken = |change: fn(&mut Header)| {
        let refused = changed(change);
        assert!(matches!(refused, Err(NotShown::Broken(_))), "{refused:?}");
    };
    broken(|b| b[0x51] = 0x70);
    broken(|b| b[0x51] = 0x20);
    broken(|b| b[0x52] = 0xff);
    broken(|b| b[0x52] = 0);
    broken(|b| b[0x74] = 1);
    broken(|b| b[0x74] = 7);
    broken(|b| b[0x76] = 0xff);
    broken(|b| b[0x73] = 7);
    broken(|b| b[0x50] = 0x11);
    // The last one passes the end.
    broken(|b| {
        b[0x51] = 0xfc;
        b[0xfc] = 0x01;
    });
    for sizes in [
        [0x4001, 0, 0, 0x4000, 0, 0],
        [0x4000, 0x1000, 0, 0x4000, 0, 0],
        [8, 0, 0, 0x4000, 0, 0],
    ] {
        assert!(matches!(of(&igbvf(), sizes), Err(NotShown::Broken(_))));
    }
    // A 64-bit BAR in the last register.
    let mut bytes = igbvf();
    bytes[reg::BAR0 + 20] = 0x4;
    let sizes = [0x4000, 0, 0, 0x4000, 0, 0x1000];
    assert!(of(&bytes, sizes).is_err());
}
