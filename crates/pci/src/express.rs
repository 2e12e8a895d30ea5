//! PCI Express capability (PCIe 7.5.3), version 2, of an endpoint.

/// Length in bytes.
pub const LEN: usize = 0x3c;
/// Capabilities register: version 2, endpoint.
pub const CAPABILITIES: u16 = 0x0002;
/// Offset of Device Capabilities.
pub const DEVICE_CAPABILITIES: usize = 0x04;
/// Device Capabilities: role-based error reporting.
pub const DEVICE_CAPABILITIES_RBER: u32 = 1 << 15;
/// Device Capabilities: function-level reset.
pub const DEVICE_CAPABILITIES_FLR: u32 = 1 << 28;
/// Offset of Device Control.
pub const DEVICE_CONTROL: usize = 0x08;
/// Device Control after reset: relaxed ordering, no snoop, 512-byte read requests.
pub const DEVICE_CONTROL_RESET: u16 = 0x2810;
/// Device Control: starts a function-level reset; reads as zero.
pub const DEVICE_CONTROL_FLR: u16 = 1 << 15;
/// Offset of Device Status.
pub const DEVICE_STATUS: usize = 0x0a;
/// Device Status: the function waits for completions of its requests.
pub const DEVICE_STATUS_PENDING: u16 = 1 << 5;
/// Offset of Link Capabilities.
pub const LINK_CAPABILITIES: usize = 0x0c;
/// Link Capabilities: 5 GT/s, eight lanes.
pub const LINK_CAPABILITIES_5GT_X8: u32 = 0x82;
/// Offset of Link Status.
pub const LINK_STATUS: usize = 0x12;
/// Offset of Device Capabilities 2.
pub const DEVICE_CAPABILITIES_2: usize = 0x24;
/// Device Capabilities 2: completion timeout can be disabled.
pub const DEVICE_CAPABILITIES_2_CTO_DISABLE: u32 = 1 << 4;
/// Offset of Device Control 2.
pub const DEVICE_CONTROL_2: usize = 0x28;
