//! From the link into the guest's buffers (datasheet section 7.1).
//!
//! A frame is copied once: from the slice that the link shows to the guest's buffers. It stays in
//! the link until its descriptors are written back, so a call leaves it either there or complete
//! in the guest, never in between.

use device::{Ahead, DmaError, FrameLink, GuestMemory, Ledger, RxFrame, Writes};

use crate::budget::Budget;
use crate::live;
use crate::packet::{ETHERNET_LEN, Packet, Protocol, VLAN_LEN, VLAN_OFFSET, Verdict, vlan_tag};
use crate::spec::descriptors::{RxWriteBack, rx_buffer, rx_packet_type, rx_status};
use crate::spec::registers::{QUEUES, rxdctl, srrctl, vfpsrtype};
use crate::state::{RxQueue, VfState};
use crate::stats::Counters;

/// Shortest frame without FCS; shorter ones are padded.
const MIN_FRAME: usize = 60;
/// Descriptors of one frame: 9728 bytes in buffers of 1 KiB.
const MAX_DESCRIPTORS: usize = 10;

/// What a run has left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Received {
    /// The link has no more frames.
    All,
    /// The budget is used up.
    More,
    /// The link's next frame waits for descriptors.
    Stalled,
}

/// Frames on their way in.
pub(crate) struct Receive<'a> {
    pub(crate) state: &'a mut VfState,
    pub(crate) counters: &'a mut Counters,
    pub(crate) memory: &'a dyn GuestMemory,
    pub(crate) ledger: Option<&'a dyn Ledger>,
    pub(crate) ahead: &'a mut Ahead,
}

impl Receive<'_> {
    /// Takes frames from the link as far as the budget goes, and sets the causes of the queues
    /// that got some.
    pub(crate) fn run(&mut self, link: &mut dyn FrameLink, budget: &mut Budget) -> Received {
        let mut filled = [false; QUEUES];
        let result = loop {
            if budget.is_used_up() {
                break Received::More;
            }
            let Some(frame) = link.peek() else {
                break Received::All;
            };
            budget.spend(1, frame.bytes.len());
            match self.take(&frame) {
                Fate::Delivered(queue) => filled[queue] = true,
                Fate::Dropped(count) => *count += 1,
                Fate::Waits => break Received::Stalled,
            }
            link.consume();
        };
        for queue in (0..QUEUES).filter(|queue| filled[*queue]) {
            self.state.interrupts.rx_cause(queue);
        }
        result
    }

    fn take(&mut self, frame: &RxFrame<'_>) -> Fate<'_> {
        let drops = &mut self.counters.dropped;
        let running = running_queues(self.state);
        if running == 0 {
            return Fate::Dropped(&mut drops.rx_no_queue);
        }
        if frame.bytes.len() < ETHERNET_LEN {
            return Fate::Dropped(&mut drops.rx_runt);
        }
        if is_oversize(frame.bytes, self.state.filter.max_frame) {
            return Fate::Dropped(&mut drops.rx_oversize);
        }
        if !self.state.filter.accepts(self.state.admin.mac, frame.bytes) {
            return Fate::Dropped(&mut drops.rx_filtered);
        }
        let packet = Packet::parse(frame.bytes);
        let number = choose_queue(running, self.state.psrtype, &packet);
        let queue = &mut self.state.rx[number];
        let layout = Layout::new(frame, &packet, queue.ring.control & rxdctl::VME != 0);
        let Some(needed) = queue.descriptors_for(layout.len()) else {
            return Fate::Dropped(&mut drops.rx_never_fits);
        };
        if queue.ring.owned() < needed {
            return Fate::Waits;
        }
        let (before, statistics) = (queue.ring, self.state.statistics);
        let writes = &mut self.ahead.writes;
        if queue.fill(self.memory, &layout, needed, writes).is_err() {
            return Fate::Dropped(&mut drops.rx_dma);
        }
        let len = layout.len();
        let multicast = frame.bytes[0] & 1 != 0 && !frame.bytes.starts_with(&[0xff; 6]);
        self.state.statistics.received(len, multicast);
        let state = &*self.state;
        let live = |bytes: &mut Vec<u8>| live::write(state, bytes);
        let made = self.ahead.make(live, self.memory, self.ledger);
        if made.is_err() {
            self.state.rx[number].ring = before;
            self.state.statistics = statistics;
            return Fate::Dropped(&mut drops.rx_dma);
        }
        self.counters.received.add(1, len as u64);
        Fate::Delivered(number)
    }
}

enum Fate<'a> {
    Delivered(usize),
    /// For the reason that this counts.
    Dropped(&'a mut u64),
    Waits,
}

/// A bit for each queue that works and is enabled.
fn running_queues(state: &VfState) -> u8 {
    let pairs = usize::from(state.admin.queue_pairs);
    let enabled = |queue: &RxQueue| queue.ring.control & rxdctl::ENABLE != 0;
    (0..pairs.min(QUEUES))
        .filter(|queue| enabled(&state.rx[*queue]))
        .fold(0, |mask, queue| mask | 1 << queue)
}

impl VfState {
    /// Whether the driver receives frames.
    pub(crate) fn receives(&self) -> bool {
        running_queues(self) != 0
    }
}

/// Spreads flows over the running ones among the first `2^RQPL` queues. What is not IP goes to the
/// lowest.
fn choose_queue(running: u8, psrtype: u32, packet: &Packet<'_>) -> usize {
    let spread = 1_u32 << (psrtype >> vfpsrtype::RQPL_SHIFT).min(3);
    let wanted = (1_u32 << spread) - 1;
    let among = match u32::from(running) & wanted {
        0 => u32::from(running),
        among => among,
    };
    let nth = match packet.ip {
        Some(_) if among.count_ones() > 1 => packet.flow() % among.count_ones(),
        _ => 0,
    };
    (0..QUEUES)
        .filter(|queue| among >> queue & 1 != 0)
        .nth(nth as usize)
        .unwrap_or(0)
}

/// The limit is that of an untagged frame with FCS; a tag may come on top.
fn is_oversize(frame: &[u8], max_frame: u32) -> bool {
    let tag = if vlan_tag(frame).is_some() {
        VLAN_LEN
    } else {
        0
    };
    frame.len() + 4 > max_frame as usize + tag
}

/// A frame as it will lie in the guest: without the tag if that is taken out, and padded.
struct Layout<'a> {
    parts: [&'a [u8]; 3],
    write_back: RxWriteBack,
}

impl<'a> Layout<'a> {
    fn new(frame: &RxFrame<'a>, packet: &Packet<'_>, strip_tag: bool) -> Self {
        const PADDING: [u8; MIN_FRAME] = [0; MIN_FRAME];
        let tag = vlan_tag(frame.bytes).filter(|_| strip_tag);
        let (addresses, rest) = frame.bytes.split_at(VLAN_OFFSET);
        let rest = if tag.is_some() {
            &rest[VLAN_LEN..]
        } else {
            rest
        };
        let pad = MIN_FRAME.saturating_sub(addresses.len() + rest.len());
        let mut status = checksum_status(frame, packet);
        if tag.is_some() {
            status |= rx_status::VP;
        }
        Self {
            parts: [addresses, rest, &PADDING[..pad]],
            write_back: RxWriteBack {
                packet_info: packet_type(packet),
                status,
                len: 0,
                vlan: tag.unwrap_or(0),
            },
        }
    }

    fn len(&self) -> usize {
        self.parts.iter().map(|part| part.len()).sum()
    }
}

/// What the driver may believe of the checksums. If the link vouches for them, they are not looked
/// at: it may have left them to be filled in by whoever sends the frame on.
fn checksum_status(frame: &RxFrame<'_>, packet: &Packet<'_>) -> u32 {
    let (ip, l4) = if frame.checksums_good {
        let right = |known: bool| {
            if known {
                Verdict::Right
            } else {
                Verdict::Unknown
            }
        };
        let v4 = packet.ip.is_some_and(|ip| ip.v4_header.is_some());
        (right(v4), right(packet.l4.is_some()))
    } else {
        (packet.ip_verdict(), packet.l4_verdict())
    };
    let bits = |verdict, verified, wrong| match verdict {
        Verdict::Unknown => 0,
        Verdict::Right => verified,
        Verdict::Wrong => verified | wrong,
    };
    bits(ip, rx_status::IPCS, rx_status::ERR_IPE) | bits(l4, rx_status::L4CS, rx_status::ERR_TCPE)
}

fn packet_type(packet: &Packet<'_>) -> u32 {
    let ip = match packet.ip {
        None => 0,
        Some(ip) if ip.v4_header.is_some() => rx_packet_type::IPV4,
        Some(_) => rx_packet_type::IPV6,
    };
    let l4 = match packet.l4.map(|l4| l4.protocol) {
        None => 0,
        Some(Protocol::Tcp) => rx_packet_type::TCP,
        Some(Protocol::Udp) => rx_packet_type::UDP,
        Some(Protocol::Sctp) => rx_packet_type::SCTP,
    };
    ip | l4
}

impl RxQueue {
    /// How many descriptors a frame needs; `None` if the ring will never have as many, or is of a
    /// type that is not done.
    fn descriptors_for(&self, len: usize) -> Option<u32> {
        if self.srrctl & srrctl::DESCTYPE != srrctl::DESCTYPE_ADV_ONEBUF {
            return None;
        }
        let buffer = self.buffer_len();
        if buffer == 0 {
            return None;
        }
        let needed = u32::try_from(len.div_ceil(buffer)).ok()?;
        // One descriptor always stays the driver's: a full ring would look empty.
        (needed < self.ring.entries() && needed as usize <= MAX_DESCRIPTORS).then_some(needed)
    }

    fn buffer_len(&self) -> usize {
        (self.srrctl & srrctl::BSIZEPACKET) as usize * 1024
    }

    /// Writes the data, and tells the descriptors that are to be written then. The driver looks at them from
    /// the head on: until the first says that it is done, it sees none of them.
    fn fill(
        &mut self,
        memory: &dyn GuestMemory,
        layout: &Layout<'_>,
        needed: u32,
        writes: &mut Writes,
    ) -> Result<(), DmaError> {
        writes.clear();
        let mut parts = layout.parts;
        for ahead in 0..needed {
            let address = rx_buffer(&self.ring.read(memory, ahead)?);
            let mut write_back = layout.write_back;
            write_back.len = fill(memory, address, self.buffer_len(), &mut parts)?;
            write_back.status |= rx_status::DD;
            if ahead + 1 == needed {
                write_back.status |= rx_status::EOP;
            }
            let (low, high) = (self.ring.address(ahead), self.ring.address(ahead) | 8);
            writes.store_u64(low, write_back.low());
            if ahead == 0 {
                writes.signal_u64(high, write_back.high_before(), write_back.high());
            } else {
                writes.store_u64(high, write_back.high());
            }
        }
        self.ring.advance(needed);
        Ok(())
    }
}

/// Moves up to `room` bytes from the front of `parts` to `address`; says how many.
fn fill(
    memory: &dyn GuestMemory,
    address: u64,
    room: usize,
    parts: &mut [&[u8]; 3],
) -> Result<u16, DmaError> {
    let mut filled = 0;
    for part in parts {
        let (now, later) = part.split_at(part.len().min(room - filled));
        if !now.is_empty() {
            memory.write(address.wrapping_add(filled as u64), now)?;
        }
        filled += now.len();
        *part = later;
    }
    Ok(u16::try_from(filled).expect("a buffer has at most 31 KiB"))
}
