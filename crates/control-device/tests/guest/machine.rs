//! A VM with nothing but memory and the control device.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use control_device::{
    Asked, Control, ControlDevice, Outcome, Quiesce, Quiesced, Stopped, Track, Tracked,
};
use device::lifecycle::{Halted, Running};
use device::{Access, FlatMemory, GuestMemory, Interrupts, ManualClock, Model};

/// Bytes of guest memory, from 0 on.
pub(crate) const RAM: u64 = 1 << 20;
/// Far longer than any answer of a driver in the same process takes.
pub(crate) const LONG: Duration = Duration::from_mins(1);
/// Passes at once.
pub(crate) const SHORT: Duration = Duration::from_millis(1);
/// The devices that the control device speaks for.
pub(crate) const DEVICES: [(u16, u16); 2] = [(0x8086, 0x10ed), (0x1b36, 0x0010)];

#[derive(Debug, Default)]
struct Doorbell(AtomicU32);

impl Interrupts for Doorbell {
    fn signal(&self, vector: u16) {
        assert_eq!(vector, 0, "there is only one vector");
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

pub(crate) struct Machine {
    pub(crate) device: ControlDevice,
    pub(crate) control: Control,
    pub(crate) memory: Arc<FlatMemory>,
    doorbell: Doorbell,
    clock: ManualClock,
}

impl Machine {
    pub(crate) fn new() -> Self {
        let memory = FlatMemory::new(0, usize::try_from(RAM).unwrap());
        Self::with_memory(Arc::new(memory))
    }

    pub(crate) fn with_memory(memory: Arc<FlatMemory>) -> Self {
        let (device, control) = control_device::new(&DEVICES).unwrap();
        Self {
            device,
            control,
            memory,
            doorbell: Doorbell::default(),
            clock: ManualClock::default(),
        }
    }

    pub(crate) fn read(&mut self, offset: u64) -> u32 {
        let mut word = [0; 4];
        self.call(|device, access| device.read(0, offset, &mut word, access));
        u32::from_le_bytes(word)
    }

    pub(crate) fn write(&mut self, offset: u64, value: u32) {
        self.call(|device, access| device.write(0, offset, &value.to_le_bytes(), access));
    }

    /// Lets the device work, as its owner does after a wake-up, and takes the interrupts sent.
    pub(crate) fn interrupts(&mut self) -> u32 {
        self.call(Model::poll);
        self.doorbell.0.swap(0, Ordering::Relaxed)
    }

    pub(crate) fn resume(&mut self) {
        self.call(Model::resume);
    }

    pub(crate) fn call<R>(&mut self, f: impl FnOnce(&mut ControlDevice, &Access<'_>) -> R) -> R {
        let access = Access {
            memory: Some(&*self.memory),
            interrupts: &self.doorbell,
            clock: &self.clock,
            ledger: None,
        };
        f(&mut self.device, &access)
    }

    /// What was promised, and what is said of the table now.
    pub(crate) fn tracked(&self, asked: Asked<Track>) -> Tracked {
        asked.wait(RAM, || Some(Through(Arc::clone(&self.memory))))
    }

    /// The pages that the table has, or why it has none.
    pub(crate) fn marked(
        &self,
        quiesced: &Quiesced,
    ) -> Result<Vec<u64>, control_device::TableError> {
        let mut pages = Vec::new();
        let count = quiesced.mark(&halted(), &*self.memory, &mut |page| pages.push(page))?;
        assert_eq!(count, pages.len() as u64);
        Ok(pages)
    }
}

/// What is said of devices whose bus mastering is off.
pub(crate) fn quiesced(asked: Asked<Quiesce>) -> Quiesced {
    asked.wait(|_| Stopped::Verified)
}

pub(crate) fn done<T>(value: T) -> Outcome<T> {
    let took = Duration::from_micros(1_500);
    Outcome::Done { value, took }
}

/// Memory by reference, as a permit for DMA is.
pub(crate) struct Through(Arc<FlatMemory>);

impl GuestMemory for Through {
    fn read(&self, iova: u64, buf: &mut [u8]) -> Result<(), device::DmaError> {
        self.0.read(iova, buf)
    }
    fn write(&self, iova: u64, _: &[u8]) -> Result<(), device::DmaError> {
        panic!("the host writes to the guest's table at {iova:#x}")
    }
    fn store_u64(&self, iova: u64, _: u64) -> Result<(), device::DmaError> {
        panic!("the host writes to the guest's table at {iova:#x}")
    }
    fn store_u32(&self, iova: u64, _: u32) -> Result<(), device::DmaError> {
        panic!("the host writes to the guest's table at {iova:#x}")
    }
}

/// What marking asks for.
pub(crate) fn halted() -> Halted<()> {
    let Ok(halted) = Running::new(()).halt();
    halted
}
