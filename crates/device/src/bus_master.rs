//! (being written)
pub struct BusMaster;
