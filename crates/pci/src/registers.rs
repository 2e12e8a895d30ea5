//! The type-0 header (PCI 6.1, 6.2): offsets in bytes, and the bits used here.

/// Vendor ID, 16 bits.
pub const VENDOR_ID: usize = 0x00;
/// Device ID, 16 bits.
pub const DEVICE_ID: usize = 0x02;
/// Command, 16 bits.
pub const COMMAND: usize = 0x04;
/// Status, 16 bits.
pub const STATUS: usize = 0x06;
/// Revision ID, 8 bits; the class code follows in 24.
pub const REVISION_ID: usize = 0x08;
/// Cache Line Size, 8 bits.
pub const CACHE_LINE_SIZE: usize = 0x0c;
/// Header Type, 8 bits.
pub const HEADER_TYPE: usize = 0x0e;
/// Header Type: what follows; the bit above says that the device has several functions.
pub const HEADER_TYPE_LAYOUT: u8 = 0x7f;
/// First of six Base Address Registers, 32 bits each.
pub const BAR0: usize = 0x10;
/// Bytes of all six.
pub const BARS_LEN: usize = 24;
/// Subsystem Vendor ID, 16 bits.
pub const SUBSYSTEM_VENDOR_ID: usize = 0x2c;
/// Subsystem ID, 16 bits.
pub const SUBSYSTEM_ID: usize = 0x2e;
/// Capabilities Pointer, 8 bits.
pub const CAPABILITIES: usize = 0x34;
/// Interrupt Line, 8 bits: a note of the firmware to the driver.
pub const INTERRUPT_LINE: usize = 0x3c;
/// End of the header: the first place for a capability.
pub const HEADER_END: usize = 0x40;
/// Size of the configuration space of an Express function.
pub const CONFIG_SIZE: usize = 4096;
/// End of the part that capabilities live in.
pub const CAPABILITY_END: usize = 0x100;

/// Command: the function answers to I/O addresses.
pub const COMMAND_IO: u16 = 1 << 0;
/// Command: the function answers to memory addresses.
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// Command: the function may do DMA and send MSI-X messages.
pub const COMMAND_BUS_MASTER: u16 = 1 << 2;
/// Command: report parity errors.
pub const COMMAND_PARITY: u16 = 1 << 6;
/// Command: report system errors.
pub const COMMAND_SERR: u16 = 1 << 8;
/// Command: INTx is switched off.
pub const COMMAND_INTX_DISABLE: u16 = 1 << 10;
/// Status: there is a capability list.
pub const STATUS_CAPABILITIES: u16 = 1 << 4;

/// Capability ID of Power Management.
pub const CAPABILITY_POWER: u8 = 0x01;
/// Capability ID of what the vendor has added. Its third byte is its length.
pub const CAPABILITY_VENDOR: u8 = 0x09;
/// Capability ID of PCI Express.
pub const CAPABILITY_EXPRESS: u8 = 0x10;
/// Capability ID of MSI-X.
pub const CAPABILITY_MSIX: u8 = 0x11;

/// BAR: I/O ports.
pub const BAR_IO: u32 = 0b1;
/// BAR: which memory.
pub const BAR_TYPE: u32 = 0b110;
/// BAR: 64-bit memory.
pub const BAR_MEMORY_64: u32 = 0b100;
/// BAR: prefetchable memory.
pub const BAR_PREFETCHABLE: u32 = 0b1000;
