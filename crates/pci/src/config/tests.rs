use proptest::prelude::*;

use super::*;
use crate::restore::{Step, changes, plan};
use crate::{ConfigImage, ImageError};

fn space() -> ConfigSpace {
    let identity = Identity {
        vendor: 0x8086,
        device: 0x10ed,
        revision: 1,
        class: 0x02_00_00,
        subsystem_vendor: 0x8086,
        subsystem: 0xc,
    };
    let bar = |index| Bar {
        index,
        size: 0x4000,
        kind: BarKind::Memory64Prefetchable,
    };
    let layout = MsixCapability {
        vectors: 3,
        bar: 3,
        table_offset: 0,
        pba_bar: 3,
        pba_offset: 0x2000,
    };
    ConfigSpace::builder(identity)
        .bar(bar(0))
        .bar(bar(3))
        .power_management(0x40)
        .msix(0x70, layout)
        .express(0xa0)
        .build()
}

fn word(space: &ConfigSpace, at: u64) -> u32 {
    let mut bytes = [0; 4];
    space.read(at, &mut bytes);
    u32::from_le_bytes(bytes)
}

#[test]
fn the_capability_list_leads_through_all_capabilities() {
    let space = space();
    let mut at = word(&space, 0x34) & 0xff;
    let mut ids = Vec::new();
    while at != 0 {
        let head = word(&space, u64::from(at));
        ids.push(head & 0xff);
        at = head >> 8 & 0xff;
    }
    assert_eq!(ids, [1, 0x11, 0x10]);
    assert_eq!(word(&space, 4) >> 16 & 0x10, 0x10);
}

#[test]
fn bars_answer_the_sizing_probe_and_keep_their_type() {
    let mut space = space();
    space.write(0x10, &[0xff; 8]);
    assert_eq!(
        (word(&space, 0x10), word(&space, 0x14)),
        (0xffff_c00c, 0xffff_ffff)
    );
    assert_eq!(space.bar_address(0), None, "decoding is off");
    space.write(0x10, &0xfe00_0000_u64.to_le_bytes());
    space.write(4, &[2, 0]);
    assert_eq!(space.bar_address(0), Some(0xfe00_0000));
    assert_eq!(space.bar_address(3), None, "address is zero");
    assert_eq!(space.bar_address(1), None, "no such BAR");
}

#[test]
fn bus_mastering_and_function_reset_are_told() {
    let mut space = space();
    assert_eq!(space.write(4, &[6, 0]).bus_master, Some(true));
    assert_eq!(space.write(4, &[6, 0]), Change::default());
    let reset = space.write(0xa0 + 8, &[0, 0x80]);
    assert!(reset.function_reset);
    assert_eq!(word(&space, 0xa8) & 0x8000, 0, "the bit reads as zero");
    space.reset();
    assert!(!space.bus_master());
}

#[test]
fn msix_is_enabled_by_its_control() {
    let mut space = space();
    assert!(!space.is_msix_enabled());
    space.write(0x73, &[0x80]);
    assert!(space.is_msix_enabled());
}

#[test]
fn a_function_is_powered_down_from_d3hot_to_d0() {
    let mut space = space();
    assert!(!space.is_powered_down());
    space.write(0x44, &[3, 0]);
    assert!(space.is_powered_down());
    space.write(0x44, &[0, 0]);
    assert!(!space.is_powered_down());
    space.write(0x44, &[3, 0]);
    space.reset();
    assert!(!space.is_powered_down());
}

#[test]
fn bars_outlast_a_function_reset_but_not_a_bus_reset() {
    let mut space = space();
    space.write(0x10, &0x12_fe00_0000_u64.to_le_bytes());
    space.write(0x1c, &0xfe00_4000_u64.to_le_bytes());
    space.write(4, &[6, 4]);
    space.reset_function();
    assert_eq!(space.command(), 0);
    space.write(4, &[2, 0]);
    assert_eq!(space.bar_address(0), Some(0x12_fe00_0000));
    assert_eq!(space.bar_address(3), Some(0xfe00_4000));
    space.reset();
    assert_eq!((word(&space, 0x10), word(&space, 0x14)), (0xc, 0));
}

#[test]
fn an_image_comes_back_and_a_foreign_one_is_refused() {
    let mut space = space();
    space.write(4, &[6, 4]);
    space.write(0x10, &0xfe00_0000_u64.to_le_bytes());
    space.write(0x72, &[0, 0x80]);
    let image = space.save();
    let mut other = self::space();
    other.load(&image).unwrap();
    assert_eq!(other.bytes(), space.bytes());

    let damaged: ConfigImage = serde_json::from_str(r#"{"hex":"8g"}"#).unwrap();
    assert_eq!(other.load(&damaged), Err(ImageError::Damaged));
    let foreign: ConfigImage = serde_json::from_str(r#"{"hex":"f41a0010"}"#).unwrap();
    assert!(matches!(
        other.load(&foreign),
        Err(ImageError::Device { .. })
    ));
    assert_eq!(other.bytes(), space.bytes(), "nothing changed");
}

/// Replays the plan on a fresh function, as the VMM's side would see it.
#[test]
fn the_restore_plan_rebuilds_the_space_and_writes_the_table_while_it_answers() {
    let mut space = space();
    space.write(0x10, &0xfe00_0000_u64.to_le_bytes());
    space.write(0x1c, &0xfe00_4000_u64.to_le_bytes());
    space.write(0x72, &[0, 0x80]);
    for command in [6u8, 2] {
        space.write(4, &[command, 4]);
        let mut fresh = self::space();
        let mut tables = Vec::new();
        for step in plan(&space, true) {
            match step {
                Step::Config(w) => {
                    let size = usize::from(w.size);
                    fresh.write(w.offset.into(), &w.value.to_le_bytes()[..size]);
                }
                Step::MsixTable { at } => {
                    assert!(fresh.bus_master() && fresh.bar_address(3) == Some(at));
                    assert_eq!(fresh.u16(0x72) & 0xc000, 0xc000, "on and masked");
                    tables.push(at);
                }
            }
        }
        assert_eq!(fresh.bytes(), space.bytes());
        assert_eq!(tables, [0xfe00_4000]);
        // Two BARs, the vectors, and Command: the rest is as after power-on.
        assert_eq!(plan(&space, false).len(), 4);
    }
}

/// What a driver does that has stopped its function: vectors off, bus mastering off.
#[test]
fn changes_are_few_and_lead_to_the_same_space() {
    let mut before = space();
    before.write(0x10, &0xfe00_0000_u64.to_le_bytes());
    before.write(0x1c, &0xfe00_4000_u64.to_le_bytes());
    before.write(0x72, &[0, 0x80]);
    before.write(4, &[6, 4]);
    assert_eq!(changes(&before, &before, false), []);
    let mut space = before.clone();
    space.write(0x72, &[0, 0]);
    space.write(4, &[2, 4]);
    for (table, count) in [(false, 2), (true, 5)] {
        let steps = changes(&before, &space, table);
        assert_eq!(steps.len(), count, "{steps:?}");
        let mut replayed = before.clone();
        for step in steps {
            if let Step::Config(w) = step {
                let size = usize::from(w.size);
                replayed.write(w.offset.into(), &w.value.to_le_bytes()[..size]);
            }
        }
        assert_eq!(replayed.bytes(), space.bytes());
    }
}

#[test]
fn a_table_that_no_bar_shows_is_not_written() {
    let steps = plan(&space(), true);
    assert!(!steps.iter().any(|s| matches!(s, Step::MsixTable { .. })));
}

#[test]
fn the_golden_image_still_loads() {
    let golden = include_str!("../../tests/golden/config-image-v1.json");
    let image: ConfigImage = serde_json::from_str(golden).unwrap();
    let mut space = space();
    space.load(&image).unwrap();
    assert_eq!(space.command(), 0x0406);
    assert_eq!(space.bar_address(3), Some(0xfe00_4000));
    assert_eq!(serde_json::to_string(&space.save()).unwrap(), golden.trim());
}

proptest! {
    /// Whatever is written wherever, what must not change does not.
    #[test]
    fn hostile_writes_change_only_writable_bits(
        writes in proptest::collection::vec((0u64..5000, proptest::collection::vec(any::<u8>(), 0..9)), 0..64)
    ) {
        let mut space = space();
        let fresh = space.clone();
        for (offset, data) in writes {
            space.write(offset, &data);
            let mut back = [0; 8];
            space.read(offset, &mut back);
        }
        for at in 0..CONFIG_SIZE {
            prop_assert_eq!((space.bytes[at] ^ fresh.bytes[at]) & !fresh.writable[at], 0);
        }
        let mut copy = fresh;
        prop_assert!(copy.load(&space.save()).is_ok());
        let _ = plan(&space, true);
    }
}
