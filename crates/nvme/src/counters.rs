//! What a controller counts for reports. Lost with the engine; what the guest sees is in
//! [`Usage`](crate::state::Usage).

use serde::Serialize;

/// What a controller has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Admin commands completed.
    pub admin_commands: u64,
    /// I/O commands completed.
    pub io_commands: u64,
    /// Of both, those with an error.
    pub errors: u64,
    /// Bytes read from the backing for the guest.
    pub bytes_read: u64,
    /// Bytes written to the backing for the guest.
    pub bytes_written: u64,
    /// Times that the backing was made durable.
    pub flushes: u64,
    /// Interrupt messages.
    pub interrupts: u64,
    /// Commands under way that came with a loaded state.
    pub reissued: u64,
}
