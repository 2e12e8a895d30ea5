//! What the peer tells, as plain data. Times are nanoseconds of the host's `CLOCK_MONOTONIC`.

use std::time::Duration;

use load_format::{Gap, Silence};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::PeerConfig;
use crate::{Port, SwitchReport};

/// Everything counted since the start or the last reset.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerReport {
    /// When the counting began.
    pub since_nanos: u64,
    /// When the report was made.
    pub until_nanos: u64,
    /// Numbered UDP to the guest, as far as the peer can know.
    pub udp_to_guest: UdpToGuest,
    /// Numbered UDP from the guest.
    pub udp_from_guest: UdpFromGuest,
    /// Echo requests to the guest and its answers.
    pub icmp: IcmpReport,
    /// The TCP transfer.
    pub tcp: TcpReport,
    /// Frames that reached the peer and were not understood: other protocols, damage.
    pub foreign_frames: u64,
    /// How often the guest came to another wire, and where it is.
    pub moves: Moves,
    /// The switch, since it was made.
    pub switch: SwitchReport,
}

/// Numbered UDP to the guest. What was lost of it, only the guest knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UdpToGuest {
    /// Packets sent.
    pub sent: u64,
    /// The highest number that the guest says it has received.
    pub highest_received: Option<u64>,
    /// The longest time in which the guest received none.
    pub longest_silence: Option<Silence>,
}

/// Numbered UDP from the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UdpFromGuest {
    /// Different numbers received.
    pub received: u64,
    /// Numbers below the highest that did not come.
    pub lost: u64,
    /// The newest runs of those, oldest first.
    pub gaps: Vec<Gap>,
    /// Numbers that came again.
    pub duplicates: u64,
    /// Numbers that came after a higher one.
    pub reordered: u64,
    /// Packets whose content was damaged.
    pub corrupt: u64,
    /// How often the guest's sender began again.
    pub restarts: u64,
    /// The longest time in which none came.
    pub longest_silence: Option<Silence>,
}

/// ICMP echo.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct IcmpReport {
    /// Requests sent.
    pub sent: u64,
    /// Different requests answered.
    pub answered: u64,
    /// Requests below the highest answered one that were not.
    pub lost: u64,
    /// Answers that came again.
    pub duplicates: u64,
    /// Answers that came after a later request's.
    pub reordered: u64,
    /// Answers whose content was damaged.
    pub corrupt: u64,
    /// How long the answers took, if any came.
    pub round_trips: Option<RoundTrips>,
    /// The longest time in which none came.
    pub longest_silence: Option<Silence>,
}

/// How long echoes took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoundTrips {
    /// The shortest, in ns.
    pub min_nanos: u64,
    /// Their mean, in ns.
    pub mean_nanos: u64,
    /// The longest, in ns.
    pub max_nanos: u64,
}

/// The TCP transfer, as the peer sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TcpReport {
    /// A connection stands.
    pub connected: bool,
    /// Connections that came in this window.
    pub connections: u64,
    /// Connections that ended in this window.
    pub closed: u64,
    /// Bytes that the guest acknowledged.
    pub to_guest_bytes: u64,
    /// Bytes received and checked.
    pub from_guest_bytes: u64,
    /// Received bytes that were wrong.
    pub wrong_bytes: u64,
    /// Offset in the stream of the first wrong byte.
    pub first_wrong: Option<u64>,
    /// The longest time in which no byte came from the guest.
    pub longest_silence: Option<Silence>,
}

/// Where the guest is plugged in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Moves {
    /// The wire from which its address was last seen.
    pub port: Option<Port>,
    /// How often that was another one than before, since the last reset.
    pub count: u64,
    /// When it last was: from then on, frames went to the new wire.
    pub last_nanos: Option<u64>,
}

/// What happened in one stretch of time, such as one migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowReport {
    /// When it began.
    pub since_nanos: u64,
    /// When it ended.
    pub until_nanos: u64,
    /// All silences of the UDP either way that reach into the window and last 20 ms or longer. An
    /// outage may have several: a guest that begins to run again stalls once more.
    pub udp_silences: Vec<Silence>,
    /// The longest silence of the UDP from the guest that reaches into the window.
    pub udp_from_guest: Option<Silence>,
    /// The same to the guest.
    pub udp_to_guest: Option<Silence>,
    /// The same of the answered echoes.
    pub icmp: Option<Silence>,
    /// The same of the TCP bytes from the guest. After a burst of losses smoltcp waits a second
    /// before it sends again (`RTTE_MIN_RTO`), so this does not measure the device.
    pub tcp: Option<Silence>,
    /// UDP from the guest that was missed in the window (counted since the last reset).
    pub udp_lost_from_guest: u64,
    /// Echoes not answered that were missed in the window (counted since the last reset).
    pub icmp_lost: u64,
}

/// Where lost packets belong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Loss {
    /// Within one of the outages.
    pub inside: u64,
    /// Within none, or so long ago that their time is no longer known.
    pub outside: u64,
}

/// When each kind of traffic was last seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Activity {
    /// A numbered UDP packet of the guest came.
    pub udp_from_guest: Option<u64>,
    /// The guest received a numbered UDP packet.
    pub udp_to_guest: Option<u64>,
    /// An echo was answered.
    pub icmp: Option<u64>,
    /// The guest acknowledged TCP bytes.
    pub tcp_to_guest: Option<u64>,
    /// TCP bytes came from the guest.
    pub tcp_from_guest: Option<u64>,
}

/// Some kind of traffic did not come in time.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("no {} within {waited:?}", missing.join(", no "))]
pub struct Quiet {
    /// What did not come.
    pub missing: Vec<&'static str>,
    /// How long it was waited for.
    pub waited: Duration,
}

impl PeerReport {
    /// Whether all TCP content was right and came over connections that held.
    pub fn tcp_content_ok(&self) -> bool {
        self.tcp.wrong_bytes == 0 && self.tcp.closed == 0 && self.tcp.from_guest_bytes > 0
    }
}

impl WindowReport {
    /// The device's outage as the peer saw it: the longest UDP silence, either way. `None` if UDP
    /// never flowed one way or the other.
    pub fn outage(&self) -> Option<Silence> {
        Some([self.udp_from_guest?, self.udp_to_guest?])
            .into_iter()
            .flatten()
            .max_by_key(Silence::nanos)
    }
}

impl std::ops::Add for Loss {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            inside: self.inside.saturating_add(other.inside),
            outside: self.outside.saturating_add(other.outside),
        }
    }
}

impl Activity {
    /// Names the kinds of traffic that `config` asks for and that were not seen after
    /// `since_nanos`.
    pub fn missing_since(&self, since_nanos: u64, config: &PeerConfig) -> Vec<&'static str> {
        let tcp = config.tcp_bytes_per_second > 0;
        [
            (true, self.udp_from_guest, "UDP from the guest"),
            (
                config.udp_per_second > 0,
                self.udp_to_guest,
                "UDP received by the guest",
            ),
            (
                config.icmp_per_second > 0,
                self.icmp,
                "answer to an echo request",
            ),
            (tcp, self.tcp_to_guest, "TCP acknowledged by the guest"),
            (tcp, self.tcp_from_guest, "TCP from the guest"),
        ]
        .into_iter()
        .filter(|(asked, at, _)| *asked && at.is_none_or(|at| at <= since_nanos))
        .map(|(_, _, name)| name)
        .collect()
    }
}
