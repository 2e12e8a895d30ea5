//! The world around a controller: memory, interrupts, and its disks.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use device::{Access, Claim, FlatMemory, GuestMemory, Interrupts, ManualClock, Model, Progress};
use nvme::engine::{Engine, Synchronous};
use nvme::{Controller, ControllerConfig, FileBacking, NamespaceConfig};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::disk::Disk;
use crate::late::Late;

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
    /// Its engine, unless operations end at once.
    pub(crate) late: Option<Late>,
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
        let late = crate::LATE.then(|| Late::new(disks.clone()));
        Self::build(memory, disks, late)
    }

    /// A machine whose operations end when they are told to.
    pub(crate) fn late() -> Self {
        let memory = Arc::new(FlatMemory::new(MEMORY_BASE, MEMORY_LEN));
        let disks = [Disk::new(DISK_LEN), Disk::new(DISK_LEN)];
        Self::build(memory, disks.clone(), Some(Late::new(disks)))
    }

    fn build(memory: Arc<FlatMemory>, disks: [Disk; 2], late: Option<Late>) -> Self {
        let namespace = |disk: &Disk, block_size| NamespaceConfig {
            backing: Box::new(disk.clone()),
            block_size,
        };
        let config = ControllerConfig {
            serial: "vf1".into(),
            queues: 4,
            namespaces: vec![namespace(&disks[0], 512), namespace(&disks[1], 4096)],
        };
        let engine: Box<dyn Engine> = match &late {
            Some(late) => Box::new(late.clone()),
            None => Box::new(Synchronous::default()),
        };
        Self::of(config, engine, memory, disks, late)
    }

    /// A machine on one file.
    pub(crate) fn on(file: &Path, engine: Box<dyn Engine>) -> Self {
        let config = ControllerConfig {
            serial: "vf1".into(),
            queues: 4,
            namespaces: vec![NamespaceConfig {
                backing: Box::new(FileBacking::open(file).unwrap()),
                block_size: 512,
            }],
        };
        let memory = Arc::new(FlatMemory::new(MEMORY_BASE, MEMORY_LEN));
        Self::of(config, engine, memory, <[Disk; 2]>::default(), None)
    }

    fn of(
        config: ControllerConfig,
        engine: Box<dyn Engine>,
        memory: Arc<FlatMemory>,
        disks: [Disk; 2],
        late: Option<Late>,
    ) -> Self {
        let mut controller = Controller::with_engine(config, engine).unwrap();
        controller.acquire(Claim::Start).unwrap();
        Self {
            controller,
            memory,
            disks,
            bus_master: true,
            late,
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

    /// Polls as an owner does, if the model asks for it, until nothing is left. What ends late
    /// ends, in some order, unless it is held.
    pub(crate) fn settle(&mut self) {
        if !self.controller.needs_poll() && self.controller.under_way() == 0 {
            return;
        }
        for _ in 0..10_000 {
            let progress = self.poll();
            if progress == Progress::More {
                continue;
            }
            if let Some(late) = &self.late {
                if late.is_held() {
                    return;
                }
                if late.end_one() {
                    continue;
                }
            }
            if self.controller.under_way() == 0 {
                assert_eq!(progress, Progress::Idle(None));
                return;
            }
            let fd = self.controller.poll_fd().unwrap();
            let long = Timespec::try_from(Duration::from_mins(1)).unwrap();
            let fds = &mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
            // Interrupted is as good as ready.
            assert_ne!(poll(fds, Some(&long)), Ok(0), "an end is told");
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
            ledger: None,
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
