//! The driver: mailbox, rings and interrupts as Linux's `ixgbevf` handles them.

use device::GuestMemory;

use crate::machine::{MAC, MEMORY_BASE, Machine};

/// Descriptors of each ring.
pub(crate) const ENTRIES: u16 = 64;
const RING_LEN: u64 = ENTRIES as u64 * 16;
const RX_RINGS: u64 = MEMORY_BASE + 0x1000;
const TX_RINGS: u64 = MEMORY_BASE + 0x8000;
const RX_BUFFERS: u64 = MEMORY_BASE + 0x10_0000;
const TX_BUFFERS: u64 = MEMORY_BASE + 0x40_0000;
const BUFFER: u64 = 0x4000;

pub(crate) const CTS: u32 = 1 << 29;
pub(crate) const SUCCESS: u32 = 1 << 31;
pub(crate) const FAILURE: u32 = 1 << 30;

/// How the interface is brought up.
#[derive(Clone, Copy)]
pub(crate) struct Options {
    pub(crate) max_frame: u32,
    /// SRRCTL's buffer size in KiB.
    pub(crate) buffer_kib: u32,
    pub(crate) strip_vlan: bool,
    pub(crate) queues: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_frame: 1518,
            buffer_kib: 2,
            strip_vlan: true,
            queues: 2,
        }
    }
}

/// A received frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Received {
    pub(crate) bytes: Vec<u8>,
    pub(crate) descriptors: usize,
    pub(crate) status: u32,
    pub(crate) packet_info: u32,
    pub(crate) vlan: u16,
}

/// A frame to send and what to do with it.
#[derive(Default, Clone)]
pub(crate) struct Order<'a> {
    pub(crate) parts: Vec<&'a [u8]>,
    /// Words 0, 2 (flags only) and 3 of a context descriptor to write first.
    pub(crate) context: Option<[u32; 3]>,
    /// VLE, TSE.
    pub(crate) command: u32,
    /// IXSM, TXSM.
    pub(crate) options: u32,
}

/// The driver's own memory of one function.
#[derive(Clone, Default)]
pub(crate) struct Driver {
    pub(crate) queues: usize,
    rx_next: [u16; 2],
    tx_next: [u16; 2],
    tx_clean: [u16; 2],
}

impl Driver {
    /// A machine with an interface that is up.
    pub(crate) fn up(options: Options) -> (Machine, Self) {
        let mut machine = Machine::new();
        let mut driver = Self::probe(&mut machine);
        driver.open(&mut machine, options);
        machine.signalled();
        (machine, driver)
    }

    pub(crate) fn probe(m: &mut Machine) -> Self {
        Self::reset(m);
        let queues = Self::message(m, &[0x09, 0, 0, 0, 0]);
        assert_eq!(queues, [SUCCESS | CTS | 9, 2, 2, 0, 0]);
        Self {
            queues: 2,
            ..Self::default()
        }
    }

    /// `ixgbevf_reset`: quiet the hardware, reset it, and introduce oneself.
    pub(crate) fn reset(m: &mut Machine) -> [u8; 6] {
        assert_ne!(m.read(0x0008), u32::MAX);
        m.write(0x010c, 7);
        m.read(0x0100);
        m.write(0x0000, 1 << 26);
        assert_ne!(m.read(0x0008), u32::MAX);
        assert_eq!(m.read(0x02fc), 0x80, "the PF has seen the reset");
        assert_eq!(m.read(0x02fc), 0);
        let reply = Self::message(m, &[0x01, 0, 0, 0]);
        assert_eq!(reply[0], SUCCESS | 1);
        let api = Self::message(m, &[0x08, 8, 0]);
        assert_eq!(api[0], SUCCESS | CTS | 8);
        let features = Self::message(m, &[0x12, 3]);
        assert_eq!(features, [SUCCESS | CTS | 0x12, 0]);
        let mut mac = [0; 6];
        mac[..4].copy_from_slice(&reply[1].to_le_bytes());
        mac[4..].copy_from_slice(&reply[2].to_le_bytes()[..2]);
        mac
    }

    /// One exchange through the mailbox; the answer is as long as the request.
    pub(crate) fn message(m: &mut Machine, words: &[u32]) -> Vec<u32> {
        m.write(0x02fc, 0x34);
        assert_eq!(m.read(0x02fc) & 4, 4, "the VF owns the mailbox");
        for (word, offset) in words.iter().zip((0x0200..).step_by(4)) {
            m.write(offset, *word);
        }
        m.write(0x02fc, 1);
        assert_eq!(m.read(0x02fc), 0x30, "answered and acknowledged");
        m.write(0x02fc, 0x34);
        let offsets = (0x0200..).step_by(4);
        let reply = offsets.take(words.len()).map(|o| m.read(o)).collect();
        m.write(0x02fc, 2);
        reply
    }

    /// A request that has to be granted.
    pub(crate) fn granted(m: &mut Machine, words: &[u32]) {
        let reply = Self::message(m, words);
        assert_eq!(
            reply[0],
            words[0] | SUCCESS | CTS,
            "request {:#x}",
            words[0]
        );
    }

    pub(crate) fn set_xcast(m: &mut Machine, mode: u32) {
        Self::granted(m, &[0x0c, mode]);
    }

    pub(crate) fn open(&mut self, m: &mut Machine, options: Options) {
        *self = Self {
            queues: options.queues,
            ..Self::default()
        };
        Self::set_xcast(m, 1);
        for queue in 0..options.queues {
            Self::open_tx(m, queue);
        }
        let several = u32::from(options.queues > 1);
        m.write(0x0300, several << 29 | 0x1330);
        Self::granted(m, &[0x05, options.max_frame]);
        for queue in 0..options.queues {
            Self::open_rx(m, queue, options);
        }
        m.write(0x0120, 0x8181_8080);
        m.write(0x0140, 0x82);
        let mut mac = [0; 8];
        mac[..6].copy_from_slice(&MAC);
        let mac = u64::from_le_bytes(mac);
        Self::granted(m, &[0x02, mac as u32, (mac >> 32) as u32]);
        m.read(0x0100);
        m.write(0x0114, 7);
        m.write(0x0110, 7);
        m.write(0x0108, 7);
    }

    fn open_tx(m: &mut Machine, queue: usize) {
        let base = 0x2000 + 0x40 * queue as u64;
        m.write(base + 0x28, 0x0400_0000);
        m.write(base, Self::low(TX_RINGS + RING_LEN * queue as u64));
        m.write(base + 0x04, 0);
        m.write(base + 0x08, RING_LEN as u32);
        m.write(base + 0x3c, 0);
        m.write(base + 0x38, 0);
        m.write(base + 0x0c, 0x2200);
        m.write(base + 0x10, 0);
        m.write(base + 0x18, 0);
        m.write(base + 0x28, 0x0208_0120);
        assert_eq!(m.read(base + 0x28), 0x0208_0120);
    }

    fn open_rx(m: &mut Machine, queue: usize, options: Options) {
        let base = 0x1000 + 0x40 * queue as u64;
        m.write(base + 0x28, 0);
        assert_eq!(m.read(base + 0x28) >> 25 & 1, 0);
        m.write(base, Self::low(RX_RINGS + RING_LEN * queue as u64));
        m.write(base + 0x04, 0);
        m.write(base + 0x08, RING_LEN as u32);
        m.write(base + 0x0c, 0x200);
        m.write(base + 0x10, 0);
        m.write(base + 0x18, 0);
        m.write(base + 0x14, 0x1200_0400 | options.buffer_kib);
        let strip = u32::from(options.strip_vlan) << 30;
        m.write(base + 0x28, 1 << 25 | strip);
        assert_eq!(m.read(base + 0x28), 1 << 25 | strip);
        for index in 0..ENTRIES {
            Self::post(m, queue, index);
        }
        m.write(base + 0x18, u32::from(ENTRIES) - 1);
    }

    /// `ixgbevf_down`: stop the queues, then reset through registers and mailbox.
    pub(crate) fn close(&self, m: &mut Machine) {
        for queue in 0..self.queues as u64 {
            let rxdctl = 0x1028 + 0x40 * queue;
            let value = m.read(rxdctl) & !(1 << 25);
            m.write(rxdctl, value);
            assert_eq!(m.read(rxdctl), value);
        }
        m.write(0x0114, 0);
        m.write(0x010c, u32::MAX);
        m.write(0x0110, 0);
        for queue in 0..self.queues as u64 {
            m.write(0x2028 + 0x40 * queue, 0x0400_0000);
        }
        Self::reset(m);
    }

    pub(crate) fn rx_descriptor(queue: usize, index: u16) -> u64 {
        RX_RINGS + RING_LEN * queue as u64 + u64::from(index) * 16
    }

    pub(crate) fn tx_descriptor(queue: usize, index: u16) -> u64 {
        TX_RINGS + RING_LEN * queue as u64 + u64::from(index) * 16
    }

    fn rx_buffer(queue: usize, index: u16) -> u64 {
        RX_BUFFERS + (queue as u64 * u64::from(ENTRIES) + u64::from(index)) * BUFFER
    }

    fn post(m: &Machine, queue: usize, index: u16) {
        let mut descriptor = [0; 16];
        descriptor[..8].copy_from_slice(&Self::rx_buffer(queue, index).to_le_bytes());
        m.memory
            .write(Self::rx_descriptor(queue, index), &descriptor)
            .unwrap();
    }

    /// Takes the next frame of a queue, without giving buffers back.
    pub(crate) fn take(&mut self, m: &Machine, queue: usize) -> Option<Received> {
        let mut received = Received {
            bytes: Vec::new(),
            descriptors: 0,
            status: 0,
            packet_info: 0,
            vlan: 0,
        };
        let mut next = self.rx_next[queue];
        loop {
            let mut bytes = [0; 16];
            m.memory
                .read(Self::rx_descriptor(queue, next), &mut bytes)
                .unwrap();
            let len = usize::from(u16::from_le_bytes([bytes[12], bytes[13]]));
            if len == 0 {
                assert_eq!(
                    received.descriptors, 0,
                    "a frame is there as a whole or not at all"
                );
                return None;
            }
            received.status = u32::from_le_bytes(bytes[8..12].try_into().unwrap());
            received.packet_info = u32::from_le_bytes(bytes[..4].try_into().unwrap());
            received.vlan = u16::from_le_bytes([bytes[14], bytes[15]]);
            assert_eq!(received.status & 1, 1, "done");
            let mut part = vec![0; len];
            m.memory
                .read(Self::rx_buffer(queue, next), &mut part)
                .unwrap();
            received.bytes.extend(part);
            received.descriptors += 1;
            next = (next + 1) % ENTRIES;
            if received.status & 2 != 0 {
                break;
            }
        }
        self.rx_next[queue] = next;
        Some(received)
    }

    /// Takes the next frame of a queue and gives its buffers back.
    pub(crate) fn receive(&mut self, m: &mut Machine, queue: usize) -> Option<Received> {
        let first = self.rx_next[queue];
        let received = self.take(m, queue)?;
        Self::refill(m, queue, first, received.descriptors);
        Some(received)
    }

    /// The receive tail that goes with all buffers given back.
    pub(crate) fn tail(&self, queue: usize) -> u16 {
        (self.rx_next[queue] + ENTRIES - 1) % ENTRIES
    }

    /// The transmit tail that goes with all that was queued.
    pub(crate) fn tx_tail(&self, queue: usize) -> u16 {
        self.tx_next[queue]
    }

    /// Posts `count` buffers again, from descriptor `first` on.
    pub(crate) fn refill(m: &mut Machine, queue: usize, first: u16, count: usize) {
        let count = u16::try_from(count).unwrap();
        for ahead in 0..count {
            Self::post(m, queue, (first + ahead) % ENTRIES);
        }
        let tail = (first + count + ENTRIES - 1) % ENTRIES;
        m.write(0x1018 + 0x40 * queue as u64, tail.into());
    }

    /// Writes an order's descriptors, without telling the function.
    pub(crate) fn queue(&mut self, m: &Machine, queue: usize, order: &Order<'_>) {
        if let Some([lens, flags, sizes]) = order.context {
            self.put(m, queue, [lens, 0, flags | 0x2020_0000, sizes]);
        }
        let total: usize = order.parts.iter().map(|p| p.len()).sum();
        for (i, part) in order.parts.iter().enumerate() {
            let index = self.tx_next[queue];
            let slot = queue as u64 * u64::from(ENTRIES) + u64::from(index);
            let address = TX_BUFFERS + slot * BUFFER;
            m.memory.write(address, part).unwrap();
            let last = i + 1 == order.parts.len();
            let end = if last { 0x0900_0000 } else { 0 };
            let command = 0x2230_0000 | end | order.command | part.len() as u32;
            let info = (total as u32) << 14 | order.options | 0x80;
            self.put(m, queue, [Self::low(address), 0, command, info]);
        }
    }

    pub(crate) fn put(&mut self, m: &Machine, queue: usize, words: [u32; 4]) {
        let index = self.tx_next[queue];
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        m.memory
            .write(Self::tx_descriptor(queue, index), &bytes)
            .unwrap();
        self.tx_next[queue] = (index + 1) % ENTRIES;
    }

    pub(crate) fn kick(&self, m: &mut Machine, queue: usize) {
        m.write(0x2018 + 0x40 * queue as u64, self.tx_next[queue].into());
    }

    pub(crate) fn send(&mut self, m: &mut Machine, queue: usize, order: &Order<'_>) {
        self.queue(m, queue, order);
        self.kick(m, queue);
    }

    /// Sends a frame that is complete, as the driver does: behind an empty context.
    pub(crate) fn send_plain(&mut self, m: &mut Machine, queue: usize, frame: &[u8]) {
        let order = Order {
            parts: vec![frame],
            context: Some([14 << 9, 0, 0]),
            ..Order::default()
        };
        self.send(m, queue, &order);
    }

    /// Frames that the function reports as sent since the last time this was asked.
    pub(crate) fn sent(&mut self, m: &Machine, queue: usize) -> usize {
        let mut frames = 0;
        let mut index = self.tx_clean[queue];
        while index != self.tx_next[queue] {
            let mut bytes = [0; 16];
            m.memory
                .read(Self::tx_descriptor(queue, index), &mut bytes)
                .unwrap();
            let command = u32::from_le_bytes(bytes[8..12].try_into().unwrap());
            let status = u32::from_le_bytes(bytes[12..].try_into().unwrap());
            index = (index + 1) % ENTRIES;
            let is_data = command & 0x00f0_0000 == 0x0030_0000;
            if is_data && command & 0x0100_0000 != 0 {
                if status != 1 {
                    break;
                }
                frames += 1;
                self.tx_clean[queue] = index;
            }
        }
        frames
    }

    fn low(address: u64) -> u32 {
        u32::try_from(address).unwrap()
    }
}
