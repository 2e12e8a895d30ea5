//! The world around a function: memory, interrupts, time and the other end of the cable.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use device::{
    Access, FlatMemory, FrameLink, GuestMemory, Interrupts, ManualClock, Model, Offloads, Progress,
    RxFrame, Sent, TxFrame, TxOffload,
};
use ixgbevf::{Vf, VfConfig};

pub(crate) const MAC: [u8; 6] = [0x02, 0xaa, 0xbb, 0xcc, 0xdd, 0x01];
pub(crate) const MEMORY_BASE: u64 = 0x10_0000;
pub(crate) const MEMORY_LEN: usize = 8 << 20;

/// The far end of the cable.
#[derive(Debug, Default)]
pub(crate) struct Cable {
    pub(crate) to_guest: VecDeque<(Vec<u8>, bool)>,
    pub(crate) from_guest: Vec<(Vec<u8>, TxOffload)>,
    pub(crate) down: bool,
    /// Frames that the link still takes; `None` is without end.
    pub(crate) room: Option<usize>,
    pub(crate) offloads: Offloads,
    pub(crate) announced: Vec<[u8; 6]>,
    pub(crate) heard: Vec<Vec<u8>>,
    /// How often it was told to hand on what it has.
    pub(crate) flushes: u32,
}

#[derive(Debug, Default)]
pub(crate) struct Vectors(Mutex<Vec<u16>>);

impl Interrupts for Vectors {
    fn signal(&self, vector: u16) {
        self.0.lock().unwrap().push(vector);
    }
}

/// One function in its world.
pub(crate) struct Machine {
    pub(crate) vf: Vf,
    pub(crate) memory: Arc<FlatMemory>,
    pub(crate) bus_master: bool,
    pub(crate) clock: ManualClock,
    vectors: Vectors,
    cable: Arc<Mutex<Cable>>,
}

impl Machine {
    pub(crate) fn new() -> Self {
        Self::with_memory(Arc::new(FlatMemory::new(MEMORY_BASE, MEMORY_LEN)))
    }

    /// A machine that the guest whose memory this is has moved to.
    pub(crate) fn with_memory(memory: Arc<FlatMemory>) -> Self {
        let cable = Arc::new(Mutex::new(Cable::default()));
        let link = TestLink {
            cable: Arc::clone(&cable),
            shown: None,
        };
        let config = VfConfig {
            mac: MAC,
            queue_pairs: 2,
        };
        Self {
            vf: Vf::new(config, Box::new(link)).unwrap(),
            memory,
            bus_master: true,
            clock: ManualClock::default(),
            vectors: Vectors::default(),
            cable,
        }
    }

    pub(crate) fn cable(&self) -> MutexGuard<'_, Cable> {
        self.cable.lock().unwrap()
    }

    pub(crate) fn read(&mut self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.call(|vf, access| vf.read(0, offset, &mut data, access));
        u32::from_le_bytes(data)
    }

    pub(crate) fn write(&mut self, offset: u64, value: u32) {
        self.call(|vf, access| vf.write(0, offset, &value.to_le_bytes(), access));
    }

    pub(crate) fn poll(&mut self) -> Progress {
        self.call(Vf::poll)
    }

    /// Polls as an owner does until nothing is left.
    pub(crate) fn settle(&mut self) -> Option<Duration> {
        for _ in 0..10_000 {
            if let Progress::Idle(wait) = self.poll() {
                return wait;
            }
        }
        panic!("the function does not come to rest");
    }

    pub(crate) fn resume(&mut self) {
        self.call(Vf::resume);
    }

    pub(crate) fn call<R>(&mut self, f: impl FnOnce(&mut Vf, &Access<'_>) -> R) -> R {
        let memory: &dyn GuestMemory = &*self.memory;
        let access = Access {
            memory: self.bus_master.then_some(memory),
            interrupts: &self.vectors,
            clock: &self.clock,
            ledger: None,
        };
        f(&mut self.vf, &access)
    }

    /// The vectors signalled since the last time this was asked.
    pub(crate) fn signalled(&self) -> Vec<u16> {
        std::mem::take(&mut self.vectors.0.lock().unwrap())
    }

    /// The frames sent since the last time this was asked, which the link need not finish.
    pub(crate) fn sent(&self) -> Vec<Vec<u8>> {
        let sent = std::mem::take(&mut self.cable().from_guest);
        sent.into_iter()
            .map(|(bytes, offload)| {
                assert_eq!(offload, TxOffload::None);
                bytes
            })
            .collect()
    }

    /// A frame arrives from the network.
    pub(crate) fn arrive(&self, frame: &[u8]) {
        self.cable().to_guest.push_back((frame.to_vec(), false));
    }
}

struct TestLink {
    cable: Arc<Mutex<Cable>>,
    /// What `peek` shows; it has to outlive the lock.
    shown: Option<(Vec<u8>, bool)>,
}

impl FrameLink for TestLink {
    fn peek(&mut self) -> Option<RxFrame<'_>> {
        if self.shown.is_none() {
            self.shown = self.cable.lock().unwrap().to_guest.pop_front();
        }
        let (bytes, checksums_good) = self.shown.as_ref()?;
        Some(RxFrame {
            bytes,
            checksums_good: *checksums_good,
        })
    }

    fn consume(&mut self) {
        assert!(self.shown.take().is_some(), "nothing was shown");
    }

    fn send(&mut self, frame: TxFrame<'_>) -> Sent {
        let mut cable = self.cable.lock().unwrap();
        match &mut cable.room {
            Some(0) => return Sent::Full,
            Some(room) => *room -= 1,
            None => {}
        }
        cable.from_guest.push((frame.bytes.to_vec(), frame.offload));
        Sent::Taken
    }

    fn flush(&mut self) {
        self.cable.lock().unwrap().flushes += 1;
    }

    fn is_up(&self) -> bool {
        !self.cable.lock().unwrap().down
    }

    fn offloads(&self) -> Offloads {
        self.cable.lock().unwrap().offloads
    }

    fn announce(&mut self, mac: [u8; 6]) {
        self.cable.lock().unwrap().announced.push(mac);
    }

    fn heard(&self) -> Vec<Vec<u8>> {
        self.cable.lock().unwrap().heard.clone()
    }

    fn remember(&mut self, heard: &[Vec<u8>]) {
        self.cable.lock().unwrap().heard = heard.to_vec();
    }

    fn say_again(&mut self, _: bool) -> usize {
        let mut cable = self.cable.lock().unwrap();
        let heard = cable.heard.clone();
        cable
            .to_guest
            .extend(heard.into_iter().map(|frame| (frame, false)));
        cable.heard.len()
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
