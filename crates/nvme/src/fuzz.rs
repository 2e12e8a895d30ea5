//! A world in which a byte string decides about all that a guest and a damaged state can do.
//!
//! The property tests and the fuzz targets run it; what it promises beyond what it asserts is kept
//! by not panicking.

mod disk;

use device::{
    Access, Claim, FlatMemory, GuestMemory, Interrupts, ManualClock, Model, Progress, Reset,
    StateRecord,
};

use self::disk::{Disk, Late};
use crate::controller::Controller;
use crate::engine::PLACES;
use crate::identity::{ControllerConfig, NamespaceConfig};

/// Steps of what damaged things were left to.
const AMID_DAMAGE: usize = 8;
const MEMORY_BASE: u64 = 0x10_0000;
const MEMORY_LEN: usize = 256 << 10;
/// Where queues lie unless the input moves them; submission, then completion.
const QUEUE_STRIDE: u64 = 0x2000;
const LISTS: u64 = MEMORY_BASE + 0x1_0000;
const DATA: u64 = MEMORY_BASE + 0x1_4000;
const ENTRIES: u16 = 32;
/// Most bytes that one call may move: its budget, a step beyond it, and all of a failed write.
const BYTES_PER_CALL: usize = 2 << 20;
/// Most polls until a controller that nothing happens to has done all that it was told.
const POLLS: usize = 100_000;

/// Runs one input to its end.
///
/// # Panics
/// When the controller does more in one call than its budget allows, when a state that it saved
/// does not load, or when it does not come to rest.
pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let disks = [Disk::new(), Disk::new()];
    let late = Late::new(disks.clone());
    let mut world = World {
        controller: controller(&disks, &late),
        disks,
        late,
        memory: FlatMemory::new(MEMORY_BASE, MEMORY_LEN),
        bus_master: true,
        clock: ManualClock::default(),
        tails: [0; 5],
    };
    while let Some(operation) = input.byte() {
        world.step(operation, &mut input);
    }
    world.settle();
}

fn controller(disks: &[Disk; 2], late: &Late) -> Controller {
    let namespace = |disk: &Disk, block_size| NamespaceConfig {
        backing: Box::new(disk.clone()),
        block_size,
    };
    let config = ControllerConfig {
        serial: "fuzz".into(),
        queues: 4,
        namespaces: vec![namespace(&disks[0], 512), namespace(&disks[1], 4096)],
    };
    let controller = Controller::with_engine(config, Box::new(late.clone()));
    let mut controller = controller.expect("the configuration is right");
    controller
        .acquire(Claim::Start)
        .expect("nobody else has it");
    controller
}

struct World {
    controller: Controller,
    disks: [Disk; 2],
    late: Late,
    memory: FlatMemory,
    bus_master: bool,
    clock: ManualClock,
    /// Where the next entry of each queue goes.
    tails: [u16; 5],
}

impl World {
    /// Random numbers hardly ever make a queue that works, so most operations make something that
    /// does, and the input decides about its details.
    fn step(&mut self, operation: u8, input: &mut Input<'_>) {
        match operation % 20 {
            0 => {
                let offset = u64::from(input.word() & 0x1fff);
                self.write(offset, &input.array::<4>());
            }
            1 => self.write(u64::from(input.byte().unwrap_or(0)), &input.array::<8>()),
            2 => self.read(input),
            3 => self.store(MEMORY_BASE + u64::from(input.word()), &input.array::<16>()),
            4 => self.enable(input),
            5 | 6 => self.create_queues(input),
            7..12 => self.submit_io(input),
            12 | 13 => self.submit_admin(input),
            14 => self.list(input),
            15 => self.take_completions(input),
            16 => {
                self.late.end_one(usize::from(operation / 20));
                self.poll();
            }
            17 => self.save_and_load(input),
            18 => self.change(input),
            _ => self.own(input.byte().unwrap_or(0)),
        }
    }

    /// What the controller's owner and its disks do.
    fn own(&mut self, what: u8) {
        match what {
            0..16 => self.call(|c, _| c.reset(Reset::Function)),
            16..32 => {
                self.controller.drain().expect("every disk answers");
                assert_eq!(self.controller.under_way(), 0);
            }
            32..48 => {
                let idle = self.controller.under_way() == 0;
                let released = self.controller.release("m");
                // What was released already stays so.
                if let Err(error) = released
                    && idle
                {
                    let why = error.to_string();
                    assert!(why.contains("yet to be told"), "{why}");
                }
            }
            48..80 => {
                let acquired = self.controller.acquire(Claim::TakeBack("m"));
                acquired.expect("nobody else has it");
            }
            80..96 => self.late.set_late(what & 1 != 0),
            96..176 => {
                self.late.end_one(what.into());
            }
            _ => {
                self.poll();
            }
        }
    }

    fn enable(&mut self, input: &mut Input<'_>) {
        let size = u32::from(ENTRIES) - 1;
        self.write(0x14, &[0; 4]);
        self.write(0x24, &(size << 16 | size).to_le_bytes());
        self.write(0x28, &MEMORY_BASE.to_le_bytes());
        self.write(0x30, &(MEMORY_BASE + 0x1000).to_le_bytes());
        let cc = if input.byte().unwrap_or(0) < 16 {
            u32::from_le_bytes(input.array())
        } else {
            0x0046_0001
        };
        self.write(0x14, &cc.to_le_bytes());
        self.tails = [0; 5];
    }

    fn create_queues(&mut self, input: &mut Input<'_>) {
        let queue = 1 + input.byte().unwrap_or(0) % 4;
        let base = MEMORY_BASE + QUEUE_STRIDE * u64::from(queue);
        let id = u32::from(ENTRIES - 1) << 16 | u32::from(queue);
        let completion = u32::from(1 + input.byte().unwrap_or(0) % 4);
        self.submit(0, 0x05, 0, base + 0x1000, 0, [id, 3, 0]);
        self.submit(0, 0x01, 0, base, 0, [id, completion << 16 | 1, 0]);
        self.tails[usize::from(queue)] = 0;
        self.ring(0);
        self.poll();
    }

    fn submit_io(&mut self, input: &mut Input<'_>) {
        let queue = 1 + usize::from(input.byte().unwrap_or(0) % 4);
        let opcodes = [0, 1, 1, 2, 2, 5, 8, 9];
        let opcode = opcodes[usize::from(input.byte().unwrap_or(0)) % opcodes.len()];
        let nsid = u32::from(input.byte().unwrap_or(0) % 4);
        let (prp1, prp2) = if input.odd() {
            // As a driver has it, for all lengths that a list is good for.
            (DATA, LISTS + 0x1000 * u64::from(opcode % 4))
        } else {
            (address(input), address(input))
        };
        let lengths = [0, 7, 2047, 255, 2047, u16::MAX];
        let blocks = u32::from(lengths[usize::from(input.byte().unwrap_or(0)) % lengths.len()]);
        let flags = u32::from(input.byte().unwrap_or(0)) << 24 & 0x4300_0000;
        let slba = u32::from(input.word() % 2500);
        let dwords = if opcode == 9 {
            [u32::from(input.word() & 0xff), 4, 0]
        } else {
            [slba, 0, blocks | flags]
        };
        self.submit(queue, opcode, nsid, prp1, prp2, dwords);
        if input.odd() {
            self.ring(queue);
        }
    }

    fn submit_admin(&mut self, input: &mut Input<'_>) {
        let opcode = input.byte().unwrap_or(0) % 0x10;
        let nsid = u32::from(input.byte().unwrap_or(0) % 4);
        let (prp1, prp2) = (address(input), address(input));
        let dword = u32::from_le_bytes(input.array());
        let dword = if input.odd() {
            dword & 0x01ff_000f
        } else {
            dword
        };
        let other = u32::from(input.word());
        self.submit(0, opcode, nsid, prp1, prp2, [dword, other, 0]);
        self.ring(0);
    }

    fn submit(&mut self, queue: usize, opcode: u8, nsid: u32, prp1: u64, prp2: u64, cdw: [u32; 3]) {
        let mut entry = [0; 64];
        entry[0] = opcode;
        entry[2..4].copy_from_slice(&self.tails[queue].to_le_bytes());
        entry[4..8].copy_from_slice(&nsid.to_le_bytes());
        entry[24..32].copy_from_slice(&prp1.to_le_bytes());
        entry[32..40].copy_from_slice(&prp2.to_le_bytes());
        for (at, dword) in [40, 44, 48].into_iter().zip(cdw) {
            entry[at..at + 4].copy_from_slice(&dword.to_le_bytes());
        }
        let base = MEMORY_BASE + QUEUE_STRIDE * queue as u64;
        self.store(base + 64 * u64::from(self.tails[queue]), &entry);
        self.tails[queue] = (self.tails[queue] + 1) % ENTRIES;
    }

    fn ring(&mut self, queue: usize) {
        let tail = u32::from(self.tails[queue]);
        self.write(0x1000 + 8 * queue as u64, &tail.to_le_bytes());
    }

    /// A PRP list, mostly of pages that there are, sometimes leading on to another.
    fn list(&self, input: &mut Input<'_>) {
        let list = LISTS + 0x1000 * u64::from(input.byte().unwrap_or(0) % 4);
        for slot in 0..512 {
            let page = DATA & !0xfff | (slot % 32) << 12;
            self.store(list + 8 * slot, &page.to_le_bytes());
        }
        let entry = address(input);
        let slot = u64::from(input.word() % 512);
        self.store(list + 8 * slot, &entry.to_le_bytes());
        let next = LISTS + 0x1000 * u64::from(input.byte().unwrap_or(0) % 4);
        self.store(list + 8 * 511, &next.to_le_bytes());
    }

    /// As the driver would, or as it never would.
    fn take_completions(&mut self, input: &mut Input<'_>) {
        let queue = usize::from(input.byte().unwrap_or(0) % 5);
        let head = match self.controller.state().completion[queue] {
            Some(queue) if input.byte().unwrap_or(0) > 16 => queue.tail,
            _ => input.word(),
        };
        let doorbell = 0x1004 + 8 * queue as u64;
        self.write(doorbell, &u32::from(head).to_le_bytes());
    }

    fn change(&mut self, input: &mut Input<'_>) {
        let what = input.byte().unwrap_or(0);
        self.bus_master ^= what & 1 != 0;
        for (disk, bit) in self.disks.iter().zip([2, 4]) {
            let mut content = disk.content();
            content.fails ^= what & bit != 0 && what & 8 != 0;
            content.writes_zeros ^= what & bit != 0;
        }
    }

    fn store(&self, address: u64, data: &[u8]) {
        // Reaching over the end of memory is part of the game.
        let _ = self.memory.write(address, data);
    }

    fn read(&mut self, input: &mut Input<'_>) {
        let len = [1, 2, 4, 8, 3, 0][usize::from(input.byte().unwrap_or(0)) % 6];
        let offset = u64::from(input.word());
        let mut data = [0; 8];
        self.call(|c, access| c.read(0, offset, &mut data[..len], access));
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.call(|c, access| c.write(0, offset, data, access));
    }

    fn poll(&mut self) -> Progress {
        self.call(Controller::poll)
    }

    /// The controller goes on in a new one; a damaged state is refused or taken, as it comes.
    fn save_and_load(&mut self, input: &mut Input<'_>) {
        let idle = self.controller.under_way() == 0;
        assert_eq!(self.controller.save().is_ok(), idle);
        self.controller.drain().expect("every disk answers");
        let record = self.controller.save().expect("every state can be saved");
        let mut successor = controller(&self.disks, &self.late);
        successor.load(&record).expect("what was saved loads");
        assert_eq!(successor.save().as_ref(), Ok(&record));
        let mut text = record.body.to_string().into_bytes();
        for _ in 0..input.byte().unwrap_or(0) % 4 {
            let at = usize::from(input.word()) % text.len();
            text[at] = input.byte().unwrap_or(b'9');
        }
        if let Ok(body) = serde_json::from_slice(&text) {
            let _ = successor.load(&StateRecord { body, ..record });
        }
        self.controller = successor;
        self.call(Controller::resume);
        if input.byte().unwrap_or(0) % 2 == 1 {
            self.take_over(input);
        }
    }

    /// It goes on in a new one, as where a process has died. So does, for some steps, one to which damaged things
    /// were left; what comes of that nobody can say.
    fn take_over(&mut self, input: &mut Input<'_>) {
        let mut left = Vec::new();
        assert!(self.controller.live(&mut left));
        let mut successor = controller(&self.disks, &self.late);
        successor
            .take_over(&left)
            .expect("what was left is gone on with");
        for _ in 0..input.byte().unwrap_or(0) % 4 {
            let at = usize::from(input.word()) % left.len();
            left[at] = input.byte().unwrap_or(0xff);
        }
        left.truncate(left.len() - usize::from(input.byte().unwrap_or(0) == 7));
        let mut damaged = controller(&self.disks, &self.late);
        if damaged.take_over(&left).is_ok() {
            self.take_disks_for_larger(true);
            self.controller = damaged;
            self.call(Controller::resume);
            for _ in 0..AMID_DAMAGE {
                self.poll();
            }
            self.controller.drain().expect("every disk answers");
            self.take_disks_for_larger(false);
        }
        self.controller = successor;
        self.call(Controller::resume);
    }

    fn take_disks_for_larger(&self, larger: bool) {
        for disk in &self.disks {
            disk.content().larger = larger;
        }
    }

    /// A controller that nothing happens to comes to rest.
    fn settle(&mut self) {
        for _ in 0..POLLS {
            if let Progress::Idle(wait) = self.poll()
                && !self.late.end_one(0)
            {
                assert_eq!(wait, None, "there is nothing to wait for");
                return;
            }
        }
        panic!("the controller does not come to rest");
    }

    fn call<R>(&mut self, f: impl FnOnce(&mut Controller, &Access<'_>) -> R) -> R {
        for disk in &self.disks {
            disk.content().moved = 0;
        }
        let memory: &dyn GuestMemory = &self.memory;
        let access = Access {
            memory: self.bus_master.then_some(memory),
            interrupts: &NoInterrupts,
            clock: &self.clock,
            ledger: None,
        };
        let result = f(&mut self.controller, &access);
        let moved: usize = self.disks.iter().map(|disk| disk.content().moved).sum();
        assert!(moved <= BYTES_PER_CALL, "{moved} bytes in one call");
        assert!(self.controller.under_way() <= PLACES);
        result
    }
}

/// Mostly within memory and aligned.
fn address(input: &mut Input<'_>) -> u64 {
    let kind = input.byte().unwrap_or(0);
    let low = u64::from(input.word());
    match kind % 16 {
        0 => u64::from_le_bytes(input.array()),
        1 => DATA + low,
        2..7 => LISTS + (low & 0x3ff8),
        7..9 => LISTS + (low & 0x3000),
        _ => DATA + (low & 0x1_f000),
    }
}

/// The fuzzer's bytes; zeros when they are used up.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).first().copied()
    }

    fn odd(&mut self) -> bool {
        self.byte().unwrap_or(0) & 1 != 0
    }

    fn word(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let taken = self.take(N);
        array[..taken.len()].copy_from_slice(taken);
        array
    }
}

struct NoInterrupts;

impl Interrupts for NoInterrupts {
    fn signal(&self, vector: u16) {
        assert!(vector < crate::spec::pci::MSIX_VECTORS, "vector {vector}");
    }
}
