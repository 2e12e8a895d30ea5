//! The world around a controller: memory, interrupts, and its disks.

use std::sync::{Arc, Mutex};

use device::{Access, Claim, FlatMemory, GuestMemory, Interrupts, ManualClock, Model, Progress};
use nvme::{Controller, ControllerConfig, NamespaceConfig};

use crate::disk::Disk;

pub(crate) const MEMORY_BASE: u64 = 0x10_0000;
pub(crate) const MEMORY_LEN: usize = 8 << 20;
pub(crate) const DISK_LEN: usize = 4 << 20;

#[derive(Debug, Default)]
pub(crate) struct Vectors(Mutex<Vec<u16>>);

impl Interrupts for Vectors {
    fn signal(&self, vector: u16) {
        self.0.lock().unwrap().push(vector);
    }
}

/// One controller in its world: namespace 1 has blocks of 512 bytes, namespace 2 of 4096.
pub(crate) struct Machine {
    pub(crate) controller: Controller,
    pub(crate) memory: Arc<FlatMemory>,
    pub(crate) disks: [Disk; 2],
    pub(crate) bus_master: bool,
    clock: ManualClock,
    vectors: Vectors,
}

impl Machine {
    pub(crate) fn new() -> Self {
        let memory = Arc::new(FlatMemory::new(MEMORY_BASE, MEMORY_LEN));
        Self::with(memory, [Disk::new(DISK_LEN), Disk::new(DISK_LEN)])
    }

    /// A machine that the guest whose memory and disks these are has moved to.
    pub(crate) fn with(memory: Arc<FlatMemory>, disks: [Disk; 2]) -> Self {
        let namespace = |disk: &Disk, block_size| NamespaceConfig {
            backing: Box::new(disk.clone()),
            block_size,
        };
        let config = ControllerConfig {
            serial: "vf1".into(),
            queues: 4,
            namespaces: vec![namespace(&disks[0], 512), namespace(&disks[1], 4096)],
        };
        let mut controller = Controller::new(config).unwrap();
        controller.acquire(Claim::Start).unwrap();
        Self {
            controller,
            memory,
            disks,
            bus_master: true,
            clock: ManualClock::default(),
            vectors: Vectors::default(),
        }
    }

    pub(crate) fn read(&mut self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.call(|c, access| c.read(0, offset, &mut data, access));
        u32::from_le_bytes(data)
    }

    pub(crate) fn write(&mut self, offset: u64, value: u32) {
        self.call(|c, access| c.write(0, offset, &value.to_le_bytes(), access));
    }

    pub(crate) fn write_wide(&mut self, offset: u64, value: u64) {
        self.call(|c, access| c.write(0, offset, &value.to_le_bytes(), access));
    }

    pub(crate) fn poll(&mut self) -> Progress {
        self.call(Controller::poll)
    }

    /// Polls as an owner does, if the model asks for it, until nothing is left.
    pub(crate) fn settle(&mut self) {
        if !self.controller.needs_poll() {
            return;
        }
        for _ in 0..10_000 {
            if self.poll() == Progress::Idle(None) {
                return;
            }
        }
        panic!("the controller does not come to rest");
    }

    pub(crate) fn resume(&mut self) {
        self.call(Controller::resume);
    }

    pub(crate) fn call<R>(&mut self, f: impl FnOnce(&mut Controller, &Access<'_>) -> R) -> R {
        let memory: &dyn GuestMemory = &*self.memory;
        let access = Access {
            memory: self.bus_master.then_some(memory),
            interrupts: &self.vectors,
            clock: &self.clock,
        };
        f(&mut self.controller, &access)
    }

    /// The vectors signalled since the last time this was asked.
    pub(crate) fn signalled(&self) -> Vec<u16> {
        std::mem::take(&mut self.vectors.0.lock().unwrap())
    }

    pub(crate) fn load(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(address, &mut bytes).unwrap();
        bytes
    }

    pub(crate) fn store(&self, address: u64, bytes: &[u8]) {
        self.memory.write(address, bytes).unwrap();
    }
}
