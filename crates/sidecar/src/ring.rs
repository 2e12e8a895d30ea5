//! The guest's request rings. There is no file system behind them: every request gets an error,
//! so that a guest that mounts the tag is told so instead of waiting for ever.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};

use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::Marker;

/// Largest ring that `queue-size=` of QEMU's device allows (`VIRTQUEUE_MAX_SIZE`).
const MAX_SIZE: u16 = 1024;

/// `struct fuse_in_header`, up to the padding (linux/fuse.h).
const IN_HEADER_LEN: usize = 40;
/// `struct fuse_out_header`.
const OUT_HEADER_LEN: usize = 16;
/// Requests that have no reply.
const FUSE_FORGET: u32 = 2;
const FUSE_BATCH_FORGET: u32 = 42;
/// As in a reply's `error`, which is negative. Not ENOSYS: the kernel takes that as leave to do
/// without an operation, and some then count as successful.
const EIO: i32 = 5;

/// One of the device's rings.
#[derive(Debug)]
pub(crate) struct Ring {
    queue: Queue,
    kick: Option<File>,
    call: Option<File>,
    enabled: bool,
    state: State,
    /// The budget of the last call ran out: there may be requests that have no kick any more.
    more: bool,
    /// What another process has taken from it is not known otherwise than from the used ring.
    catches_up: bool,
}

/// How far a ring is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It has no addresses.
    Unplaced,
    /// Its used index is still to be taken over from guest memory.
    Placed,
    Ready,
    /// The guest broke the ring's rules; nothing more is done on it until it is set up again.
    Broken,
}

impl Default for Ring {
    fn default() -> Self {
        Self {
            queue: Queue::new(MAX_SIZE).expect("1024 is a power of two and at most 32768"),
            kick: None,
            call: None,
            enabled: false,
            state: State::Unplaced,
            more: false,
            catches_up: false,
        }
    }
}

impl Ring {
    pub(crate) fn set_size(&mut self, size: u32) -> Result<(), RingError> {
        let size = u16::try_from(size).map_err(|_| RingError::Size(size))?;
        self.queue
            .try_set_size(size)
            .map_err(|_| RingError::Size(size.into()))
    }

    pub(crate) fn place(
        &mut self,
        descriptors: GuestAddress,
        available: GuestAddress,
        used: GuestAddress,
    ) -> Result<(), RingError> {
        let queue = &mut self.queue;
        queue
            .try_set_desc_table_address(descriptors)
            .and_then(|()| queue.try_set_avail_ring_address(available))
            .and_then(|()| queue.try_set_used_ring_address(used))
            .map_err(|e| RingError::Address(e.to_string()))?;
        self.state = State::Placed;
        Ok(())
    }

    pub(crate) fn set_base(&mut self, next_available: u32) -> Result<(), RingError> {
        let base = u16::try_from(next_available).map_err(|_| RingError::Base(next_available))?;
        self.queue.set_next_avail(base);
        if self.state != State::Unplaced {
            self.state = State::Placed;
        }
        Ok(())
    }

    /// Of a ring that another process has served: it has answered each request in its turn, so the used ring
    /// tells how many it has taken. Until `false`.
    pub(crate) fn catch_up(&mut self, catches_up: bool) {
        self.catches_up = catches_up;
    }

    pub(crate) fn base(&self) -> u32 {
        self.queue.next_avail().into()
    }

    pub(crate) fn set_enabled(&mut self, enabled: bool) {
        self.enabled = enabled;
    }

    pub(crate) fn set_kick(&mut self, kick: Option<File>) {
        self.kick = kick;
    }

    pub(crate) fn set_call(&mut self, call: Option<File>) {
        self.call = call;
    }

    /// The descriptor to wait on for requests, while the ring is being served.
    pub(crate) fn kick(&self) -> Option<&File> {
        self.kick.as_ref().filter(|_| self.is_served())
    }

    /// Takes the kick that made [`kick`](Self::kick) readable. A descriptor that is no eventfd
    /// any more is dropped, so that it cannot keep the message loop busy.
    pub(crate) fn take_kick(&mut self) {
        let Some(kick) = &mut self.kick else {
            return;
        };
        match kick.read(&mut [0; 8]) {
            Ok(8) => {}
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Ok(_) | Err(_) => self.kick = None,
        }
    }

    /// Whether [`answer`](Self::answer) is due again without a kick.
    pub(crate) fn has_more(&self) -> bool {
        self.more && self.is_served()
    }

    /// Answers what the guest has put into the ring, as far as one ring full goes, and marks every
    /// page written with `marker`.
    pub(crate) fn answer(&mut self, memory: &GuestMemoryMmap<()>, mut marker: Option<Marker<'_>>) {
        match self.answer_some(memory, marker.as_mut()) {
            Ok(more) => self.more = more,
            Err(error) => self.leave_alone(&error),
        }
    }

    /// Once for each set-up of the ring: no flood that a guest could cause.
    pub(crate) fn leave_alone(&mut self, error: &dyn std::error::Error) {
        tracing::warn!(%error, "a ring of the sidecar cannot be served; it is left alone");
        self.state = State::Broken;
    }

    pub(crate) fn is_served(&self) -> bool {
        self.enabled && self.kick.is_some() && matches!(self.state, State::Placed | State::Ready)
    }

    /// Returns whether there may be more.
    fn answer_some(
        &mut self,
        memory: &GuestMemoryMmap<()>,
        mut marker: Option<&mut Marker<'_>>,
    ) -> Result<bool, RingError> {
        let queue_error = |e: virtio_queue::Error| RingError::Queue(e.to_string());
        self.queue.set_ready(true);
        if !self.queue.is_valid(memory) {
            return Err(RingError::Outside);
        }
        if self.state == State::Placed {
            let used = self
                .queue
                .used_idx(memory, std::sync::atomic::Ordering::Acquire);
            let used = used.map_err(queue_error)?.0;
            self.queue.set_next_used(used);
            if self.catches_up {
                self.queue.set_next_avail(used);
            }
            self.state = State::Ready;
        }
        let budget = self.queue.size();
        let mut answered = 0;
        while answered < budget {
            let Some(chain) = self.queue.iter(memory).map_err(queue_error)?.next() else {
                break;
            };
            let head = chain.head_index();
            let written = refuse_request(memory, chain, marker.as_deref_mut());
            self.queue
                .add_used(memory, head, written)
                .map_err(queue_error)?;
            answered += 1;
        }
        if answered == 0 {
            return Ok(false);
        }
        if let Some(marker) = marker {
            // Flags, index and, for each entry, id and length; the event index behind them.
            let len = 6 + 8 * u64::from(self.queue.size());
            marker.mark_range(self.queue.used_ring(), len);
        }
        if self.queue.needs_notification(memory).map_err(queue_error)? {
            self.notify();
        }
        Ok(answered == budget)
    }

    fn notify(&mut self) {
        if let Some(call) = &mut self.call {
            // A full counter means that a notification is under way already.
            let _ = call.write(&1u64.to_ne_bytes());
        }
    }
}

/// Writes the reply to one request. Returns its length, 0 for a request that has none or that is
/// no request at all.
fn refuse_request(
    memory: &GuestMemoryMmap<()>,
    chain: impl Iterator<Item = Descriptor>,
    marker: Option<&mut Marker<'_>>,
) -> u32 {
    let (writable, readable): (Vec<_>, Vec<_>) = chain.partition(Descriptor::is_write_only);
    let mut request = [0; IN_HEADER_LEN];
    if !gather(memory, &readable, &mut request) {
        return 0;
    }
    let opcode = u32::from_le_bytes(request[4..8].try_into().expect("4 bytes"));
    if matches!(opcode, FUSE_FORGET | FUSE_BATCH_FORGET) {
        return 0;
    }
    let len = u32::try_from(OUT_HEADER_LEN).expect("16 fits");
    let mut reply = [0; OUT_HEADER_LEN];
    reply[..4].copy_from_slice(&len.to_le_bytes());
    reply[4..8].copy_from_slice(&(-EIO).to_le_bytes());
    reply[8..].copy_from_slice(&request[8..16]);
    if scatter(memory, &writable, &reply, marker) {
        len
    } else {
        0
    }
}

/// Fills `bytes` from the start of `buffers`.
fn gather(memory: &GuestMemoryMmap<()>, buffers: &[Descriptor], mut bytes: &mut [u8]) -> bool {
    for buffer in buffers {
        let len = bytes.len().min(buffer.len() as usize);
        let (now, rest) = std::mem::take(&mut bytes).split_at_mut(len);
        if memory.read_slice(now, buffer.addr()).is_err() {
            return false;
        }
        bytes = rest;
    }
    bytes.is_empty()
}

/// Writes `bytes` to the start of `buffers`.
fn scatter(
    memory: &GuestMemoryMmap<()>,
    buffers: &[Descriptor],
    mut bytes: &[u8],
    mut marker: Option<&mut Marker<'_>>,
) -> bool {
    for buffer in buffers {
        let (now, rest) = bytes.split_at(bytes.len().min(buffer.len() as usize));
        let written = memory.write_slice(now, buffer.addr());
        // A write that failed may have gone half-way.
        if let Some(marker) = marker.as_deref_mut() {
            marker.mark_range(buffer.addr().0, now.len() as u64);
        }
        if written.is_err() {
            return false;
        }
        bytes = rest;
    }
    bytes.is_empty()
}

/// What is wrong with a ring.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RingError {
    #[error("a ring of {0} entries: the size must be a power of two up to {MAX_SIZE}")]
    Size(u32),
    #[error("ring index {0} is above 65535")]
    Base(u32),
    #[error("a ring is misplaced: {0}")]
    Address(String),
    #[error("a ring is not wholly in guest memory")]
    Outside,
    #[error("{0}")]
    Queue(String),
}

#[cfg(test)]
mod tests {
    use rustix::event::{EventfdFlags, eventfd};
    use vm_memory::Bytes as _;

    use super::*;

    const AVAILABLE: u64 = 0x2000;
    const USED: u64 = 0x3000;

    /// What the used index is once a ring is served in which one request was answered before.
    fn used_index_after(catches_up: bool) -> u16 {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap();
        for index in [AVAILABLE + 2, USED + 2] {
            memory.write_obj(1_u16, GuestAddress(index)).unwrap();
        }
        // The request's memory has been reused; its descriptor says what it said.
        memory.write_obj(40_u32, GuestAddress(0x1008)).unwrap();
        let mut ring = Ring::default();
        ring.catch_up(catches_up);
        ring.set_size(8).unwrap();
        ring.set_base(0).unwrap();
        let at = [0x1000, AVAILABLE, USED].map(GuestAddress);
        ring.place(at[0], at[1], at[2]).unwrap();
        ring.set_kick(Some(eventfd(0, EventfdFlags::NONBLOCK).unwrap().into()));
        ring.set_enabled(true);
        ring.answer(&memory, None);
        memory.read_obj(GuestAddress(USED + 2)).unwrap()
    }

    #[test]
    fn a_successor_answers_no_request_again() {
        assert_eq!(used_index_after(true), 1);
        // Said again as it was, the base is that of the beginning.
        assert_eq!(used_index_after(false), 2);
    }
}
