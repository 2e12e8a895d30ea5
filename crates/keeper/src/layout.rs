//! Where things are in a journal's memfd.

/// "vferryJ2".
pub(crate) const MAGIC: u64 = u64::from_le_bytes(*b"vferryJ2");

/// Offsets of the words of the first page, each written in one piece.
pub(crate) mod word {
    pub(crate) const MAGIC: usize = 0;
    pub(crate) const MAX_STATE: usize = 8;
    pub(crate) const MAX_RARE: usize = 16;
    pub(crate) const MAX_REPLY: usize = 24;
    /// Number of the slot in force, which is slot `n % 2`.
    pub(crate) const IN_FORCE: usize = 64;
    /// That number (above bit 2), and how far its owner has come with what it says.
    pub(crate) const STAGE: usize = 72;
    /// Bytes that are no longer in the socket (above bit 1); bit 0 while some are taken out of it.
    pub(crate) const CONSUMED: usize = 80;
    /// What the socket said of how much had been looked at, before these are taken out.
    pub(crate) const SHOWN: usize = 88;
    /// Which reply is being sent, or was last; how many of its pieces are; whether one is in the pipe.
    pub(crate) const REPLY: usize = 96;
    /// Not 0 once what is in force is not to be gone on with.
    pub(crate) const GIVEN_UP: usize = 112;
    /// For whoever owns the journal.
    pub(crate) const MARK: usize = 104;
}

/// Where what follows the words begins.
pub(crate) const BODY: usize = 4096;

/// Offsets in a slot.
pub(crate) mod slot {
    /// Its number.
    pub(crate) const NUMBER: usize = 0;
    /// Where in the stream the last message that was carried out ends.
    pub(crate) const TAKEN: usize = 8;
    /// How many messages were.
    pub(crate) const MESSAGES: usize = 16;
    /// Length of the reply to the last one, plus 1 if there is one.
    pub(crate) const REPLY: usize = 24;
    /// Number of what seldom changes.
    pub(crate) const RARE: usize = 32;
    /// Length of the state.
    pub(crate) const LENGTH: usize = 40;
    /// The state.
    pub(crate) const STATE: usize = 48;
}

/// Offsets in a place for what seldom changes.
pub(crate) mod rare {
    /// Its length.
    pub(crate) const LENGTH: usize = 0;
    /// It.
    pub(crate) const BYTES: usize = 8;
}
