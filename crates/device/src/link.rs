//! A NIC model's attachment to its network.

use std::os::fd::BorrowedFd;

/// Where a NIC model's frames go and come from.
///
/// Ethernet frames are without preamble and FCS. Neither direction drops: a full link says so and
/// the model keeps its descriptor; a frame that the model has no buffer for stays in the link.
pub trait FrameLink: Send {
    /// The oldest received frame that is not yet [consumed](Self::consume), if any.
    ///
    /// May read from the network, never blocks.
    fn peek(&mut self) -> Option<RxFrame<'_>>;

    /// Gives up the frame that [`peek`](Self::peek) showed last.
    fn consume(&mut self);

    /// Queues one frame for sending.
    fn send(&mut self, frame: TxFrame<'_>) -> Sent;

    /// Hands what was queued to the network, as far as it takes it without blocking.
    fn flush(&mut self);

    /// Whether the network can be reached (the model's link state).
    fn is_up(&self) -> bool;

    /// What the link can finish by itself, so that the model need not.
    fn offloads(&self) -> Offloads {
        Offloads::default()
    }

    /// Tells the network that `mac` is now reached through this link (RARP), as after a migration.
    fn announce(&mut self, mac: [u8; 6]);

    /// What the guest's neighbours have said of themselves (ARP, neighbour discovery): the received
    /// frames, at most a few dozen short ones.
    fn heard(&self) -> Vec<Vec<u8>> {
        Vec::new()
    }

    /// Takes over what was [heard](Self::heard) on another link. May be anything.
    fn remember(&mut self, heard: &[Vec<u8>]) {
        let _ = heard;
    }

    /// Shows what was [remembered](Self::remember) once more as received frames, before all others, but
    /// for what is of those that the guest has sent something to since, or since this was called last;
    /// says how many. If it is the last time, nobody looks at what the guest sends any more.
    fn say_again(&mut self, is_last: bool) -> usize {
        let _ = is_last;
        0
    }

    /// Looks for an end of the network that lies behind frames which nobody has received yet:
    /// [`is_up`](Self::is_up) knows of it then.
    fn look_for_end(&mut self) {}

    /// The descriptor to wait on for received frames, if the link has one.
    fn fd(&self) -> Option<BorrowedFd<'_>>;

    /// Whether the link waits for [`fd`](Self::fd) to become writable (something is queued).
    fn wants_write(&self) -> bool {
        false
    }
}

/// A received frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RxFrame<'a> {
    /// The frame, from the destination address on.
    pub bytes: &'a [u8],
    /// The network vouches for the IP and TCP/UDP checksums.
    pub checksums_good: bool,
}

/// A frame to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TxFrame<'a> {
    /// The frame, from the destination address on.
    pub bytes: &'a [u8],
    /// Work left to the link; only what [`FrameLink::offloads`] granted.
    pub offload: TxOffload,
}

/// Work that a link may be asked to finish on a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TxOffload {
    /// The frame is complete.
    #[default]
    None,
    /// The 16-bit checksum at `start + offset` covers `start..`; its field holds the pseudo-header sum.
    Checksum {
        /// First byte covered, from the start of the frame.
        start: u16,
        /// Where the checksum field lies, from `start`.
        offset: u16,
    },
    /// TCP segmentation; the checksum field holds the pseudo-header sum as for `Checksum`.
    TcpSegments {
        /// IPv6 instead of IPv4.
        ipv6: bool,
        /// Length of all headers.
        header_len: u16,
        /// Payload bytes of each segment but the last.
        mss: u16,
        /// Where the TCP header starts.
        start: u16,
    },
}

/// What a link can finish by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offloads {
    /// [`TxOffload::Checksum`] is understood.
    pub checksum: bool,
    /// [`TxOffload::TcpSegments`] is understood.
    pub tcp_segments: bool,
}

/// What became of a frame given to [`FrameLink::send`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Sent {
    /// The link has it (or dropped it for good, as a cable without a peer does).
    Taken,
    /// No room now: offer it again when the link's descriptor is writable.
    Full,
}
