use super::*;

const BAR: u64 = 0xfe00_0000;
const COMMON_OFFSET: u32 = 0x1000;

/// The virtio-pci function as QEMU shows it, as far as the start can see.
struct Fake {
    config: [u8; 256],
    status: u8,
    /// Every value written to the status.
    written: Vec<u8>,
    select: [u32; 2],
    offered: u64,
    accepted: u64,
    refuses_features: bool,
    refuses_driver_ok: bool,
    resets: bool,
    queue_select: u16,
    queue_enabled: [u16; 2],
}

impl Fake {
    fn new() -> Self {
        let mut fake = Self {
            config: [0; 256],
            status: 0,
            written: Vec::new(),
            select: [0; 2],
            offered: 1 << 32 | 1 << 28,
            accepted: 0,
            refuses_features: false,
            refuses_driver_ok: false,
            resets: true,
            queue_select: 0,
            queue_enabled: [0; 2],
        };
        fake.put(0, &[0xf4, 0x1a, 0x5a, 0x10, 0x06, 0, 0x10, 0]);
        // BAR 4, 64-bit, prefetchable.
        fake.put(0x20, &0xfe00_000c_u32.to_le_bytes());
        fake.put(0x34, &[0x98]);
        // MSI-X first, then a notification and the common structure.
        fake.put(0x98, &[0x11, 0x84]);
        fake.put(0x84, &[0x09, 0x70, 0x14, 2, 4, 0, 0, 0]);
        fake.put(0x70, &[0x09, 0x00, 0x10, 1, 4, 0, 0, 0]);
        fake.put(0x78, &COMMON_OFFSET.to_le_bytes());
        fake.put(0x7c, &0x38_u32.to_le_bytes());
        fake
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.config[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn field(address: u64) -> u64 {
        address
            .checked_sub(BAR + u64::from(COMMON_OFFSET))
            .expect("nothing else of the BAR is touched")
    }
}

impl PciWindow for Fake {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) -> io::Result<()> {
        let at = usize::from(offset);
        data.copy_from_slice(&self.config[at..at + data.len()]);
        Ok(())
    }

    fn memory_read(&mut self, address: u64, data: &mut [u8]) -> io::Result<()> {
        match Self::field(address) {
            DEVICE_STATUS => data.copy_from_slice(&[self.status]),
            DEVICE_FEATURE => {
                let word = self.offered >> (32 * self.select[0]);
                data.copy_from_slice(&word.to_le_bytes()[..4]);
            }
            QUEUE_ENABLE => {
                let enabled = self.queue_enabled[usize::from(self.queue_select)];
                data.copy_from_slice(&enabled.to_le_bytes());
            }
            other => panic!("read of field {other:#x}"),
        }
        Ok(())
    }

    fn memory_write(&mut self, address: u64, data: &[u8]) -> io::Result<()> {
        let word = || u32::from_le_bytes(data.try_into().expect("4 bytes wide"));
        match Self::field(address) {
            DEVICE_STATUS => {
                self.written.extend_from_slice(data);
                self.status = match data[0] {
                    0 if !self.resets => self.status,
                    s if s & FEATURES_OK != 0 && self.refuses_features => s & !FEATURES_OK,
                    s if s & DRIVER_OK != 0 && self.refuses_driver_ok => s & !DRIVER_OK,
                    s => s,
                };
            }
            QUEUE_SELECT => {
                self.queue_select = u16::from_le_bytes(data.try_into().expect("2 bytes wide"));
            }
            DEVICE_FEATURE_SELECT => self.select[0] = word(),
            DRIVER_FEATURE_SELECT => self.select[1] = word(),
            DRIVER_FEATURE => self.accepted |= u64::from(word()) << (32 * self.select[1]),
            other => panic!("write of field {other:#x}"),
        }
        Ok(())
    }
}

#[test]
fn a_free_device_is_started_in_the_order_of_the_specification() {
    // Never touched, or seen by a bus driver that has no driver for it.
    for status in [0, 1] {
        let mut fake = Fake::new();
        fake.status = status;
        start(&mut fake).expect("nothing stands against it");
        assert_eq!(fake.written, [0, 1, 3, 11, 15]);
        assert_eq!(fake.status, 15);
        assert_eq!(fake.accepted, 1 << 32);
    }
}

#[test]
fn a_release_leaves_the_device_to_a_later_driver() {
    let mut fake = Fake::new();
    start(&mut fake).expect("nothing stands against it");
    fake.written.clear();
    release(&mut fake).expect("no queue is enabled");
    assert_eq!(fake.written, [0, 1]);
    release(&mut fake).expect("there is nothing to do");
    assert_eq!(fake.written, [0, 1]);
}

#[test]
fn a_release_spares_a_driver_with_queues() {
    let mut fake = Fake::new();
    fake.status = 15;
    fake.queue_enabled = [0, 1];
    assert!(matches!(
        release(&mut fake),
        Err(DriverlessError::DriverBound { status: 15 })
    ));
    assert_eq!(fake.status, 15);
}

#[test]
fn a_bound_driver_is_left_alone() {
    for status in [3, 15, 0x80] {
        let mut fake = Fake::new();
        fake.status = status;
        let error = start(&mut fake).expect_err("a driver is there");
        assert!(matches!(error, DriverlessError::DriverBound { status: s } if s == status));
        assert!(fake.written.is_empty());
    }
}

#[test]
fn a_device_that_cannot_be_reached_yet_is_refused_untouched() {
    let mut no_bar = Fake::new();
    no_bar.put(0x20, &0xc_u32.to_le_bytes());
    assert!(matches!(
        start(&mut no_bar),
        Err(DriverlessError::BarUnassigned { bar: 4 })
    ));
    let mut no_decode = Fake::new();
    no_decode.put(4, &[0x05]);
    assert!(matches!(
        start(&mut no_decode),
        Err(DriverlessError::DecodeOff)
    ));
    let mut absent = Fake::new();
    absent.config = [0xff; 256];
    assert!(matches!(
        start(&mut absent),
        Err(DriverlessError::NotTheSidecar { vendor: 0xffff, .. })
    ));
    for fake in [no_bar, no_decode, absent] {
        assert!(fake.written.is_empty());
    }
}

#[test]
fn broken_capability_lists_end() {
    let mut endless = Fake::new();
    endless.put(0x84, &[0x09, 0x98]);
    let mut nothing = Fake::new();
    nothing.put(0x84, &[0x09, 0x00]);
    let mut short = Fake::new();
    short.put(0x7c, &[0x20]);
    let mut io_bar = Fake::new();
    io_bar.put(0x20, &[0x01]);
    let mut no_bar = Fake::new();
    no_bar.put(0x74, &[6]);
    let mut none = Fake::new();
    none.put(6, &[0]);
    let mut past_the_end = Fake::new();
    past_the_end.put(0x20, &[0x0c, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    past_the_end.put(0x78, &u32::MAX.to_le_bytes());
    for mut fake in [endless, nothing, short, io_bar, no_bar, none, past_the_end] {
        assert!(matches!(
            start(&mut fake),
            Err(DriverlessError::NoCommonConfig(_))
        ));
    }
}

#[test]
fn a_start_that_fails_leaves_the_device_without_a_driver() {
    let mut legacy = Fake::new();
    legacy.offered = 1 << 28;
    let mut picky = Fake::new();
    picky.refuses_features = true;
    for mut fake in [legacy, picky] {
        assert!(matches!(start(&mut fake), Err(DriverlessError::Features)));
        assert_eq!(fake.status, 1);
    }
    let mut unserved = Fake::new();
    unserved.refuses_driver_ok = true;
    assert!(matches!(
        start(&mut unserved),
        Err(DriverlessError::NotStarted { status: 11 })
    ));
    assert_eq!(unserved.status, 1);
}

#[test]
fn a_reset_that_does_not_end_is_given_up() {
    let mut fake = Fake::new();
    fake.resets = false;
    let mut common = Common {
        window: &mut fake,
        at: BAR + u64::from(COMMON_OFFSET),
    };
    common.set_status(3).expect("the fake is reachable");
    assert!(matches!(
        common.initialise(),
        Err(DriverlessError::StuckInReset { status: 3 })
    ));
}
