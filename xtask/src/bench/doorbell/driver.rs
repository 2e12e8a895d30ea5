//! The guest's side: a driver with one I/O queue pair, which reads.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nvme::spec::commands::{COMPLETION_LEN, SUBMISSION_LEN, admin, io};
use nvme::spec::registers::{DOORBELL_STRIDE, DOORBELLS, cc, csts};
use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

use super::client::Client;
use super::mapped::Page;

/// Commands under way when there are many.
const DEPTH: u16 = 32;
/// Bytes that a command reads.
pub(super) const READ_LEN: u32 = 4096;
/// Bytes of the disk that is read.
pub(super) const DISK_LEN: u32 = 16 << 20;

/// Entries of each queue: a page of commands.
const ENTRIES: u16 = 64;
/// The guest's memory: the queues, a page each, and a page of data for each entry.
const RAM: usize = 1 << 20;
const DATA: u32 = 16 * READ_LEN;

const REGISTERS: u32 = 0;
const CONFIG: u32 = 7;
/// How long a command may take that takes microseconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// Looks between two looks at the clock.
const LOOKS: u32 = 1 << 16;

pub(super) struct Driver {
    client: Client,
    /// Where the doorbells are, if they are not registers.
    page: Option<Page>,
    ram: MmapRegion,
    admin: Queue,
    io: Queue,
    /// The block that is read next.
    block: u32,
}

/// A queue pair.
#[derive(Clone, Copy)]
struct Queue {
    number: u16,
    tail: u16,
    head: u16,
    phase: u16,
}

impl Driver {
    /// Brings the device up as Linux does.
    pub(super) fn start(socket: &Path, page: Option<Page>) -> Result<Self> {
        let ram = File::from(memfd_create("ram", MemfdFlags::CLOEXEC)?);
        ram.set_len(RAM as u64)?;
        let mut client = Client::connect(socket)?;
        client.map(ram.as_fd(), RAM as u64)?;
        // Memory decoding and bus mastering.
        client.write(CONFIG, 4, &6_u16.to_le_bytes())?;
        let mut this = Self {
            client,
            page,
            ram: MmapRegion::from_file(FileOffset::new(ram, 0), RAM)?,
            admin: Queue::new(0),
            io: Queue::new(1),
            block: 0,
        };
        this.enable()?;
        let size = u32::from(ENTRIES - 1) << 16 | u32::from(this.io.number);
        let contiguous = 1;
        let create = |opcode, base, cdw11| {
            let mut entry = [0; 16];
            (entry[0], entry[6], entry[10], entry[11]) = (u32::from(opcode), base, size, cdw11);
            entry
        };
        // No interrupts: the driver looks for what is done.
        let (sq, cq) = (this.io.submissions(), this.io.completions());
        this.run_admin(create(admin::CREATE_CQ, cq, contiguous))?;
        let of_completion_queue = u32::from(this.io.number) << 16;
        this.run_admin(create(
            admin::CREATE_SQ,
            sq,
            of_completion_queue | contiguous,
        ))?;
        Ok(this)
    }

    /// Microseconds of one command after another, each from its entry to the word that its
    /// completion has been taken.
    pub(super) fn one_by_one(&mut self, window: Duration) -> Result<Vec<f64>> {
        let mut times = Vec::new();
        let end = Instant::now() + window;
        loop {
            let begun = Instant::now();
            if begun >= end {
                return Ok(times);
            }
            self.submit_reads(1)?;
            self.take_some()?;
            times.push(begun.elapsed().as_secs_f64() * 1e6);
        }
    }

    /// Commands per second, where each that is done is followed by another.
    pub(super) fn many(&mut self, window: Duration) -> Result<f64> {
        let mut done = 0;
        let begun = Instant::now();
        self.submit_reads(DEPTH)?;
        while begun.elapsed() < window {
            let count = self.take_some()?;
            done += u32::from(count);
            self.submit_reads(count)?;
        }
        let rate = f64::from(done) / begun.elapsed().as_secs_f64();
        let mut rest = DEPTH;
        while rest > 0 {
            rest -= self.take_some()?;
        }
        Ok(rate)
    }

    fn enable(&mut self) -> Result<()> {
        let size = u32::from(ENTRIES - 1);
        let both = size << 16 | size;
        self.client.write(REGISTERS, 0x24, &both.to_le_bytes())?;
        for (register, base) in [
            (0x28, self.admin.submissions()),
            (0x30, self.admin.completions()),
        ] {
            let base = u64::from(base).to_le_bytes();
            self.client.write(REGISTERS, register, &base)?;
        }
        let on = cc::IOSQES_64 | cc::IOCQES_16 | cc::EN;
        self.client.write(REGISTERS, 0x14, &on.to_le_bytes())?;
        let deadline = Instant::now() + PATIENCE;
        while self.client.read(REGISTERS, 0x1c)? & csts::RDY == 0 {
            ensure!(Instant::now() < deadline, "it does not become ready");
        }
        Ok(())
    }

    fn run_admin(&mut self, entry: [u32; 16]) -> Result<()> {
        self.admin.put(&self.ram, entry)?;
        self.ring(self.admin.number * 2, self.admin.tail)?;
        self.admin.take(&self.ram)?;
        self.ring(self.admin.number * 2 + 1, self.admin.head)
    }

    fn submit_reads(&mut self, count: u16) -> Result<()> {
        for _ in 0..count {
            let mut entry = [0; 16];
            entry[0] = u32::from(io::READ);
            entry[1] = 1;
            entry[6] = DATA + u32::from(self.io.tail) * READ_LEN;
            entry[10] = self.block;
            entry[12] = READ_LEN / 512 - 1;
            self.block = (self.block + READ_LEN / 512) % (DISK_LEN / 512);
            self.io.put(&self.ram, entry)?;
        }
        self.ring(self.io.number * 2, self.io.tail)
    }

    /// Waits for a completion, and takes all there are.
    fn take_some(&mut self) -> Result<u16> {
        let count = self.io.take(&self.ram)?;
        self.ring(self.io.number * 2 + 1, self.io.head)?;
        Ok(count)
    }

    fn ring(&mut self, doorbell: u16, value: u16) -> Result<()> {
        let value = u32::from(value);
        if let Some(page) = &self.page {
            return page.ring(doorbell.into(), value);
        }
        let offset = DOORBELLS + u64::from(doorbell) * DOORBELL_STRIDE;
        self.client.write(REGISTERS, offset, &value.to_le_bytes())
    }
}

impl Queue {
    fn new(number: u16) -> Self {
        Self {
            number,
            tail: 0,
            head: 0,
            phase: 1,
        }
    }

    fn submissions(self) -> u32 {
        u32::from(self.number) * 2 * READ_LEN
    }

    fn completions(self) -> u32 {
        self.submissions() + READ_LEN
    }

    fn put(&mut self, ram: &MmapRegion, mut entry: [u32; 16]) -> Result<()> {
        entry[0] |= u32::from(self.tail) << 16;
        let at = self.submissions() as usize + usize::from(self.tail) * SUBMISSION_LEN;
        let mut bytes = [0; SUBMISSION_LEN];
        for (bytes, word) in bytes.as_chunks_mut().0.iter_mut().zip(entry) {
            *bytes = word.to_le_bytes();
        }
        ram.as_volatile_slice().write_slice(&bytes, at)?;
        self.tail = (self.tail + 1) % ENTRIES;
        Ok(())
    }

    fn take(&mut self, ram: &MmapRegion) -> Result<u16> {
        let deadline = Instant::now() + PATIENCE;
        let mut taken = 0;
        for look in 1_u32.. {
            while self.take_one(ram)? {
                taken += 1;
            }
            if taken > 0 {
                break;
            }
            std::hint::spin_loop();
            ensure!(
                !look.is_multiple_of(LOOKS) || Instant::now() < deadline,
                "a command does not end"
            );
        }
        Ok(taken)
    }

    fn take_one(&mut self, ram: &MmapRegion) -> Result<bool> {
        let at = self.completions() as usize + usize::from(self.head) * COMPLETION_LEN;
        let field: u16 = ram.as_volatile_slice().load(at + 14, Ordering::Acquire)?;
        if field & 1 != self.phase {
            return Ok(false);
        }
        ensure!(field >> 1 == 0, "a command failed: {:#x}", field >> 1);
        self.head = (self.head + 1) % ENTRIES;
        self.phase ^= u16::from(self.head == 0);
        Ok(true)
    }
}
