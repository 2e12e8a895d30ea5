//! Power Management capability (PCI Bus Power Management Interface 1.2, 3.2).

/// Length in bytes.
pub const LEN: usize = 8;
/// Capabilities, from the start of the capability: version 3, D3hot without PME.
pub const CAPABILITIES: u16 = 0x0003;
/// Offset of Control/Status.
pub const CONTROL: usize = 4;
/// Control/Status: power state, D0 to D3hot.
pub const CONTROL_STATE: u16 = 0b11;
/// Control/Status: the function keeps its state from D3hot to D0.
pub const CONTROL_NO_SOFT_RESET: u16 = 1 << 3;
