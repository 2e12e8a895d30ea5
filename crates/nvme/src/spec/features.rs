//! Feature identifiers (section 5.21.1) and the bits of their values.

/// Arbitration (5.21.1.1).
pub const ARBITRATION: u8 = 0x01;
/// Power Management (5.21.1.2).
pub const POWER_MANAGEMENT: u8 = 0x02;
/// Temperature Threshold (5.21.1.4).
pub const TEMPERATURE_THRESHOLD: u8 = 0x04;
/// Error Recovery (5.21.1.5).
pub const ERROR_RECOVERY: u8 = 0x05;
/// Volatile Write Cache (5.21.1.6).
pub const VOLATILE_WRITE_CACHE: u8 = 0x06;
/// Number of Queues (5.21.1.7).
pub const NUMBER_OF_QUEUES: u8 = 0x07;
/// Interrupt Coalescing (5.21.1.8).
pub const INTERRUPT_COALESCING: u8 = 0x08;
/// Interrupt Vector Configuration (5.21.1.9).
pub const INTERRUPT_VECTOR_CONFIGURATION: u8 = 0x09;
/// Write Atomicity Normal (5.21.1.10).
pub const WRITE_ATOMICITY: u8 = 0x0a;
/// Asynchronous Event Configuration (5.21.1.11).
pub const ASYNC_EVENT_CONFIGURATION: u8 = 0x0b;

/// CDW10 of Get and Set Features: the feature.
pub const FID: u32 = 0xff;
/// CDW10 of Get Features: which value; 0 is the current one, and others are not offered.
pub const SELECT: u32 = 7 << 8;
/// CDW10 of Set Features: keep over resets and power-off, which is not offered.
pub const SAVE: u32 = 1 << 31;

/// Power Management: PS, the power state.
pub const POWER_STATE: u32 = 0x1f;

/// Temperature Threshold: where TMPSEL begins; 0 is the composite temperature.
pub const TMPSEL_SHIFT: u32 = 16;
/// Temperature Threshold: the width of TMPSEL.
pub const TMPSEL: u32 = 0xf;
/// Temperature Threshold: TMPSEL of all sensors, for Set Features.
pub const TMPSEL_ALL: u32 = 0xf;
/// Temperature Threshold: where THSEL begins; 0 is over, 1 is under.
pub const THSEL_SHIFT: u32 = 20;
/// Temperature Threshold: the width of THSEL.
pub const THSEL: u32 = 3;
/// Volatile Write Cache: WCE, enable.
pub const WCE: u32 = 1;
/// Interrupt Vector Configuration: CD, coalescing disable.
pub const CD: u32 = 1 << 16;
/// Write Atomicity Normal: DN, disable normal.
pub const DN: u32 = 1;
/// Asynchronous Event Configuration: namespace attribute notices.
pub const NAMESPACE_ATTRIBUTE_NOTICES: u32 = 1 << 8;
