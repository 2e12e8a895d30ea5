//! Where things are in a journal's memfd.

/// "vferryJ1".
pub(crate) const MAGIC: u64 = u64::from_le_bytes(*b"vferryJ1");

/// Offsets of the words of the first page, each written in one piece.
pub(crate) mod word {
    pub(crate) const MAGIC: usize = 0;
    pub(crate) const MAX_REQUEST: usize = 8;
    pub(crate) const MAX_STATE: usize = 16;
    /// Number of the slot in force, which is slot `n % 2`.
    pub(crate) const IN_FORCE: usize = 64;
    /// Bytes taken from the socket since the beginning.
    pub(crate) const TAKEN: usize = 72;
    /// Length (above bit 8) and first byte of what is about to be taken.
    pub(crate) const INTENT: usize = 80;
    /// The value of `TAKEN` for which the intent holds. Written after it.
    pub(crate) const INTENT_AT: usize = 88;
    /// Number of the slot whose reply has been sent.
    pub(crate) const ANSWERED: usize = 96;
}

/// Where the inbox begins.
pub(crate) const INBOX: usize = 4096;

/// Offsets in a slot.
pub(crate) mod slot {
    /// Its number.
    pub(crate) const NUMBER: usize = 0;
    /// Bytes taken from the socket up to the end of the request that it is the outcome of.
    pub(crate) const TAKEN: usize = 8;
    /// Length of the state (below bit 32) and of the reply, plus 1 if there is one.
    pub(crate) const LENGTHS: usize = 16;
    /// CRC-32 of the words before, the state and the reply.
    pub(crate) const CHECK: usize = 24;
    /// State, then reply.
    pub(crate) const BODY: usize = 32;
}
