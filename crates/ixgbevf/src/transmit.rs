//! From the guest's descriptors to the link (datasheet section 7.2).
//!
//! A frame is copied once, from the guest's buffers into one buffer that is kept; segments that the
//! device cuts itself are copied a second time, behind their own headers. The head moves and
//! descriptors are reported done only when the link has the whole frame. While it has not, the
//! frame is gathered again at each try, so nothing of it is kept between calls but the number of
//! segments that are already gone.

use device::{Ahead, DmaError, FrameLink, GuestMemory, Ledger, Sent, TxFrame, TxOffload};

use crate::budget::Budget;
use crate::live;
use crate::offload::{self, MAX_FRAME, Segments, Work};
use crate::packet::{ETHERNET_LEN, VLAN_LEN};
use crate::spec::descriptors::{
    TX_STATUS_ABOUT, TX_STATUS_DD, TX_STATUS_OFFSET, TxData, TxDescriptor,
};
use crate::spec::registers::tdwbal;
use crate::state::{Ring, TxQueue, VfState};
use crate::stats::Counters;

/// Data descriptors of one frame. The datasheet allows 40; Linux's own limit can be configured up
/// to 45 fragments.
const MAX_DESCRIPTORS: usize = 64;
/// Bytes of one frame before segmentation: PAYLEN has 18 bits.
const MAX_UNCUT: usize = 1 << 18;
/// Shortest frame without FCS; shorter ones are padded.
const MIN_FRAME: usize = 60;

/// Buffers that are kept from frame to frame.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// [`VLAN_LEN`] spare bytes, then the frame.
    frame: Vec<u8>,
    segment: Vec<u8>,
}

/// One queue's frames on their way out.
pub(crate) struct Transmit<'a> {
    pub(crate) state: &'a mut VfState,
    /// Which queue.
    pub(crate) queue: usize,
    pub(crate) counters: &'a mut Counters,
    pub(crate) link: &'a mut dyn FrameLink,
    pub(crate) memory: &'a dyn GuestMemory,
    pub(crate) scratch: &'a mut Scratch,
    pub(crate) ledger: Option<&'a dyn Ledger>,
    pub(crate) ahead: &'a mut Ahead,
    /// Descriptors were reported done: the queue's cause is to be set.
    pub(crate) reported: bool,
}

/// Why a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transmitted {
    /// Nothing more can be sent until the driver does something.
    All,
    /// The budget is used up.
    More,
    /// The link is full.
    Blocked,
}

enum Step {
    Next,
    End(Transmitted),
}

/// Why a frame was given up.
enum Drop {
    Malformed,
    Oversize,
    Dma,
}

/// What became of a frame at the head.
enum Outcome {
    /// The link has it.
    Sent,
    /// It stays.
    Stays(Transmitted),
    Dropped(Drop),
}

impl Transmit<'_> {
    /// Sends as far as the budget and the link allow.
    pub(crate) fn run(&mut self, budget: &mut Budget) -> Transmitted {
        while self.queue().ring.owned() > 0 {
            if budget.is_used_up() {
                return Transmitted::More;
            }
            match self.step(budget) {
                Ok(Step::Next) => {}
                Ok(Step::End(end)) => return end,
                Err(DmaError { .. }) => {
                    // The ring itself is not there. The driver will find that its head does not
                    // move and reset the function, unless the memory comes back first.
                    self.counters.ring_dma_errors += 1;
                    return Transmitted::All;
                }
            }
        }
        Transmitted::All
    }

    /// Handles what is at the head: a context, or one frame.
    fn step(&mut self, budget: &mut Budget) -> Result<Step, DmaError> {
        let bytes = self.queue().ring.read(self.memory, 0)?;
        if let TxDescriptor::Context { index, context } = TxDescriptor::parse(&bytes) {
            budget.spend(1, 0);
            self.queue_mut().contexts[index] = context;
            self.queue_mut().ring.advance(1);
            return Ok(Step::Next);
        }
        let mut chain = Chain::default();
        let end = chain.read(self.queue(), self.memory)?;
        if end == ChainEnd::Unfinished {
            return Ok(Step::End(Transmitted::All));
        }
        budget.spend(chain.len, 0);
        if self.queue().discarding {
            self.queue_mut().discarding = end == ChainEnd::TooLong;
            self.complete(&chain)?;
            return Ok(Step::Next);
        }
        let outcome = match end {
            ChainEnd::Whole => self.send(chain.descriptors(), budget),
            _ => Outcome::Dropped(Drop::Malformed),
        };
        match outcome {
            Outcome::Stays(why) => return Ok(Step::End(why)),
            Outcome::Sent => {}
            Outcome::Dropped(why) => self.count(&why),
        }
        self.queue_mut().discarding = end == ChainEnd::TooLong;
        self.queue_mut().segments_sent = 0;
        self.complete(&chain)?;
        Ok(Step::Next)
    }

    fn send(&mut self, descriptors: &[TxData], budget: &mut Budget) -> Outcome {
        let Some(first) = descriptors.first().filter(|d| d.advanced) else {
            return Outcome::Dropped(Drop::Malformed);
        };
        let len: usize = descriptors.iter().map(|d| d.len).sum();
        let limit = if first.segment { MAX_UNCUT } else { MAX_FRAME };
        if len > limit {
            return Outcome::Dropped(Drop::Oversize);
        }
        if len < ETHERNET_LEN {
            return Outcome::Dropped(Drop::Malformed);
        }
        budget.spend(0, len);
        // Taken out so that the rest of `self` can be used beside it; put back below.
        let mut buffer = std::mem::take(&mut self.scratch.frame);
        let outcome = match self.gather(descriptors, len, &mut buffer) {
            Ok(()) => self.send_gathered(&mut buffer, *first, budget),
            Err(DmaError { .. }) => Outcome::Dropped(Drop::Dma),
        };
        self.scratch.frame = buffer;
        outcome
    }

    fn gather(
        &self,
        descriptors: &[TxData],
        len: usize,
        buffer: &mut Vec<u8>,
    ) -> Result<(), DmaError> {
        buffer.resize(VLAN_LEN + len, 0);
        let mut rest = &mut buffer[VLAN_LEN..];
        for descriptor in descriptors.iter().filter(|d| d.len > 0) {
            let (part, after) = rest.split_at_mut(descriptor.len);
            self.memory.read(descriptor.address, part)?;
            rest = after;
        }
        Ok(())
    }

    fn send_gathered(
        &mut self,
        buffer: &mut Vec<u8>,
        first: TxData,
        budget: &mut Budget,
    ) -> Outcome {
        let context = self.queue().contexts[first.context];
        let start = if first.insert_vlan {
            offload::insert_tag(buffer, context.vlan());
            0
        } else {
            VLAN_LEN
        };
        let untouched = self.queue().segments_sent == 0;
        let link = self.link.offloads();
        match offload::prepare(&mut buffer[start..], &first, &context, link, untouched) {
            Err(offload::Malformed) => Outcome::Dropped(Drop::Malformed),
            Ok(Work::Cut(segments)) => self.send_cut(&buffer[start..], &segments, budget),
            Ok(Work::Whole(offload)) => {
                buffer.resize(buffer.len().max(start + MIN_FRAME), 0);
                self.send_whole(&buffer[start..], offload)
            }
        }
    }

    fn send_whole(&mut self, frame: &[u8], offload: TxOffload) -> Outcome {
        if !self.offer(frame, offload) {
            return Outcome::Stays(Transmitted::Blocked);
        }
        let len = frame.len() as u64;
        let (frames, bytes) = match offload {
            TxOffload::TcpSegments {
                header_len, mss, ..
            } => {
                let payload = len.saturating_sub(header_len.into());
                let frames = payload.div_ceil(u64::from(mss).max(1)).max(1);
                (
                    u32::try_from(frames).unwrap_or(u32::MAX),
                    payload + frames * u64::from(header_len),
                )
            }
            TxOffload::None | TxOffload::Checksum { .. } => (1, len),
        };
        self.sent(frames, bytes);
        Outcome::Sent
    }

    fn send_cut(&mut self, frame: &[u8], segments: &Segments, budget: &mut Budget) -> Outcome {
        let mut segment = std::mem::take(&mut self.scratch.segment);
        let mut outcome = Outcome::Sent;
        while self.queue().segments_sent < segments.count() {
            if budget.is_used_up() {
                outcome = Outcome::Stays(Transmitted::More);
                break;
            }
            segments.build(frame, self.queue().segments_sent, &mut segment);
            segment.resize(segment.len().max(MIN_FRAME), 0);
            if !self.offer(&segment, TxOffload::None) {
                outcome = Outcome::Stays(Transmitted::Blocked);
                break;
            }
            budget.spend(1, segment.len());
            self.sent(1, segment.len() as u64);
            self.queue_mut().segments_sent += 1;
        }
        self.scratch.segment = segment;
        outcome
    }

    /// Gives a frame to the link; `false` if it is full.
    fn offer(&mut self, bytes: &[u8], offload: TxOffload) -> bool {
        match self.link.send(TxFrame { bytes, offload }) {
            Sent::Taken => true,
            Sent::Full => {
                self.counters.link_full += 1;
                false
            }
        }
    }

    /// Gives descriptors back to the driver, and reports those that it wants to see done.
    fn complete(&mut self, chain: &Chain) -> Result<(), DmaError> {
        let reports = chain.descriptors().iter().any(|d| d.report_status);
        let ring = self.queue().ring;
        // The ring moves on even if reporting fails: the frame is gone.
        self.queue_mut().ring.advance(chain.len_u32());
        self.reported |= reports;
        if !reports {
            return Ok(());
        }
        let TxQueue {
            head_write_back,
            ring: Ring { head, .. },
            ..
        } = *self.queue();
        let writes = &mut self.ahead.writes;
        writes.clear();
        if head_write_back & u64::from(tdwbal::HEAD_WB_EN) != 0 {
            writes.store_u32(head_write_back & !3, head.into());
        } else {
            for (descriptor, ahead) in chain.descriptors().iter().zip(0..) {
                if descriptor.report_status {
                    let status = ring.address(ahead).wrapping_add(TX_STATUS_OFFSET);
                    writes.signal_u32(status, TX_STATUS_ABOUT, TX_STATUS_DD);
                }
            }
        }
        let state = &*self.state;
        self.ahead
            .make(|bytes| live::write(state, bytes), self.memory, self.ledger)
    }

    fn queue(&self) -> &TxQueue {
        &self.state.tx[self.queue]
    }

    fn queue_mut(&mut self) -> &mut TxQueue {
        &mut self.state.tx[self.queue]
    }

    fn sent(&mut self, frames: u32, bytes: u64) {
        self.state.statistics.sent(frames, bytes);
        self.counters.sent.add(frames, bytes);
    }

    fn count(&mut self, why: &Drop) {
        let dropped = &mut self.counters.dropped;
        *match why {
            Drop::Malformed => &mut dropped.tx_malformed,
            Drop::Oversize => &mut dropped.tx_oversize,
            Drop::Dma => &mut dropped.tx_dma,
        } += 1;
    }
}

/// The data descriptors of one frame.
struct Chain {
    data: [TxData; MAX_DESCRIPTORS],
    len: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ChainEnd {
    /// All of the frame is there.
    Whole,
    /// The driver has not handed over the frame's end yet.
    Unfinished,
    /// There is no end within what a frame may have.
    TooLong,
    /// A context descriptor stands where the frame should go on.
    Broken,
}

impl Default for Chain {
    fn default() -> Self {
        Self {
            data: [TxData::default(); MAX_DESCRIPTORS],
            len: 0,
        }
    }
}

impl Chain {
    fn read(&mut self, queue: &TxQueue, memory: &dyn GuestMemory) -> Result<ChainEnd, DmaError> {
        for (slot, ahead) in self.data.iter_mut().zip(0..queue.ring.owned()) {
            match TxDescriptor::parse(&queue.ring.read(memory, ahead)?) {
                TxDescriptor::Context { .. } => return Ok(ChainEnd::Broken),
                TxDescriptor::Data(data) => *slot = data,
            }
            self.len += 1;
            if slot.end_of_packet {
                return Ok(ChainEnd::Whole);
            }
        }
        Ok(if self.len == MAX_DESCRIPTORS {
            ChainEnd::TooLong
        } else {
            ChainEnd::Unfinished
        })
    }

    fn descriptors(&self) -> &[TxData] {
        &self.data[..self.len]
    }

    fn len_u32(&self) -> u32 {
        u32::try_from(self.len).expect("a chain has at most 64 descriptors")
    }
}
