//! Register accesses. They only change the state: the work that follows is done by `poll`.
//!
//! Registers have 32 bits, and two halves may be accessed at once. A shorter read sees its part; a
//! shorter or unaligned write is ignored (3.1).

use crate::spec::logs::Event;
use crate::spec::registers::{ADMIN_ADDRESS_MASK, QUEUES, Register, VS, aqa, cap, cc, csts};
use crate::state::{
    CompletionQueue, ControllerState, Events, Features, Registers, Shutdown, SubmissionQueue,
};

impl ControllerState {
    /// Fills `data`, which is zero, from registers.
    pub(crate) fn read_registers(&self, offset: u64, data: &mut [u8]) {
        let (aligned, within) = (offset & !3, (offset & 3) as usize);
        let len = data.len();
        match len {
            4 | 8 if within == 0 => {
                for (chunk, ahead) in data.chunks_exact_mut(4).zip([0, 4]) {
                    let value = self.read_register(aligned.wrapping_add(ahead));
                    chunk.copy_from_slice(&value.to_le_bytes());
                }
            }
            1 | 2 if within + len <= 4 => {
                let value = self.read_register(aligned).to_le_bytes();
                data.copy_from_slice(&value[within..within + len]);
            }
            _ => {}
        }
    }

    /// Writes registers; says whether there is work now.
    pub(crate) fn write_registers(&mut self, offset: u64, data: &[u8]) -> bool {
        let (words, rest) = data.as_chunks::<4>();
        if !rest.is_empty() || !offset.is_multiple_of(4) {
            return false;
        }
        let mut work = false;
        for (word, ahead) in words.iter().zip([0, 4]) {
            if let Some(register) = Register::at(offset.wrapping_add(ahead)) {
                work |= self.write_register(register, u32::from_le_bytes(*word));
            }
        }
        work
    }

    fn read_register(&self, offset: u64) -> u32 {
        let registers = &self.registers;
        match Register::at(offset) {
            Some(Register::CapLow) => low(cap::VALUE),
            Some(Register::CapHigh) => low(cap::VALUE >> 32),
            Some(Register::Vs) => VS,
            Some(Register::Cc) => registers.cc,
            Some(Register::Csts) => registers.csts(),
            Some(Register::Aqa) => registers.aqa,
            Some(Register::AsqLow) => low(registers.asq),
            Some(Register::AsqHigh) => low(registers.asq >> 32),
            Some(Register::AcqLow) => low(registers.acq),
            Some(Register::AcqHigh) => low(registers.acq >> 32),
            // With MSI-X there is no interrupt mask to be read, and doorbells are for writing.
            Some(
                Register::Intms
                | Register::Intmc
                | Register::SubmissionTail(_)
                | Register::CompletionHead(_),
            )
            | None => 0,
        }
    }

    fn write_register(&mut self, register: Register, value: u32) -> bool {
        let registers = &mut self.registers;
        // Where the admin queues lie is taken when the controller is enabled (3.1.9).
        match register {
            Register::Cc => return self.configure(value & cc::MASK),
            Register::Aqa => registers.aqa = value & aqa::MASK,
            Register::AsqLow => registers.asq = with_low(registers.asq, value),
            Register::AsqHigh => registers.asq = with_high(registers.asq, value),
            Register::AcqLow => registers.acq = with_low(registers.acq, value),
            Register::AcqHigh => registers.acq = with_high(registers.acq, value),
            Register::SubmissionTail(queue) => return self.ring_submission(queue, value),
            Register::CompletionHead(queue) => return self.ring_completion(queue, value),
            Register::CapLow
            | Register::CapHigh
            | Register::Vs
            | Register::Intms
            | Register::Intmc
            | Register::Csts => {}
        }
        false
    }

    fn configure(&mut self, value: u32) -> bool {
        let old = std::mem::replace(&mut self.registers.cc, value);
        let (was, is) = (old & cc::EN != 0, value & cc::EN != 0);
        if was && !is {
            self.controller_reset();
        } else if is && !was {
            self.enable();
        }
        if is || !was {
            let (asked, asks) = (old & cc::SHN != 0, value & cc::SHN != 0);
            if asks && !asked {
                self.registers.shutdown = Shutdown::Occurring;
                return true;
            }
            if asked && !asks {
                self.registers.shutdown = Shutdown::None;
            }
        }
        false
    }

    /// CC.EN was set (7.6.1).
    fn enable(&mut self) {
        let registers = &mut self.registers;
        let submission = (registers.aqa & aqa::ASQS) as u16 + 1;
        let completion = (registers.aqa >> aqa::ACQS_SHIFT & aqa::ASQS) as u16 + 1;
        let unsupported = registers.cc & (cc::CSS | cc::MPS | cc::AMS) != 0;
        if unsupported || submission < 2 || completion < 2 {
            registers.fatal = true;
            return;
        }
        registers.ready = true;
        self.submission[0] = Some(SubmissionQueue::new(registers.asq, submission, 0));
        self.completion[0] = Some(CompletionQueue::new(registers.acq, completion, Some(0)));
    }

    /// CC.EN was cleared (7.3.2): commands are forgotten, those under way too. Whoever began their
    /// operations disowns these. The admin queues' registers stay.
    fn controller_reset(&mut self) {
        let Registers {
            cc, aqa, asq, acq, ..
        } = self.registers;
        self.registers = Registers {
            cc,
            aqa,
            asq,
            acq,
            ..Registers::default()
        };
        self.submission = [None; QUEUES];
        self.completion = [None; QUEUES];
        self.features = Features::default();
        self.events = Events::default();
        self.commands.fill(None);
    }

    /// Returns to what it is after power-on, but for what outlasts that.
    pub(crate) fn power_on(&mut self) {
        self.registers = Registers::default();
        self.controller_reset();
    }

    fn ring_submission(&mut self, queue: u16, value: u32) -> bool {
        if !self.registers.ready {
            return false;
        }
        let slot = self.submission.get_mut(usize::from(queue));
        let rung = slot.and_then(Option::as_mut).map(|queue| queue.ring(value));
        self.check_doorbell(rung.map(|r| r.is_ok()))
    }

    fn ring_completion(&mut self, queue: u16, value: u32) -> bool {
        if !self.registers.ready {
            return false;
        }
        let slot = self.completion.get_mut(usize::from(queue));
        let rung = slot.and_then(Option::as_mut).map(|queue| queue.ring(value));
        // What had no room before may have now.
        self.check_doorbell(rung.map(|r| r.is_ok()))
    }

    /// A doorbell that is none, or a value that it cannot have, is an event (5.2.1, figure 146).
    fn check_doorbell(&mut self, rung: Option<bool>) -> bool {
        let event = match rung {
            Some(true) => return true,
            Some(false) => Event::InvalidDoorbellValue,
            None => Event::InvalidDoorbellRegister,
        };
        self.doorbell_error();
        self.raise(event);
        true
    }
}

impl Registers {
    fn csts(&self) -> u32 {
        let flag = |is: bool, bit| if is { bit } else { 0 };
        let shutdown = match self.shutdown {
            Shutdown::None => 0,
            Shutdown::Occurring => csts::SHST_OCCURRING,
            Shutdown::Complete => csts::SHST_COMPLETE,
        };
        flag(self.ready, csts::RDY) | flag(self.fatal, csts::CFS) | shutdown
    }
}

fn low(value: u64) -> u32 {
    u32::try_from(value & u64::from(u32::MAX)).expect("the high half is masked")
}

fn with_low(register: u64, value: u32) -> u64 {
    (register & !u64::from(u32::MAX) | u64::from(value)) & ADMIN_ADDRESS_MASK
}

fn with_high(register: u64, value: u32) -> u64 {
    register & u64::from(u32::MAX) | u64::from(value) << 32
}
