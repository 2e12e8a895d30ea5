//! Register accesses: which part of the function each register reads and writes.
//!
//! Registers have 32 bits. A longer access is one of each in order; a shorter read sees its part; a
//! shorter or unaligned write is ignored: registers are to be written whole (datasheet chapter 8).

use device::Access;

use crate::ring::{high, low, set_high, set_low};
use crate::spec::registers::{Register, RxRegister, TxRegister, txdctl, vfctrl, vflinks};
use crate::state::{InterruptState, VfState};
use crate::vf::Vf;

impl Vf {
    /// Fills `data`, which is zero, from registers.
    pub(crate) fn read_registers(&mut self, offset: u64, data: &mut [u8]) {
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

    /// Writes registers and does the work that a write starts.
    pub(crate) fn write_registers(&mut self, offset: u64, data: &[u8], access: &Access<'_>) {
        let (words, rest) = data.as_chunks::<4>();
        if !rest.is_empty() {
            return;
        }
        for (word, ahead) in words.iter().zip([0, 4]) {
            if let Some(register) = Register::at(offset.wrapping_add(ahead)) {
                self.write_register(register, u32::from_le_bytes(*word), access);
            }
        }
    }

    fn read_register(&mut self, offset: u64) -> u32 {
        let Some(register) = Register::at(offset) else {
            return 0;
        };
        if register == Register::Vflinks {
            self.refresh_link();
        }
        let state = &mut self.state;
        match register {
            Register::Vflinks if state.link_up => vflinks::UP | vflinks::SPEED_10G,
            Register::Vfctrl | Register::Vfstatus | Register::Vflinks => 0,
            Register::Vfmbmem(word) => state.mailbox.memory[word],
            Register::Vfmailbox => state.mailbox.read_control(),
            Register::Vfpsrtype => state.psrtype,
            Register::Rx(queue, register) => state.read_rx(queue, register),
            Register::Tx(queue, register) => state.read_tx(queue, register),
            Register::Statistic(statistic) => state.statistics.read(statistic),
            interrupt => state.interrupts.read(interrupt),
        }
    }

    fn write_register(&mut self, register: Register, value: u32, access: &Access<'_>) {
        let state = &mut self.state;
        match register {
            Register::Vfctrl if value & vfctrl::RST != 0 => self.function_reset(),
            Register::Vfctrl | Register::Vfstatus | Register::Vflinks | Register::Statistic(_) => {}
            Register::Vfmbmem(word) => state.mailbox.memory[word] = value,
            Register::Vfmailbox => state.write_mailbox_control(value),
            Register::Vfpsrtype => state.psrtype = value,
            Register::Rx(queue, register) => {
                state.write_rx(queue, register, value);
                let waited = register == RxRegister::Rdt && self.rx_stalled;
                if waited || register == RxRegister::Rxdctl {
                    self.work_left |= self.receive(access);
                }
            }
            Register::Tx(queue, register) => {
                state.write_tx(queue, register, value);
                if register == TxRegister::Tdt {
                    self.work_left |= self.transmit(queue, access);
                }
            }
            interrupt => {
                let vectors = &mut self.counters.vectors;
                let throttle = &mut self.throttle;
                state.interrupts.write(interrupt, value, throttle, vectors);
                // A shorter interval may bring the next message forward.
                self.work_left |=
                    matches!(register, Register::Vteitr(_)) && state.interrupts.due() != 0;
            }
        }
    }

    /// VFCTRL.RST: the driver resets its function. Statistics go on, what the driver set up through
    /// the mailbox stays until it resets that too.
    fn function_reset(&mut self) {
        self.state.function_reset();
        self.throttle.reset();
        self.rx_stalled = false;
    }
}

impl VfState {
    fn function_reset(&mut self) {
        self.interrupts = InterruptState::default();
        self.psrtype = 0;
        self.rx = Default::default();
        self.tx = Default::default();
        self.mailbox.function_reset();
    }

    fn read_rx(&self, queue: usize, register: RxRegister) -> u32 {
        let queue = &self.rx[queue];
        match register {
            RxRegister::Rdbal => queue.ring.base_low(),
            RxRegister::Rdbah => queue.ring.base_high(),
            RxRegister::Rdlen => queue.ring.len,
            RxRegister::DcaRxctrl => queue.ring.dca,
            RxRegister::Rdh => queue.ring.head.into(),
            RxRegister::Srrctl => queue.srrctl,
            RxRegister::Rdt => queue.ring.tail.into(),
            RxRegister::Rxdctl => queue.ring.control,
        }
    }

    fn write_rx(&mut self, queue: usize, register: RxRegister, value: u32) {
        let queue = &mut self.rx[queue];
        match register {
            RxRegister::Rdbal => queue.ring.set_base_low(value),
            RxRegister::Rdbah => queue.ring.set_base_high(value),
            RxRegister::Rdlen => queue.ring.set_len(value),
            RxRegister::DcaRxctrl => queue.ring.dca = value,
            RxRegister::Rdh => queue.ring.set_head(value),
            RxRegister::Srrctl => queue.srrctl = value,
            RxRegister::Rdt => queue.ring.set_tail(value),
            RxRegister::Rxdctl => queue.ring.control = value,
        }
    }

    fn read_tx(&self, queue: usize, register: TxRegister) -> u32 {
        let queue = &self.tx[queue];
        match register {
            TxRegister::Tdbal => queue.ring.base_low(),
            TxRegister::Tdbah => queue.ring.base_high(),
            TxRegister::Tdlen => queue.ring.len,
            TxRegister::DcaTxctrl => queue.ring.dca,
            TxRegister::Tdh => queue.ring.head.into(),
            TxRegister::Tdt => queue.ring.tail.into(),
            TxRegister::Txdctl => queue.ring.control,
            TxRegister::Tdwbal => low(queue.head_write_back),
            TxRegister::Tdwbah => high(queue.head_write_back),
        }
    }

    fn write_tx(&mut self, queue: usize, register: TxRegister, value: u32) {
        let queue = &mut self.tx[queue];
        match register {
            TxRegister::Tdbal => queue.ring.set_base_low(value),
            TxRegister::Tdbah => queue.ring.set_base_high(value),
            TxRegister::Tdlen => queue.ring.set_len(value),
            TxRegister::DcaTxctrl => queue.ring.dca = value,
            TxRegister::Tdh => queue.ring.set_head(value),
            TxRegister::Tdt => queue.ring.set_tail(value),
            TxRegister::Txdctl => {
                if (queue.ring.control ^ value) & txdctl::ENABLE != 0 {
                    queue.segments_sent = 0;
                    queue.discarding = false;
                }
                queue.ring.control = value & !txdctl::SWFLSH;
            }
            TxRegister::Tdwbal => {
                queue.head_write_back = set_low(queue.head_write_back, value);
            }
            TxRegister::Tdwbah => {
                queue.head_write_back = set_high(queue.head_write_back, value);
            }
        }
    }
}
