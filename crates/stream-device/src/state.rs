//! What the guest has set and can see.

use crate::spec::registers::{CHANNEL_COUNT, DEFAULT_RATE};

/// The device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamState {
    /// Pages per second.
    pub rate: u32,
    /// By number.
    pub channels: [Channel; CHANNEL_COUNT],
}

impl Default for StreamState {
    fn default() -> Self {
        Self {
            rate: DEFAULT_RATE,
            channels: [Channel::default(); CHANNEL_COUNT],
        }
    }
}

/// A channel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Channel {
    /// Works on descriptors. Its ring has a possible size then, and no more than that waiting.
    pub run: bool,
    /// Goes round for ever.
    pub cyclic: bool,
    /// Has stopped by itself.
    pub fault: bool,
    /// Address of the descriptors.
    pub ring: u64,
    /// Address of the completions.
    pub done: u64,
    /// Entries of both.
    pub entries: u32,
    /// Descriptors put in since `run`.
    pub tail: u32,
    /// Descriptors done since `run`.
    pub head: u32,
    /// Number of the next descriptor's writes.
    pub sequence: u64,
}
