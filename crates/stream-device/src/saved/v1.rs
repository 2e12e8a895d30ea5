//! Version 1.
//!
//! What the guest may set to anything, such as a ring's address, is no damage.

use device::State;
use serde::{Deserialize, Serialize};

use crate::spec::registers::{CHANNEL_COUNT, MAX_RATE};
use crate::state::{Channel, StreamState};

/// A device's state, version 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the names are those of `StreamState`")]
pub struct Stream {
    pub rate: u32,
    pub channels: Vec<SavedChannel>,
}

/// A channel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the names are those of `Channel`")]
pub struct SavedChannel {
    pub run: bool,
    pub cyclic: bool,
    pub fault: bool,
    pub ring: u64,
    pub done: u64,
    pub entries: u32,
    pub tail: u32,
    pub head: u32,
    pub sequence: u64,
}

/// Why a state that can be read is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// A device has as many as it has.
    #[error("it has {0} channels, and there are {CHANNEL_COUNT}")]
    Channels(usize),
    /// Higher than any.
    #[error("its rate of {0} pages per second is higher than {MAX_RATE}")]
    Rate(u32),
    /// Would not have been let run.
    #[error("channel {0} runs, and cannot with its rings")]
    Rings(usize),
    /// More than the ring has room for.
    #[error("channel {0} has more descriptors waiting than its ring has entries")]
    Waiting(usize),
}

impl State for Stream {
    const NAME: &'static str = "stream";
    const VERSION: u32 = 1;
}

impl From<&StreamState> for Stream {
    fn from(state: &StreamState) -> Self {
        let channel = |channel: &Channel| SavedChannel {
            run: channel.run,
            cyclic: channel.cyclic,
            fault: channel.fault,
            ring: channel.ring,
            done: channel.done,
            entries: channel.entries,
            tail: channel.tail,
            head: channel.head,
            sequence: channel.sequence,
        };
        Self {
            rate: state.rate,
            channels: state.channels.iter().map(channel).collect(),
        }
    }
}

impl TryFrom<&Stream> for StreamState {
    type Error = Damage;

    fn try_from(saved: &Stream) -> Result<Self, Damage> {
        if saved.rate > MAX_RATE {
            return Err(Damage::Rate(saved.rate));
        }
        let channel = |saved: &SavedChannel| Channel {
            run: saved.run,
            cyclic: saved.cyclic,
            fault: saved.fault,
            ring: saved.ring,
            done: saved.done,
            entries: saved.entries,
            tail: saved.tail,
            head: saved.head,
            sequence: saved.sequence,
        };
        let channels: Vec<_> = saved.channels.iter().map(channel).collect();
        for (number, channel) in channels.iter().enumerate().filter(|(_, c)| c.run) {
            if !channel.can_run() {
                return Err(Damage::Rings(number));
            }
            // One that goes round has no tail, and its head passes it.
            let waiting = channel.tail.wrapping_sub(channel.head);
            if !channel.cyclic && waiting > channel.entries {
                return Err(Damage::Waiting(number));
            }
        }
        Ok(Self {
            rate: saved.rate,
            channels: <[Channel; CHANNEL_COUNT]>::try_from(channels)
                .map_err(|channels| Damage::Channels(channels.len()))?,
        })
    }
}
