use super::*;

const WINDOW: u8 = 0x84;
const COMMON: u8 = 0x40;
const COMMON_OFFSET: u32 = 0x1000;

/// The virtio-pci function as QEMU shows it, as far as the start can see.
struct Fake {
    config: [u8; 256],
    status: u8,
    /// Every value written to the status.
    written: Vec<u8>,
    refuses_driver_ok: bool,
    resets: bool,
}

impl Fake {
    /// Capabilities as QEMU 11.1 lists them: MSI-X, the window, one of no matter, the common one.
    fn new() -> Self {
        let mut fake = Self {
            config: [0; 256],
            status: 0,
            written: Vec::new(),
            refuses_driver_ok: false,
            resets: true,
        };
        fake.put(0, &[0xf4, 0x1a, 0x5a, 0x10]);
        fake.put(0x34, &[0x98]);
        fake.put(0x98, &[0x11, WINDOW]);
        fake.put(WINDOW, &[0x09, 0x50, 0x14, 5]);
        fake.put(0x50, &[0x09, COMMON, 0x10, 3, 4, 0, 0, 0]);
        fake.put(COMMON, &[0x09, 0x00, 0x10, 1, 4, 0, 0, 0]);
        fake.put(COMMON + 8, &COMMON_OFFSET.to_le_bytes());
        fake.put(COMMON + 12, &0x38_u32.to_le_bytes());
        fake
    }

    fn put(&mut self, at: u8, bytes: &[u8]) {
        let at = usize::from(at);
        self.config[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn start(&mut self) -> Result<Started, DriverlessError> {
        start(&mut ConfigWindow::open(self)?)
    }

    /// Whether the window points to the status, one byte wide.
    fn points_to_status(&self) -> bool {
        let at = usize::from(WINDOW);
        let offset = (COMMON_OFFSET + DEVICE_STATUS).to_le_bytes();
        self.config[at + 4] == 4
            && self.config[at + 8..at + 12] == offset
            && self.config[at + 12..at + 16] == [1, 0, 0, 0]
    }
}

impl ConfigSpace for Fake {
    fn read(&mut self, offset: u8, data: &mut [u8]) -> io::Result<()> {
        if offset == WINDOW + 16 {
            assert!(self.points_to_status());
            data.copy_from_slice(&[self.status]);
        } else {
            let at = usize::from(offset);
            data.copy_from_slice(&self.config[at..at + data.len()]);
        }
        Ok(())
    }

    fn write(&mut self, offset: u8, data: &[u8]) -> io::Result<()> {
        if offset != WINDOW + 16 {
            assert!((WINDOW..WINDOW + 16).contains(&offset));
            self.put(offset, data);
            return Ok(());
        }
        assert!(self.points_to_status());
        self.written.extend_from_slice(data);
        self.status = match data[0] {
            0 if !self.resets => self.status,
            s if s & DRIVER_OK != 0 && self.refuses_driver_ok => s & !DRIVER_OK,
            s => s,
        };
        Ok(())
    }
}

#[test]
fn a_device_that_no_driver_has_is_started() {
    // Never touched; seen by a bus driver; being tried by a driver; given up by it; broken.
    for status in [0, 1, 3, 0x83, 0x8b, 0x4f] {
        let mut fake = Fake::new();
        fake.status = status;
        assert_eq!(fake.start().expect("nothing is in the way"), Started::Now);
        assert_eq!(fake.written, [0, 7]);
        assert_eq!(fake.status, 7);
    }
}

#[test]
fn a_device_that_runs_is_left_as_it_is() {
    // Started from here, perhaps with a driver that tried it since, or by a driver of its own.
    for status in [7, 0x87, 15] {
        let mut fake = Fake::new();
        fake.status = status;
        assert_eq!(fake.start().expect("it runs"), Started::Before);
        assert!(fake.written.is_empty());
    }
}

#[test]
fn a_driver_at_work_is_not_disturbed() {
    let mut fake = Fake::new();
    fake.status = 11;
    let error = fake.start().expect_err("a driver is there");
    assert!(matches!(error, DriverlessError::DriverBusy { status: 11 }));
    assert!(fake.written.is_empty());
}

#[test]
fn another_device_is_refused_untouched() {
    let mut absent = Fake::new();
    absent.config = [0xff; 256];
    let before = absent.config;
    assert!(matches!(
        absent.start(),
        Err(DriverlessError::NotTheSidecar { vendor: 0xffff, .. })
    ));
    assert!(absent.written.is_empty() && absent.config == before);
}

#[test]
fn broken_capability_lists_end() {
    let mut endless = Fake::new();
    endless.put(0x50, &[0x09, 0x98]);
    let mut no_window = Fake::new();
    no_window.put(WINDOW + 3, &[4]);
    let mut short_window = Fake::new();
    short_window.put(WINDOW + 2, &[0x10]);
    let mut no_common = Fake::new();
    no_common.put(COMMON + 3, &[2]);
    let mut short_common = Fake::new();
    short_common.put(COMMON + 12, &[0x20]);
    let mut none = Fake::new();
    none.put(0x34, &[0]);
    let mut past_the_end = Fake::new();
    past_the_end.put(0x50, &[0x09, 0xf8]);
    past_the_end.put(0xf8, &[0x09, 0x00, 0x10, 1]);
    let mut far = Fake::new();
    far.put(COMMON + 8, &u32::MAX.to_le_bytes());
    for mut fake in [
        endless,
        no_window,
        short_window,
        no_common,
        short_common,
        none,
        past_the_end,
        far,
    ] {
        assert!(matches!(
            fake.start(),
            Err(DriverlessError::NoCapability(_))
        ));
        assert!(fake.written.is_empty());
    }
}

#[test]
fn a_start_that_fails_leaves_the_device_reset() {
    let mut unserved = Fake::new();
    unserved.refuses_driver_ok = true;
    assert!(matches!(
        unserved.start(),
        Err(DriverlessError::NotStarted { status: 3 })
    ));
    assert_eq!(unserved.status, 0);
}

#[test]
fn a_reset_that_does_not_end_is_given_up() {
    let mut fake = Fake::new();
    fake.resets = false;
    fake.status = 3;
    assert!(matches!(
        fake.start(),
        Err(DriverlessError::StuckInReset { status: 3 })
    ));
}
