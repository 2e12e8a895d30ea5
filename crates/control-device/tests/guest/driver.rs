//! The guest's driver of the control device, written from `docs/guest-protocol.md` alone: its
//! numbers are repeated here on purpose.

use device::GuestMemory;

use crate::machine::Machine;

pub(crate) const MAGIC: u64 = 0x000;
pub(crate) const DRIVER: u64 = 0x00c;
pub(crate) const REQUEST: u64 = 0x010;
pub(crate) const DEVICES: u64 = 0x018;
pub(crate) const TABLE_LOW: u64 = 0x020;
pub(crate) const TABLE_HIGH: u64 = 0x024;
pub(crate) const TABLE_CHUNKS: u64 = 0x028;
pub(crate) const READY: u32 = 1 << 31;
/// TABLE, TOUCH and QUIESCE.
pub(crate) const ALL: u32 = 0b111;

pub(crate) const TRACK: u32 = 1;
pub(crate) const QUIESCE: u32 = 2;
pub(crate) const END: u32 = 3;

pub(crate) const DONE: u32 = 1;
pub(crate) const TABLE: u32 = 1;
pub(crate) const TABLE_AFTER_QUIESCE: u32 = 2;
pub(crate) const TOUCH_AFTER_QUIESCE: u32 = 3;
pub(crate) const FAILED: u32 = 14;
pub(crate) const DECLINED: u32 = 15;

/// Where the directory and its only chunk lie.
pub(crate) const DIRECTORY: u64 = 0x3000;
pub(crate) const CHUNK: u64 = 0x5000;

pub(crate) fn ack(index: u64) -> u64 {
    0x108 + 0x20 * index
}

/// A driver of two devices.
#[derive(Debug)]
pub(crate) struct Driver {
    /// The answer to `TRACK`, by device.
    pub(crate) promises: [u32; 2],
    /// The last epoch carried out.
    carried_out: u32,
    pub(crate) tracking: bool,
    pub(crate) stopped: [bool; 2],
}

impl Driver {
    /// Finds the device and takes it.
    pub(crate) fn load(m: &mut Machine) -> Self {
        assert_eq!(m.read(MAGIC).to_le_bytes(), *b"VFRY");
        assert_eq!(m.read(0x004) >> 16, 1);
        assert_eq!(m.read(DEVICES), 2);
        let offered = m.read(0x008);
        m.write(DRIVER, READY | offered);
        assert_eq!(m.read(DRIVER), READY | ALL);
        Self {
            promises: [TABLE, TABLE_AFTER_QUIESCE],
            carried_out: 0,
            tracking: false,
            stopped: [false; 2],
        }
    }

    /// The doorbell's handler. Does nothing where it was not rung.
    pub(crate) fn run(&mut self, m: &mut Machine) {
        if m.interrupts() == 0 {
            return;
        }
        let request = m.read(REQUEST);
        if request >> 8 == self.carried_out {
            return;
        }
        match request >> 4 & 0xf {
            TRACK => self.track(m, request),
            QUIESCE => self.each(m, request, true),
            END => {
                self.tracking = false;
                self.each(m, request, false);
            }
            other => panic!("command {other} is not known"),
        }
        self.carried_out = request >> 8;
    }

    /// A page is mapped for a device to write.
    pub(crate) fn map(&self, m: &Machine, page: u64) {
        if self.tracking {
            let mut byte = [0];
            m.memory.read(CHUNK + page / 8, &mut byte).unwrap();
            byte[0] |= 1 << (page % 8);
            m.memory.write(CHUNK + page / 8, &byte).unwrap();
        }
    }

    fn track(&mut self, m: &mut Machine, request: u32) {
        self.stopped = [false; 2];
        if !self.tracking {
            m.memory.write(CHUNK, &[0; 4096]).unwrap();
            m.memory.write(DIRECTORY, &CHUNK.to_le_bytes()).unwrap();
            self.tracking = true;
        }
        set_table(m, DIRECTORY, 1);
        for (index, promise) in (0..).zip(self.promises) {
            answer(m, index, request, promise);
        }
    }

    fn each(&mut self, m: &mut Machine, request: u32, stop: bool) {
        for (index, stopped) in (0..).zip(&mut self.stopped) {
            *stopped = stop;
            answer(m, index, request, DONE);
        }
    }
}

pub(crate) fn set_table(m: &mut Machine, directory: u64, chunks: u32) {
    let [low, high] = [directory & 0xffff_ffff, directory >> 32];
    m.write(TABLE_LOW, u32::try_from(low).unwrap());
    m.write(TABLE_HIGH, u32::try_from(high).unwrap());
    m.write(TABLE_CHUNKS, chunks);
}

/// Answers for a device: what is only for reports first, then the commit.
pub(crate) fn answer(m: &mut Machine, index: u64, request: u32, result: u32) {
    m.write(ack(index) + 4, if result == FAILED { 110 } else { 0 });
    m.write(ack(index) + 8, 1_500);
    m.write(ack(index), request | result);
}
