//! The guest's side: queues, commands and their completions.

use nvme::spec::status::Status;

use crate::machine::{MEMORY_BASE, Machine};

/// Where things lie in the guest's memory.
const QUEUES: u64 = MEMORY_BASE;
const LISTS: u64 = MEMORY_BASE + 0x10_0000;
/// Data of commands: 1 MiB and a page, for [`Driver::submit`]'s callers.
pub(crate) const DATA: u64 = MEMORY_BASE + 0x20_0000;

pub(crate) const ENTRIES: u16 = 16;

/// A command of the driver's.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Command {
    pub(crate) opcode: u8,
    pub(crate) nsid: u32,
    pub(crate) cdw: [u32; 6],
    /// Where its data is.
    pub(crate) data: u64,
    pub(crate) len: u64,
}

/// What came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) cid: u16,
    pub(crate) result: u32,
    pub(crate) status: Status,
}

#[derive(Debug, Clone, Copy)]
struct Queue {
    sq: u64,
    cq: u64,
    tail: u16,
    head: u16,
    phase: u8,
}

/// A driver, with as many queue pairs as it has created.
#[derive(Debug, Clone)]
pub(crate) struct Driver {
    queues: Vec<Queue>,
    next_cid: u16,
}

impl Driver {
    /// Enables the controller as Linux does: with the admin queues only.
    pub(crate) fn enable(m: &mut Machine) -> Self {
        m.write(0x14, 0);
        assert_eq!(m.read(0x1c) & 1, 0);
        let admin = Queue::at(0);
        admin.clear(m);
        let size = u32::from(ENTRIES - 1);
        m.write(0x24, size << 16 | size);
        m.write_wide(0x28, admin.sq);
        m.write_wide(0x30, admin.cq);
        m.write(0x14, 0x0046_0000);
        m.write(0x14, 0x0046_0001);
        m.settle();
        assert_eq!(m.read(0x1c), 1);
        Self {
            queues: vec![admin],
            next_cid: 0,
        }
    }

    /// Enables the controller and creates `pairs` I/O queue pairs.
    pub(crate) fn up(pairs: u16) -> (Machine, Self) {
        let mut m = Machine::new();
        let mut driver = Self::enable(&mut m);
        for queue in 1..=pairs {
            driver.create_pair(&mut m, queue);
        }
        m.signalled();
        (m, driver)
    }

    pub(crate) fn create_pair(&mut self, m: &mut Machine, queue: u16) {
        let new = Queue::at(queue);
        new.clear(m);
        self.admin_ok(m, create_cq(queue, u32::from(queue) << 16 | 3, new.cq));
        self.admin_ok(m, create_sq(queue, u32::from(queue) << 16 | 1, new.sq));
        self.queues.truncate(queue.into());
        self.queues.push(new);
    }

    /// One admin command, to its end.
    pub(crate) fn admin(&mut self, m: &mut Machine, command: Command) -> Answer {
        self.run(m, 0, command)
    }

    pub(crate) fn admin_ok(&mut self, m: &mut Machine, command: Command) -> u32 {
        let answer = self.admin(m, command);
        assert_eq!(answer.status, Status::SUCCESS, "{command:x?}");
        answer.result
    }

    /// One command of a queue, to its end.
    pub(crate) fn run(&mut self, m: &mut Machine, queue: u16, command: Command) -> Answer {
        let cid = self.submit(m, queue, command);
        self.ring(m, queue);
        m.settle();
        let answers = self.reap(m, queue);
        assert_eq!(answers.len(), 1, "{command:x?}");
        assert_eq!(answers[0].cid, cid);
        answers[0]
    }

    pub(crate) fn io_ok(&mut self, m: &mut Machine, command: Command) {
        assert_eq!(
            self.run(m, 1, command).status,
            Status::SUCCESS,
            "{command:x?}"
        );
    }

    /// Writes a command's entry and PRPs, without telling the controller. Returns its CID.
    pub(crate) fn submit(&mut self, m: &Machine, queue: u16, command: Command) -> u16 {
        let cid = self.next_cid;
        self.next_cid = self.next_cid.wrapping_add(1);
        let prp2 = Self::second_prp(m, cid, command);
        let mut entry = Vec::new();
        entry.extend(u32::from(command.opcode).to_le_bytes());
        entry[2..].copy_from_slice(&cid.to_le_bytes());
        entry.extend(command.nsid.to_le_bytes());
        entry.extend([0; 16]);
        entry.extend(command.data.to_le_bytes());
        entry.extend(prp2.to_le_bytes());
        entry.extend(command.cdw.iter().flat_map(|dword| dword.to_le_bytes()));
        let slot = &mut self.queues[usize::from(queue)];
        m.store(slot.sq + 64 * u64::from(slot.tail), &entry);
        slot.tail = (slot.tail + 1) % ENTRIES;
        cid
    }

    /// The tail doorbell.
    pub(crate) fn ring(&self, m: &mut Machine, queue: u16) {
        let tail = self.queues[usize::from(queue)].tail;
        m.write(0x1000 + 8 * u64::from(queue), tail.into());
    }

    /// Takes all completions there are, and says so.
    pub(crate) fn reap(&mut self, m: &mut Machine, queue: u16) -> Vec<Answer> {
        let answers = self.take(m, queue);
        let head = self.queues[usize::from(queue)].head;
        if !answers.is_empty() {
            m.write(0x1004 + 8 * u64::from(queue), head.into());
            m.settle();
        }
        answers
    }

    /// Takes all completions there are, without saying so.
    pub(crate) fn take(&mut self, m: &Machine, queue: u16) -> Vec<Answer> {
        let slot = &mut self.queues[usize::from(queue)];
        let mut answers = Vec::new();
        loop {
            let bytes = m.load(slot.cq + 16 * u64::from(slot.head), 16);
            if bytes[14] & 1 != slot.phase {
                return answers;
            }
            let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
            assert_eq!(word(10), queue, "of another queue");
            answers.push(Answer {
                cid: word(12),
                result: u32::from_le_bytes(bytes[..4].try_into().unwrap()),
                status: Status(word(14) >> 1 & 0x7ff),
            });
            slot.head = (slot.head + 1) % ENTRIES;
            slot.phase ^= u8::from(slot.head == 0);
        }
    }

    /// A list where there are more than two pages; each command has its own.
    fn second_prp(m: &Machine, cid: u16, command: Command) -> u64 {
        let first = (command.data & !0xfff) + 0x1000;
        let end = command.data + command.len;
        if first + 0x1000 >= end {
            return if first < end { first } else { 0 };
        }
        let list = LISTS + 0x1000 * u64::from(cid % 64);
        for (slot, page) in (0..).zip((first..end).step_by(0x1000)) {
            m.store(list + 8 * slot, &page.to_le_bytes());
        }
        list
    }
}

impl Queue {
    fn at(queue: u16) -> Self {
        let sq = QUEUES + 0x2000 * u64::from(queue);
        Self {
            sq,
            cq: sq + 0x1000,
            tail: 0,
            head: 0,
            phase: 1,
        }
    }

    /// Phase tags of an earlier life would be taken for completions.
    fn clear(&self, m: &Machine) {
        m.store(self.cq, &[0; 16 * ENTRIES as usize]);
    }
}

pub(crate) fn create_cq(queue: u16, cdw11: u32, base: u64) -> Command {
    let cdw10 = u32::from(ENTRIES - 1) << 16 | u32::from(queue);
    Command {
        opcode: 0x05,
        cdw: [cdw10, cdw11, 0, 0, 0, 0],
        data: base,
        ..Command::default()
    }
}

pub(crate) fn create_sq(queue: u16, cdw11: u32, base: u64) -> Command {
    Command {
        opcode: 0x01,
        ..create_cq(queue, cdw11, base)
    }
}

/// A command without data.
pub(crate) fn plain(opcode: u8, cdw10: u32, cdw11: u32) -> Command {
    Command {
        opcode,
        cdw: [cdw10, cdw11, 0, 0, 0, 0],
        ..Command::default()
    }
}

/// A command on `blocks` blocks of namespace 1 from `slba` on.
pub(crate) fn blocks(opcode: u8, slba: u64, blocks: u32, data: u64) -> Command {
    Command {
        opcode,
        nsid: 1,
        cdw: [slba as u32, (slba >> 32) as u32, blocks - 1, 0, 0, 0],
        data,
        len: u64::from(blocks) * 512,
    }
}
